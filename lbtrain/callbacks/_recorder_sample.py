"""One sample: what the fixed subset of the training data says at the current weights."""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lbtrain._lightning import LightningModule, MisconfigurationException, Trainer, rank_zero_warn
from lbtrain.callbacks._agreement import agreed, gather_texts, sum_over_ranks, together
from lbtrain.callbacks._evidence import Point, Units
from lbtrain.callbacks._measure import mean_training_loss
from lbtrain.callbacks._measurement import account
from lbtrain.callbacks._recorder_curvature import TopEigenvalue
from lbtrain.callbacks._recorder_flow import flow_by_layer
from lbtrain.callbacks._recorder_mean import WeightMean
from lbtrain.callbacks._recorder_run import evaluation_size, has_mean_gradients, rate_of
from lbtrain.callbacks._unit_watch import UnitWatch
from lbtrain.functional.operator import HessianOperator
from lbtrain.functional.vectors import norm, unflatten

# For graphs that are kept between the products of one sample: a choice, a quarter of HessianSpectrum's.
_GRAPH_MEMORY_MB = 256


@dataclass(frozen=True)
class Sample:
    """A point of the record, and what to hold the gradients of the next steps against."""

    point: Point
    params: Sequence[Tensor]
    gradient: Sequence[Tensor] | None
    """Of the subset's loss, shape of the parameters each; None if batch gradients are not to be compared with it."""
    direction: Sequence[Tensor] | None
    """The unit top eigenvector, likewise; None where it was not measured."""


class Sampler:
    """Evaluate the subset, without a trace, and account for the time as measuring.

    Args:
        num_samples: Training samples of the subset, drawn by seed.
        batch_size: Samples per evaluation and device; None as in training, or more where samples are small.
        seed: Of the draw and of the first start vector.

    Attributes:
        left_out: Why something is not measured, by what: `samples`, `curvature`.
        seconds: Spent so far.
        num_evaluations: Values, gradients and Hessian products so far.
    """

    def __init__(self, num_samples: int, batch_size: int | None, seed: int) -> None:
        self._data: dict[str, Any] = {"num_samples": num_samples, "batch_size": batch_size, "seed": seed}
        self._is_sized = batch_size is not None
        self._top = TopEigenvalue(seed)
        self.left_out: dict[str, str] = {}
        self.seconds, self.num_evaluations = 0.0, 0

    @property
    def is_on(self) -> bool:
        """Whether samples are taken."""
        return "samples" not in self.left_out

    def take(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        before: Mapping[int, Tensor],
        *,
        has_curvature: bool,
        logged: int = 0,
    ) -> Sample | None:
        """Sample at the current weights; every rank takes part.

        Args:
            trainer: The Trainer, in training.
            pl_module: Its module.
            before: Weights before the last step by the id of the parameter; none where they are not known.
            has_curvature: Whether the largest eigenvalue is measured too.
            logged: Optimizer steps that the loggers have not counted yet.

        Returns:
            What was seen; None where it failed, which `left_out` then says.
        """
        found = None
        with self._timed(trainer, pl_module, logged) as metrics, self._forgiving("samples"):
            found = self._look(trainer, pl_module, before, has_curvature=has_curvature)
            metrics["subset/loss"] = found.point.loss
        return found

    def loss_at(self, trainer: Trainer, pl_module: LightningModule, mean: WeightMean) -> float:
        """Return the loss on the subset at other weights; every rank takes part.

        Args:
            trainer: The Trainer, in training.
            pl_module: Its module; its own weights come back bit for bit.
            mean: The weights.

        Returns:
            Loss per sample.
        """
        with self._timed(trainer, pl_module), mean_training_loss(trainer, pl_module, **self._data) as loss:
            self.num_evaluations += 1
            with ExitStack() as stack:
                together(trainer, lambda: stack.enter_context(mean.placed(pl_module)))
                return loss.value()

    def state_dict(self) -> dict[str, Any]:
        """Return the cost so far and how many samples are evaluated at once.

        The eigenvectors are left out: each is as large as the weights, and a resumed run finds them in a few products.
        """
        cost = {"seconds": self.seconds, "num_evaluations": self.num_evaluations}
        size = {"batch_size": self._data["batch_size"], "is_sized": self._is_sized}
        return cost | size

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint.

        Args:
            state: From `state_dict`.
        """
        self.seconds, self.num_evaluations = state["seconds"], state["num_evaluations"]
        if not self._is_sized:
            self._data["batch_size"], self._is_sized = state["batch_size"], state["is_sized"]

    def _look(
        self, trainer: Trainer, pl_module: LightningModule, before: Mapping[int, Tensor], *, has_curvature: bool
    ) -> Sample:
        watch, is_curved = UnitWatch(pl_module), has_curvature and "curvature" not in self.left_out
        options = {**self._data, "graph_memory_mb": _GRAPH_MEMORY_MB if is_curved else 0.0, "around": watch.during}
        named = [(name, p) for name, p in pl_module.named_parameters() if p.requires_grad]
        with mean_training_loss(trainer, pl_module, **options) as loss:
            value, gradient = self._slope(loss, is_curved=is_curved)
            params, pieces = loss.params, unflatten(gradient, loss.params)
            size = float(norm(pieces))
            is_finite = math.isfinite(value) and math.isfinite(size)
            top, edge = self._curvature(trainer, loss, gradient, named) if is_curved and is_finite else (None, None)
        units = units_of(trainer, watch)

        def put_together() -> Sample:
            point = Point(
                trainer.global_step, trainer.current_epoch, value, size, float(rate_of(trainer)), lambda_max=top,
                stability=edge, units=units, flow=flow_by_layer(named, pieces, before),
            )  # fmt: skip
            vector = self._top.vector if top is not None else None
            self._resize(trainer, pl_module)
            return Sample(
                point,
                params,
                pieces if is_finite and has_mean_gradients(trainer) else None,
                None if vector is None else unflatten(vector, params),
            )

        return together(trainer, put_together)

    def _slope(self, loss: HessianOperator, *, is_curved: bool) -> tuple[float, Tensor]:
        """Return the mean loss and its gradient, where products follow from the graphs that these will use."""
        self.num_evaluations += 1
        if is_curved:
            with self._forgiving("curvature"):
                return loss.slope()
        return loss.value_and_gradient()

    def _curvature(
        self, trainer: Trainer, loss: HessianOperator, gradient: Tensor, named: Sequence[tuple[str, Tensor]]
    ) -> tuple[float | None, float | None]:
        """Return the largest eigenvalue and the stability, None where they are not known."""
        found: tuple[float | None, float | None] = (None, None)
        optimizer = trainer.optimizers[0] if trainer.optimizers else None
        if "curvature" not in self.left_out:
            with self._forgiving("curvature"):
                found = self._top.measure(loss, gradient, optimizer, [(name, p.shape) for name, p in named])
                self.num_evaluations += loss.num_matvecs
        # Left out on one rank, it is left out on all: products are sums over ranks.
        if agreed(trainer, "curvature" in self.left_out):
            self.left_out.setdefault("curvature", "another rank failed")
            return None, None
        return found

    def _resize(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Settle, behind the first sample of a fit, how many samples are evaluated at once."""
        if not self._is_sized:
            self._is_sized, data = True, self._data
            data["batch_size"] = evaluation_size(trainer, pl_module, data["num_samples"], data["seed"])

    @contextmanager
    def _timed(self, trainer: Trainer, pl_module: LightningModule, logged: int = 0) -> Iterator[dict[str, float]]:
        """Count what is done inside as measuring, and publish the metrics that it writes into the dictionary.

        Yields:
            The dictionary.
        """
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize(pl_module.device)  # what training has queued is not measuring
        start, metrics = time.perf_counter(), dict[str, float]()
        try:
            yield metrics
        finally:
            seconds = time.perf_counter() - start
            self.seconds += seconds
            account(trainer, metrics, seconds, trainer.fit_loop.epoch_loop._batches_that_stepped + logged)

    @contextmanager
    def _forgiving(self, what: str) -> Iterator[None]:
        """Let training go on where a measurement fails: leave it out from here on, and say why.

        Yields:
            Nothing.
        """
        try:
            yield
        except Exception as error:  # an observer must not end what it observes, whatever it meets
            # The reason reaches files and loggers: a foreign error's words may hold what is no one else's.
            is_own = isinstance(error, MisconfigurationException)
            self.left_out[what] = str(error) if is_own else f"it failed with {type(error).__name__}"
            rank_zero_warn(f"the diagnosis goes on without {what}: {type(error).__name__}: {error}")


def units_of(trainer: Trainer, watch: UnitWatch) -> dict[str, Units]:
    """Return the units as all ranks have seen them; all of them must ask.

    Args:
        trainer: The Trainer.
        watch: Of this rank.

    Returns:
        Units by layer.
    """
    several: dict[str, Any] = {"all_reduce": partial(sum_over_ranks, trainer), "gather": gather_texts}
    return watch.units(**several if trainer.world_size > 1 else {})
