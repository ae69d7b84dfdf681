"""Record a training: the loss of every step, and at some of them what a fixed subset of the data says."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from lbtrain._lightning import LightningModule, Trainer
from lbtrain.callbacks._agreement import agreed
from lbtrain.callbacks._evidence import Evidence
from lbtrain.callbacks._measure import check_measure_arguments
from lbtrain.callbacks._recorder_gradients import Following, NextGradients
from lbtrain.callbacks._recorder_guard import Guard
from lbtrain.callbacks._recorder_losses import StepLosses
from lbtrain.callbacks._recorder_mean import WeightMean
from lbtrain.callbacks._recorder_pace import Pace
from lbtrain.callbacks._recorder_run import is_scaled, rate_of, refusal
from lbtrain.callbacks._recorder_sample import Sampler
from lbtrain.callbacks._trainer import has_scaler, is_optimizer_step, loss_scale


class Recorder:
    """Fill `Evidence` while a module trains, without a trace in the training.

    Each optimizer step leaves its loss and its rate, on the device until the next sample. A sample takes the loss and
    the gradient on a fixed subset of the training data in eval mode, the units and the gradient flow of that pass, and
    every few samples the largest Hessian eigenvalue on part of the subset. The batch gradients of the steps behind it
    tell how much of them is noise, and whether they alternate along the top eigenvector. A running mean of the weights
    is kept for the question whether averaging would help. All ranks call each method together.

    Kept beside the weights, in copies of them: the mean (in checkpoints, too), the top eigenvector (two for optimizers
    that scale each weight), until the next step a sample's gradient, in a step before one the old weights.

    Args:
        num_samples: Training samples of the subset, drawn by seed.
        every_n_steps: Sample after each n-th optimizer step; None for 14 samples over the run. A run of unknown length
            starts with every 10th step and doubles the interval, dropping every second sample, whenever it has 28.
        curvature_every: Samples from one with the largest eigenvalue to the next.
        seed: Of the draw and of the first start vector.
        batch_size: Samples per evaluation and device; None as in training, or more where samples are small.

    Attributes:
        sampler: Which knows what sampling has cost, and why something is left out.
        evidence: What has been read off the device; `read` brings it up to date.
        guard: Of work that may fail on one rank alone.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        num_samples: int = 64,
        every_n_steps: int | None = None,
        curvature_every: int = 5,
        seed: int = 0,
        batch_size: int | None = None,
    ) -> None:
        check_measure_arguments(num_samples, batch_size, seed)
        self.sampler = Sampler(num_samples, batch_size, seed)
        self._pace = Pace(every_n_steps, curvature_every)
        self._losses, self._mean = StepLosses(), WeightMean()
        self._next = Following()
        self._before: dict[int, Tensor] = {}
        self._rate: float | Tensor = 0.0
        self._scale, self._has_scaler, self._is_next_due = 1.0, False, False
        self._is_plain = False  # whether a batch is a step of one optimizer, unless batches are accumulated
        self._quiet = 0  # steps to come of which nothing but loss and rate is taken
        self.evidence, self.guard = Evidence(), Guard()

    def start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the first sample of a run, before its first step.

        Args:
            trainer: The Trainer, in `on_train_batch_start` of the first batch of a fit.
            pl_module: Its module.
        """
        reason = self.guard.alone(self._begin, trainer, pl_module)
        if agreed(trainer, bool(reason)):
            self.sampler.left_out["samples"] = reason or "another rank cannot be sampled"
        if not self.evidence.points:
            self._sample(trainer, pl_module, trainer.global_step)
        else:
            self._has_ended(trainer)  # a rank that failed may know other steps to sample at

    def before_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Look at the gradient of the step to come, without failing.

        Args:
            trainer: The Trainer, in `on_before_optimizer_step`.
            pl_module: Its module.
            optimizer: About to step.
        """
        # Nearly all steps end here. What is called at each costs ten times what it does in a loop of its own, since
        # training has pushed it out of the processor's caches.
        if self._is_plain and not (self._is_next_due or self._next.is_looking):
            self._rate = optimizer.param_groups[0]["lr"]
        else:
            self.guard.alone(self._look_ahead, trainer, pl_module)

    def after_batch(self, trainer: Trainer, pl_module: LightningModule, outputs: Any) -> None:
        """Take in the loss of a batch, without failing; behind the last one of a step that is due, take a sample.

        Args:
            trainer: The Trainer, in `on_train_batch_end` of every batch.
            pl_module: Its module.
            outputs: What that hook was given.
        """
        if self._quiet > 0 and trainer.accumulate_grad_batches == 1 and self._losses.take(outputs, self._rate):
            self._quiet -= 1
            return
        if not is_optimizer_step(trainer):
            self.guard.alone(self._losses.see, outputs)
            return
        step = trainer.global_step
        self.guard.alone(self._take_in, trainer, pl_module, step, outputs)
        if self._pace.is_due(step):
            # Loggers count this step only after the hook; the weights have seen it already.
            self.guard.tried(partial(self._sample, logged=1), trainer, pl_module, step)
        self._is_next_due = self._pace.is_due(step + 1)
        self._quiet = self._pace.quiet(step) if self._is_plain and not self.guard.reason else 0

    def finish(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take a sample at the last weights, unless there is one; with curvature if much of the loss is left.

        Args:
            trainer: The Trainer, in `on_train_end`.
            pl_module: Its module.
        """
        points = self.evidence.points
        if not points or points[-1].step != trainer.global_step:
            self._sample(trainer, pl_module, trainer.global_step, final=True)
        else:
            self._catch_up(trainer)

    def read(self, trainer: Trainer | None = None) -> Evidence:
        """Bring the evidence up to date, which waits for the device.

        Args:
            trainer: To average the losses of steps over the ranks, all of which must call; None for this rank's own.

        Returns:
            The evidence.
        """
        self._losses.move(self.evidence, trainer)
        self._next.move(self.evidence)
        return self.evidence

    def loss_at_mean(self, trainer: Trainer, pl_module: LightningModule) -> float | None:
        """Return the loss on the subset at the running mean of the weights; every rank takes part.

        Args:
            trainer: The Trainer, in training.
            pl_module: Its module; its weights come back bit for bit.

        Returns:
            Loss per sample, to be held against `Evidence.recent`; None where nothing is sampled or no step was done.
        """
        if not self.sampler.is_on or self._mean.is_empty:
            return None
        return self.sampler.loss_at(trainer, pl_module, self._mean)

    def state_dict(self) -> dict[str, Any]:
        """Return all that a resumed run needs, in plain Python and tensors on the host."""
        self.guard.alone(self._next.move, self.evidence)
        return {
            "evidence": self.evidence.state_dict(),
            "losses": self._losses.state_dict(),
            "mean": self._mean.state_dict(),
            "sampler": self.sampler.state_dict(),
            "pace": self._pace.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint.

        Args:
            state: From `state_dict`.
        """
        self.evidence = Evidence.from_state(state["evidence"])
        for name in ("losses", "mean", "pace"):
            getattr(self, f"_{name}").load_state_dict(state[name])
        self.sampler.load_state_dict(state["sampler"])

    def _begin(self, trainer: Trainer, pl_module: LightningModule) -> str:
        """Return why no sample can be taken, "" where one can."""
        self._pace.begin(trainer)
        self._has_scaler, self._is_next_due = has_scaler(trainer), self._pace.is_due(trainer.global_step + 1)
        self._is_plain, self._quiet = pl_module.automatic_optimization and not self._has_scaler, 0
        # Steps that nobody recorded, behind a checkpoint without this state.
        self._losses.miss(trainer.global_step - len(self.evidence.losses) - len(self._losses), rate_of(trainer))
        self.sampler.left_out.clear()
        return refusal(trainer, pl_module)

    def _look_ahead(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._rate = rate_of(trainer)
        if self._has_scaler:
            self._scale = loss_scale(trainer)
        if self._next.is_looking:
            scale = self._scale if is_scaled(trainer) else 1.0
            self._next.see(self._losses.gradient_factor(trainer.accumulate_grad_batches) / scale)
        if self._is_next_due and self.sampler.is_on:
            self._before = {id(p): p.detach().clone() for p in pl_module.parameters() if p.requires_grad}

    def _take_in(self, trainer: Trainer, pl_module: LightningModule, step: int, outputs: Any) -> None:
        """Close the step that was just done."""
        self._losses.see(outputs)
        # A scaler that has found an overflow lowers its scale and leaves the step out.
        skipped = self._has_scaler and loss_scale(trainer) < self._scale
        self._losses.close(trainer.accumulate_grad_batches, self._rate, skipped=skipped)
        if skipped:
            self._before = {}  # no update to be seen
        elif self._pace.is_mean_due(step) and self.sampler.is_on:
            self._mean.add(pl_module, step)

    def _has_ended(self, trainer: Trainer) -> bool:
        """Return whether the recording has failed, on any rank if samples are taken; all ask."""
        if self.sampler.is_on and self.guard.has_ended(trainer):
            self.sampler.left_out["samples"] = self.guard.reason
        return bool(self.guard.reason) and not self.sampler.is_on

    def _sample(
        self, trainer: Trainer, pl_module: LightningModule, step: int, *, logged: int = 0, final: bool = False
    ) -> None:
        """Read what waits, and take a sample if one is due."""
        before, self._before = self._before, {}
        if self._catch_up(trainer) or not self.sampler.is_on or not (final or self._pace.is_due(step) or step == 0):
            return
        curved = self._pace.has_curvature(step) or (final and not self.evidence.has_learned)
        found = self.sampler.take(trainer, pl_module, before, has_curvature=curved, logged=logged)
        self.evidence.points.extend([] if found is None else [found.point])
        if found is not None and not final:
            self._next.add(NextGradients(len(self.evidence.points) - 1, found.params, found.gradient, found.direction))

    def _catch_up(self, trainer: Trainer) -> bool:
        """Return whether the recording has ended, after reading what waits; every rank must ask."""
        self.guard.alone(self._losses.wait)
        if not self._has_ended(trainer):
            self.guard.tried(self._thin_out, trainer)
        return self._has_ended(trainer)

    def _thin_out(self, trainer: Trainer) -> None:
        # Without samples, as in manual optimization, ranks may differ in their steps.
        self.read(trainer if self.sampler.is_on else None)
        points = self.evidence.points
        if self._pace.grow(len(points)):
            points[:] = [p for p in points if self._pace.is_due(p.step)]
            self._next.clear()  # they refer to points by their places
