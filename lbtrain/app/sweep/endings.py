"""How a job has ended: each has a record in its directory then, whatever became of it."""

import signal
import time
from dataclasses import replace
from datetime import datetime, timezone

from lbtrain.app.config import without_secrets
from lbtrain.app.names import job_name
from lbtrain.app.secrecy import masked
from lbtrain.app.sweep.job import LOG_NAME, Job
from lbtrain.app.sweep.worker import MARK
from lbtrain.records import RunRecord, read_record, write_record

# Key of the number of attempts that a job took, where it took more than one.
ATTEMPTS = "run/attempts"
# What multiprocessing returns for a process whose server is gone, too.
_UNKNOWN = 255


def recorded(job: Job, code: int | None, seconds: float, cause: str | None = None, attempt: int = 1) -> RunRecord:
    """Return a job's record; one that died without leaving any gets one that says how.

    Args:
        job: Whose process has ended.
        code: How it ended, as `multiprocessing` has it: the exit code, or minus the number of a signal.
        seconds: How long it ran.
        cause: Why it was ended, if this is known; else how it ended is told.
        attempt: How many times it was started.

    Returns:
        The record that now lies in the job's directory.
    """
    try:
        found = read_record(job.directory)
    except ValueError as error:
        found, cause = None, cause or f"left a record that cannot be read ({error})"
    record = _completed(found, job, code, seconds, cause)
    if attempt > 1:
        told = record.error and f"{record.error} (attempt {attempt})"
        record = replace(record, error=told, metrics={**record.metrics, ATTEMPTS: attempt})
    if record != found:
        write_record(job.directory, record)
    return record


def _completed(found: RunRecord | None, job: Job, code: int | None, seconds: float, cause: str | None) -> RunRecord:
    """Return what is true of the job: the record that it has left, if that is all, or what is known without."""
    if found is not None and (code == 0 if found.status == "finished" else cause is None):
        return found
    reason = f"{cause or _how(code)} before the run was complete{_last_line(job, cause)}"
    if found is None:
        overrides = without_secrets(job.overrides)
        started = datetime.fromtimestamp(time.time() - seconds, timezone.utc).isoformat(timespec="seconds")
        name, config = job_name(overrides), dict(job.config)
        return RunRecord(name, "failed", reason, overrides, config, {}, {}, None, started, seconds)
    if found.status == "finished":
        reason = f"{cause or _how(code)} after its results were written"
    return replace(found, status="failed", error=reason)


def _how(code: int | None) -> str:
    if code is not None and code < 0:
        return f"ended by signal {signal.Signals(-code).name}"
    lost = ", or was lost with the server that jobs are forked from," if code == _UNKNOWN else ""
    return f"ended with exit code {code}{lost}"


def _last_line(job: Job, cause: str | None) -> str:
    """Return the last words of a job in its present attempt, if they can say why it ended, and where the others are."""
    log = f"{job.folder}/{LOG_NAME}"
    if cause is not None:  # then its last words are of the signal that we have sent
        return f"; see {log}"
    try:
        lines = (job.directory / LOG_NAME).read_text(errors="replace").strip().splitlines()
    except OSError:
        lines = []
    last = masked(lines[-1].strip()[:200]) if lines and not lines[-1].startswith(MARK) else ""
    return f"; its last words: {last}; all of them are in {log}" if last else f"; see {log}"
