"""Processes of a sweep: each job one process, as many at a time as there are devices for."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from signal import SIGTERM

from lbtrain.app.sweep.earlier import forget, last_checkpoint, leave_mark
from lbtrain.app.sweep.endings import recorded
from lbtrain.app.sweep.groups import kill_group, signal_group
from lbtrain.app.sweep.interrupts import Interrupts, start
from lbtrain.app.sweep.job import LOG_NAME, PULSE_NAME, Job
from lbtrain.app.sweep.needs import Machine
from lbtrain.app.sweep.progress import Progress
from lbtrain.app.sweep.slots import Lease, Slots, mask
from lbtrain.app.sweep.worker import Order, work
from lbtrain.records import SUMMARY_NAME, RunRecord

# Seconds for a job to end by itself after SIGTERM, and for the ranks of a job that has ended.
_PATIENCE = 5.0
# Seconds between two looks at ranks that linger.
_LOOK = 0.02
# Seconds between two looks at jobs. Their ends are told at once, unless a process that has outlived its job holds the
# pipe on which that is told (with start_method=spawn).
_TICK = 1.0
_INTERRUPTED = "the sweep was interrupted"
# Name of the variable that pulse.py reads; a test holds that they agree, since that file imports torch.
PULSE = "LBTRAIN_PULSE"


@dataclass(frozen=True)
class Limits:
    """What a job may take.

    Args:
        retries: More attempts after one that has failed.
        timeout_s: Seconds of an attempt; None: any.
    """

    retries: int = 0
    timeout_s: float | None = None


@dataclass(eq=False)
class _Running:
    """An attempt at a job."""

    job: Job
    process: BaseProcess
    lease: Lease
    attempt: int
    since: float
    deadline: float = math.inf
    cause: str | None = None
    """Why it is being ended, if it is."""
    over: float | None = None
    """When its process was found to have ended."""

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.since


def run_jobs(
    context: BaseContext, jobs: Sequence[Job], machine: Machine, slots: Slots, limits: Limits, progress: Progress
) -> None:
    """Run jobs as processes; each leaves a record in its directory, also when it is killed.

    When this process is interrupted, it ends the jobs that run, with the processes that they have started. When it is
    killed, they end themselves.

    Args:
        context: Of `multiprocessing`; says how processes start.
        jobs: To run, in this order.
        machine: On which they run.
        slots: Its devices.
        limits: Of each job.
        progress: Is told of all that happens.
    """
    lifeline, held = context.Pipe(duplex=False)
    with held, lifeline, Interrupts() as interrupts, progress:
        _Sweep(context, lifeline, machine, slots, limits, progress).run(jobs, interrupts)
    interrupts.end(progress.so_far())


class _Sweep:
    def __init__(
        self,
        context: BaseContext,
        lifeline: Connection,
        machine: Machine,
        slots: Slots,
        limits: Limits,
        progress: Progress,
    ) -> None:
        self._context, self._lifeline, self._machine = context, lifeline, machine
        self._slots, self._limits, self._progress = slots, limits, progress
        self._running: list[_Running] = []
        self._waiting: list[tuple[Job, int]] = []

    def run(self, jobs: Sequence[Job], interrupts: Interrupts) -> None:
        """Run all jobs, until they have ended or the sweep is to end."""
        self._waiting = [(job, 1) for job in jobs]
        try:
            while interrupts.asked is None and (self._waiting or self._running):
                self._fill()
                self._wait(interrupts.reader)
                for entry in list(self._running):
                    self._look_after(entry)
        finally:
            # Nobody is left here after the last job; else this is an interrupted sweep.
            self._end()

    def _fill(self) -> None:
        starts = self._slots.fill([job.need for job, _ in self._waiting])
        chosen = [(*self._waiting[position], lease) for position, lease in starts]
        for position, _ in reversed(starts):
            del self._waiting[position]
        for job, attempt, lease in chosen:
            self._prepare(job)
            self._running.append(self._started(job, attempt, lease))
            self._progress.started(job, attempt)

    def _prepare(self, job: Job) -> None:
        job.directory.mkdir(parents=True, exist_ok=True)
        if job.ckpt is None and not job.config.get("ckpt_path"):
            forget(job.directory)
        # A record of an earlier attempt says nothing about this one.
        (job.directory / SUMMARY_NAME).unlink(missing_ok=True)
        (job.directory / PULSE_NAME).unlink(missing_ok=True)
        leave_mark(job.directory, job.fingerprint)

    def _started(self, job: Job, attempt: int, lease: Lease) -> _Running:
        gpus = mask(lease, self._machine, bool(job.need.pinned))
        variables = [("CUDA_VISIBLE_DEVICES", gpus)] if gpus else []
        if self._progress.live:
            variables.append((PULSE, str(job.directory / PULSE_NAME)))
        note = f"attempt {attempt}" if attempt > 1 else "started again"
        note += f" from {job.ckpt.name}" if job.ckpt else ""
        order = Order(job.command, str(job.directory / LOG_NAME), job.threads, tuple(variables), note)
        process = self._context.Process(target=work, args=(order, self._lifeline))  # type: ignore[attr-defined]
        try:
            start(self._context, process)
        except (OSError, EOFError):  # the server that jobs are forked from has died: multiprocessing makes another
            start(self._context, process)
        since = time.monotonic()
        return _Running(job, process, lease, attempt, since, since + (self._limits.timeout_s or math.inf))

    def _wait(self, reader: int) -> None:
        """Wait until a job ends, a time comes at which something is to be done, or a signal asks for the end."""
        now = time.monotonic()
        times = [_LOOK if entry.over else entry.deadline - now for entry in self._running]
        ends = [entry.process.sentinel for entry in self._running if not entry.over]
        wait([reader, *ends], max(0.0, min([*times, self._progress.interval, _TICK])))
        self._progress.refresh()

    def _look_after(self, entry: _Running) -> None:
        now = time.monotonic()
        if entry.over is None and entry.process.is_alive():
            if now >= entry.deadline:
                self._hurry(entry, now)
            return
        if entry.over is None:
            entry.process.join()
            entry.over = now
        # A rank may wait for a dead one for ever.
        if now < entry.over + _PATIENCE and signal_group(entry.process, 0):
            return
        kill_group(entry.process)
        self._conclude(entry)

    def _hurry(self, entry: _Running, now: float) -> None:
        """End a job whose time is up: kindly at first."""
        if entry.cause is None:
            entry.cause = f"stopped by the time limit of {self._limits.timeout_s:g} s"
            entry.deadline = now + _PATIENCE
            signal_group(entry.process, SIGTERM)
        else:
            entry.deadline = math.inf
            kill_group(entry.process)

    def _conclude(self, entry: _Running) -> None:
        self._running.remove(entry)
        self._slots.give_back(entry.lease)
        job, record = entry.job, _record(entry, entry.cause)
        if record.status == "failed" and entry.attempt <= self._limits.retries:
            self._progress.retried(job, record, entry.seconds, entry.attempt, self._limits.retries + 1)
            again = replace(job, ckpt=last_checkpoint(job.directory))
            self._waiting.insert(0, (again, entry.attempt + 1))
        else:
            self._progress.ended(job, record, entry.seconds, entry.attempt)

    def _end(self) -> None:
        """End all jobs and the processes that they have started, together."""
        for entry in self._running:
            signal_group(entry.process, SIGTERM)
        until = time.monotonic() + _PATIENCE
        for entry in self._running:
            entry.process.join(max(0.0, until - time.monotonic()))
            kill_group(entry.process)
        for entry in self._running:
            entry.process.join(_PATIENCE)
            _record(entry, _INTERRUPTED)


def _record(entry: _Running, cause: str | None) -> RunRecord:
    (entry.job.directory / PULSE_NAME).unlink(missing_ok=True)
    return recorded(entry.job, entry.process.exitcode, entry.seconds, cause, entry.attempt)
