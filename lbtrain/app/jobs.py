"""Processes of a sweep: each job one process, several at a time, each leaving a record whatever becomes of it."""

import os
import signal
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from multiprocessing.connection import Connection, wait
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from pathlib import Path

from lbtrain.app.config import without_secrets
from lbtrain.app.names import job_name
from lbtrain.app.progress import Progress
from lbtrain.app.worker import work
from lbtrain.records import SUMMARY_NAME, RunRecord, Scalar, read_record, write_record

# Seconds for a job to end by itself after SIGTERM, and for the ranks of a job that has ended.
_PATIENCE = 5.0


@dataclass(frozen=True)
class Job:
    """One run of a sweep."""

    number: int
    """From 0."""
    overrides: tuple[str, ...]
    directory: Path
    argv: tuple[str, ...]
    label: str
    """What sets it apart from the other runs."""
    config: Mapping[str, Scalar]
    """Flat, without secrets: for the record of a job that dies before it can leave one."""


@dataclass(frozen=True)
class _Running:
    job: Job
    process: BaseProcess
    since: float

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.since


def run_jobs(context: BaseContext, jobs: Sequence[Job], slots: int, threads: int) -> None:
    """Run jobs as processes; each leaves a record in its directory, also when it is killed.

    When this process is interrupted, it ends the jobs that run, with the processes that they have started. When it is
    killed, they end themselves.

    Args:
        context: Of `multiprocessing`; says how processes start.
        jobs: To run, in this order.
        slots: Jobs at a time.
        threads: Of torch, per process.
    """
    waiting, running = list(jobs), list[_Running]()
    lifeline, held = context.Pipe(duplex=False)
    with held, lifeline, Progress(len(jobs), slots) as progress:
        try:
            while waiting or running:
                while waiting and len(running) < slots:
                    job = waiting.pop(0)
                    running.append(_start(context, job, threads, lifeline))
                    progress.started(job.number, job.label)
                done = wait([entry.process.sentinel for entry in running])
                for entry in [entry for entry in running if entry.process.sentinel in done]:
                    running.remove(entry)
                    entry.process.join()
                    _clear_group(entry.process, _PATIENCE)
                    progress.ended(entry.job.number, _recorded(entry), entry.seconds)
        except BaseException:
            _end(running)
            raise


def _start(context: BaseContext, job: Job, threads: int, lifeline: Connection) -> _Running:
    job.directory.mkdir(parents=True, exist_ok=True)
    # One of an earlier sweep in the same directory says nothing about this job.
    (job.directory / SUMMARY_NAME).unlink(missing_ok=True)
    arguments = (job.argv, str(job.directory / "out.log"), threads, lifeline)
    process = context.Process(target=work, args=arguments)  # type: ignore[attr-defined]
    process.start()
    return _Running(job, process, time.monotonic())


def _end(running: Sequence[_Running]) -> None:
    """End jobs and the processes that they have started, together."""
    for entry in running:
        _signal_group(entry.process, signal.SIGTERM)
    until = time.monotonic() + _PATIENCE
    for entry in running:
        entry.process.join(max(0.0, until - time.monotonic()))
        _clear_group(entry.process, 0.0)
    for entry in running:
        entry.process.join(_PATIENCE)
        _recorded(entry, "the sweep was interrupted")


def _clear_group(process: BaseProcess, patience: float) -> None:
    """Kill what is left of a job's process group after a while, such as a rank that waits for a dead one."""
    until = time.monotonic() + patience
    while time.monotonic() < until and _signal_group(process, 0):
        time.sleep(0.02)
    _signal_group(process, signal.SIGKILL)


def _signal_group(process: BaseProcess, number: int) -> bool:
    """Send a signal to a job's process group; 0 only asks.

    Returns:
        Whether the group exists.
    """
    if not process.pid:  # 0 would mean this process's own group
        return False
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)
        return True
    # Just started, and not yet the leader of a group of its own.
    if number and process.is_alive():
        with suppress(ProcessLookupError):
            os.kill(process.pid, number)
    return False


def _recorded(entry: _Running, cause: str | None = None) -> RunRecord:
    """Return the job's record; one that died without leaving any gets one that says how.

    Args:
        entry: The job, after its process has ended.
        cause: Why it was ended, if this is known; else how it ended is told.

    Returns:
        The record that now lies in the job's directory.
    """
    job, code = entry.job, entry.process.exitcode
    record = read_record(job.directory)
    if record is not None and (code == 0 if record.status == "finished" else cause is None):
        return record
    reason = f"{cause or _how(code)} before the run was complete{_last_line(job.directory)}"
    if record is None:
        overrides = without_secrets(job.overrides)
        started = datetime.fromtimestamp(time.time() - entry.seconds, timezone.utc).isoformat(timespec="seconds")
        name, config = job_name(overrides), dict(job.config)
        record = RunRecord(name, "failed", reason, overrides, config, {}, {}, None, started, entry.seconds)
    elif record.status == "finished":
        reason = f"{cause or _how(code)} after its results were written"
    record = replace(record, status="failed", error=reason)
    write_record(job.directory, record)
    return record


def _how(code: int | None) -> str:
    if code is not None and code < 0:
        return f"ended by signal {signal.Signals(-code).name}"
    return f"ended with exit code {code}"


def _last_line(directory: Path) -> str:
    try:
        lines = (directory / "out.log").read_text(errors="replace").strip().splitlines()
    except OSError:
        lines = []
    said = f"; its last words: {lines[-1].strip()[:200]}" if lines else ""
    return f"{said}; all of them are in its out.log"
