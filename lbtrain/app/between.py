"""`lbtrain between SWEEP_DIR`: the loss on the line between the solutions of a small and of a large batch."""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lbtrain.app.between_pairs import Pair, RunAt, pair_of, pairs_in, run_at
from lbtrain.app.signatures import ConfigError
from lbtrain.records import replace_file

FOLDER = "between"
# Keskar et al. (2017), figures 3 and 4.
_FIRST, _LAST = -1.0, 2.0
_POINTS = 31
_DESCRIPTION = (
    "Loss and accuracy of w(alpha) = (1 - alpha) w_0 + alpha w_1 between two trained solutions, alpha from -1 to 2. "
    "With one folder, a sweep: between the runs of its smallest and of its largest batch size that agree in all other "
    "settings and the seed. With two: between these runs. The last checkpoint of each run counts."
)


def main(words: Sequence[str]) -> int:
    """Measure the lines, write `between/*.json` and rebuild the report of a sweep.

    Args:
        words: The command line after `between`.

    Returns:
        Exit code: 0; 1 if a line could not be measured; 2 if the command line cannot be followed.
    """
    given = _parser().parse_args(list(words))
    try:
        alpha = _alphas(given.points)
        pairs, out = _asked(given.folders, given.out)
    except ConfigError as error:
        return _told(error)
    failed = 0
    for number, pair in enumerate(pairs):
        print(f"line {number + 1} of {len(pairs)}: {pair.title}", flush=True)
        try:
            path = _measured(pair, alpha, out)
        except ConfigError as error:
            failed += 1
            _told(error)
        else:
            print(f"  {path}", flush=True)
    rebuilt = _rebuild(out) if failed < len(pairs) and out == given.folders[0] else 0
    return 1 if failed else rebuilt


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("lbtrain between", description=_DESCRIPTION)
    parser.add_argument("folders", nargs="+", type=Path, metavar="DIR", help="folder of a sweep, or of two runs")
    parser.add_argument(
        "--points", type=int, default=_POINTS, help="places on the line, 3 n + 1 (default: %(default)s)"
    )
    parser.add_argument(
        "--out", type=Path, help="where between/ goes (default: the sweep's folder, or that of the runs)"
    )
    return parser


def _alphas(points: int) -> list[float]:
    """Return the places on the line, 0 and 1 among them.

    Raises:
        ConfigError: If so many cannot be.
    """
    if points < 4 or points % 3 != 1:
        raise ConfigError(
            f"--points must be 4 or 3 n + 1, so that 0 and 1 are among them, got {points}: take {_POINTS}"
        )
    per_unit = (points - 1) // 3
    return [_FIRST + n / per_unit for n in range(points)]


def _asked(folders: Sequence[Path], out: Path | None) -> tuple[list[Pair], Path]:
    """Return the pairs, and the folder that `between/` goes to.

    Raises:
        ConfigError: If there is none.
    """
    if len(folders) > 2:
        raise ConfigError(f"got {len(folders)} folders: give one sweep, or two runs")
    if len(folders) == 1:
        return pairs_in(folders[0]), out or folders[0]
    runs = [run_at(folder, folder.resolve().name) for folder in folders]
    if out is None and folders[0].resolve().parent != folders[1].resolve().parent:
        raise ConfigError("the two runs are of different sweeps: say with --out DIR where between/ is to go")
    return [pair_of(*runs)], out or folders[0].resolve().parent


def _measured(pair: Pair, alpha: Sequence[float], out: Path) -> Path:
    """Measure one line and write its file.

    Returns:
        The file.
    """
    from lbtrain.app.between_line import along  # imports torch

    curves = along(pair, alpha)
    folder = out / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{pair.name}.json"
    content = {
        "title": pair.title,
        "network": pair.network,
        "seed": pair.start.seed,
        "from": _end(pair.start),
        "to": _end(pair.end),
        "alpha": list(alpha),
        **curves,
    }
    replace_file(path, (json.dumps(_words(content), indent=1, allow_nan=False) + "\n").encode())
    return path


def _end(run: RunAt) -> dict[str, Any]:
    return {"run": run.name, "label": run.label, "batch": run.batch}


def _words(node: Any) -> Any:
    """Return the node with the words of records for what JSON has no number for."""
    if isinstance(node, Mapping):
        return {key: _words(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_words(value) for value in node]
    return str(node) if isinstance(node, float) and node - node != 0 else node


def _rebuild(sweep: Path) -> int:
    from lbtrain.app.commands import report

    return report([str(sweep)])


def _told(error: Exception) -> int:
    print(f"lbtrain between: {' '.join(str(error).split())}", file=sys.stderr)
    return 2
