"""What a run leaves when it ends, however it ends."""

import time
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from lbtrain._lightning import rank_zero_only
from lbtrain.app.config import flat, git_commit, redacted, versions, without_secrets
from lbtrain.app.leftovers import forget
from lbtrain.app.loggers import close_wandb
from lbtrain.app.names import given_overrides, job_name
from lbtrain.app.own import unused_groups
from lbtrain.app.termination import is_sigterm
from lbtrain.functional.scaling import AUTO
from lbtrain.records import SUMMARY_NAME, RunRecord, write_record


@rank_zero_only
def clear(directory: Path, *, resumed: bool) -> None:
    """Remove what an earlier run in the same directory has left and this one would take for its own.

    Args:
        directory: Of the run.
        resumed: Whether this run goes on from a checkpoint: it then keeps its metrics, wandb run and checkpoints.
    """
    if resumed:
        # "finished" must not stand beside a run that is under way.
        (directory / SUMMARY_NAME).unlink(missing_ok=True)
    else:
        forget(directory)


@rank_zero_only
def leave(
    cfg: DictConfig, metrics: dict[str, float | str], start: float, directory: Path, error: BaseException | None
) -> None:
    """Write the record and close wandb; the record comes last, since its presence means done.

    Args:
        cfg: The composed config.
        metrics: What is known of the run, by key.
        start: Of the run, seconds since the epoch.
        directory: Of the run.
        error: What ended the run; None if it is finished.
    """
    commit, given = git_commit(Path.cwd()), given_overrides()
    if _goes_on(cfg, directory):
        # A run that was killed is recorded as one that was not: its settings are the same.
        cfg, given = (
            cfg.copy(),
            [override for override in given if override.lstrip("+").partition("=")[0] != "ckpt_path"],
        )
        cfg.ckpt_path = None
    try:
        close_wandb(_headline(cfg, metrics, commit), metrics, failed=error is not None)
    finally:
        record = RunRecord(
            name=job_name(given),
            status="finished" if error is None else "failed",
            error=None if error is None else redacted(reason(error), cfg),
            overrides=without_secrets(given),
            config=_effective(cfg),
            metrics=metrics,
            versions=versions(),
            git_commit=commit,
            started=datetime.fromtimestamp(start, timezone.utc).isoformat(timespec="seconds"),
            duration_s=time.time() - start,
        )
        write_record(directory, record)


def _goes_on(cfg: DictConfig, directory: Path) -> bool:
    """Return whether a run goes on from a checkpoint of its own directory, and not from another run's."""
    ckpt = cfg.get("ckpt_path")
    return ckpt is not None and directory.absolute() in Path(ckpt).absolute().parents


def _effective(cfg: DictConfig) -> dict[str, Any]:
    """Return the flat config without the groups that have no effect on this run."""
    unused = unused_groups(cfg)
    return {key: value for key, value in flat(cfg).items() if key.partition(".")[0] not in unused}


def reason(error: BaseException) -> str:
    """Return what ended a run, in words.

    Args:
        error: As it was raised.

    Returns:
        Its kind and message, with what Lightning has made of Ctrl-C and SIGTERM undone.
    """
    # Lightning turns Ctrl-C into SystemExit.
    if isinstance(error, SystemExit) and isinstance(error.__context__, KeyboardInterrupt):
        error = error.__context__
    if is_sigterm(error):
        return "ended by SIGTERM"
    return f"{type(error).__name__}: {error}".removesuffix(": ")


def _headline(cfg: DictConfig, metrics: Mapping[str, Any], commit: str | None) -> dict[str, Any]:
    """Return the flat block by which runs are sorted and grouped in wandb, beside the whole config."""
    scaling = cfg.callbacks.get("lr_scaling") or {}
    # SAM and its relatives, under whatever key.
    nodes = [node for node in cfg.callbacks.values() if node and str(node.get("_target_", "")).endswith("SAM")]
    sam = nodes[0] if nodes else {}
    lr = cfg.optimizer.get("lr") if cfg.get("optimizer") and "optimizer" not in unused_groups(cfg) else None
    block = {
        "global_batch": metrics.get("batch/global"),
        "per_device_batch": metrics.get("batch/per_device", cfg.data.get("batch_size")),
        "accumulate": metrics.get("batch/accumulate", cfg.trainer.get("accumulate_grad_batches")),
        "world": metrics.get("batch/data_parallel"),
        "lr_base": metrics.get("lr/base", lr),
        "lr_scaled": metrics.get("lr/scaled", lr),
        "lr_rule": _law(scaling.get("rule", "none"), cfg),
        "k": metrics.get("lr/factor", 1.0),
        "method": str(sam.get("_target_", "")).rpartition(".")[2],
        "rho": sam.get("rho", 0.0),
        "seed": cfg.seed,
        "git_sha": commit,
    }
    return {**_effective(cfg), **block}


def _law(rule: Any, cfg: DictConfig) -> Any:
    """Return the law in effect, where `auto` leaves it to the optimizer."""
    optimizer = str((cfg.get("optimizer") or {}).get("_target_", "")).rpartition(".")[2].lower()
    return next((law for law, names in AUTO.items() if optimizer in names), rule) if rule == "auto" else rule
