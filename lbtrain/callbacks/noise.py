"""Measure the gradient noise scale while training."""

import math
from typing import Any

from torch import Tensor

from lbtrain._lightning import (
    Callback,
    LightningModule,
    MisconfigurationException,
    Trainer,
    rank_zero_info,
    rank_zero_warn,
)
from lbtrain.callbacks._climber import Climber
from lbtrain.callbacks._noise_sources import Measured, MicroBatches, TrainedParameters, measured_halves
from lbtrain.callbacks._noise_words import check_arguments, numbers, refuse_unmeasurable, samples_in, sentence
from lbtrain.callbacks._objective import refuse_manual_optimization
from lbtrain.callbacks._trainer import GlobalBatch, data_parallel, is_optimizer_step, publish, steps_to_log
from lbtrain.callbacks.loss_reduction import LossReductionCheck, reduction_on
from lbtrain.callbacks.lr_scaling import LearningRateScaling
from lbtrain.functional.running_noise import NoiseScale, RunningNoise

_MOST_PENDING = 64  # measurements that may wait on the device for a step that is logged


class GradientNoiseScale(Callback):
    """Measure the noise scale `B = tr(Sigma) / |G|^2`, the batch size beyond which larger batches stop paying.

    Sigma is the covariance of per-sample gradients and G their mean. With accumulation or several devices, the
    gradients of the step's micro-batches are compared with the gradient that the step makes of them: no gradient is
    taken for it, and the ranks exchange two scalars more. Otherwise, and where SAM or a relative replaces the
    optimizer's gradient, both halves of a batch are evaluated without a trace. The training is the same bit for bit.
    Logs `noise/b_simple`, `noise/b_simple_stderr`, `noise/gradient_sq`, `noise/trace_sigma` and `noise/adascale_gain`
    at the Trainer's log interval; `.result` holds the last numbers, and when training ends a sentence says what they
    mean.

    Args:
        every_n_steps: Measure in every n-th optimizer step. Halves of a batch cost two gradients of half a batch each
            time, micro-batches next to nothing.
        forget: Share of its weight that an estimate loses when the next one comes, 0 up to 1; the memory is about
            1/forget estimates, 0 remembers all.
        base_batch_size: Global batch size from which AdaScale's gain counts, in samples; None takes
            LearningRateScaling's, or without that callback the batch of one device.
        batch_size: Samples per batch and device, for batches that do not tell; None counts them.
        reduction: What the loss does with the samples of a batch: `mean`, `sum`, or `auto` to find out on the first.

    Raises:
        ValueError: If an argument is out of range.

    References:
        McCandlish et al. (2018), arXiv 1812.06162, appendix A.1; Johnson et al. (2020), arXiv 2007.05105 (the gain).
    """

    def __init__(
        self,
        every_n_steps: int = 10,
        forget: float = 0.01,
        base_batch_size: int | None = None,
        batch_size: int | None = None,
        reduction: str = "auto",
    ) -> None:
        check_arguments(every_n_steps, base_batch_size, batch_size, reduction)
        self.every_n_steps, self.forget, self.reduction = every_n_steps, forget, reduction
        self.base_batch_size, self.batch_size = base_batch_size, batch_size
        self.result: NoiseScale | None = None
        self._window: MicroBatches | None = None
        self._start_anew()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse what has no gradient of its own to look at; forget the last fit."""
        if stage == "fit":
            refuse_manual_optimization(pl_module, "GradientNoiseScale")
            refuse_unmeasurable(trainer, self)
            self._start_anew()

    def state_dict(self) -> dict[str, Any]:
        """Return the running means and what was counted, in plain Python."""
        self._take_in()
        return {"noise": self._noise.state_dict(), **self._counted, "skipped": dict(self._counted["skipped"])}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self._noise.load_state_dict(state_dict["noise"])
        self._counted = {key: state_dict[key] for key in self._counted}
        if self.reduction != "auto":
            self._counted["reduction"] = self.reduction

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Begin to measure, if the step that begins is one to measure."""
        starts, self._in_step = not self._in_step, True
        if starts and trainer.global_step % self.every_n_steps == 0:
            self._begin(trainer, pl_module, batch, batch_idx)
        elif self._window is not None:
            self._size = samples_in(batch, self.batch_size)

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Let the gradients that come now count."""
        if self._window is not None:
            self._window.begin()

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take in the micro-batch; behind the last one, compare all with the step's gradient."""
        if self._window is not None:
            self._window.end(self._size)
            if is_optimizer_step(trainer):
                self._compare(trainer, pl_module, self._window)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """End the step, and log if the Trainer does."""
        if is_optimizer_step(trainer):
            self._leave("steps of fewer micro-batches than accumulate_grad_batches")
            if steps_to_log(trainer) == 0 and (self._pending or self._noise.count):
                pl_module.log_dict(self._metrics(trainer), on_step=True, on_epoch=False)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave a step that the end of the epoch cut short."""
        self._leave("steps cut short by the end of an epoch")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Publish the numbers and say what they mean."""
        metrics = self._metrics(trainer)
        if self._noise.count:
            publish(trainer, metrics)
        rank_zero_info(sentence(self.result, self._counted["skipped"]))

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Take the hooks off the parameters."""
        self._leave("steps that failed")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take the hooks off the parameters."""
        self._leave("steps that were not finished")

    def _start_anew(self) -> None:
        self._noise = RunningNoise(self.forget)
        self._counted: dict[str, Any] = dict(num_gradients=0, per_device=0, reduction=self.reduction, skipped={})
        self._params, self._warned = TrainedParameters(), False
        self._pending: list[Measured] = []
        self._leave("")
        self.result = None

    def _begin(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        size = self._size = samples_in(batch, self.batch_size)
        # The largest, since the last batch of an epoch may be short.
        self._counted["per_device"] = max(self._counted["per_device"], size)
        summed = self._is_sum(trainer, pl_module, batch)
        params = self._params.now(trainer, pl_module)
        if not params:
            raise MisconfigurationException(
                "GradientNoiseScale measures the gradient of the parameters that are trained, and there are none: give "
                "configure_optimizers an optimizer with parameters that require a gradient, or drop GradientNoiseScale"
            )
        parts = data_parallel(trainer) * trainer.accumulate_grad_batches
        if parts > 1 and not any(isinstance(c, Climber) for c in trainer.callbacks):
            self._window = MicroBatches(params, summed=summed)
            return
        if size == 1 and not self._warned:
            self._warned = True
            rank_zero_warn("a batch of one sample has no halves to tell the gradient noise from: it is left out")
        self._pending.append(measured_halves(trainer, pl_module, params, batch, batch_idx, size, summed=summed))
        self._counted["num_gradients"] += 2 * (size > 1)

    def _is_sum(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> bool:
        if self._counted["reduction"] in ("auto", "unknown"):
            self._counted["reduction"] = _reduction(trainer, pl_module, batch)
        return self._counted["reduction"] == "sum"

    def _compare(self, trainer: Trainer, pl_module: LightningModule, window: MicroBatches) -> None:
        # Checked on counts that all ranks share, so that all of them reduce or none.
        if window.count == trainer.accumulate_grad_batches:
            self._window = None
            window.close()
            self._pending.append(window.measured(trainer, pl_module.device))

    def _leave(self, why: str) -> None:
        """End the step; if it was being measured, that came to nothing."""
        self._in_step = False
        if self._window is not None:
            self._window.close()
            self._window = None
            self._skip(why)
        if len(self._pending) >= _MOST_PENDING:
            self._take_in()

    def _skip(self, what: str) -> None:
        skipped = self._counted["skipped"]
        skipped[what] = skipped.get(what, 0) + 1

    def _take_in(self) -> None:
        """Wait for the device, and add up what was measured."""
        pending, self._pending = self._pending, []
        for measured in pending:
            values = measured.values.tolist()
            if all(map(math.isfinite, values)):
                self._noise.add(measured.read(values))
            else:
                self._skip(measured.problem)

    def _metrics(self, trainer: Trainer) -> dict[str, float]:
        """Return the numbers under their keys, and keep the result that they are from."""
        self._take_in()
        per_device = self._counted["per_device"] or 1
        batch = GlobalBatch(per_device, data_parallel(trainer), trainer.accumulate_grad_batches).size
        tuned = next((c.base_batch_size for c in trainer.callbacks if isinstance(c, LearningRateScaling)), per_device)
        found = self._noise.result(batch, self.base_batch_size or tuned, self._counted["num_gradients"])
        self.result = found
        return numbers(found)


def _reduction(trainer: Trainer, pl_module: LightningModule, batch: Any) -> str:
    for callback in trainer.callbacks:
        if isinstance(callback, LossReductionCheck):
            return callback.verdict(trainer, pl_module, batch).kind
    return str(trainer.strategy.broadcast(reduction_on(trainer, pl_module, batch).kind))
