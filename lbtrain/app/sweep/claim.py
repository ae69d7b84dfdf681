"""Two sweeps never write to one directory at the same time, and one that is refused leaves none behind."""

import os
from contextlib import suppress
from pathlib import Path

from hydra.errors import CompactHydraException
from omegaconf import DictConfig, OmegaConf, open_dict

# Directories that this process has claimed for its sweeps, each with the open file that keeps other sweeps out.
_claimed: dict[Path, int] = {}
# Directories of sweeps that did not exist before, each with those of its parents that did not exist either.
_new: dict[Path, list[Path]] = {}
# What Hydra's sweeper writes before it asks the launcher for anything.
_WRITTEN_AT_ONCE = {"multirun.yaml"}


def claim(config: DictConfig) -> Path:
    """Return a directory that no other sweep writes to at this time: the configured one, or one beside it.

    Two sweeps that start within one second are configured with the same directory; the later one says where it is. A
    directory that the user has named is the only one: beside it, all runs would start from the beginning.

    Args:
        config: The sweep's own config; it is told of a directory beside the configured one.

    Returns:
        Path of the directory, which exists.

    Raises:
        CompactHydraException: If there is none.
    """
    import fcntl  # not on Windows, where single runs still work

    wanted = Path(config.hydra.sweep.dir).absolute()
    for number in range(1, 1000):
        path = wanted if number == 1 else wanted.with_name(f"{wanted.name}-{number}")
        if path in _claimed:
            return path
        note(path)
        path.mkdir(parents=True, exist_ok=True)
        # The lock of an open directory leaves no file behind, and ends with this process however it ends.
        opened = os.open(path, os.O_RDONLY)
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(opened)
            if is_named(config):
                break
            continue
        except OSError:
            pass  # a file system without locks
        _claimed[path] = opened
        if path != wanted:
            print(f"another sweep writes to {wanted}; this one writes to {path}")
        with open_dict(config):
            config.hydra.sweep.dir = str(path)  # for a sweeper that writes its results there
        return path
    raise CompactHydraException(
        f"another sweep writes to {wanted}; wait for it, end it, or give another hydra.sweep.dir"
    )


def is_named(config: DictConfig) -> bool:
    """Say whether the command line names the sweep's directory.

    Args:
        config: The sweep's own config.

    Returns:
        False where a config file, or the default, does.
    """
    written = OmegaConf.to_container(config.hydra.overrides.hydra, resolve=False)
    return any(override.lstrip("+").startswith("hydra.sweep.dir=") for override in written)


def note(sweep: Path) -> None:
    """Remember which directories a sweep is about to make.

    Args:
        sweep: Its directory.
    """
    path = sweep.absolute()
    if not path.exists():
        _new[path] = [parent for parent in path.parents if not parent.exists()]


def keep() -> None:
    """Leave the directories of this process as they are: jobs have run."""
    _new.clear()


def remove_unused() -> None:
    """Remove the directories that this process has made for sweeps of which no job has written anything."""
    for path, parents in _new.items():
        if not path.is_dir() or not {entry.name for entry in path.iterdir()} <= _WRITTEN_AT_ONCE or _is_foreign(path):
            continue
        for name in _WRITTEN_AT_ONCE:
            (path / name).unlink(missing_ok=True)
        with suppress(OSError):  # not empty: others write there
            for made in (path, *parents):
                made.rmdir()
    _new.clear()


def _is_foreign(path: Path) -> bool:
    """Return whether a sweep of another process has claimed a directory."""
    import fcntl

    if path in _claimed:
        return False
    opened = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True  # also where it cannot be known
    finally:
        os.close(opened)
    return False
