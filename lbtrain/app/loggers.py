"""wandb: one run per job, offline without a key, and an exit code that tells the truth."""

import netrc
import os
import secrets
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlparse

from lbtrain._lightning import DummyLogger, WandbLogger, rank_zero_only
from lbtrain.app.config import without_secrets
from lbtrain.app.names import given_overrides, job_name, sweep_name

METRICS_NAME = "metrics.csv"
# The run's identity, kept beside its results, so a resumed job continues its run.
ID_NAME = "wandb_id.txt"
# Best and last value in the summary; must be declared before the first value is logged.
_SUMMARIES = {"val/acc": "max,last", "val/loss": "min,last"}


def wandb_logger(
    project: str,
    entity: str | None = None,
    name: str | None = None,
    group: str | None = None,
    job_type: str = "train",
    tags: Sequence[str] = (),
    notes: str | None = None,
    offline: bool | None = None,
    save_dir: str = ".",
    id: str | None = None,
) -> WandbLogger | DummyLogger:
    """Open the wandb run of this job.

    Args:
        project: Project name.
        entity: User or team; None for the account's default.
        name: Readable name; None takes the job's overrides.
        group: Runs shown together; None takes the sweep's directory, or no group for a single run.
        job_type: Kind of run within a group.
        tags: Labels.
        notes: Longer description.
        offline: Keep the run on disk only; None: offline unless a key is found in WANDB_API_KEY or the netrc file.
            WANDB_MODE, where set, decides instead.
        save_dir: Directory of the job; the run's files go to its `wandb` folder.
        id: Identity of the run; None takes the one kept in save_dir, or makes and keeps one.

    Returns:
        A Lightning logger that owns the run; on ranks other than zero one that does nothing.

    Raises:
        RuntimeError: If a wandb run is open already: two jobs would share it.
    """
    if rank_zero_only.rank != 0:
        return DummyLogger()
    mode = _mode(offline)
    if mode != "online":
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # read when wandb is imported
    import wandb

    if wandb.run is not None:
        raise RuntimeError(
            f"the wandb run {wandb.run.id!r} is still open, and this job would log into it: call wandb.finish() first"
        )
    with _arguments_without_secrets():
        run = wandb.init(
            project=project,
            entity=entity,
            name=name or job_name(given_overrides()),
            group=group or sweep_name(),
            job_type=job_type,
            tags=["lbtrain", *tags],
            notes=notes,
            mode=mode,  # type: ignore[arg-type]
            dir=save_dir,
            id=id or _kept_id(Path(save_dir)),
            resume="allow",
            settings=wandb.Settings(console="off", quiet=True),
        )
    for metric, summary in _SUMMARIES.items():
        run.define_metric(metric, summary=summary)
    return WandbLogger(experiment=run, save_dir=save_dir)


@rank_zero_only
def close_wandb(config: Mapping[str, object], metrics: Mapping[str, float | str], *, failed: bool) -> None:
    """Close this job's wandb run, if one is open, with its flat config block, its final numbers and an exit code.

    Args:
        config: What the runs table sorts by.
        metrics: Final values, for the run's summary.
        failed: Whether the job failed: exit code 1 instead of 0.
    """
    wandb = sys.modules.get("wandb")
    if wandb is None or wandb.run is None:
        return
    try:
        wandb.run.config.update(dict(config), allow_val_change=True)
        wandb.run.summary.update({key: value for key, value in metrics.items() if key not in _SUMMARIES})
    finally:
        wandb.finish(exit_code=int(failed))


@contextmanager
def _arguments_without_secrets() -> Iterator[None]:
    # wandb keeps the command line with the run.
    given = sys.argv
    sys.argv = [*given[:1], *without_secrets(given[1:])]
    try:
        yield
    finally:
        sys.argv = given


def _mode(offline: bool | None) -> str:
    chosen = os.environ.get("WANDB_MODE")
    if chosen:
        return chosen
    if offline is None:
        offline = not _has_key()
    return "offline" if offline else "online"


def _has_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _kept_id(directory: Path) -> str:
    file = directory / ID_NAME
    if not file.exists():
        directory.mkdir(parents=True, exist_ok=True)
        file.write_text(secrets.token_hex(4))
    return file.read_text().strip()
