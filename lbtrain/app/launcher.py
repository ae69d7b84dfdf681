"""Run the jobs of a sweep, each in a process of its own, and compare them at the end."""

import multiprocessing
import os
import sys
from collections.abc import Iterator, Sequence
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus, setup_globals
from hydra.errors import CompactHydraException
from omegaconf import DictConfig, open_dict

from lbtrain.app.jobs import Job, run_jobs
from lbtrain.records import read_record

# What one job or its parent leaves in the environment and another must not inherit: Lightning's rank and seed
# variables.
_LEAKS = ("LOCAL_RANK", "RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "PL_GLOBAL_SEED")
# A job of a small study takes about 1 GB; more at a time than this is for machines that the user knows.
_MOST_SLOTS = 16

_last_sweep: Path | None = None


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
        CompactHydraException: If a config is not valid; no job has started then.
    """
    global _last_sweep
    if start_method not in multiprocessing.get_all_start_methods() or start_method == "fork":
        raise CompactHydraException(f"hydra.launcher.start_method must be forkserver or spawn, got {start_method!r}")
    sweep = Path(config.hydra.sweep.dir).absolute()
    jobs = [
        _job(config, job_config, overrides, sweep, first_number + i, label)
        for i, (job_config, overrides, label) in enumerate(
            zip(configs, job_overrides, _labels(job_overrides), strict=True)
        )
    ]
    context = multiprocessing.get_context(start_method)
    if start_method == "forkserver":
        # The server imports this once; every job is forked from it, before torch has started any thread.
        context.set_forkserver_preload(["lbtrain.app.train"])  # type: ignore[attr-defined]
    _check(context, configs)
    _last_sweep = sweep
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    slots = min(slots or _slots(configs, cores), len(jobs))
    run_jobs(context, jobs, slots, threads=max(1, cores // slots))
    return [_result(job, job_config) for job, job_config in zip(jobs, configs, strict=True)]


def show_last_sweep() -> None:
    """Print the comparison of the sweep that this process has run, if any, and where its report is."""
    if _last_sweep is not None:
        from lbtrain.study.__main__ import show

        show(_last_sweep)


def _job(
    config: DictConfig, job_config: DictConfig, overrides: Sequence[str], sweep: Path, number: int, label: str
) -> Job:
    with open_dict(job_config):
        job_config.hydra.job.num = number
        directory = sweep / str(job_config.hydra.sweep.subdir)
        job_config.hydra.runtime.output_dir = str(directory)
    skipped = ("hydra.mode", "hydra.run", "hydra.sweep", "hydra.launcher", "hydra/launcher", "hydra/sweeper")
    own = [o for o in config.hydra.overrides.hydra if not o.lstrip("+~").startswith(skipped)]
    placed = [f"hydra.run.dir={_quoted(directory)}", f"hydra.sweep.dir={_quoted(sweep)}", f"hydra.job.num={number}"]
    tasks = [o for o in overrides if not o.startswith("hydra")]
    quiet = ["trainer.enable_progress_bar=false"] if "enable_progress_bar" in job_config.get("trainer", {}) else []
    argv = [sys.argv[0], *_config_flags(), *tasks, *quiet, *own, "hydra.mode=RUN", *placed]
    return Job(number, tuple(tasks), directory, tuple(argv), label)


def _labels(job_overrides: Sequence[Sequence[str]]) -> list[str]:
    """Return what sets each job apart: its overrides less what all share, lists less their shared entries.

    Returns:
        One text per job; `run` where nothing sets it apart.
    """
    jobs = [dict(override.partition("=")[::2] for override in overrides) for overrides in job_overrides]
    shared = set.intersection(*(set(job.items()) for job in jobs))
    lists = [{k: set(v[1:-1].split(",")) for k, v in job.items() if v.startswith("[")} for job in jobs]
    labels = []
    for job, own in zip(jobs, lists, strict=True):
        parts = {key: value for key, value in job.items() if (key, value) not in shared}
        for key in own.keys() & parts.keys():
            common = set.intersection(*(other.get(key, set()) for other in lists))
            parts[key] = "+".join(sorted(own[key] - common)) or "none more"
        labels.append(" ".join(f"{key}={value}" for key, value in parts.items()) or "run")
    return labels


def _config_flags() -> Iterator[str]:
    """Yield the flags that say where configs come from, as this process was given them."""
    given, _ = get_args_parser().parse_known_args(sys.argv[1:])
    for flag in ("config_name", "config_path", "config_dir"):
        if getattr(given, flag, None):
            yield f"--{flag.replace('_', '-')}={getattr(given, flag)}"


def _quoted(path: Path) -> str:
    escaped = str(path).replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def _slots(configs: Sequence[DictConfig], cores: int) -> int:
    trainers = [c.get("trainer") or {} for c in configs]
    if any(t.get("accelerator") != "cpu" for t in trainers):
        return 1
    devices = max(t.get("devices") if isinstance(t.get("devices"), int) else 1 for t in trainers)
    return max(1, min(cores // max(devices, 1), _MOST_SLOTS))


def _check(context: BaseContext, configs: Sequence[DictConfig]) -> None:
    """Validate every config in a process of its own, which has torch already.

    Raises:
        CompactHydraException: If there are problems.
    """
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send_problems, args=(sender, list(configs)))  # type: ignore[attr-defined]
    process.start()
    sender.close()
    try:
        problems = receiver.recv()
    except EOFError:
        problems = f"checking the configs ended with exit code {process.exitcode}; its error stands above"
    process.join()
    if problems:
        raise CompactHydraException(problems)


def _send_problems(sender: Any, configs: list[DictConfig]) -> None:
    from lbtrain.app.instantiate import ConfigError, validate

    setup_globals()  # the resolver of ${hydra:...}
    problems: dict[str, list[int]] = {}
    for number, config in enumerate(configs, start=1):
        HydraConfig.instance().set_config(config)
        with open_dict(config):
            del config["hydra"]
        try:
            validate(config)
        except ConfigError as error:
            problems.setdefault(str(error), []).append(number)
    lines = [f"{_runs(numbers, len(configs))}: {problem}" for problem, numbers in problems.items()]
    sender.send("\n".join(lines))
    sender.close()


def _runs(numbers: list[int], total: int) -> str:
    if len(numbers) == total:
        return "all runs"
    return f"run{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))} of {total}"


def _result(job: Job, config: DictConfig) -> JobReturn:
    record = read_record(job.directory)
    result = JobReturn(overrides=list(job.overrides), cfg=config, working_dir=str(job.directory))
    if record is None or record.status != "finished":
        reason = "no summary" if record is None else record.error
        result.status = JobStatus.FAILED
        result.return_value = CompactHydraException(f"run {job.number} ({' '.join(job.overrides)}) failed: {reason}")
        return result
    result.status = JobStatus.COMPLETED
    result.return_value = record.metrics.get(config.get("objective", ""))
    return result
