"""Several measurements, one after another, each in a process of its own, and their numbers in one table."""

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lbtrain.app.checkpoint import key_of, require
from lbtrain.app.measure import checkpoints_in, quoted, split
from lbtrain.app.signatures import ConfigError

# Column -> key.
_COLUMNS = {
    "lambda_max": "hessian/lambda_max",
    "stability": "hessian/stability",
    "Keskar": "sharpness/keskar",
    "SAM": "sharpness/sam",
    "train loss": "train/loss",
    "test acc": "test/acc",
}
_FILE = "measurement.json"


def sweep(words: Sequence[str]) -> int:
    """Measure every checkpoint with every combination of the values that are given.

    Args:
        words: The command line after `measure`, with `-m`.

    Returns:
        Exit code: 0, or 1 if a measurement failed.
    """
    flags, overrides = split([word for word in words if word not in {"-m", "--multirun"}])
    jobs = list(combinations(overrides))
    directory = _directory(overrides)
    codes = []
    for number, job in enumerate(jobs):
        print(f"measurement {number + 1} of {len(jobs)}: {' '.join(job)}", flush=True)
        place = directory / str(number)
        codes.append(_run([*flags, *job, f"hydra.run.dir={quoted(str(place))}"]))
    _show(directory, jobs)
    return int(any(codes))


def combinations(overrides: Sequence[str]) -> list[list[str]]:
    """Return the overrides of each measurement.

    Args:
        overrides: Of the command line; values separated by commas are measured one after another.

    Returns:
        One list for each combination, the checkpoint first.

    Raises:
        ConfigError: If a value cannot be read, or is a sweep without an end.
    """
    paths = checkpoints_in(overrides)
    for path in paths:
        require(path)
    choices = [[f"ckpt_path={quoted(path)}" for path in paths]]
    parser = OverridesParser.create()
    for word in overrides:
        if key_of(word) in {"ckpt_path", "hydra.sweep.dir"}:
            continue
        try:
            override = parser.parse_override(word)
        except HydraException as error:
            raise ConfigError(f"cannot read {word!r}: write KEY=VALUE, or KEY=A,B for several") from error
        if not override.is_sweep_override():
            choices.append([word])
        elif override.is_discrete_sweep():
            key = word.partition("=")[0]
            choices.append([f"{key}={value}" for value in override.sweep_string_iterator()])
        else:
            raise ConfigError(f"{word} has no end: list the values, as {key_of(word)}=A,B")
    return [list(job) for job in itertools.product(*choices)]


def _directory(overrides: Sequence[str]) -> Path:
    """Return where the measurements go.

    Raises:
        ConfigError: If all were to go to one directory.
    """
    if any(key_of(word) == "hydra.run.dir" for word in overrides):
        raise ConfigError("hydra.run.dir is of one measurement: with -m give hydra.sweep.dir=DIR")
    given = [word.partition("=")[2].strip("'\"") for word in overrides if key_of(word) == "hydra.sweep.dir"]
    return Path(given[-1] if given else f"multirun/{datetime.now():%Y-%m-%d/%H-%M-%S}")


def _run(words: Sequence[str]) -> int:
    """Run one measurement to its end.

    Returns:
        Its exit code.

    Raises:
        KeyboardInterrupt: After Ctrl-C, when the measurement, which has received it too, has ended.
    """
    import __main__  # as it is now: tests and other programs put their own in its place

    spec = getattr(__main__, "__spec__", None)
    program = [os.path.abspath(sys.argv[0])] if spec is None else ["-m", spec.name]
    process = subprocess.Popen([sys.executable, *program, "measure", *words])
    try:
        return process.wait()
    except KeyboardInterrupt:
        _wait(process)
        raise


def _wait(process: subprocess.Popen[bytes]) -> None:
    # A second Ctrl-C reaches the measurement too, and ends it at once.
    while process.poll() is None:
        try:
            process.wait()
        except KeyboardInterrupt:
            continue


def _show(directory: Path, jobs: Sequence[Sequence[str]]) -> None:
    """Print the numbers of all measurements."""
    rows = [_numbers(directory / str(number) / _FILE) for number in range(len(jobs))]
    shown = {title: key for title, key in _COLUMNS.items() if any(key in row for row in rows)}
    shared = set.intersection(*map(set, jobs))
    table = Table(show_header=True, header_style="bold")
    table.add_column("measurement")
    for title in shown:
        table.add_column(title, justify="right")
    for job, row in zip(jobs, rows, strict=True):
        label = " ".join(_without_key(word) for word in job if word not in shared or len(jobs) == 1)
        cells = [_cell(row.get(key)) for key in shown.values()] if row else ["failed"] * bool(shown)
        table.add_row(escape(label), *cells)
    console = Console()
    console.print(table)
    console.print(f"results: {escape(str(directory))}", highlight=False, soft_wrap=True)


def _numbers(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return found["metrics"] if found["status"] == "finished" else {}


def _cell(value: Any) -> str:
    return "-" if value is None else f"{float(value):.3g}"


def _without_key(word: str) -> str:
    key, _, value = word.partition("=")
    return value.strip("'") if key == "ckpt_path" else word
