"""`lbtrain measure ckpt_path=RUN/checkpoints/last.ckpt`: measure a checkpoint with the callbacks, without training."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from glob import glob

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from lbtrain.app.checkpoint import Run, key_of, merged, require, run_of
from lbtrain.app.signatures import ConfigError, nearest

USAGE = "\n".join([
    "usage: lbtrain measure ckpt_path=RUN/checkpoints/last.ckpt [overrides]",
    "",
    "Measures a checkpoint with the callbacks that measure (hessian, sharpness); nothing is trained.",
    "The config is that of the run which the checkpoint lies in, with the overrides on top;",
    "without a run, the default config.",
    "",
    "  callbacks=[hessian]              what to measure with",
    "  callbacks.hessian.top_k=10       any value of the config, as in training",
    "  callbacks.hessian.num_samples=N  on N samples of the training data",
    "  trainer=ddp_cpu                  on other devices",
    "  logger=wandb                     also to a logger (none, unless it is given here)",
    "  hydra.run.dir=DIR                where measurement.json and the figures go",
    "  -m ckpt_path=A,B                 several, one after another; also by a pattern,",
    "                                   -m 'ckpt_path=multirun/X/*/checkpoints/last.ckpt'",
])
# Of a pattern of paths.
_SIGNS = frozenset("*?[")


@dataclass(frozen=True)
class Line:
    """The command line, read."""

    checkpoint: str
    given: tuple[str, ...]
    """The user's overrides of the config, without the checkpoint."""
    run: Run | None
    """The run that the checkpoint lies in."""
    argv: tuple[str, ...]
    """What Hydra is to compose."""


def wants_help(words: Sequence[str]) -> bool:
    """Return whether the command line asks for the usage text.

    Args:
        words: After `measure`.

    Returns:
        Whether there are none, or one of them is `--help`.
    """
    return not words or bool({"-h", "--help"} & set(words))


def is_sweep(words: Sequence[str]) -> bool:
    """Return whether the command line asks for several measurements.

    Args:
        words: After `measure`.

    Returns:
        Whether `-m` is among them.
    """
    return bool({"-m", "--multirun"} & set(words))


def read(words: Sequence[str]) -> Line:
    """Read and check the command line of one measurement.

    Args:
        words: After `measure`.

    Returns:
        What to compose.

    Raises:
        ConfigError: If there is no checkpoint, or not exactly one.
    """  # noqa: DOC502 - raised by the checks below
    flags, overrides = split(words)
    path = checkpoint_in(overrides)
    require(path)
    run = run_of(path)
    given = [word for word in overrides if key_of(word) != "ckpt_path"]
    own = [word for word in given if not _of_hydra(word)]
    hydra = [word for word in given if _of_hydra(word)]
    known = {flag.partition("=")[0] for flag in flags}
    if run is not None:
        flags = [*(flag for flag in run.flags if flag.partition("=")[0] not in known), *flags]
    composed = merged(run.overrides, own) if run is not None else own
    searched = [] if run is None or any(key_of(w) == "hydra.searchpath" for w in hydra) else run.searched
    # The user's words come last, and win.
    settings = ["hydra.mode=RUN", *([] if _names_job(hydra) else ["hydra.job.name=measure"]), *searched, *hydra]
    argv = (*flags, *composed, f"ckpt_path={quoted(path)}", *settings)
    return Line(path, tuple(own), run, argv)


def split(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Tell flags from overrides.

    Args:
        words: After `measure`.

    Returns:
        The flags of Hydra, and the overrides.
    """
    overrides = get_args_parser().parse_known_args(list(words))[0].overrides
    return [word for word in words if word not in overrides], list(overrides)


def checkpoint_in(overrides: Sequence[str]) -> str:
    """Return the one checkpoint that overrides name.

    Args:
        overrides: Of the command line.

    Returns:
        Its path, as given; a name with `=` in it, as Lightning gives, needs no quotes.

    Raises:
        ConfigError: If there is none, or more than one.
    """
    paths = checkpoints_in(overrides)
    if len(paths) > 1:
        named = ", ".join(paths[:3])
        raise ConfigError(f"ckpt_path names {len(paths)} checkpoints ({named}): give one, or measure all with -m")
    return paths[0]


def checkpoints_in(overrides: Sequence[str]) -> list[str]:
    """Return all checkpoints that overrides name, patterns expanded.

    Args:
        overrides: Of the command line.

    Returns:
        Paths.

    Raises:
        ConfigError: If there is none, or the key is given twice.
    """
    values = [word.partition("=")[2] for word in overrides if key_of(word) == "ckpt_path"]
    if len(values) > 1:
        raise ConfigError("ckpt_path is given twice: give one, or several as ckpt_path=A,B with -m")
    paths = _values(values[0]) if values else []
    if not paths:
        raise ConfigError(f"ckpt_path is missing: {_meant(overrides)}")
    found = []
    for path in paths:
        matches = sorted(glob(path)) if _SIGNS & set(path) and not glob(_literal(path)) else [path]
        if not matches:
            raise ConfigError(f"no checkpoint matches {path}: look what ls {path} says")
        found += matches
    return found


def quoted(path: str) -> str:
    """Return a path as Hydra's grammar takes it, whatever is in it.

    Args:
        path: Any text.

    Returns:
        The text in quotes.
    """
    escaped = path.replace("'", "\\'").replace("${", "\\${")
    return f"'{escaped}'"


def _meant(overrides: Sequence[str]) -> str:
    """Return what to write in the place of what was typed."""
    for word in overrides:
        key, sign, value = word.partition("=")
        path = value if sign else word
        is_meant = not sign or path.endswith(".ckpt") or nearest(key, ["ckpt_path"])
        if is_meant and key != "ckpt_path" and not word.startswith("~"):
            return f"got {word!r}, did you mean ckpt_path={path or 'RUN/checkpoints/last.ckpt'}?"
    return "write ckpt_path=RUN/checkpoints/last.ckpt"


def _values(text: str) -> list[str]:
    try:
        override = OverridesParser.create().parse_override(f"ckpt_path={text}")
        values = list(override.sweep_iterator()) if override.is_sweep_override() else [override.value()]
    except HydraException:
        values = text.split(",")  # names such as epoch=3-step=10.ckpt are no values in Hydra's grammar
    return [str(value) for value in values if value is not None and str(value)]


def _literal(path: str) -> str:
    return "".join(f"[{sign}]" if sign in _SIGNS else sign for sign in path)


def _of_hydra(word: str) -> bool:
    return key_of(word).startswith(("hydra.", "hydra/"))


def _names_job(words: Sequence[str]) -> bool:
    return any(key_of(word) == "hydra.job.name" for word in words)


def told(error: Exception) -> int:
    """Print what is wrong with a command line.

    Args:
        error: What was refused.

    Returns:
        The exit code, 2.
    """
    print(f"lbtrain measure: {' '.join(str(error).split())}", file=sys.stderr)
    return 2
