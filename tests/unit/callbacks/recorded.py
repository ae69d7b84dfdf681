"""A callback that only records, and one that knows what there was to record."""

from lbtrain._lightning import Callback
from lbtrain.callbacks._recorder import Recorder


class Recording(Callback):
    """Calls a Recorder from the hooks that OptimizationDiagnostics calls it from."""

    def __init__(self, **options):
        self.recorder = Recorder(**options)
        self.started = False

    @property
    def points(self):
        return self.recorder.evidence.points

    @property
    def steps(self):
        return [point.step for point in self.points]

    def state_dict(self):
        return self.recorder.state_dict()

    def load_state_dict(self, state_dict):
        self.recorder.load_state_dict(state_dict)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if not self.started:
            self.started = True
            self.recorder.start(trainer, pl_module)

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.recorder.before_step(trainer, pl_module, optimizer)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.recorder.after_batch(trainer, pl_module, outputs)

    def on_train_end(self, trainer, pl_module):
        self.recorder.finish(trainer, pl_module)
        self.at_mean = self.recorder.loss_at_mean(trainer, pl_module)


class Truth(Callback):
    """Keeps the weights before each step and after the last one, and the rate of each step."""

    def __init__(self):
        self.weights, self.rates = [], []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.weights.append([p.detach().clone() for p in pl_module.parameters() if p.requires_grad])
        self.rates.append(optimizer.param_groups[0]["lr"])

    def on_train_end(self, trainer, pl_module):
        self.weights.append([p.detach().clone() for p in pl_module.parameters() if p.requires_grad])
