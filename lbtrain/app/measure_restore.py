"""A Trainer at the state of a checkpoint, which measures and does not train."""

from collections.abc import Sequence

from lbtrain._lightning import Callback, LightningModule, Trainer, pl, rank_zero_info
from lbtrain.app.measure_reading import Facts, Reading
from lbtrain.app.signatures import ConfigError
from lbtrain.callbacks._measurement import Measurement

# Arguments by which the optimizers of torch and pytorch-optimizer differ from each other.
_MARKS = frozenset({"momentum", "betas", "alpha", "rho", "etas", "lambd", "trust_coefficient", "beta2_decay"})


class Still(Callback):
    """Let the loops begin and end without a training step.

    Lightning skips the hooks of training altogether where its limits are reached. So the limits are lifted, once what
    is made of them (a schedule) is made, and the loop is told to stop before its first epoch.

    Args:
        reading: What the checkpoint is read with.
        rate_known: Whether the config's learning rate is the one to take if the checkpoint has no optimizer.
    """

    def __init__(self, reading: Reading, *, rate_known: bool) -> None:
        self._reading, self._rate_known = reading, rate_known

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Lift the limits, refuse an optimizer of another kind than the checkpoint's, and thaw what it trains."""
        loop = trainer.fit_loop
        loop.max_epochs, loop.min_epochs = -1, 0
        loop.epoch_loop.max_steps, loop.epoch_loop.min_steps = -1, None
        refuse_other_optimizers(trainer, self._reading.facts)
        thaw(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop before the first epoch; take no rate for known that is not."""
        trainer.should_stop = True
        if not self._reading.facts.has_optimizer and not (self._rate_known and not trainer.lr_scheduler_configs):
            forget_rates(trainer)


class Quiet(pl.callbacks.ProgressBar):
    """A progress bar that shows nothing: only measurements show how far they are."""

    is_enabled = True

    def disable(self) -> None:
        """Say that other ranks show nothing either."""
        self.is_enabled = False

    def enable(self) -> None:
        """Say that measurements may show something."""
        self.is_enabled = True


def kept(callbacks: Sequence[Callback]) -> list[Callback]:
    """Return the callbacks that take part in measuring.

    Args:
        callbacks: Of the config, or of a module.

    Returns:
        Those that measure, and those that decide which parameters are trained. All others act on a training.
    """
    return [c for c in callbacks if isinstance(c, takes_part())]


def takes_part() -> tuple[type, ...]:
    """Return the classes of the callbacks that take part in measuring.

    Returns:
        Measurements, and what freezes parameters.
    """
    return Measurement, pl.callbacks.BaseFinetuning


def keep_of_module(model: LightningModule) -> None:
    """Let a module configure only callbacks that take part in measuring.

    Args:
        model: The module; this object of it is changed.
    """
    own = model.configure_callbacks

    def configured() -> list[Callback]:
        found = own()
        return kept(list(found) if isinstance(found, Sequence) else [found])

    model.configure_callbacks = configured  # type: ignore[method-assign]


def refuse_other_optimizers(trainer: Trainer, facts: Facts) -> None:
    """Refuse optimizers that the states in the checkpoint are not of.

    Args:
        trainer: The Trainer, its optimizers set up.
        facts: About the checkpoint.

    Raises:
        ConfigError: If their number, the number of their groups, or their arguments differ.
    """
    if not facts.groups:
        return
    names = [type(optimizer).__name__ for optimizer in trainer.optimizers]
    way_out = "give the optimizer that the run had, as optimizer=adam"
    if len(facts.groups) != len(names):
        raise ConfigError(
            f"the checkpoint holds the states of {len(facts.groups)} optimizers, and the config has {len(names)} "
            f"({', '.join(names)}): {way_out}"
        )
    for optimizer, groups, name in zip(trainer.optimizers, facts.groups, names, strict=True):
        if len(groups) != len(optimizer.param_groups):
            raise ConfigError(
                f"the checkpoint's optimizer has {len(groups)} parameter groups, and {name} of the config "
                f"{len(optimizer.param_groups)}: add the callbacks and overrides that the run had"
            )
        for group, own in zip(groups, optimizer.param_groups, strict=True):
            theirs, ours = _MARKS & group, _MARKS & set(own)
            if theirs - ours or ours - theirs:
                raise ConfigError(
                    f"the checkpoint's optimizer has {_listed(theirs)}, and {name} of the config {_listed(ours)}: "
                    f"{way_out}"
                )


def thaw(trainer: Trainer) -> None:
    """Unfreeze what a callback had unfrozen by the time of the checkpoint.

    Lightning restores the parameter groups that such a callback has added, and leaves their parameters frozen.

    Args:
        trainer: The Trainer, the groups restored.
    """
    if any(isinstance(callback, pl.callbacks.BaseFinetuning) for callback in trainer.callbacks):
        for optimizer in trainer.optimizers:
            for group in optimizer.param_groups:
                for p in group["params"]:
                    p.requires_grad_(True)


def forget_rates(trainer: Trainer) -> None:
    """Make the learning rates NaN, and so all that is computed from them.

    Args:
        trainer: The Trainer, its optimizers set up.
    """
    for optimizer in trainer.optimizers:
        for group in optimizer.param_groups:
            group["lr"] = float("nan")
    rank_zero_info(
        "the checkpoint holds weights and no optimizer, and the config changes the learning rate as it trains "
        "(LearningRateScaling or a schedule), so hessian/stability is NaN; if you know the rate, give it: "
        "optimizer.lr=RATE scheduler=none"
    )


def _listed(names: frozenset[str]) -> str:
    return ", ".join(sorted(names)) or "none of these"
