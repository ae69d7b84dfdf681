"""Train one composed config, evaluate it, and leave its record."""

import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from lbtrain._lightning import (
    Callback,
    ModelCheckpoint,
    Trainer,
    rank_zero_only,
    seed_everything,
)
from lbtrain.app import requeue
from lbtrain.app.continuation import Continuation
from lbtrain.app.evaluate import evaluate, found
from lbtrain.app.instantiate import instantiate, instantiate_each, validate
from lbtrain.app.outcome import clear, leave
from lbtrain.app.pulse import pulses
from lbtrain.app.remedy_keys import name_remedies
from lbtrain.app.signatures import suggestion
from lbtrain.app.spectra import write_spectra
from lbtrain.app.surroundings import hush, in_one_line, seed_variable
from lbtrain.app.sweep.refusals import refuse_shared_process
from lbtrain.app.table import show
from lbtrain.app.termination import sigterm_ends
from lbtrain.callbacks.random_state import RandomState
from lbtrain.callbacks.step_time import StepTime


def train(cfg: DictConfig) -> dict[str, float]:
    """Check a config, train it, evaluate the final weights and leave `summary.json`, also when it fails.

    Args:
        cfg: A config composed from `lbtrain.conf`, within a Hydra job.

    Returns:
        The run's numbers by key, in the units of the key table in the README.
    """
    directory = Path(HydraConfig.get().runtime.output_dir)
    cfg.ckpt_path = cfg.ckpt_path or requeue.kept(directory)
    hush(resumed=cfg.ckpt_path is not None)
    validate(cfg)
    clear(directory, resumed=cfg.ckpt_path is not None)
    start = time.time()
    metrics: dict[str, float | str] = {}
    with sigterm_ends():
        try:
            with seed_variable(), in_one_line():
                _train(cfg, metrics)
        except BaseException as error:
            leave(cfg, metrics, start, directory, error)
            raise
        leave(cfg, metrics, start, directory, None)
    if rank_zero_only.rank == 0:
        show(metrics, str(directory))
        if cfg.objective not in metrics and not cfg.trainer.get("fast_dev_run"):
            hint = suggestion(str(cfg.objective), metrics)
            logging.getLogger(__name__).warning("objective: this run has no metric %r%s", cfg.objective, hint)
    return {key: value for key, value in metrics.items() if not isinstance(value, str)}


def _train(cfg: DictConfig, metrics: dict[str, float | str]) -> None:
    """Run the config; what is known goes into `metrics` as soon as it is, for the record of a run that fails."""
    if cfg.seed is not None:
        seed_everything(cfg.seed, workers=True, verbose=False)
    data, model = instantiate(cfg.data), instantiate(cfg.model)
    callbacks = _callbacks(cfg)
    loggers = instantiate_each(cfg.logger)
    options = {"callbacks": callbacks, "logger": loggers or False}
    if "enable_checkpointing" in cfg.trainer and cfg.trainer.enable_checkpointing is None:
        # Lightning's own answer is to save also where nobody has asked for it, in a place that depends on the logger.
        options["enable_checkpointing"] = any(isinstance(c, ModelCheckpoint) for c in callbacks)
    trainer = instantiate(cfg.trainer, **options)
    refuse_shared_process(trainer)
    try:
        trainer.fit(model, datamodule=data, ckpt_path=cfg.ckpt_path)
    finally:
        metrics.update(_told(callbacks) | found(trainer))
    requeue.forget(trainer, Path(HydraConfig.get().runtime.output_dir))
    write_spectra(trainer, Path(HydraConfig.get().runtime.output_dir))
    if not trainer.fast_dev_run:
        metrics.update(evaluate(trainer, model, data))
        _log(trainer, metrics)


def _callbacks(cfg: DictConfig) -> list[Callback]:
    """Build the callbacks; timing and all that a resumed run needs come with every run.

    Returns:
        In the order in which their hooks run.
    """
    chosen = instantiate_each(cfg.callbacks)
    name_remedies(chosen, cfg)
    always = [kind() for kind in (Continuation, StepTime, RandomState) if not any(isinstance(c, kind) for c in chosen)]
    return [*pulses(), *always, *chosen, *requeue.at_step_end()]


def _told(callbacks: Sequence[Callback]) -> dict[str, str]:
    """Return what earlier sessions of a resumed run have found in words: no step of this one may have said it again."""
    return {key: word for each in callbacks if isinstance(each, Continuation) for key, word in each.words.items()}


@rank_zero_only
def _log(trainer: Trainer, metrics: Mapping[str, float | str]) -> None:
    final = {k: v for k, v in metrics.items() if k.startswith(("train/", "gap/")) and not isinstance(v, str)}
    for logger in trainer.loggers:
        logger.log_metrics(final, step=trainer.fit_loop.epoch_loop._batches_that_stepped)
        logger.save()
