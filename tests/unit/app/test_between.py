"""The loss on the line between two runs: which runs are paired, what is evaluated, what is refused."""

import json
import math
import shutil
from dataclasses import replace

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lbtrain._lightning import LightningDataModule, LightningModule, Trainer
from lbtrain.app import between, commands
from lbtrain.app.between_line import along
from lbtrain.app.between_pairs import pairs_in, run_at
from lbtrain.app.signatures import ConfigError
from lbtrain.records import RunRecord, read_record, write_record

HERE = "tests.unit.app.test_between"


class Bowl(LightningModule):
    """L(w) = (w - 1)^2 on the training data and w^2 on the test data; acc is the weight itself."""

    def __init__(self, weights=1):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(weights))
        self.register_buffer("steps", torch.tensor(3))

    def forward(self, x):
        return x

    def training_step(self, batch, batch_idx):
        return (self.w - batch[0].mean()).square().sum()

    def test_step(self, batch, batch_idx):
        loss = (self.w[0] - batch[0]).square().mean()
        self.log_dict({"test/loss": loss, "test/acc": self.w[0].detach()}, batch_size=len(batch[0]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Silent(Bowl):
    def test_step(self, batch, batch_idx):
        self.log("test/loss", 1.0)


class Normalized(Bowl):
    """The running mean is far from that of the data, until it is estimated anew."""

    def __init__(self, weights=1):
        super().__init__(weights)
        self.norm = nn.BatchNorm1d(1, affine=False)

    def forward(self, x):
        return self.norm(x[:, None])[:, 0]

    def test_step(self, batch, batch_idx):
        self.log_dict({"test/loss": self(batch[0]).mean(), "test/acc": self.norm.running_mean[0]}, batch_size=4)


class Data(LightningDataModule):
    def __init__(self, batch_size=4, seed=0):
        super().__init__()
        self.batch_size = batch_size

    def train_dataloader(self):
        return DataLoader(TensorDataset(torch.ones(8)), self.batch_size)

    def test_dataloader(self):
        return DataLoader(TensorDataset(torch.zeros(8)), self.batch_size)


def config(batch, *, model="Bowl", seed=0, lr=0.1, weights=1):
    return {
        "seed": seed,
        "data": {"_target_": f"{HERE}.Data", "batch_size": batch, "seed": seed},
        "model": {"_target_": f"{HERE}.{model}", "weights": weights},
        "optimizer": {"lr": lr},
        "trainer": {"accelerator": "cpu", "accumulate_grad_batches": 1, "devices": 1},
        "place": "${hydra:runtime.output_dir}",
    }


def flat(node, prefix=""):
    for key, value in node.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        elif key != "place":
            yield f"{prefix}{key}", value


def leave_run(folder, weight, batch, *, kind=Bowl, status="finished", started="2026-01-01T00:00:00+00:00", **options):
    """Leave what a run leaves: summary, config and a checkpoint."""
    made = config(batch, model=kind.__name__, **options)
    (folder / ".hydra").mkdir(parents=True)
    OmegaConf.save(OmegaConf.create(made), folder / ".hydra" / "config.yaml")
    overrides = (f"data.batch_size={batch}", f"seed={made['seed']}", f"optimizer.lr={made['optimizer']['lr']}")
    error = None if status == "finished" else "it broke"
    record = RunRecord("run", status, error, overrides, dict(flat(made)), {}, {}, None, started, 1.0)
    write_record(folder, record)
    if weight is not None:
        module = kind(options.get("weights", 1))
        nn.init.constant_(module.w, weight)
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
        trainer = Trainer(max_epochs=0, **quiet, enable_checkpointing=False)
        trainer.fit(module, Data(batch))
        trainer.save_checkpoint(folder / "checkpoints" / "last.ckpt")
    return folder


@pytest.fixture
def reported(monkeypatch):
    asked = []
    monkeypatch.setattr(commands, "report", lambda words: asked.append(list(words)) or 0)
    return asked


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Two runs whose weights are 1 and 3; the larger batch comes first."""
    folder = tmp_path_factory.mktemp("sweep")
    leave_run(folder / "0", 3.0, 8)
    leave_run(folder / "1", 1.0, 4)
    leave_run(folder / "2", 9.0, 2, seed=1)
    return folder


def test_the_line_goes_from_the_small_batch_at_0_to_the_large_one_at_1(trained, reported):
    assert between.main([str(trained), "--points", "7"]) == 0
    (path,) = (trained / "between").iterdir()
    found = json.loads(path.read_text())
    assert path.name == "1-0.json"
    assert found["from"] == {"run": "1", "label": "batch 4", "batch": 4}
    assert found["to"] == {"run": "0", "label": "batch 8", "batch": 8}
    assert (found["network"], found["seed"], found["title"]) == ("Bowl", 0, "Bowl, seed 0, batch 4 to batch 8")
    assert found["alpha"] == [-1, -0.5, 0, 0.5, 1, 1.5, 2]
    weights = [1 + 2 * alpha for alpha in found["alpha"]]
    assert found["train_loss"] == pytest.approx([(w - 1) ** 2 for w in weights])
    assert found["test_loss"] == pytest.approx([w**2 for w in weights])
    assert found["train_acc"] == found["test_acc"] == pytest.approx(weights)
    assert reported == [[str(trained)]]


def test_two_runs_make_a_line_in_the_order_given(trained, reported, tmp_path):
    words = [str(trained / "0"), str(trained / "1"), "--points", "4", "--out", str(tmp_path)]
    assert between.main(words) == 0
    found = json.loads((tmp_path / "between" / "0-1.json").read_text())
    assert found["test_acc"] == pytest.approx([5, 3, 1, -1])
    assert not reported


def test_the_ends_are_the_checkpoints_bit_for_bit(tmp_path):
    leave_run(tmp_path / "0", 0.1, 4)
    leave_run(tmp_path / "1", 0.7, 8)
    (pair,) = pairs_in(tmp_path)
    ends = [torch.tensor(0.1).item(), torch.tensor(0.7).item()]
    assert along(pair, [0.0, 1.0])["test_acc"] == ends


def test_running_statistics_are_those_of_the_training_data_at_each_place(tmp_path):
    leave_run(tmp_path / "0", 0.1, 4, kind=Normalized)
    leave_run(tmp_path / "1", 0.7, 8, kind=Normalized)
    (pair,) = pairs_in(tmp_path)
    # The mean of the training data is 1; that of a fresh layer is 0.
    assert along(pair, [-1.0, 0.0, 2.0])["test_acc"] == pytest.approx([1, 1, 1])


def test_a_loss_that_is_not_finite_is_a_word(tmp_path, reported):
    leave_run(tmp_path / "0", 0.0, 4)
    leave_run(tmp_path / "1", float("inf"), 8)
    assert between.main([str(tmp_path), "--points", "4"]) == 0
    text = (tmp_path / "between" / "0-1.json").read_text()
    found = json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    assert [math.isfinite(float(value)) for value in found["test_loss"]] == [False, False, False, False]


def test_pairs_are_of_one_seed_and_one_setting_and_the_newest_of_equal_runs_counts(tmp_path):
    for number, (batch, seed, lr) in enumerate((
        (8, 0, 0.1),
        (4, 0, 0.1),
        (6, 0, 0.1),
        (4, 1, 0.1),
        (4, 0, 0.2),
        (8, 0, 0.2),
    )):
        leave_run(tmp_path / str(number), None, batch, seed=seed, lr=lr)
    leave_run(tmp_path / "10", None, 4, started="2026-02-01T00:00:00+00:00")
    leave_run(tmp_path / "11", None, 2, status="failed")
    pairs = pairs_in(tmp_path)
    assert [pair.name for pair in pairs] == ["4-5", "10-0"]
    assert [pair.network for pair in pairs] == ["Bowl, optimizer.lr=0.2", "Bowl, optimizer.lr=0.1"]


def test_the_batch_is_that_of_a_step(tmp_path):
    run = run_at(leave_run(tmp_path / "0", None, 4), "0")
    config = {**run.record.config, "trainer.accumulate_grad_batches": 3, "trainer.devices": 2}
    assert replace(run, record=replace(run.record, config=config)).batch == 24
    assert replace(run, record=replace(run.record, metrics={"batch/global": 64.0})).batch == 64


def test_one_line_that_cannot_be_measured_leaves_the_others(tmp_path, reported, capsys):
    leave_run(tmp_path / "0", 1.0, 4)
    leave_run(tmp_path / "1", 2.0, 8)
    leave_run(tmp_path / "2", 1.0, 4, seed=1)
    leave_run(tmp_path / "3", None, 8, seed=1)
    assert between.main([str(tmp_path), "--points", "4"]) == 1
    assert [path.name for path in (tmp_path / "between").iterdir()] == ["0-1.json"]
    assert "no checkpoint in" in capsys.readouterr().err
    assert reported == [[str(tmp_path)]]


def test_a_report_that_fails_is_told(trained, monkeypatch):
    monkeypatch.setattr(commands, "report", lambda words: 3)
    assert between.main([str(trained), "--points", "4"]) == 3


def refused(words, capsys, tail=()):
    code = between.main([*map(str, words), "--points", "4", *tail])
    return code, capsys.readouterr().err


def test_what_holds_no_pair_is_refused_with_the_next_move(trained, tmp_path, capsys):
    assert refused([tmp_path / "none"], capsys) == (
        2,
        f"lbtrain between: {tmp_path / 'none'} is not a folder: give that of a sweep, such as multirun/DATE/TIME\n",
    )
    assert "holds no finished run whose batch size is known" in refused([tmp_path], capsys)[1]
    leave_run(tmp_path / "s" / "0", None, 4)
    leave_run(tmp_path / "s" / "1", None, 8, seed=1)
    assert "no two runs of" in refused([tmp_path / "s"], capsys)[1]
    assert "got 3 folders: give one sweep, or two runs" in refused([trained] * 3, capsys)[1]
    assert "of different sweeps: say with --out DIR" in refused([trained / "0", tmp_path / "s" / "0"], capsys)[1]
    assert "holds no summary.json" in refused([trained, trained / "0"], capsys)[1]


def test_a_sweep_without_a_finished_run_is_told_from_what_is_no_sweep(trained, tmp_path, capsys):
    for number in range(3):
        (tmp_path / str(number)).mkdir()
        record = read_record(trained / "0")
        write_record(tmp_path / str(number), replace(record, status="failed", error="too hot"))
        said = f"none of its {number + 1} runs has" if number else "its one run has not"
        assert refused([tmp_path], capsys) == (
            2,
            f"lbtrain between: {tmp_path}: {said} finished; lbtrain report {tmp_path} says why\n",
        )


def test_runs_on_other_data_and_runs_that_failed_are_refused(trained, tmp_path, capsys):
    code, said = refused([trained / "0", trained / "2"], capsys)
    assert code == 2
    assert "data.seed is 0 in" in said
    leave_run(tmp_path / "0", None, 4, status="failed")
    assert "has failed (it broke): run it again" in refused([tmp_path / "0", trained / "0"], capsys)[1]
    (tmp_path / "0" / "summary.json").write_text("{")
    assert "summary.json is not JSON" in refused([tmp_path / "0", trained / "0"], capsys)[1]


def test_other_networks_are_refused_by_the_name_of_the_weight(tmp_path):
    pair = run_at(leave_run(tmp_path / "0", 1.0, 4), "0"), run_at(leave_run(tmp_path / "1", 1.0, 8, weights=2), "1")
    with pytest.raises(ConfigError, match=r"w has shape \(1,\) in .* and has shape \(2,\) in .* no line between diff"):
        along(between.pair_of(*pair), [0.0])
    other = run_at(leave_run(tmp_path / "2", 1.0, 8, kind=Normalized), "2")
    with pytest.raises(ConfigError, match=r"norm.running_mean is not there in"):
        along(between.pair_of(pair[0], other), [0.0])


def test_a_module_that_logs_no_accuracy_is_refused(tmp_path):
    leave_run(tmp_path / "0", 1.0, 4, kind=Silent)
    leave_run(tmp_path / "1", 1.0, 8, kind=Silent)
    (pair,) = pairs_in(tmp_path)
    with pytest.raises(
        ConfigError, match=r"the test_step of Silent logs no train/acc \(gap/loss, test/loss, train/loss"
    ):
        along(pair, [0.0])


def test_a_run_without_its_config_is_refused(tmp_path):
    leave_run(tmp_path / "0", 1.0, 4)
    shutil.rmtree(leave_run(tmp_path / "1", 1.0, 8) / ".hydra")
    (pair,) = pairs_in(tmp_path)
    with pytest.raises(ConfigError, match="so the network of the run is not known: run it again"):
        along(pair, [0.0])


@pytest.mark.parametrize("points", ["3", "5", "0"])
def test_places_that_miss_the_solutions_are_refused(points, trained, capsys):
    assert between.main([str(trained), "--points", points]) == 2
    assert f"got {points}: take 31" in capsys.readouterr().err


def test_the_default_places_hold_both_solutions_and_the_ends_of_the_figure():
    alpha = between._alphas(31)
    assert {-1.0, 0.0, 1.0, 2.0} <= set(alpha)
    assert len(alpha) == 31
