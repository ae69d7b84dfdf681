"""Users of `lightning` and of `pytorch_lightning` both get callbacks that their Trainer accepts."""

import subprocess
import sys

import pytest

FIT = """
import torch
module = type("M", (pl.LightningModule,), {
    "__init__": lambda self: (pl.LightningModule.__init__(self), setattr(self, "net", torch.nn.Linear(2, 1)))[0],
    "training_step": lambda self, batch, batch_idx: self.net(batch).square().mean(),
    "configure_optimizers": lambda self: torch.optim.SGD(self.parameters(), lr=0.1),
})()
from lbtrain import SAM, HessianSpectrum, LearningRateScaling, LossReductionCheck
callbacks = [SAM(), LearningRateScaling(4), LossReductionCheck(), HessianSpectrum(top_k=1)]
assert all(isinstance(c, pl.Callback) for c in callbacks)
trainer = pl.Trainer(max_epochs=1, accelerator="cpu", callbacks=callbacks, logger=False, enable_checkpointing=False,
                     enable_progress_bar=False, enable_model_summary=False)
trainer.fit(module, torch.utils.data.DataLoader(torch.randn(8, 2), 4))
print("fitted with", pl.__name__, trainer.callback_metrics["lr/scaled"].item())
"""

# A package that is installed but must look absent.
HIDDEN = """
import sys
class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == {name!r}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Hide())
import importlib.util
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name.split(".")[0] == {name!r} else real(name, package)
"""


def python(code):
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("start", "package"),
    [
        ("import pytorch_lightning as pl", "pytorch_lightning"),
        ("import lightning.pytorch as pl", "lightning.pytorch"),
        ("import lightning.pytorch as pl, pytorch_lightning", "lightning.pytorch"),
    ],
)
def test_the_package_imported_first_wins(start, package):
    assert f"fitted with {package}" in python(f"{start}\n{FIT}")


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("absent", "package"), [("pytorch_lightning", "lightning.pytorch"), ("lightning", "pytorch_lightning")]
)
def test_the_installed_package_is_taken(absent, package):
    hidden = HIDDEN.format(name=absent)
    assert python(f"{hidden}\nfrom lbtrain._lightning import pl\nprint(pl.__name__)").strip() == package
