"""`python -m lbtrain.study SWEEP_DIR...`, also `lbtrain report`: rebuild the report and print the comparison."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from lbtrain.study.baseline import BaselineError
from lbtrain.study.load import NoRunsError
from lbtrain.study.report import Report, write_report
from lbtrain.study.terminal import print_report

_PROGRAM = "python -m lbtrain.study"


def show(sweep_dir: str | Path) -> None:
    """Build the report of a sweep and print the comparison; the launcher calls this at the end of a sweep.

    Args:
        sweep_dir: Folder of the sweep.

    Raises:
        NoRunsError: If the folder is not there or holds no run.
    """  # noqa: DOC502 - raised by write_report
    print_report(write_report(sweep_dir))


def main(arguments: Sequence[str] | None = None, prog: str = _PROGRAM) -> int:
    """Rebuild the report of a sweep and print the comparison.

    Args:
        arguments: Words of the command line; those of the process when None.
        prog: What the command was called by, for its usage and its errors.

    Returns:
        Exit code: 0 when the report was written (also of failed runs), 2 when there is nothing to report, 1 when
        only W&B could not be reached, or its file not be written.
    """
    parser = _parser(prog)
    options = parser.parse_args(arguments)
    if options.wandb_dry_run and not options.wandb:
        parser.error("--wandb-dry-run needs --wandb ENTITY/PROJECT, where the report would go")
    try:
        report = write_report(options.sweep_dir, options.out, options.baseline, options.by_sweep)
    except (NoRunsError, BaselineError) as error:
        print(error, file=sys.stderr)
        return 2
    print_report(report)
    return _publish(report, options.sweep_dir, options.wandb, options.wandb_dry_run) if options.wandb else 0


def _parser(prog: str = _PROGRAM) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=prog, description="Compare the runs of a sweep.")
    about = "folder of a sweep or of one run; several are put together"
    parser.add_argument("sweep_dir", nargs="+", type=Path, metavar="SWEEP_DIR", help=about)
    parser.add_argument("--out", type=Path, help="where to write the report (default: the first folder)")
    parser.add_argument(
        "--baseline",
        metavar="WORDS",
        help="setting that the others are compared with, such as 'optimizer=SGD momentum 0.9 batch=16' or 'batch=16' "
        "(default: no SAM, fixed rate, smallest batch)",
    )
    parser.add_argument(
        "--by-sweep", action="store_true", help="compare equal runs of several sweeps instead of keeping the newest"
    )
    parser.add_argument(
        "--wandb", metavar="ENTITY/PROJECT", type=_entity_and_project, help="publish a W&B report there, too"
    )
    parser.add_argument(
        "--wandb-dry-run",
        metavar="FILE",
        type=Path,
        help="write what --wandb would publish as JSON, and publish nothing",
    )
    return parser


def _entity_and_project(words: str) -> tuple[str, str]:
    entity, slash, project = words.partition("/")
    if not (entity and slash and project) or "/" in project:
        raise argparse.ArgumentTypeError(f"must be ENTITY/PROJECT, got {words!r}")
    return entity, project


def _publish(report: Report, folders: Sequence[Path], place: tuple[str, str], file: Path | None) -> int:
    from lbtrain.study import wandb_report  # only here: it needs an extra

    try:
        if file is None:
            print(f"W&B report: {wandb_report.publish(report, folders, *place)}")
        else:
            wandb_report.write_spec(report, folders, *place, file)
            print(f"W&B report, not published: {file}")
    except wandb_report.PublishError as error:
        print(error, file=sys.stderr)
        return 1
    except OSError as error:
        where = "W&B report" if file is None else f"--wandb-dry-run: {file} cannot be written"
        print(f"{where}: {error.strerror or error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
