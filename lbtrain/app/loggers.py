"""wandb: one run per job, offline without a key, and an exit code that tells the truth."""

import json
import os
import secrets
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from lbtrain._lightning import DummyLogger, rank_zero_only
from lbtrain.app.config import without_secrets
from lbtrain.app.names import given_overrides, job_name, sweep_name
from lbtrain.app.wandb_metrics import DeclaringLogger, best_of
from lbtrain.app.wandb_server import has_key, server
from lbtrain.records import replace_file

METRICS_NAME = "metrics.csv"
# The run's identity, kept beside its results, so a resumed job continues its run.
ID_NAME = "wandb_id.txt"
# What the comparison has to know of it to find it on a server.
RUN_NAME = "wandb_run.json"


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
    base_url: str | None = None,
) -> DeclaringLogger | DummyLogger:
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
        base_url: Address of a self-hosted server; None takes WANDB_BASE_URL, else the server of `wandb login`.

    Returns:
        A Lightning logger that owns the run; on ranks other than zero one that does nothing.

    Raises:
        ValueError: If base_url is not an address of http or https.
        RuntimeError: If a wandb run is open already: two jobs would share it.
    """  # noqa: DOC502 - the first is raised by server
    if rank_zero_only.rank != 0:
        return DummyLogger()
    url = server(base_url)
    mode = _mode(offline, url)
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
            settings=wandb.Settings(console="off", quiet=True, base_url=url),
        )
    if mode == "disabled":
        return DeclaringLogger(experiment=run, save_dir=save_dir)  # no run that could be found again
    known = {"id": run.id, "group": run.group or None, "project": run.project, "entity": run.entity or None}
    replace_file(Path(save_dir) / RUN_NAME, f"{json.dumps(known)}\n".encode())
    return DeclaringLogger(experiment=run, save_dir=save_dir)


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
        wandb.run.summary.update({key: value for key, value in metrics.items() if best_of(key) is None})
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


def _mode(offline: bool | None, url: str) -> str:
    chosen = os.environ.get("WANDB_MODE")
    if chosen:
        return chosen
    if offline is None:
        offline = not has_key(url)
    return "offline" if offline else "online"


def _kept_id(directory: Path) -> str:
    file = directory / ID_NAME
    kept = file.read_text().strip() if file.exists() else ""
    if not kept:
        directory.mkdir(parents=True, exist_ok=True)
        kept = secrets.token_hex(4)
        replace_file(file, kept.encode())
    return kept
