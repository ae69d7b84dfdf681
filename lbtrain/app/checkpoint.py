"""Checkpoints on disk, and what the run that saved one was asked for."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path

import yaml

from lbtrain.app.names import QUIET
from lbtrain.app.signatures import ConfigError

# What Hydra leaves in the directory of a run.
_OVERRIDES, _SETTINGS, _CONFIG = ".hydra/overrides.yaml", ".hydra/hydra.yaml", ".hydra/config.yaml"
# Where runs land by default, relative to the directory in which they were started.
_LANDINGS = ("outputs/*/*/checkpoints/*.ckpt", "multirun/*/*/*/checkpoints/*.ckpt")
# A run's own choices that say nothing about what to measure.
_DROPPED = ("ckpt_path", "logger", "objective", QUIET.partition("=")[0])
# A message names the nearest few.
_NAMED = 3


@dataclass(frozen=True)
class Run:
    """The run that saved a checkpoint, as Hydra has written it down."""

    directory: Path
    overrides: tuple[str, ...]
    """Of its config, as given then, without those of loggers and checkpoints."""
    flags: tuple[str, ...]
    """Where its configs come from, such as `--config-dir=...`."""
    searched: tuple[str, ...]
    """Overrides of Hydra's search path."""

    @property
    def config(self) -> Path:
        """The file with the config as it was composed then."""
        return self.directory / _CONFIG


def require(path: str) -> None:
    """Refuse a path at which there is no checkpoint.

    Args:
        path: Of a file, or of the directory of a sharded checkpoint; addresses with `://` pass.

    Raises:
        ConfigError: If there is none; the message names the nearest ones.
    """
    place = Path(path)
    if "://" in path or place.is_file() or _is_sharded(place):
        return
    what = "is a directory, not a checkpoint" if place.is_dir() else "does not exist"
    found = nearest_checkpoints(place)
    way_out = f"the nearest are {', '.join(found)}" if found else "give the path of one, RUN/checkpoints/last.ckpt"
    raise ConfigError(f"the checkpoint {path} {what}: {way_out}")


def nearest_checkpoints(place: Path) -> list[str]:
    """Return checkpoints to name in the place of one that is not there.

    Args:
        place: Where there is none.

    Returns:
        Up to three paths: of the nearest directory that holds some, the likest first; else the newest of all runs below
        the current directory.
    """
    for folder in (place, *place.parents):
        found = [] if folder in (Path(), Path("/")) else [*folder.glob("*.ckpt"), *folder.glob("*/*.ckpt")]
        if found:
            likeness = {p: SequenceMatcher(None, str(place), str(p)).ratio() for p in found}
            return [str(p) for p in sorted(found, key=lambda p: (-likeness[p], p))][:_NAMED]
    landed = [p for pattern in _LANDINGS for p in Path().glob(pattern)]
    return [str(p) for p in sorted(landed, key=lambda p: p.stat().st_mtime, reverse=True)][:_NAMED]


def run_of(path: str) -> Run | None:
    """Return the run that a checkpoint lies in.

    Args:
        path: Of the checkpoint.

    Returns:
        The run in whose directory, at most two levels up, Hydra has left its files; None if there is none.

    Raises:
        ConfigError: If the files cannot be read.
    """
    if "://" in path:
        return None
    place = Path(path).absolute()
    for directory in place.parents[:3]:
        if (directory / _OVERRIDES).is_file():
            try:
                overrides = yaml.safe_load((directory / _OVERRIDES).read_text()) or []
                settings = yaml.safe_load((directory / _SETTINGS).read_text())["hydra"]
                kept = tuple(o for o in overrides if not key_of(o).split(".")[0].startswith("logger"))
                kept = tuple(o for o in kept if key_of(o) not in _DROPPED)
                searched = [o for o in settings["overrides"]["hydra"] if key_of(o) == "hydra.searchpath"]
                return Run(directory, kept, tuple(_flags(settings)), tuple(searched))
            except (OSError, yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
                raise ConfigError(
                    f"cannot read in {directory / '.hydra'} what the run was asked for ({error!r}): copy the "
                    "checkpoint to another directory, and give the run's overrides yourself"
                ) from error
    return None


def merged(run: Sequence[str], given: Sequence[str]) -> list[str]:
    """Put overrides on top of those of a run.

    A group that is chosen anew takes the run's values within it away; a new choice of callbacks those of the callbacks
    that are not in it.

    Args:
        run: Overrides of the run.
        given: Overrides of now.

    Returns:
        All that hold, those of the run first.
    """
    keys = {key_of(override) for override in given}
    chosen = {key_of(o): o.partition("=")[2] for o in given if "." not in key_of(o)}

    def holds(override: str) -> bool:
        key = key_of(override)
        group, _, rest = key.partition(".")
        if key in keys:
            return False
        if not rest or group not in chosen:
            return True
        choice = chosen[group].strip("[] ")
        listed = [name.strip() for name in choice.split(",")]
        return group == "callbacks" and rest.split(".")[0] in listed

    return [*filter(holds, run), *given]


def key_of(override: str) -> str:
    """Return the key that an override sets.

    Args:
        override: Such as `data.batch_size=64` or `+tags=[a]`.

    Returns:
        The key without signs.
    """
    return override.lstrip("+~").partition("=")[0].partition("@")[0]


def _flags(settings: dict) -> Iterator[str]:
    name = settings["job"].get("config_name")
    if name and name != "train":
        yield f"--config-name={name}"
    for source in settings["runtime"]["config_sources"]:
        schema, place = source["schema"], source["path"]
        if source["provider"] == "main" and (schema, place) != ("pkg", "lbtrain.conf"):
            yield f"--config-path={place if schema == 'file' else f'{schema}://{place}'}"
        if source["provider"] == "command-line":
            yield f"--config-dir={place}"


def _is_sharded(place: Path) -> bool:
    # What torch.distributed.checkpoint and DeepSpeed leave.
    return (place / ".metadata").is_file() or (place / "latest").is_file() or (place / "checkpoint").is_dir()
