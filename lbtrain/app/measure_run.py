"""Measure one checkpoint: compose, restore, measure, and leave `measurement.json`."""

import importlib.resources
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict

from lbtrain._lightning import (
    Callback,
    Trainer,
    rank_zero_info,
    rank_zero_only,
    rank_zero_warn,
    seed_everything,
)
from lbtrain.app.checkpoint import key_of
from lbtrain.app.config import without_secrets
from lbtrain.app.evaluate import evaluate, found
from lbtrain.app.instantiate import ConfigError, instantiate, instantiate_each, validate
from lbtrain.app.loggers import wandb_logger
from lbtrain.app.measure import Line
from lbtrain.app.measure_reading import Reading, explained
from lbtrain.app.measure_record import clear, leave
from lbtrain.app.measure_restore import Quiet, Still, keep_of_module, kept, takes_part
from lbtrain.app.signatures import locate
from lbtrain.app.spectra import write_spectra
from lbtrain.app.surroundings import hush, in_one_line, seed_variable
from lbtrain.app.table import show
from lbtrain.callbacks._measurement import Measurement
from lbtrain.callbacks.lr_scaling import LearningRateScaling

# What measures where the config names nothing that does.
_DEFAULT = ("hessian", "sharpness")
# Parts of the config that decide what is measured.
_DECISIVE = ("seed", "data", "model", "optimizer", "scheduler")


def measure(cfg: DictConfig, line: Line) -> dict[str, float | str]:
    """Check a config, measure its checkpoint and leave `measurement.json`, also when that fails.

    Args:
        cfg: The config that was composed for the command line, within a Hydra job.
        line: The command line.

    Returns:
        The numbers by key, in the units of the key table in the README; texts too.
    """
    hush(resumed=True)
    # Callbacks of the run are left out on purpose.
    warnings.filterwarnings("ignore", message="Be aware that when using `ckpt_path`")
    scaled = any(_target(node) is LearningRateScaling for node in (cfg.callbacks or {}).values())
    _choose(cfg, line)
    if not any(key_of(override).startswith("logger") for override in line.given):
        cfg.logger = {}  # those of the run belong to the run
    _name_kind(cfg, line)
    validate(cfg)
    directory = Path(HydraConfig.get().runtime.output_dir)
    clear(directory)
    _tell(cfg, line)
    start, metrics, reading = time.time(), dict[str, float | str](), Reading()
    rate_known = not scaled or any(key_of(o) in {"optimizer.lr", "optimizer"} for o in line.given)
    try:
        with seed_variable(), in_one_line():
            _measure(cfg, line, metrics, reading, rate_known=rate_known)
    except BaseException as error:
        leave(cfg, line, metrics, reading.facts, start, directory, error)
        raise
    leave(cfg, line, metrics, reading.facts, start, directory, None)
    if rank_zero_only.rank == 0:
        show(metrics, str(directory))
    return metrics


def _measure(
    cfg: DictConfig, line: Line, metrics: dict[str, float | str], reading: Reading, *, rate_known: bool
) -> None:
    """Restore and measure; what is known goes into `metrics` as soon as it is."""
    if cfg.seed is not None:
        seed_everything(cfg.seed, workers=True, verbose=False)
    data, model = instantiate(cfg.data), instantiate(cfg.model)
    callbacks = kept(instantiate_each(cfg.callbacks))
    keep_of_module(model)
    # Still comes last: callbacks that freeze parameters make their groups first.
    trainer = _trainer(cfg, [*callbacks, Still(reading, rate_known=rate_known)])
    reading.serve(trainer)
    try:
        trainer.fit(model, datamodule=data, ckpt_path=line.checkpoint)
    except RuntimeError as error:
        refusal = explained(error, _way_out(line))
        raise refusal or error from error
    finally:
        metrics.update(found(trainer))
    write_spectra(trainer, Path(HydraConfig.get().runtime.output_dir))
    metrics.update(evaluate(trainer, model, data))
    _log(trainer, metrics)


def _trainer(cfg: DictConfig, callbacks: list[Callback]) -> Trainer:
    """Return the config's Trainer, without what belongs to a training."""
    if cfg.trainer.get("enable_progress_bar", True):
        callbacks = [*callbacks, Quiet()]
    options = {
        "callbacks": callbacks,
        "logger": instantiate_each(cfg.logger) or False,
        "enable_checkpointing": False,
        "fast_dev_run": False,
        "limit_val_batches": 0,
        "num_sanity_val_steps": 0,
        "max_time": None,
    }
    return instantiate(cfg.trainer, **options)


def _choose(cfg: DictConfig, line: Line) -> None:
    """Leave only the callbacks that take part in measuring; hessian and sharpness if the run had none that measures.

    Raises:
        ConfigError: If the user has chosen none that measures.
    """
    with open_dict(cfg):
        cfg.callbacks = cfg.callbacks or {}
        for name in list(cfg.callbacks):
            target = _target(cfg.callbacks[name])
            if target is None or (isinstance(target, type) and not issubclass(target, takes_part())):
                del cfg.callbacks[name]
        left = [_target(node) for node in cfg.callbacks.values()]
        if any(not isinstance(target, type) or issubclass(target, Measurement) for target in left):
            return
        chosen = [override for override in line.given if key_of(override) == "callbacks"]
        if chosen:
            raise ConfigError(f"{chosen[0]} measures nothing: write callbacks=[{','.join(_DEFAULT)}]")
        for name in _DEFAULT:
            text = (importlib.resources.files("lbtrain.conf") / "callbacks" / f"{name}.yaml").read_text()
            cfg.callbacks[name] = OmegaConf.create(text)[name]
    rank_zero_info(f"the config has no callback that measures: measuring with {' and '.join(_DEFAULT)}")


def _name_kind(cfg: DictConfig, line: Line) -> None:
    """Tell wandb that this is no training, unless the user has named the kind of the run."""
    given = {key_of(override) for override in line.given}
    for name, node in (cfg.logger or {}).items():
        is_default = f"logger.{name}.job_type" not in given and node.get("job_type", "train") == "train"
        if is_default and _target(node) is wandb_logger:
            with open_dict(node):
                node.job_type = "measure"


def _target(node: Any) -> Any:
    """Return the class or function that a node names, its name if that does not import, None if it names none."""
    if not isinstance(node, DictConfig) or "_target_" not in node:
        return None  # values that a config adds to a callback which this one has not chosen
    try:
        return locate(node["_target_"])
    except Exception:
        return str(OmegaConf.to_container(node, resolve=False))  # the check of the config says what is wrong


def _tell(cfg: DictConfig, line: Line) -> None:
    """Say which config holds, and what in it is not as it was when the run was started."""
    own = f", with {' '.join(without_secrets(line.given))}" if line.given else ""
    if line.run is None:
        rank_zero_info(f"measuring {line.checkpoint} with the default config{own}: no run of lbtrain around it")
        return
    run = " ".join(without_secrets(line.run.overrides)) or "no overrides"
    rank_zero_info(f"measuring {line.checkpoint} with the config of its run ({run}){own}")
    if line.run.config.is_file():
        changed = list(_changed(OmegaConf.load(line.run.config), cfg, line))
        if changed:
            rank_zero_warn(f"the configs have changed since the run: {'; '.join(changed)}")


def _changed(then: Any, cfg: DictConfig, line: Line) -> Iterator[str]:
    """Yield what differs from the run's own config although nobody has asked for it."""
    before, now = OmegaConf.to_container(then, resolve=False), OmegaConf.to_container(cfg, resolve=False)
    asked = [key_of(override) for override in line.given]
    for part in _DECISIVE:
        old, new = dict(_leaves(before.get(part), part)), dict(_leaves(now.get(part), part))
        for key in old.keys() & new.keys():
            if old[key] != new[key] and not any(f"{key}.".startswith(f"{a}.") for a in asked):
                yield f"{key} was {old[key]!r} and is {new[key]!r} (give {key}={old[key]} to measure as it was trained)"


def _leaves(node: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from _leaves(value, f"{path}.{key}")
    else:
        yield path, node


def _way_out(line: Line) -> str:
    asked = [o for o in line.given if key_of(o).partition(".")[0] in {"model", "data", "experiment"}]
    if line.run is None:
        return "no run of lbtrain is around it, so give the overrides that it was trained with, such as model=..."
    if asked:
        return f"its run was trained without {' '.join(asked)}: leave that out"
    return "its run had another model, so the code or the configs have changed since: take them back to that commit"


@rank_zero_only
def _log(trainer: Trainer, metrics: Mapping[str, float | str]) -> None:
    final = {k: v for k, v in metrics.items() if k.startswith(("train/", "gap/")) and not isinstance(v, str)}
    for logger in trainer.loggers:
        logger.log_metrics(final, step=trainer.global_step)
        logger.save()
