"""Run the jobs of a sweep, each in a process of its own, and compare them at the end."""

import multiprocessing
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from multiprocessing.context import BaseContext
from pathlib import Path

from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import CompactHydraException
from omegaconf import DictConfig, open_dict

from lbtrain.app.config import flat, without_secrets
from lbtrain.app.names import labels
from lbtrain.app.own import own_modules
from lbtrain.app.sweep.asked import Asked
from lbtrain.app.sweep.claim import claim, is_named
from lbtrain.app.sweep.earlier import Place, find_places, fingerprint
from lbtrain.app.sweep.interrupts import heed, ignore
from lbtrain.app.sweep.job import Job, argv_of, tasks
from lbtrain.app.sweep.jobs import Limits, run_jobs
from lbtrain.app.sweep.leaks import cleared_environment
from lbtrain.app.sweep.needs import Machine, need
from lbtrain.app.sweep.precheck import check
from lbtrain.app.sweep.progress import Progress
from lbtrain.app.sweep.slots import Slots, at_a_time, threads
from lbtrain.records import RunRecord, read_record

# A job of a small study takes about 1 GB; more at a time than this is for machines that the user knows.
_MOST_SLOTS = 16

# Directories of sweeps in which this process has started jobs.
_started: list[Path] = []
# Directories of jobs of this process, which a later batch of the same sweeper does not take for an earlier sweep's.
_given: set[Path] = set()


def launch(
    config: DictConfig,
    configs: Sequence[DictConfig],
    job_overrides: Sequence[Sequence[str]],
    first_number: int,
    asked: Asked,
) -> list[JobReturn]:
    """Check all jobs, then run those that are not finished; a job that fails leaves the others running.

    Args:
        config: The sweep's own config, with its `hydra` node.
        configs: The composed config of each job.
        job_overrides: The overrides of each job.
        first_number: Number of the first job.
        asked: Arguments of the launcher.

    Returns:
        One result per job, in order: the objective, or the reason why there is none.

    Raises:
        CompactHydraException: If a config is not valid, or asks for more than there is; no job has started then.
    """  # noqa: DOC502 - raised by what is called
    sweep = claim(config)
    places = _places(config, configs, sweep, first_number, asked)
    jobs = _jobs(config, configs, job_overrides, sweep, first_number, places)
    todo = [n for n, place in enumerate(places) if place.state != "finished"]
    machine = Machine(1)
    # Processes start from the environment without what leaks, and the user's own is put back.
    with cleared_environment():
        if todo:
            context = _context(configs, asked.start_method)
            machine = check(context, [configs[n] for n in todo])
            together, jobs = _shared_out(jobs, configs, todo, machine, asked)
        _started.append(sweep)
        _given.update(place.directory for place in places)
        progress = Progress(len(jobs), together if todo else 1, sweep=sweep)
        progress.same(_same(jobs))
        for n in sorted(set(range(len(jobs))) - set(todo)):
            progress.skipped(jobs[n], _record(jobs[n]))
        if todo:
            slots = Slots(machine, asked.jobs_per_device, together)
            limits = Limits(asked.retries, asked.timeout_s)
            run_jobs(context, [jobs[n] for n in todo], machine, slots, limits, progress)
    return [_result(job, job_config) for job, job_config in zip(jobs, configs, strict=True)]


def show_last_sweep(interrupted: bool = False) -> None:
    """Print the comparison of the sweep that this process has run, if any, and where its report is.

    Args:
        interrupted: Whether Ctrl-C has ended the sweep, and is ignored since.

    Raises:
        SystemExit: If Ctrl-C ends it.
    """
    if _started:
        try:
            if interrupted:
                heed()  # once more: this takes a while
            from lbtrain.study.__main__ import show

            show(_started[-1])
        except KeyboardInterrupt:
            ignore()
            print(f"comparison interrupted; to make it: python -m lbtrain.study {_started[-1]}", file=sys.stderr)
            raise SystemExit(128 + signal.SIGINT) from None


def _places(
    config: DictConfig, configs: Sequence[DictConfig], sweep: Path, first_number: int, asked: Asked
) -> list[Place]:
    """Return where each job runs, and what it finds there."""
    subdirs = []
    for number, job_config in enumerate(configs, start=first_number):
        with open_dict(job_config):
            job_config.hydra.job.num = number
        subdirs.append(str(job_config.hydra.sweep.subdir))
    skip = is_named(config) if asked.skip_finished is None else asked.skip_finished
    return find_places(sweep, configs, subdirs, first_number, skip, given=_given)


def _jobs(
    config: DictConfig,
    configs: Sequence[DictConfig],
    job_overrides: Sequence[Sequence[str]],
    sweep: Path,
    first_number: int,
    places: Sequence[Place],
) -> list[Job]:
    jobs = []
    # Only a first batch knows how many there are: a sweeper that comes back with more does not say when it ends.
    of = f" of {len(configs)}" if first_number == 0 else ""
    each = zip(configs, job_overrides, labels(job_overrides), places, strict=True)
    for number, (own, overrides, label, place) in enumerate(each, start=first_number + 1):
        argv = argv_of(config, own, overrides, place.directory, sweep, place.number)
        mark = fingerprint(own)
        title = f"run {number}{of}"
        jobs.append(
            Job(title, label, tasks(overrides), place.directory, argv, flat(own), mark, ckpt=place.ckpt, sweep=sweep)
        )
    return jobs


def _same(jobs: Sequence[Job]) -> list[list[Job]]:
    """Return the jobs that train the same with the same seed, in groups; those that draw their own seed differ."""
    found: dict[str | None, list[Job]] = {}
    for job in jobs:
        if job.config.get("seed") is not None:
            found.setdefault(job.fingerprint, []).append(job)
    return [group for group in found.values() if len(group) > 1]


def _context(configs: Sequence[DictConfig], start_method: str) -> BaseContext:
    context = multiprocessing.get_context(start_method)
    if start_method == "forkserver":
        # The server imports this once; every job is forked from it, before torch has started any thread. The user's own
        # modules come first: lbtrain's door to Lightning follows the package that they import.
        own = dict.fromkeys(name for job_config in configs for name in own_modules(job_config))
        context.set_forkserver_preload([*own, "lbtrain.app.train", "lbtrain.app.cli"])  # type: ignore[attr-defined]
    return context


def _shared_out(
    jobs: Sequence[Job], configs: Sequence[DictConfig], todo: Sequence[int], machine: Machine, asked: Asked
) -> tuple[int, list[Job]]:
    """Return how many jobs run at a time, and all jobs with what they take and the threads of their processes.

    Raises:
        CompactHydraException: If the machine cannot run one of them.
    """
    told, needs = list(jobs), {}
    for n in todo:
        try:
            needs[n] = need(configs[n], machine, asked.devices_per_job)
        except ValueError as error:
            raise CompactHydraException(f"{jobs[n].title}: {error}") from error
    limit = asked.slots
    if limit is None and all(own.kind == "cpu" for own in needs.values()):
        limit = _MOST_SLOTS
    together = at_a_time(list(needs.values()), Slots(machine, asked.jobs_per_device, limit))
    for n, own in needs.items():
        told[n] = replace(jobs[n], need=own, threads=threads(machine.cores, together, own.processes))
    return together, told


def _record(job: Job) -> RunRecord:
    """Return what a job that has ended has left.

    Raises:
        CompactHydraException: If somebody has removed it meanwhile.
    """
    record = read_record(job.directory)
    if record is None:
        raise CompactHydraException(f"{job.title}: its record in {job.directory} is gone; start the sweep again")
    return record


def _result(job: Job, config: DictConfig) -> JobReturn:
    record = _record(job)
    # Hydra prints the overrides of a job that has failed.
    result = JobReturn(overrides=list(without_secrets(job.overrides)), cfg=config, working_dir=str(job.directory))
    if record.status != "finished":
        result.status = JobStatus.FAILED
        result.return_value = CompactHydraException(f"{job.title} failed: {record.error}")
        return result
    result.status = JobStatus.COMPLETED
    result.return_value = record.metrics.get(config.get("objective", ""))
    return result
