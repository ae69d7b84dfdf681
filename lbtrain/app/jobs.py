"""Processes of a sweep: each job one process, several at a time, each leaving a record whatever becomes of it."""

import os
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from multiprocessing.connection import wait
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from pathlib import Path

from lbtrain.app.config import without_secrets
from lbtrain.app.progress import Progress
from lbtrain.records import RunRecord, read_record, write_record

# Lightning's rank and seed variables: what one job leaves in the environment another must not inherit.
_LEAKS = ("LOCAL_RANK", "RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "PL_GLOBAL_SEED")


@dataclass(frozen=True)
class Job:
    """One run of a sweep."""

    number: int
    overrides: tuple[str, ...]
    directory: Path
    argv: tuple[str, ...]
    label: str
    """The overrides that set it apart from the other runs."""


def run_jobs(context: BaseContext, jobs: Sequence[Job], slots: int, threads: int) -> None:
    """Run jobs as processes; each leaves a record in its directory, also when it is killed.

    When this process is interrupted, it ends the jobs that run and the processes that they have started.

    Args:
        context: Of `multiprocessing`; says how processes start.
        jobs: To run, in this order.
        slots: Jobs at a time.
        threads: Of torch, per job.
    """
    waiting, running = list(jobs), {}
    with Progress(len(jobs), slots) as progress:
        try:
            while waiting or running:
                while waiting and len(running) < slots:
                    job = waiting.pop(0)
                    running[job.number] = job, _start(context, job, threads), time.monotonic()
                    progress.started(job.number, job.label)
                done = wait([process.sentinel for _, process, _ in running.values()])
                for job, process, since in [entry for entry in running.values() if entry[1].sentinel in done]:
                    process.join()
                    del running[job.number]
                    record = _recorded(job, process.exitcode, time.monotonic() - since)
                    progress.ended(job.number, record, time.monotonic() - since)
        except BaseException:
            for _, process, _ in running.values():
                _end(process)
            raise


def _start(context: BaseContext, job: Job, threads: int) -> BaseProcess:
    job.directory.mkdir(parents=True, exist_ok=True)
    arguments = (job.argv, str(job.directory / "out.log"), threads)
    process = context.Process(target=_work, args=arguments)  # type: ignore[attr-defined]
    process.start()
    return process  # type: ignore[no-any-return]


def _work(argv: tuple[str, ...], log: str, threads: int) -> None:
    """Be the command `argv`, in a session of one's own, with all output in a file."""
    os.setsid()
    with open(log, "ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    for name in _LEAKS:
        os.environ.pop(name, None)
    os.environ["OMP_NUM_THREADS"] = str(threads)  # for the processes that this one starts
    sys.argv = list(argv)
    import torch

    torch.set_num_threads(threads)
    from lbtrain.app.cli import main

    main()


def _end(process: BaseProcess) -> None:
    """End a job and the ranks that it has started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid or 0, number)
        process.join(10)
        if not process.is_alive():
            return


def _recorded(job: Job, exit_code: int | None, seconds: float) -> RunRecord:
    """Return the job's record; one that died without leaving any gets one that says how."""
    record = read_record(job.directory)
    if record is not None and (record.status == "failed") == (exit_code != 0):
        return record
    how = f"signal {signal.Signals(-exit_code).name}" if exit_code and exit_code < 0 else f"exit code {exit_code}"
    reason = f"ended by {how} before it could write its summary; the output is in {job.directory / 'out.log'}"
    started = datetime.fromtimestamp(time.time() - seconds, timezone.utc).isoformat(timespec="seconds")
    record = RunRecord(
        name=job.label,
        status="failed",
        error=reason,
        overrides=without_secrets(job.overrides),
        config={},
        metrics={},
        versions={},
        git_commit=None,
        started=started,
        duration_s=seconds,
    )
    write_record(job.directory, record)
    return record
