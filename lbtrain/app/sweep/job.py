"""One job of a sweep, and the command line that it runs."""

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hydra._internal.utils import get_args_parser
from omegaconf import DictConfig, OmegaConf, open_dict

from lbtrain.app.names import QUIET
from lbtrain.app.sweep.needs import Need
from lbtrain.records import Scalar

LOG_NAME = "out.log"
PULSE_NAME = ".pulse.json"
# What the launcher decides for each job itself; other overrides of the hydra node are handed on.
_OWN = ("hydra.mode", "hydra.run", "hydra.sweep", "hydra.launcher", "hydra/launcher", "hydra/sweeper")
_ONE_CORE = Need("cpu", 1)


@dataclass(frozen=True)
class Job:
    """One run of a sweep."""

    title: str
    """Such as `run 2 of 16`."""
    label: str
    """What sets it apart from the other runs."""
    overrides: tuple[str, ...]
    directory: Path
    argv: tuple[str, ...]
    """Program and arguments of a start from the beginning."""
    config: Mapping[str, Scalar]
    """Flat, without secrets: for the record of a job that dies before it can leave one."""
    fingerprint: str = ""
    need: Need = _ONE_CORE
    threads: int = 1
    ckpt: Path | None = None
    """Checkpoint to go on from."""
    sweep: Path | None = None
    """Directory of the sweep."""

    @property
    def folder(self) -> str:
        """The directory as a sweep's lines name it: run 3 is not always in folder 2."""
        return os.path.relpath(self.directory, self.sweep) if self.sweep else self.directory.name

    @property
    def command(self) -> tuple[str, ...]:
        """Program and arguments of this start."""
        if self.ckpt is None:
            return self.argv
        given = (word for word in self.argv if word.lstrip("+").partition("=")[0] != "ckpt_path")
        return (*given, f"ckpt_path={quoted(self.ckpt)}")


def argv_of(
    config: DictConfig, job_config: DictConfig, overrides: Sequence[str], directory: Path, sweep: Path, number: int
) -> tuple[str, ...]:
    """Return the command line of a job, and set in its config what that changes.

    Args:
        config: The sweep's own config, with its `hydra` node.
        job_config: The composed config of the job.
        overrides: Of the job.
        directory: In which it runs.
        sweep: Directory of the sweep.
        number: For `hydra.job.num`.

    Returns:
        Program and arguments of a single run.
    """
    with open_dict(job_config):
        job_config.hydra.job.num = number
        job_config.hydra.runtime.output_dir = str(directory)
        quiet = "enable_progress_bar" in (job_config.get("trainer") or {})
        if quiet:
            job_config.trainer.enable_progress_bar = False
    swept = [o for o in overrides if _of_hydra(o)]
    written = OmegaConf.to_container(config.hydra.overrides.hydra, resolve=False)
    own = [o for o in (*written, *swept) if not o.lstrip("+~").startswith(_OWN)]
    placed = [f"hydra.run.dir={quoted(directory)}", f"hydra.sweep.dir={quoted(sweep)}", f"hydra.job.num={number}"]
    words = [*tasks(overrides), *([QUIET] if quiet else []), *own, "hydra.mode=RUN", *placed]
    return (sys.argv[0], *_config_flags(), *words)


def tasks(overrides: Sequence[str]) -> tuple[str, ...]:
    """Pick the overrides of the config proper.

    Args:
        overrides: Of a job.

    Returns:
        Those that are not of the `hydra` node.
    """
    return tuple(o for o in overrides if not _of_hydra(o))


def quoted(path: Path) -> str:
    """Quote a path for an override.

    Args:
        path: Any path.

    Returns:
        The path in quotes, with backslashes before what would end them.
    """
    escaped = str(path).replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def _of_hydra(override: str) -> bool:
    return override.lstrip("+~").startswith(("hydra.", "hydra/"))


def _config_flags() -> Iterator[str]:
    """Yield the flags that say where configs come from, as this process was given them."""
    given, _ = get_args_parser().parse_known_args(sys.argv[1:])
    for flag in ("config_name", "config_path", "config_dir"):
        if getattr(given, flag, None):
            yield f"--{flag.replace('_', '-')}={getattr(given, flag)}"
