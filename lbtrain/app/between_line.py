"""Loss and accuracy at places on the line between two checkpoints."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from lbtrain._lightning import LightningDataModule, LightningModule, Trainer, seed_everything
from lbtrain.app.between_pairs import Pair, RunAt
from lbtrain.app.evaluate import evaluate
from lbtrain.app.instantiate import instantiate
from lbtrain.app.leftovers import last_checkpoint
from lbtrain.app.measure_reading import Reading
from lbtrain.app.own import import_own_modules
from lbtrain.app.signatures import ConfigError
from lbtrain.app.surroundings import hush, in_one_line, seed_variable

_CONFIG = ".hydra/config.yaml"
# Key of the file -> metric.
_CURVES = {"train_loss": "train/loss", "test_loss": "test/loss", "train_acc": "train/acc", "test_acc": "test/acc"}


def along(pair: Pair, alpha: Sequence[float]) -> dict[str, list[float]]:
    """Evaluate w(alpha) = (1 - alpha) w_0 + alpha w_1 on training and test data, each sample once, in eval mode.

    Parameters and buffers of floating point lie on the line. The running statistics of batch normalization do not: at
    each place they are computed anew from the training data, since those of neither end are right in between.

    Args:
        pair: The two runs, with a checkpoint each.
        alpha: Places; 0 is the first run, 1 the second.

    Returns:
        `train_loss`, `test_loss` (per sample), `train_acc`, `test_acc` (shares), a value for each place.

    Raises:
        ConfigError: If a checkpoint is missing, the two do not fit each other, or the module logs no loss and accuracy.
    """  # noqa: DOC502 - raised by what is called
    hush(resumed=True)
    # The larger batch of the two evaluates faster.
    cfg = _config(pair.end)
    import_own_modules(cfg)
    with seed_variable(), in_one_line():
        if cfg.get("seed") is not None:
            seed_everything(cfg.seed, workers=True, verbose=False)
        data, model = instantiate(cfg.data), instantiate(cfg.model)
        trainer = _trainer(cfg)
        ends = [_weights(trainer, run) for run in (pair.start, pair.end)]
        _refuse_other_network(pair, ends)
        data.trainer = trainer
        data.prepare_data()
        data.setup("fit")
        found = [_metrics(trainer, model, data, weights) for weights in _line(ends, alpha)]
    return {name: [_value(metrics, key, pair) for metrics in found] for name, key in _CURVES.items()}


def _config(run: RunAt) -> DictConfig:
    """Return the config of a run as it was composed then.

    Raises:
        ConfigError: If it is not there.
    """
    path = run.folder / _CONFIG
    if not path.is_file():
        raise ConfigError(f"{path} is not there, so the network of the run is not known: run it again")
    loaded = OmegaConf.load(path)
    return loaded if isinstance(loaded, DictConfig) else OmegaConf.create({})


def _trainer(cfg: DictConfig) -> Trainer:
    """Return a Trainer that evaluates in this process, on the kind of device that there is."""
    kept = ("precision", "limit_test_batches", "inference_mode")
    options: dict[str, Any] = {key: cfg.trainer[key] for key in kept if cfg.trainer.get(key) is not None}
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    accelerator = "cpu" if cfg.trainer.get("accelerator") == "cpu" else "auto"
    return Trainer(accelerator=accelerator, devices=1, logger=False, **quiet, **options)


def _weights(trainer: Trainer, run: RunAt) -> dict[str, Tensor]:
    """Return the weights that a run ended with.

    Raises:
        ConfigError: If there is no checkpoint that can be read.
    """
    path = last_checkpoint(run.folder)
    if path is None:
        folder = run.folder / "checkpoints"
        raise ConfigError(f"no checkpoint in {folder} can be read: run it again with checkpoint in callbacks=[...]")
    reading = Reading()
    reading.serve(trainer)
    loaded = reading.load_checkpoint(path, map_location="cpu")
    return dict(loaded["state_dict"])


def _refuse_other_network(pair: Pair, ends: Sequence[Mapping[str, Tensor]]) -> None:
    """Refuse checkpoints between which there is no line.

    Raises:
        ConfigError: If they differ in the names or the shapes of their weights.
    """
    start, end = ends
    for key in [*start, *end]:
        shapes = [tuple(state[key].shape) if key in state else None for state in ends]
        if shapes[0] != shapes[1]:
            told = [f"has shape {shape}" if shape is not None else "is not there" for shape in shapes]
            raise ConfigError(
                f"{key} {told[0]} in {pair.start.folder} and {told[1]} in {pair.end.folder}: there is no line between "
                "different networks; give runs of one network"
            )


def _line(ends: Sequence[Mapping[str, Tensor]], alpha: Sequence[float]) -> Iterator[dict[str, Tensor]]:
    """Yield the weights at each place; at 0 and 1 they are those of the ends bit for bit."""
    start, end = ends
    for place in alpha:
        yield {
            key: torch.lerp(value, end[key].to(value.dtype), place) if value.is_floating_point() else value
            for key, value in start.items()
        }


def _metrics(
    trainer: Trainer, model: LightningModule, data: LightningDataModule, weights: Mapping[str, Tensor]
) -> dict[str, float]:
    model.load_state_dict(weights)
    layers = [m for m in model.modules() if isinstance(m, _NormBase) and m.track_running_stats]
    if layers:
        _estimate_statistics(model, layers, data)
    return evaluate(trainer, model, data)


@torch.no_grad()
def _estimate_statistics(model: LightningModule, layers: Sequence[nn.Module], data: LightningDataModule) -> None:
    """Set running means and variances to the averages over one pass through the training data."""
    training = [m.training for m in layers]
    momenta = [m.momentum for m in layers]
    model.eval()
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # the plain average over all batches
        layer.train()
    for batch in data.train_dataloader():
        model(batch[0] if isinstance(batch, (tuple, list)) else batch)
    for layer, momentum, was in zip(layers, momenta, training, strict=True):
        layer.momentum = momentum
        layer.train(was)


def _value(metrics: Mapping[str, float], key: str, pair: Pair) -> float:
    if key in metrics:
        return metrics[key]
    there = ", ".join(sorted(metrics)) or "nothing"
    raise ConfigError(f"the test_step of {pair.network} logs no {key} ({there}): log test/loss and test/acc")
