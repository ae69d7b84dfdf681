"""A callback that kills its process, as a power cut would."""

import os
import signal

from lbtrain._lightning import Callback


class KillAtEpoch(Callback):
    """Kill this process in the middle of an epoch."""

    def __init__(self, epoch):
        self.epoch = epoch

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.current_epoch == self.epoch and batch_idx == 3:
            os.kill(os.getpid(), signal.SIGKILL)
