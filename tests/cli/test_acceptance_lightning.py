"""The whole command line with one of Lightning's two packages, where the other is not installed."""

import pytest

from lbtrain.records import read_record
from tests.cli.commands import run

# Python imports this at the start of every process: of the sweep, of its jobs and of their ranks.
HIDDEN = """
import importlib.util
import sys

GONE = {gone!r}


class Gone:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in GONE:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)


sys.meta_path.insert(0, Gone())
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name.split(".")[0] in GONE else found(name, package)
"""
WITNESS = """
import sys
from pathlib import Path

from lbtrain._lightning import Callback, pl


class Witness(Callback):
    def __init__(self, directory):
        self.directory = Path(directory)

    def on_fit_end(self, trainer, pl_module):
        names = {name.split(".")[0] for name in sys.modules}
        seen = sorted(names & {"lightning", "pytorch_lightning", "lightning_fabric"})
        (self.directory / f"seen{trainer.global_rank}.txt").write_text(" ".join([pl.__name__, *seen]))
"""
WITNESS_YAML = "witness:\n  _target_: planted_witness.Witness\n  directory: ${hydra:runtime.output_dir}\n"
CALLBACKS = "callbacks=[lr_scaling,loss_reduction,sam,hessian,checkpoint,witness]"


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize(
    ("gone", "seen"),
    [
        ({"lightning"}, "pytorch_lightning lightning_fabric pytorch_lightning"),
        ({"pytorch_lightning", "lightning_fabric"}, "lightning.pytorch lightning"),
    ],
    ids=["pytorch_lightning", "lightning"],
)
def test_a_sweep_with_one_of_the_packages_alone(gone, seen, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(HIDDEN.format(gone=gone))
    (tmp_path / "planted_witness.py").write_text(WITNESS)
    (tmp_path / "own" / "callbacks").mkdir(parents=True)
    (tmp_path / "own" / "callbacks" / "witness.yaml").write_text(WITNESS_YAML)
    small = ["--config-dir=own", "trainer.max_epochs=1", "data.batch_size=256", "model=linear"]
    arguments = ["-m", *small, CALLBACKS, "trainer=cpu,ddp_cpu", "logger=[csv,wandb]", "hydra.sweep.dir=sweep"]
    done = run(arguments, tmp_path, timeout=200, WANDB_MODE="offline")
    jobs = [tmp_path / "sweep" / str(number) for number in range(2)]
    assert [read_record(job).status for job in jobs] == ["finished"] * 2, done
    assert done.code == 0
    assert [path.read_text() for job in jobs for path in sorted(job.glob("seen*.txt"))] == [seen] * 3
    assert all(read_record(job).metrics["hessian/lambda_max"] > 0 for job in jobs)
