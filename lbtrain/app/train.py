"""Train one composed config, evaluate it, and leave its record."""

import logging
import math
import sys
import time
import warnings
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from lbtrain._lightning import Callback, Trainer, rank_zero_only, seed_everything
from lbtrain.app.config import flat, git_commit, versions, without_secrets
from lbtrain.app.evaluate import evaluate
from lbtrain.app.instantiate import instantiate, instantiate_each, validate
from lbtrain.app.loggers import close_wandb, job_name
from lbtrain.callbacks.loss_reduction import LossReductionCheck
from lbtrain.callbacks.random_state import RandomState
from lbtrain.callbacks.step_time import StepTime
from lbtrain.records import RunRecord, write_record


def train(cfg: DictConfig) -> dict[str, float]:
    """Check a config, train it, evaluate the final weights and leave `summary.json`, also when it fails.

    Args:
        cfg: A config composed from `lbtrain.conf`, within a Hydra job.

    Returns:
        The run's numbers by key, in the units of the key table in the README.
    """
    _hush()
    validate(cfg)
    start = time.time()
    metrics: dict[str, float | str] = {}
    try:
        _train(cfg, metrics)
    except BaseException as error:
        _leave(cfg, metrics, start, error)
        raise
    _leave(cfg, metrics, start, None)
    _show(metrics)
    return {key: value for key, value in metrics.items() if not isinstance(value, str)}


def _hush() -> None:
    """Keep Lightning's greetings, and warnings about what this application does on purpose, off the screen."""
    greetings = ("GPU available", "TPU available", "HPU available", "\N{ELECTRIC LIGHT BULB} Tip")
    for name in ("pytorch_lightning", "lightning.pytorch"):
        rank_zero = logging.getLogger(f"{name}.utilities.rank_zero")
        rank_zero.addFilter(lambda record: not record.getMessage().startswith(greetings))
    # The run directory holds Hydra's files before the logger writes its own.
    warnings.filterwarnings("ignore", message="Experiment logs directory .* exists and is not empty")
    warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.")  # torch on Lightning's use of it
    # Small data is read faster in the process itself than by workers.
    warnings.filterwarnings("ignore", message="The '.*_dataloader' does not have many workers")


def _train(cfg: DictConfig, metrics: dict[str, float | str]) -> None:
    """Run the config; what is known goes into `metrics` as soon as it is, for the record of a run that fails."""
    if cfg.seed is not None:
        seed_everything(cfg.seed, workers=True, verbose=False)
    data, model = instantiate(cfg.data), instantiate(cfg.model)
    callbacks = _callbacks(cfg)
    loggers = instantiate_each(cfg.logger)
    trainer = instantiate(cfg.trainer, callbacks=callbacks, logger=loggers or False)
    try:
        trainer.fit(model, datamodule=data, ckpt_path=cfg.ckpt_path)
    finally:
        metrics.update({key: float(value) for key, value in trainer.callback_metrics.items()})
        for check in callbacks:
            if isinstance(check, LossReductionCheck) and check.result is not None:
                metrics["loss/reduction"] = check.result.kind
    if not trainer.fast_dev_run:
        metrics.update(evaluate(trainer, model, data))
        _log(trainer, metrics)


def _callbacks(cfg: DictConfig) -> list[Callback]:
    """Build the callbacks; timing and resumable random numbers come with every run.

    Returns:
        In the order in which their hooks run.
    """
    chosen = instantiate_each(cfg.callbacks)
    always = [kind() for kind in (StepTime, RandomState) if not any(isinstance(c, kind) for c in chosen)]
    return [*always, *chosen]


@rank_zero_only
def _log(trainer: Trainer, metrics: Mapping[str, float | str]) -> None:
    final = {k: v for k, v in metrics.items() if k.startswith(("train/", "gap/")) and not isinstance(v, str)}
    for logger in trainer.loggers:
        logger.log_metrics(final, step=trainer.fit_loop.epoch_loop._batches_that_stepped)
        logger.save()


@rank_zero_only
def _leave(cfg: DictConfig, metrics: dict[str, float | str], start: float, error: BaseException | None) -> None:
    """Write the record and close wandb; the record comes last, since its presence means done."""
    commit = git_commit(Path.cwd())
    close_wandb(_headline(cfg, metrics, commit), metrics, failed=error is not None)
    given = [o for o in HydraConfig.get().overrides.task if not o.startswith("trainer.enable_progress_bar=")]
    overrides = without_secrets(given)
    record = RunRecord(
        name=job_name(overrides),
        status="finished" if error is None else "failed",
        error=None if error is None else f"{type(error).__name__}: {error}",
        overrides=overrides,
        config=flat(cfg),
        metrics=metrics,
        versions=versions(),
        git_commit=commit,
        started=datetime.fromtimestamp(start, timezone.utc).isoformat(timespec="seconds"),
        duration_s=time.time() - start,
    )
    write_record(HydraConfig.get().runtime.output_dir, record)


def _headline(cfg: DictConfig, metrics: Mapping[str, Any], commit: str | None) -> dict[str, Any]:
    """Return the flat block by which runs are sorted and grouped in wandb, beside the whole config."""
    scaling, sam = cfg.callbacks.get("lr_scaling") or {}, cfg.callbacks.get("sam") or {}
    lr = cfg.optimizer.get("lr") if cfg.get("optimizer") else None
    block = {
        "global_batch": metrics.get("batch/global"),
        "per_device_batch": metrics.get("batch/per_device", cfg.data.get("batch_size")),
        "accumulate": metrics.get("batch/accumulate", cfg.trainer.get("accumulate_grad_batches")),
        "world": metrics.get("batch/data_parallel"),
        "lr_base": metrics.get("lr/base", lr),
        "lr_scaled": metrics.get("lr/scaled", lr),
        "lr_rule": scaling.get("rule", "none"),
        "k": metrics.get("lr/factor", 1.0),
        "rho": sam.get("rho", 0.0),
        "seed": cfg.seed,
        "git_sha": commit,
    }
    return {**flat(cfg), **block}


@rank_zero_only
def _show(metrics: Mapping[str, Any]) -> None:
    """Print the run's result as a small table."""
    table = Table(show_header=True, header_style="bold")
    for title in ("", "train", "test", "gap"):
        table.add_column(title, justify="right" if title else "left")
    for label, key in (("loss", "loss"), ("accuracy", "acc")):
        table.add_row(label, *(_number(metrics.get(f"{part}/{key}")) for part in ("train", "test", "gap")))
    rest = Table(show_header=False)
    rows = {
        "lambda_max": ("hessian/lambda_max", " ± ", "hessian/lambda_max_residual", " (largest Hessian eigenvalue)"),
        "stability": ("hessian/stability", "", None, " (1 = edge of stability)"),
        "sharpness, Keskar": ("sharpness/keskar", " ± ", "sharpness/keskar_stderr", " % of 1 + loss"),
        "sharpness, SAM": ("sharpness/sam", " ± ", "sharpness/sam_stderr", " loss"),
        "time, fit": ("time/fit_s", "", None, " s"),
        "time, measuring": ("time/measure_s", "", None, " s"),
    }
    for label, (key, joint, error, unit) in rows.items():
        if key in metrics:
            known = joint + _number(metrics.get(error)) if error else ""
            rest.add_row(label, _number(metrics[key]) + known + unit)
    console = Console(file=sys.stdout)
    console.print(table, rest, f"results: {HydraConfig.get().runtime.output_dir}", sep="\n")


def _number(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.3g}" if math.isfinite(value) else str(value)
