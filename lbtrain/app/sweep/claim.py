"""Two sweeps never write to one directory at the same time."""

import os
from pathlib import Path

from hydra.errors import CompactHydraException
from omegaconf import DictConfig, open_dict

# Directories that this process has claimed for its sweeps, each with the open file that keeps other sweeps out.
_claimed: dict[Path, int] = {}


def claim(config: DictConfig) -> Path:
    """Return a directory that no other sweep writes to at this time: the configured one, or one beside it.

    Two sweeps that start within one second are configured with the same directory.

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
        path.mkdir(parents=True, exist_ok=True)
        # The lock of an open directory leaves no file behind, and ends with this process however it ends.
        opened = os.open(path, os.O_RDONLY)
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(opened)
            continue
        except OSError:
            pass  # a file system without locks
        _claimed[path] = opened
        with open_dict(config):
            config.hydra.sweep.dir = str(path)  # for a sweeper that writes its results there
        return path
    raise CompactHydraException(f"other sweeps write to {wanted} already; choose another hydra.sweep.dir")
