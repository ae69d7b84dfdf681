"""`python -m lbtrain.study SWEEP_DIR [SWEEP_DIR...] [--out DIR]`: rebuild the report and print the comparison."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from lbtrain.study.load import NoRunsError
from lbtrain.study.report import write_report
from lbtrain.study.terminal import print_report


def show(sweep_dir: str | Path) -> None:
    """Build the report of a sweep and print the comparison; the launcher calls this at the end of a sweep.

    Args:
        sweep_dir: Folder of the sweep.

    Raises:
        NoRunsError: If the folder is not there or holds no run.
    """  # noqa: DOC502 - raised by write_report
    print_report(write_report(sweep_dir))


def main(arguments: Sequence[str] | None = None) -> int:
    """Rebuild the report of a sweep and print the comparison.

    Args:
        arguments: Words of the command line; those of the process when None.

    Returns:
        Exit code: 0 when the report was written (also of failed runs), 2 when there is nothing to report.
    """
    parser = argparse.ArgumentParser(prog="python -m lbtrain.study", description="Compare the runs of a sweep.")
    parser.add_argument(
        "sweep_dir", nargs="+", type=Path, help="folder of a sweep or of one run; several are put together"
    )
    parser.add_argument("--out", type=Path, help="where to write the report (default: the first folder)")
    options = parser.parse_args(arguments)
    try:
        print_report(write_report(options.sweep_dir, options.out))
    except NoRunsError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
