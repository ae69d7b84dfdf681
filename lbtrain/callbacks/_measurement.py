"""What the callbacks that measure at the end of training, and during it, have in common."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from lbtrain._lightning import Callback, LightningModule, MisconfigurationException, Trainer
from lbtrain.callbacks._agreement import agreed, together
from lbtrain.callbacks._interruption import stoppable
from lbtrain.callbacks._measure import refuse_sharded
from lbtrain.callbacks._measured_data import check_measurable, check_not_empty, forget_batches, kept_for
from lbtrain.callbacks._measuring_bar import MeasuringBar
from lbtrain.callbacks._objective import refuse_manual_optimization
from lbtrain.callbacks._random_loss import check_repeatable
from lbtrain.callbacks._sharded_measure import refuse_shards
from lbtrain.callbacks._trainer import is_optimizer_step, publish
from lbtrain.callbacks.step_time import StepTime
from lbtrain.functional.interruption import Interrupted
from lbtrain.functional.progress import Progress


class Measurement(Callback, ABC):
    """Measure when training ends, and during it after every so many steps or epochs: on every rank, without a trace.

    A subclass says what to measure; its results have `metrics()`, values by key, and `seconds`. The loggers get each
    measurement at its step, `trainer.callback_metrics` the latest, `.tracks` all of them. The time spent is left out of
    `time/fit_s` and `time/step_ms` and summed in `time/measure_s`. Ctrl-C stops a measurement: what it has is
    published, and the run ends as one that the user interrupted.

    Args:
        every_n_steps: Measure after each n-th optimizer step; None: not by steps.
        every_n_epochs: Measure after each n-th epoch; None: not by epochs.

    Attributes:
        result: The last result of `measure`, None before the end of training.
        tracks: One dictionary per measurement: `step` (optimizer steps done), `epoch` (as Lightning counts) and the
            metrics. Saved in checkpoints, so that a resumed run goes on with them.

    Raises:
        ValueError: If an argument is out of range.
    """

    result: Any = None
    serves_shards: ClassVar[bool] = False
    """Whether it can measure under strategies that cut parameters into shards."""
    watch: Callable[[Progress], None] | None = None
    """To be told of each product while a measurement runs; None otherwise."""
    identity: tuple[str, ...] = ("every_n_steps", "every_n_epochs", "num_samples", "seed")
    """Arguments that tell two callbacks of one class in a Trainer apart, for their states in a checkpoint."""

    def __init__(self, every_n_steps: int | None = None, every_n_epochs: int | None = None) -> None:
        for name, value in (("every_n_steps", every_n_steps), ("every_n_epochs", every_n_epochs)):
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                unit = name.removeprefix("every_n_")
                raise ValueError(
                    f"{name} must be a whole number of {unit}, at least 1, or None to measure only when training ends, "
                    f"got {value!r}"
                )
        self.every_n_steps, self.every_n_epochs = every_n_steps, every_n_epochs
        self.tracks: list[dict[str, Any]] = []

    @abstractmethod
    def measure(self, trainer: Trainer, pl_module: LightningModule) -> Any:
        """Return the result at the current weights; every rank takes part."""

    def track(self, trainer: Trainer, pl_module: LightningModule) -> Any:
        """Return a result at the current weights during training; what `measure` returns unless a subclass spares."""
        return self.measure(trainer, pl_module)

    def draw(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Publish figures of `.result` and `.tracks`; none unless a subclass has some."""

    @property
    def own_keys(self) -> dict[str, str]:
        """Metric keys that no other callback of this class may publish too, each with what to do if one does."""
        matrix = getattr(self, "matrix", None)  # whose name the metric keys of a spectrum begin with
        if matrix is None:
            return {}
        other = "hessian" if matrix == "ggn" else "ggn"
        return {f"{matrix}/...": f"give one of them the arguments of both, or measure matrix={other!r} with the other"}

    @property
    def state_key(self) -> str:
        """The name of this callback's state in a checkpoint."""
        return self._generate_state_key(**{name: getattr(self, name, None) for name in self.identity})

    def state_dict(self) -> dict[str, Any]:
        """Return the measurements so far, in plain Python."""
        return {"tracks": [dict(point) for point in self.tracks]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.tracks = [dict(point) for point in state_dict["tracks"]]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse what has no training loss or no whole parameters; forget the last fit."""
        if stage == "fit":
            refuse_manual_optimization(pl_module, type(self).__name__)
            if not self.serves_shards:
                refuse_sharded(trainer, type(self).__name__)
            self._refuse_double(trainer)
            forget_batches(trainer)
            self.result, self.tracks = None, []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse data, and shards of parameters, that could not be measured on."""
        check_measurable(trainer, pl_module)
        check_not_empty(trainer, pl_module)
        refuse_shards(trainer, pl_module, type(self).__name__)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Refuse, before the first step of a fit, a loss that is no function of the weights."""
        # Not in on_train_start: what training_step needs may come from the module's hooks at the start of an epoch.
        if not kept_for(trainer).looked:
            seed = getattr(self, "seed", 0)
            together(trainer, lambda: check_repeatable(trainer, pl_module, lambda: batch, seed))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Measure if the optimizer has just done an n-th step."""
        if self.every_n_steps and is_optimizer_step(trainer) and trainer.global_step % self.every_n_steps == 0:
            # Loggers count this step only after the hook; the weights have seen it already.
            self._track(trainer, pl_module, trainer.fit_loop.epoch_loop._batches_that_stepped + 1)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure if an n-th epoch has just ended."""
        if self.every_n_epochs and (trainer.current_epoch + 1) % self.every_n_epochs == 0:
            self._track(trainer, pl_module, trainer.fit_loop.epoch_loop._batches_that_stepped)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure on every rank, then publish."""
        self.measure_now(trainer, pl_module)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let the data go that was kept for measuring."""
        forget_batches(trainer)

    def measure_now(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure at the current weights, keep the result in `.result` and publish it with its figures.

        Args:
            trainer: The Trainer, its strategy and training data set up, outside its evaluation loops.
            pl_module: Its module.

        Raises:
            KeyboardInterrupt: If the user interrupted the measurement, after publishing what it has.
        """  # noqa: DOC502 - _run raises it
        step = trainer.fit_loop.epoch_loop._batches_that_stepped
        self._run(self.measure, trainer, pl_module, step, final=True)

    def _refuse_double(self, trainer: Trainer) -> None:
        """Refuse another callback whose numbers would mix with these under one key.

        Raises:
            MisconfigurationException: With the way out.
        """
        others = [c for c in trainer.callbacks if type(c) is type(self) and c is not self]
        for key, move in self.own_keys.items():
            if any(key in other.own_keys for other in others):
                raise MisconfigurationException(
                    f"two {type(self).__name__} callbacks would publish different numbers under {key}: {move}"
                )

    def _track(self, trainer: Trainer, pl_module: LightningModule, step: int) -> None:
        # A step without an update, or an epoch that ends with a step just measured: the weights are the same.
        if not self.tracks or self.tracks[-1]["step"] != trainer.global_step:
            self._run(self.track, trainer, pl_module, step, final=False)

    def _run(self, what: Callable[..., Any], trainer: Trainer, module: LightningModule, step: int, final: bool) -> None:
        """Measure, keep and publish; an interruption is passed on at the end, on every rank.

        Raises:
            KeyboardInterrupt: If the user of any rank asked to stop.
        """
        name = type(self).__name__
        with stoppable(name) as wish, MeasuringBar(trainer, name) as self.watch:
            try:
                result = what(trainer, module)
            except Interrupted:
                raise KeyboardInterrupt(f"{name} was interrupted before it had measured anything") from None
            finally:
                self.watch = None
        self._keep(trainer, result, final)
        account(trainer, result.metrics(), result.seconds, step)
        if final:
            self.draw(trainer, module)
        if agreed(trainer, wish.is_stop or getattr(result, "interrupted", False)):
            raise KeyboardInterrupt(f"{name} was interrupted")

    def _keep(self, trainer: Trainer, result: Any, final: bool) -> None:
        point = {"step": trainer.global_step, "epoch": trainer.current_epoch, **result.metrics()}
        if final:
            self.result = result
            if self.tracks and self.tracks[-1]["step"] == point["step"]:
                self.tracks.pop()  # the final one says more about the same weights
        self.tracks.append(point)


def account(trainer: Trainer, metrics: Mapping[str, float | str], seconds: float, step: int) -> None:
    """Publish the numbers at this step, and take the time off the run's.

    Args:
        trainer: The Trainer.
        metrics: Values by key.
        seconds: That measuring them took.
        step: As the loggers count.
    """
    for callback in trainer.callbacks:
        if isinstance(callback, StepTime):  # wherever it stands among the callbacks, its clocks skip the measurement
            callback.leave_out(seconds)
    so_far = float(trainer.callback_metrics.get("time/measure_s", 0.0))
    publish(trainer, {**metrics, "time/measure_s": so_far + seconds}, step)
