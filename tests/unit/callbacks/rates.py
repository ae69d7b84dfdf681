"""What a run's rates were, and what it said of them."""

from lbtrain._lightning import Callback


class Rates(Callback):
    """Records the rate inside each optimizer step, where it counts, and after each batch, where others look."""

    def __init__(self):
        self.used, self.shown = [], []

    def on_train_start(self, trainer, pl_module):
        trainer.optimizers[0].register_step_pre_hook(self.note)

    def note(self, optimizer, *_):
        self.used.append(float(optimizer.param_groups[0]["lr"]))

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.shown.append(float(trainer.optimizers[0].param_groups[0]["lr"]))


def line_of(caplog):
    """Return the line of LearningRateScaling."""
    return next(r.getMessage() for r in caplog.records if r.getMessage().startswith("global batch"))
