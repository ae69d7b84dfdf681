"""Run the jobs of a sweep, each in a process of its own, and compare them at the end."""

import multiprocessing
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra._internal.utils import get_args_parser
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import CompactHydraException
from omegaconf import DictConfig, OmegaConf, open_dict

from lbtrain.app.config import flat
from lbtrain.app.jobs import Job, run_jobs
from lbtrain.app.names import QUIET, labels
from lbtrain.app.own import own_modules
from lbtrain.app.precheck import check
from lbtrain.records import read_record

# A job of a small study takes about 1 GB; more at a time than this is for machines that the user knows.
_MOST_SLOTS = 16
# Lightning's rank and seed variables: what this process was started with, a job must not take for its own.
_LEAKS = ("LOCAL_RANK", "RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "PL_GLOBAL_SEED")
# What the launcher decides for each job itself; other overrides of the hydra node are handed on.
_OWN = ("hydra.mode", "hydra.run", "hydra.sweep", "hydra.launcher", "hydra/launcher", "hydra/sweeper")

# Directories that this process has claimed for its sweeps, each with the open file that keeps other sweeps out.
_claimed: dict[Path, int] = {}
# Those in which jobs were started.
_started: list[Path] = []


def launch(
    config: DictConfig,
    configs: Sequence[DictConfig],
    job_overrides: Sequence[Sequence[str]],
    first_number: int,
    slots: int | None,
    start_method: str,
) -> list[JobReturn]:
    """Check all jobs, then run them, several at a time; a job that fails leaves the others running.

    Args:
        config: The sweep's own config, with its `hydra` node.
        configs: The composed config of each job.
        job_overrides: The overrides of each job.
        first_number: Number of the first job.
        slots: Jobs at a time; None decides.
        start_method: Of `multiprocessing`: `forkserver` or `spawn`.

    Returns:
        One result per job, in order: the objective, or the reason why there is none.

    Raises:
        CompactHydraException: If an argument or a config is not valid; no job has started then.
    """
    if start_method not in ("forkserver", "spawn"):
        raise CompactHydraException(f"hydra.launcher.start_method must be forkserver or spawn, got {start_method!r}")
    if slots is not None and (not isinstance(slots, int) or slots < 1):
        raise CompactHydraException(f"hydra.launcher.slots must be a whole number from 1 on, or null, got {slots!r}")
    for name in _LEAKS:
        os.environ.pop(name, None)
    context = multiprocessing.get_context(start_method)
    if start_method == "forkserver":
        # The server imports this once; every job is forked from it, before torch has started any thread. The user's own
        # modules come first: lbtrain's door to Lightning follows the package that they import.
        own = dict.fromkeys(name for job_config in configs for name in own_modules(job_config))
        context.set_forkserver_preload([*own, "lbtrain.app.train"])  # type: ignore[attr-defined]
    sweep = _claim(config)
    named = enumerate(zip(configs, job_overrides, labels(job_overrides), strict=True), start=first_number)
    jobs = [_job(config, own, overrides, sweep, number, label) for number, (own, overrides, label) in named]
    check(context, configs)
    _started.append(sweep)
    slots, threads = _shares(configs, slots)
    run_jobs(context, jobs, slots, threads)
    return [_result(job, job_config) for job, job_config in zip(jobs, configs, strict=True)]


def show_last_sweep() -> None:
    """Print the comparison of the sweep that this process has run, if any, and where its report is."""
    if _started:
        from lbtrain.study.__main__ import show

        show(_started[-1])


def _claim(config: DictConfig) -> Path:
    """Return a directory that no other sweep writes to at this time: the configured one, or one beside it.

    Two sweeps that start within one second are configured with the same directory.

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


def _job(
    config: DictConfig, job_config: DictConfig, overrides: Sequence[str], sweep: Path, number: int, label: str
) -> Job:
    with open_dict(job_config):
        job_config.hydra.job.num = number
        directory = sweep / str(job_config.hydra.sweep.subdir)
        job_config.hydra.runtime.output_dir = str(directory)
        quiet = "enable_progress_bar" in job_config.get("trainer", {})
        if quiet:
            job_config.trainer.enable_progress_bar = False
    tasks = [o for o in overrides if not _of_hydra(o)]
    swept = [o for o in overrides if _of_hydra(o)]
    written = OmegaConf.to_container(config.hydra.overrides.hydra, resolve=False)
    own = [o for o in (*written, *swept) if not o.lstrip("+~").startswith(_OWN)]
    placed = [f"hydra.run.dir={_quoted(directory)}", f"hydra.sweep.dir={_quoted(sweep)}", f"hydra.job.num={number}"]
    argv = [sys.argv[0], *_config_flags(), *tasks, *([QUIET] if quiet else []), *own, "hydra.mode=RUN", *placed]
    return Job(number, tuple(tasks), directory, tuple(argv), label, flat(job_config))


def _of_hydra(override: str) -> bool:
    return override.lstrip("+~").startswith(("hydra.", "hydra/"))


def _config_flags() -> Iterator[str]:
    """Yield the flags that say where configs come from, as this process was given them."""
    given, _ = get_args_parser().parse_known_args(sys.argv[1:])
    for flag in ("config_name", "config_path", "config_dir"):
        if getattr(given, flag, None):
            yield f"--{flag.replace('_', '-')}={getattr(given, flag)}"


def _quoted(path: Path) -> str:
    escaped = str(path).replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def _shares(configs: Sequence[DictConfig], slots: int | None) -> tuple[int, int]:
    """Return how many jobs run at a time, and how many threads each of their processes gets."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    trainers = [c.get("trainer") or {} for c in configs]
    processes = max(t.get("devices") if isinstance(t.get("devices"), int) else 1 for t in trainers)
    processes = max(processes, 1)
    if slots is None:
        cpu = all(t.get("accelerator") == "cpu" for t in trainers)
        slots = max(1, min(cores // processes, _MOST_SLOTS)) if cpu else 1
    slots = min(slots, len(configs))
    return slots, max(1, cores // (slots * processes))


def _result(job: Job, config: DictConfig) -> JobReturn:
    record: Any = read_record(job.directory)
    result = JobReturn(overrides=list(job.overrides), cfg=config, working_dir=str(job.directory))
    if record.status != "finished":
        result.status = JobStatus.FAILED
        result.return_value = CompactHydraException(f"run {job.number + 1} failed: {record.error}")
        return result
    result.status = JobStatus.COMPLETED
    result.return_value = record.metrics.get(config.get("objective", ""))
    return result
