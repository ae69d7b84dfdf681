"""Measuring a checkpoint: the numbers of its run, no step of training, nothing written but the measurement."""

import hashlib
import json
import warnings
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_module
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import OmegaConf, open_dict

from lbtrain._lightning import ModelCheckpoint, Trainer
from lbtrain.app import measure, measure_run, train
from lbtrain.app.models import Classifier
from lbtrain.app.signatures import ConfigError
from lbtrain.callbacks._measurement import Measurement
from lbtrain.records import read_record
from tests.unit.app.test_measure import run_directory

HERE = "tests.unit.app.test_measure_run"
# Few samples, and as few products as will do.
BASE = ("trainer.max_epochs=1", "data.batch_size=64", "data.test_fraction=0.9", "trainer.enable_progress_bar=false")
BASE = (*BASE, "logger=csv", "model=linear")
CHEAP = (
    "callbacks.hessian.top_k=1",
    "callbacks.hessian.max_matvecs=12",
    "callbacks.hessian.trace_probes=0",
    "callbacks.hessian.split_check=false",
    "callbacks.hessian.figures=[]",
)
SMALL = (*BASE, *CHEAP)


@dataclass
class Facts:
    values: dict
    seconds: float = 0.0

    def metrics(self):
        return self.values


class Seen(Measurement):
    """Measures what a measurement meets."""

    def __init__(self, checkpoint):
        super().__init__()
        self.checkpoint = checkpoint

    def measure(self, trainer, pl_module):
        weights = torch.load(self.checkpoint, weights_only=True)["state_dict"]
        own = pl_module.state_dict()
        values = {
            "seen/same": float(weights.keys() == own.keys() and all(torch.equal(weights[k], own[k]) for k in own)),
            "seen/lr": trainer.optimizers[0].param_groups[0]["lr"],
            "seen/step": trainer.global_step,
            "seen/training_steps": getattr(pl_module, "in_training", 0),
            "seen/states": len(trainer.optimizers[0].state),
            "seen/groups": len(trainer.optimizers[0].param_groups),
            "seen/trained": sum(p.numel() for p in pl_module.parameters() if p.requires_grad),
            "seen/grad": float(torch.is_grad_enabled() and not torch.is_inference_mode_enabled()),
            "seen/callbacks": " ".join(type(callback).__name__ for callback in trainer.callbacks),
        }
        return Facts(values)


class Watched(Classifier):
    """Counts its training steps, saves checkpoints of its own, and needs to know how long training is."""

    in_training = 0

    def training_step(self, batch, batch_idx):
        self.in_training += self.training
        return super().training_step(batch, batch_idx)

    def configure_callbacks(self):
        return [ModelCheckpoint(save_last=True)]

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Tuned(Classifier):
    """Has a backbone to freeze."""

    def __init__(self, **options):
        super().__init__(**options)
        self.backbone = torch.nn.Linear(64, 64)

    def forward(self, images):
        return self.network(self.backbone(images.flatten(1)))

    def configure_optimizers(self):
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=0.01, momentum=0.9)


def as_job(overrides, directory):
    """Compose a config, and make this process its Hydra job."""
    with initialize_config_module("lbtrain.conf", version_base="1.3"):
        cfg = compose("train", overrides=list(overrides), return_hydra_config=True)
    with open_dict(cfg):
        cfg.hydra.runtime.output_dir = str(directory)
        cfg.hydra.mode = RunMode.RUN
        HydraConfig.instance().set_config(cfg)
        del cfg["hydra"]
    return cfg


@pytest.fixture(autouse=True)
def _no_job():
    yield
    HydraConfig.instance().cfg = None


def trained(folder, *overrides, small=SMALL):
    """Train, leave what Hydra leaves, and return the checkpoint."""
    given = [*small, *overrides]
    path = run_directory(folder, given)
    Path(path).unlink()  # a name that is taken gets another
    cfg = as_job(given, folder)
    OmegaConf.save(cfg, folder / ".hydra" / "config.yaml")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what a run says of itself
        train.train(cfg)
    HydraConfig.instance().cfg = None
    return path


def measured(path, directory, *words, **nodes):
    """Measure, and return the numbers; `nodes` take the place of nodes of the config."""
    line = measure.read([f"ckpt_path={path}", *words])
    cfg = as_job([word for word in line.argv if not word.startswith(("hydra.", "--"))], directory)
    with open_dict(cfg):
        for key, node in nodes.items():
            OmegaConf.update(cfg, key.replace("__", "."), node)
    return measure_run.measure(cfg, line)


def seen(path):
    return {"callbacks__seen": {"_target_": f"{HERE}.Seen", "checkpoint": str(path)}}


@pytest.fixture(scope="module")
def sgd(tmp_path_factory):
    callbacks = "callbacks=[lr_scaling,loss_reduction,sam,early_stopping,hessian,sharpness,checkpoint,random_state]"
    return trained(
        tmp_path_factory.mktemp("sgd") / "run",
        callbacks,
        "callbacks.early_stopping.patience=9",
        "callbacks.sharpness.measures=[sam]",
    )


@pytest.fixture(scope="module")
def adam(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("adam") / "run", "optimizer=adam", "callbacks=[hessian,checkpoint]")


@pytest.fixture
def stripped(tmp_path):
    """Return what makes a checkpoint of weights alone, in a run of the same overrides."""

    def strip(path, *more):
        run = Path(path).parents[1]
        overrides = OmegaConf.to_container(OmegaConf.load(run / ".hydra" / "overrides.yaml"))
        bare = run_directory(tmp_path / "bare", [*overrides, *more])
        loaded = torch.load(path, weights_only=True)
        keys = ("epoch", "global_step", "pytorch-lightning_version", "state_dict", "loops")
        torch.save({key: loaded[key] for key in keys}, bare)
        return bare

    return strip


def digest(path):
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def test_numbers_are_those_at_the_end_of_the_run(sgd, tmp_path, recwarn):
    before = digest(sgd)
    found = measured(sgd, tmp_path / "m", **seen(sgd))
    there = read_record(Path(sgd).parents[1]).metrics
    keys = [k for k in there if k.startswith(("hessian/", "sharpness/", "train/", "test/", "gap/"))]
    assert {"hessian/lambda_max", "hessian/stability", "sharpness/sam", "test/acc"} <= set(keys)
    assert {k: found[k] for k in keys} == {
        k: there[k] if isinstance(there[k], str) else pytest.approx(there[k], rel=1e-6, nan_ok=True) for k in keys
    }
    # The rate was scaled once, by the run.
    assert found["seen/lr"] == pytest.approx(there["lr/scaled"])
    assert found["seen/same"] == found["seen/grad"] == 1
    assert found["seen/step"] == torch.load(sgd, weights_only=True)["global_step"] > 0
    assert found["seen/callbacks"] == "HessianSpectrum Sharpness Seen Still Quiet"
    assert digest(sgd) == before
    assert not list((tmp_path / "m").rglob("*.ckpt"))
    assert not [w for w in recwarn if "callbacks used to create" in str(w.message)]


def test_optimizer_s_state_is_that_of_the_checkpoint(adam, tmp_path, recwarn):
    found = measured(adam, tmp_path / "m", **seen(adam))
    there = read_record(Path(adam).parents[1]).metrics
    assert found["seen/states"] > 0
    assert found["hessian/stability"] == pytest.approx(there["hessian/stability"], rel=1e-6)


def test_no_step_is_trained_whatever_the_module_brings(tmp_path, recwarn):
    target = f"model._target_={HERE}.Watched"
    path = trained(tmp_path / "run", "callbacks=[checkpoint]", target, small=BASE)
    before = digest(path)
    found = measured(path, tmp_path / "m", "callbacks=[hessian]", **seen(path))
    assert found["seen/training_steps"] == 0
    assert found["seen/same"] == 1
    assert found["seen/callbacks"] == "HessianSpectrum Seen Still Quiet"
    assert digest(path) == before
    assert not list((tmp_path / "m").rglob("*.ckpt"))


def test_parameters_that_a_callback_has_unfrozen_are_in_the_optimizer(tmp_path, recwarn):
    tuning = f"+callbacks.tuning._target_={Trainer.__module__.split('.trainer.')[0]}.callbacks.BackboneFinetuning"
    words = (f"model._target_={HERE}.Tuned", "callbacks=[hessian,checkpoint]", tuning, "trainer.max_epochs=2")
    path = trained(tmp_path / "run", *words, "+callbacks.tuning.unfreeze_backbone_at_epoch=1")
    found = measured(path, tmp_path / "m", **seen(path))
    assert found["seen/groups"] == 2
    assert found["seen/trained"] == 64 * 64 + 64 + 650
    assert found["hessian/lambda_max"] == pytest.approx(read_record(tmp_path / "run").metrics["hessian/lambda_max"])


def test_what_is_left_on_disk(sgd, tmp_path, capsys, recwarn):
    found = measured(sgd, tmp_path / "m", "callbacks=[hessian]", "seed=0")
    left = json.loads((tmp_path / "m" / "measurement.json").read_text())
    assert {path.name for path in (tmp_path / "m").iterdir()} == {"measurement.json", "spectrum.json"}
    assert (left["status"], left["error"], left["overrides"]) == ("finished", None, ["callbacks=[hessian]", "seed=0"])
    assert left["checkpoint"] == {
        "path": sgd,
        "run": str(Path(sgd).parents[1]),
        "epoch": 0,
        "global_step": found.get("seen/step", left["checkpoint"]["global_step"]),
    }
    assert left["config"]["data.batch_size"] == 64
    assert not [key for key in left["config"] if key.startswith(("logger", "callbacks.sam", "callbacks.sharpness"))]
    assert {k: v for k, v in left["metrics"].items() if v != "nan"} == {k: v for k, v in found.items() if v == v}
    assert "torch" in left["versions"]
    assert "lambda_max" in capsys.readouterr().out


def test_config_in_use_is_said(sgd, tmp_path, caplog, recwarn):
    measured(sgd, tmp_path / "m", "callbacks=[hessian]", "optimizer.weight_decay=0")
    said = next(r.getMessage() for r in caplog.records if "measuring" in r.getMessage())
    assert said.startswith(f"measuring {sgd} with the config of its run (trainer.max_epochs=1 data.batch_size=64 ")
    assert said.endswith("with callbacks=[hessian] optimizer.weight_decay=0")


def test_change_of_the_configs_since_the_run_is_told(sgd, tmp_path):
    saved = Path(sgd).parents[1] / ".hydra" / "config.yaml"
    text = saved.read_text()
    saved.write_text(text.replace("val_fraction: 0.1", "val_fraction: 0.2").replace("momentum: 0.9", "momentum: 0.5"))
    try:
        with pytest.warns(UserWarning, match="configs have changed since the run") as told:
            measured(sgd, tmp_path / "m", "callbacks=[hessian]", "optimizer.momentum=0.9")
    finally:
        saved.write_text(text)
    said = [str(w.message) for w in told if "configs have changed" in str(w.message)]
    assert "data.val_fraction was 0.2 and is 0.1 (give data.val_fraction=0.2" in said[0]
    assert "momentum" not in said[0]  # asked for


def test_run_without_measurements_is_measured_by_the_default_ones(tmp_path, caplog):
    path = run_directory(tmp_path / "run", [*BASE, "callbacks=[checkpoint,lr_scaling]", "experiment=surlemont2022"])
    line = measure.read([f"ckpt_path={path}"])
    cfg = as_job([word for word in line.argv if not word.startswith("hydra.")], tmp_path / "m")
    measure_run._choose(cfg, line)
    assert list(cfg.callbacks) == ["hessian", "sharpness"]
    assert cfg.callbacks.hessian.seed == cfg.seed
    assert "measuring with hessian and sharpness" in caplog.text


def test_choice_that_measures_nothing_is_refused(sgd, tmp_path):
    with pytest.raises(ConfigError, match=r"callbacks=.sam. measures nothing: write callbacks=.hessian,sharpness."):
        measured(sgd, tmp_path / "m", "callbacks=[sam]")
    assert not (tmp_path / "m").exists()


def test_weights_alone_leave_the_stability_of_adam_unknown(adam, stripped, tmp_path, caplog, recwarn):
    there = read_record(Path(adam).parents[1]).metrics
    found = measured(stripped(adam), tmp_path / "m")
    assert found["hessian/lambda_max"] == pytest.approx(there["hessian/lambda_max"], rel=1e-6)
    assert found["hessian/stability"] != found["hessian/stability"]
    assert "stability is not known: Adam: no optimizer step yet" in caplog.text


def test_weights_alone_leave_a_rate_that_was_scaled_unknown(sgd, stripped, tmp_path, caplog, recwarn):
    there, bare = read_record(Path(sgd).parents[1]).metrics, stripped(sgd)
    found = measured(bare, tmp_path / "m", "callbacks=[lr_scaling,hessian]")
    assert "if you know the rate, give it: optimizer.lr=RATE" in caplog.text
    assert found["hessian/stability"] != found["hessian/stability"]
    known = measured(bare, tmp_path / "n", "callbacks=[lr_scaling,hessian]", f"optimizer.lr={there['lr/scaled']}")
    assert known["hessian/stability"] == pytest.approx(there["hessian/stability"], rel=1e-6)


def test_weights_alone_and_a_constant_rate_give_the_stability_of_sgd(tmp_path, stripped, recwarn):
    path = trained(tmp_path / "run", "callbacks=[hessian,checkpoint]")
    found = measured(stripped(path), tmp_path / "m")
    there = read_record(tmp_path / "run").metrics
    assert found["hessian/stability"] == pytest.approx(there["hessian/stability"], rel=1e-6)


def test_checkpoint_before_the_first_step(adam, tmp_path, recwarn):
    loaded = torch.load(adam, weights_only=True)
    loaded["optimizer_states"][0]["state"] = {}
    loaded["global_step"] = loaded["epoch"] = 0
    del loaded["loops"]
    path = run_directory(tmp_path / "run", [*SMALL, "optimizer=adam", "callbacks=[hessian]"])
    torch.save(loaded, path)
    found = measured(path, tmp_path / "m", **seen(path))
    assert found["seen/step"] == found["seen/states"] == 0
    assert found["seen/same"] == 1
    assert found["hessian/stability"] != found["hessian/stability"]


def text_file(path):
    Path(path).write_text("no checkpoint")


def cut_file(path):
    Path(path).write_bytes(b"PK\x03\x04 cut off")


def list_of_weights(path):
    torch.save({"weights": [torch.zeros(2)]}, path)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (
            text_file,
            "cannot be read as a checkpoint .torch.load: Unsupported operand 110.: give a file that ModelCheckpoint",
        ),
        (cut_file, "cannot be read as a checkpoint"),
        (list_of_weights, r"is not a checkpoint of Lightning, it has no state_dict .keys: weights.: give a file"),
    ],
)
def test_file_that_is_no_checkpoint(write, message, tmp_path, recwarn):
    path = run_directory(tmp_path / "run", [*SMALL, "callbacks=[hessian]"])
    write(path)
    with pytest.raises(ConfigError, match=message):
        measured(path, tmp_path / "m")
    left = json.loads((tmp_path / "m" / "measurement.json").read_text())
    assert left["status"] == "failed"
    assert left["error"].startswith("ConfigError: ")
    assert "weights_only" not in left["error"]  # torch's advice to load without a check


def test_other_model_than_the_checkpoint_s(sgd, tmp_path, recwarn):
    with pytest.raises(ConfigError, match=r"does not fit the model: .* is only in the model; its run was trained with"):
        measured(sgd, tmp_path / "m", "model=mlp")
    alone = tmp_path / "alone.ckpt"
    alone.write_bytes(Path(sgd).read_bytes())
    words = (*BASE, "model.network.num_classes=7", "model.num_classes=7", "callbacks=[hessian]")
    with pytest.raises(
        ConfigError, match=r"has shape .10, 64. in the checkpoint and .7, 64. in the model; no run of lb"
    ):
        measured(alone, tmp_path / "n", *words)


def test_other_optimizer_than_the_checkpoint_s(sgd, adam, tmp_path, recwarn):
    with pytest.raises(ConfigError, match=r"has dampening, momentum|has momentum, and Adam of the config betas: give"):
        measured(sgd, tmp_path / "m", "optimizer=adam")
    with pytest.raises(ConfigError, match=r"has betas, and SGD of the config momentum: give the optimizer that the"):
        measured(adam, tmp_path / "m", "optimizer=momentum")


@pytest.mark.parametrize(("words", "kind"), [([], "measure"), (["logger.wandb.job_type=train"], "train")])
def test_wandb_is_told_that_this_is_no_training(words, kind):
    with initialize_config_module("lbtrain.conf", version_base="1.3"):
        cfg = compose("train", ["logger=[csv,wandb]", *words])
    measure_run._name_kind(cfg, measure.Line("x", ("logger=[csv,wandb]", *words), None, ()))
    assert cfg.logger.wandb.job_type == kind
    assert "job_type" not in cfg.logger.csv


def test_logger_of_now_gets_the_numbers(sgd, tmp_path, recwarn):
    measured(sgd, tmp_path / "m", "callbacks=[hessian]", "logger=csv")
    header = (tmp_path / "m" / "metrics.csv").read_text().splitlines()[0].split(",")
    assert {"hessian/lambda_max", "train/loss"} <= set(header)
