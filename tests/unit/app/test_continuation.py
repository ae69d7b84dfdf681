"""A run that is killed at any moment and resumed ends as the run that was left alone, bit for bit."""

import csv
import shutil
import warnings

import pytest
import torch
from hydra import compose, initialize_config_module
from hydra.core.hydra_config import HydraConfig
from omegaconf import open_dict

from lbtrain._lightning import ModelCheckpoint
from lbtrain.app import train
from lbtrain.app.sweep.earlier import last_checkpoint
from lbtrain.records import read_record

SMALL = ("data.batch_size=256", "trainer.enable_progress_bar=false", "model=linear", "optimizer=adam", "logger=csv")
ALL = "callbacks=[lr_scaling,loss_reduction,sam,noise,hessian,sharpness,checkpoint]"
# Without what is measured at the end.
FEW = "callbacks=[lr_scaling,sam,checkpoint]"
# Checkpoints within epochs, which have six steps here.
EVERY_TWO = ("callbacks.checkpoint.every_n_train_steps=2", "callbacks.checkpoint.every_n_epochs=null")
PLATEAU = (
    "scheduler={_target_: torch.optim.lr_scheduler.ReduceLROnPlateau, _partial_: true, patience: 0, threshold: 2.0}"
)


class Snapshots(ModelCheckpoint):
    """Copy the directory of the run as a kill would leave it, at the first of each of these moments in each epoch.

    A ModelCheckpoint that saves nothing: Lightning runs the hooks of these last, so this one sees what others wrote.
    """

    state_key = "Snapshots"

    def __init__(self, run, kept):
        super().__init__(dirpath=run / "none", save_top_k=0, every_n_epochs=0)
        self.run, self.kept = run, kept

    def take(self, moment):
        if not (self.kept / moment).exists():
            shutil.copytree(self.run, self.kept / moment)

    def state_dict(self):
        return {}

    def setup(self, trainer, pl_module, stage):
        pass

    def on_train_start(self, trainer, pl_module):
        self.take("start")

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.take(f"step {trainer.global_step}")

    def on_validation_end(self, trainer, pl_module):
        self.take(f"validated {trainer.current_epoch}")

    def on_train_epoch_end(self, trainer, pl_module):
        self.take(f"epoch end {trainer.current_epoch}")

    def on_train_end(self, trainer, pl_module):
        self.take("measured")

    def on_test_end(self, trainer, pl_module):
        self.take("tested")


class Folder:
    """Run configs in one directory, and put it back to how it was at a moment of the first run."""

    def __init__(self, base, *config):
        self.run, self.kept, self.config = base / "run", base / "kept", config
        self.kept.mkdir()
        with pytest.MonkeyPatch.context() as patch:
            built = train._callbacks
            patch.setattr(train, "_callbacks", lambda cfg: [*built(cfg), Snapshots(self.run, self.kept)])
            self.whole = self.start()

    def start(self, *overrides):
        with initialize_config_module("lbtrain.conf", version_base="1.3"):
            cfg = compose("train", overrides=[*SMALL, *self.config, *overrides], return_hydra_config=True)
        with open_dict(cfg):
            cfg.hydra.runtime.output_dir = str(self.run)
            HydraConfig.instance().set_config(cfg)
            del cfg["hydra"]
        try:
            train.train(cfg)
        finally:
            HydraConfig.instance().cfg = None
        return self.left()

    def resume(self, moment):
        """Return what is left when the run goes on from this moment, and from which step it did."""
        shutil.rmtree(self.run)
        shutil.copytree(self.kept / moment, self.run)
        ckpt = last_checkpoint(self.run)
        step = torch.load(ckpt, weights_only=True)["global_step"] if ckpt else 0
        return self.start(*([f"ckpt_path='{ckpt}'"] if ckpt else [])), step

    def left(self):
        """Return the numbers of the run and the rows of its curves, times left out, and its weights."""
        metrics = {key: value for key, value in read_record(self.run).metrics.items() if not is_time(key)}
        with (self.run / "metrics.csv").open(newline="") as file:
            rows = [{k: v for k, v in row.items() if v and not is_time(k)} for row in csv.DictReader(file)]
        # Scaling says what it did at the start of each session.
        rows = [row for row in rows if {key.split("/")[0] for key in row} - {"lr", "batch", "step"}]
        return metrics, rows, torch.load(self.run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def is_time(key):
    return key.startswith("time/")


def assert_same(found, whole):
    assert found[0] == whole[0]
    assert found[1] == whole[1]
    assert all(torch.equal(found[2][key], value) for key, value in whole[2].items())


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Folder(tmp_path_factory.mktemp("x"), ALL, "trainer.max_epochs=3", "callbacks.hessian.every_n_epochs=2")


@pytest.mark.parametrize(
    ("moment", "step"),
    [
        ("step 3", 0),  # before the first checkpoint
        ("step 7", 6),
        ("epoch end 1", 12),  # a measurement has just been made, and the epoch's own row is not yet written
        ("epoch end 2", 18),  # the last step is done, nothing has been measured at the end
        ("measured", 18),
    ],
)
def test_killed_run_ends_as_the_one_that_was_left_alone(moment, step, measured, recwarn):
    found, resumed_at = measured.resume(moment)
    assert resumed_at == step
    assert_same(found, measured.whole)
    keys = {"loss/reduction", "lr/scaled", "val/acc", "hessian/lambda_max", "sharpness/sam", "gap/acc"}
    assert keys <= found[0].keys()
    assert any(key.startswith("noise/") for key in found[0])


@pytest.mark.parametrize(
    ("moment", "step", "config"),
    [
        ("step 8", 8, ["trainer.max_epochs=3", *EVERY_TWO]),  # goes on with the next batch of the epoch
        ("step 12", 12, ["trainer.max_epochs=3", *EVERY_TWO]),  # the epoch's last batch, before its end
        ("step 8", 8, ["trainer.max_steps=8", *EVERY_TWO]),  # no step is left, the epoch is half done
        ("step 12", 12, ["trainer.max_steps=12", *EVERY_TWO]),  # no step is left, the epoch has yet to be ended
        ("step 7", 6, ["trainer.max_steps=14"]),
        ("epoch end 1", 12, ["trainer.max_epochs=3", PLATEAU]),  # it steps after saving
    ],
)
def test_run_goes_on_from_any_checkpoint(moment, step, config, tmp_path, recwarn):
    folder = Folder(tmp_path, FEW, *config)
    found, resumed_at = folder.resume(moment)
    assert resumed_at == step
    assert_same(found, folder.whole)


STOP = ("trainer.max_epochs=6", "callbacks.early_stopping.patience=1", "callbacks.early_stopping.min_delta=1.0")


def test_run_that_was_stopped_early_stays_stopped(tmp_path, recwarn):
    folder = Folder(tmp_path, "callbacks=[lr_scaling,early_stopping,checkpoint]", *STOP)
    assert folder.whole[1][-1]["step"] == "12"
    found, _ = folder.resume("epoch end 1")
    assert_same(found, folder.whole)


def test_run_that_was_killed_while_it_measured_has_the_times_of_its_training(measured, recwarn):
    measured.resume("measured")
    times = torch.load(last_checkpoint(measured.kept / "measured"), weights_only=True)["callbacks"]["StepTime"]
    found = read_record(measured.run).metrics
    assert times["steps"] == 18
    assert found["time/fit_s"] >= times["seconds"] > 0
    assert found["time/step_ms"] == pytest.approx(1000 * times["in_batches"] / 18)
    assert found["time/epoch_s"] == pytest.approx(found["time/fit_s"] / 3)
