"""Say what is wrong with a run, with numbers, and what helps."""

from collections.abc import Mapping
from typing import Any

import torch

from lbtrain._lightning import Callback, LightningModule, Trainer
from lbtrain.callbacks._diagnosis_checks import asked_for, limits_of
from lbtrain.callbacks._diagnosis_output import put_out
from lbtrain.callbacks._diagnosis_result import Diagnosis, reviewed
from lbtrain.callbacks._diagnosis_run import DiagnosisRun
from lbtrain.callbacks._measured_data import forget_batches
from lbtrain.callbacks._recorder import Recorder

# Of the fixed subset. A choice: with fewer even means and spreads of the inputs are not judged, and the noise of the
# mean loss is above a quarter of the spread of single losses.
MIN_SAMPLES = 16


class OptimizationDiagnostics(Callback):
    """Diagnose a training: what is wrong, since when, by which numbers, and what helps.

    At the first batch: whether gradients are those of the loss, whether units are symmetric, whether inputs, labels and
    the loss's reduction are fit for training. While training, at 14 samples over the run: loss, gradient, units and
    curvature on a fixed subset of the training data, in eval mode. When training ends, also by an error or an
    interruption: instability, oscillations, fluctuations, slow progress, dead and saturated units, plateaus, saddles
    and more, from what was recorded; the spectrum is measured only where much of the loss is left.

    A healthy run prints one line, another a table, most important first. `diagnosis.json` and figures lie in the run's
    directory; loggers get `diagnosis/problems`, `diagnosis/first`, the figures, and wandb a table. The training is the
    same bit for bit, and the time spent is left out of `time/fit_s` and summed in `time/measure_s`. A check that fails
    or does not apply is left out with the reason, and never ends a run.

    Args:
        num_samples: Training samples of the fixed subset, drawn by seed; at least 16.
        every_n_steps: Sample after each n-th optimizer step; None for 14 samples over the run.
        curvature_every: Samples from one with the largest Hessian eigenvalue to the next.
        checks: Which to make, by name: False leaves one out, those that are not named are made. None for all.
        thresholds: By check, values by argument of the functions that judge (`lbtrain.functional`).
        keys: Config keys of what remedies change, by knob, such as `optimizer.lr` for `lr`; the app knows them.
        figures: Whether to draw the curves, the units and the gradient flow of a run that has a problem.
        seed: Of the subset, and of random directions and starts.

    Attributes:
        result: The diagnosis, None before the end of training.

    Raises:
        ValueError: If an argument is out of range, or a name is not known.
    """

    # The Trainer calls these at every step, and passes over what cannot be called. To call what does nothing takes it a
    # fiftieth of a millisecond for the three, since training has pushed that code out of the processor's caches.
    on_before_zero_grad = on_before_backward = on_after_backward = None  # type: ignore[assignment]

    def __init__(
        self,
        num_samples: int = 64,
        every_n_steps: int | None = None,
        curvature_every: int = 5,
        checks: Mapping[str, bool] | None = None,
        thresholds: Mapping[str, Mapping[str, float]] | None = None,
        keys: Mapping[str, str] | None = None,
        figures: bool = True,
        seed: int = 0,
    ) -> None:
        if isinstance(num_samples, int) and 0 < num_samples < MIN_SAMPLES:
            raise ValueError(
                f"num_samples must be at least {MIN_SAMPLES}, got {num_samples}: on fewer, loss, noise and units are "
                "those of single samples; take as many as a batch has, or more"
            )
        self.num_samples, self.every_n_steps, self.curvature_every = num_samples, every_n_steps, curvature_every
        self.checks, self.thresholds, self.keys = checks, thresholds, keys
        self.figures, self.seed = figures, seed
        self._checks, self._limits = asked_for(checks), limits_of(thresholds)
        self.result: Diagnosis | None = None
        self._run = self._new_run()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget the last fit."""
        if stage == "fit":
            forget_batches(trainer)
            self.result, self._run = None, self._new_run()

    def state_dict(self) -> dict[str, Any]:
        """Return what was found and recorded so far, in plain Python and tensors."""
        return self._run.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self._run.load_state_dict(state_dict)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Examine the first batch, and record the first sample."""
        if not self._run.has_begun:
            self._run.begin(trainer, pl_module, batch, batch_idx)

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Look at the gradient."""
        self._run.recorder.before_step(trainer, pl_module, optimizer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Record the loss, and what a sample sees."""
        self._run.recorder.after_batch(trainer, pl_module, outputs)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Diagnose, print and publish."""
        if self._run.has_begun:
            self.result = reviewed(self._run.conclude(trainer, pl_module))
            put_out(trainer, self.result, self._run.evidence, self.keys, figures=self.figures)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Diagnose by what was recorded, print and publish."""
        if self._run.has_begun and self.result is None:
            self.result = self._run.give_up(trainer, pl_module, exception)
            put_out(trainer, self.result, self._run.evidence, self.keys, figures=self.figures)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let the data go that was kept for measuring."""
        forget_batches(trainer)

    def _new_run(self) -> DiagnosisRun:
        recorder = Recorder(self.num_samples, self.every_n_steps, self.curvature_every, self.seed)
        return DiagnosisRun(recorder, self._checks, self._limits, self.num_samples, self.seed)
