"""The shipped experiments, cut down to seconds, from the command line to what their pages claim."""

import csv
import json

import pytest

from lbtrain.records import read_record
from tests.cli.commands import ROOT, run

pytestmark = [pytest.mark.slow, pytest.mark.distributed, pytest.mark.timeout(600)]
# The launcher shares the cores out among its jobs.
CALM = {"OMP_NUM_THREADS": None, "COLUMNS": "120"}


def sweep(folder, name, *overrides):
    """Run a part of an experiment and return the records of its runs."""
    words = ["-m", f"experiment={name}", f"hydra.sweep.dir={folder}", "data.test_fraction=0.5", *overrides]
    done = run(words, ROOT, timeout=300, **CALM)
    assert done.code == 0, (done.out + done.err)[-3000:]
    with open(folder / "results.csv", newline="") as file:
        count = len(list(csv.DictReader(file)))
    records = [read_record(folder / str(number)) for number in range(count)]
    assert [record.status for record in records] == ["finished"] * count
    return records


def test_keskar_measures_four_boxes_and_the_line_between_its_runs(tmp_path):
    cut = ("model=mlp", "seed=0", "data.batch_size=16,512", "trainer.max_epochs=3")
    records = sweep(tmp_path, "keskar2017", *cut, "callbacks.checkpoint.every_n_epochs=1")
    names = ("keskar", "keskar_5e-4", "keskar_subspace", "keskar_subspace_5e-4")
    for record in records:
        whole, half, few, few_half = (record.metrics[f"sharpness/{name}"] for name in names)
        assert 0 < few_half < few < half < whole
    done = run(["between", str(tmp_path), "--points", "4"], ROOT, timeout=120, **CALM)
    assert done.code == 0, (done.out + done.err)[-3000:]
    (path,) = (tmp_path / "between").iterdir()
    found = json.loads(path.read_text())
    assert (found["network"], found["from"]["label"], found["to"]["label"]) == ("MLP", "batch 16", "batch 512")
    # At 0 and 1 are the runs themselves.
    ends = [found["train_loss"][found["alpha"].index(float(end))] for end in (0, 1)]
    assert ends == pytest.approx([record.metrics["train/loss"] for record in records], rel=1e-5)
    assert "line 1 of 1: MLP, seed 0, batch 16 to batch 512" in done.out


def test_sum_and_scaled_mean_coincide_and_a_mean_at_a_fixed_rate_does_not(tmp_path):
    records = sweep(tmp_path, "loss_reduction", "trainer.max_epochs=2", "data.batch_size=64", "model=mlp,linear")
    losses = {}
    for record in records:
        key = record.config["model.network._target_"], record.config["model.reduction"], record.config["scaling"]
        losses[key] = record.metrics["train/loss"]
    for network in {key[0] for key in losses}:
        scaled = losses.pop((network, "mean", "scaled"))
        fixed = losses.pop((network, "mean", "fixed"))
        assert [loss for key, loss in losses.items() if key[0] == network] == [scaled, scaled]
        assert fixed > 1.1 * scaled


def test_the_grid_returns_the_validation_loss_at_each_rate(tmp_path):
    cut = ("callbacks=[checkpoint,random_state,sam]", "optimizer=adam", "data.batch_size=64")
    records = sweep(tmp_path, "lr_batch_grid", *cut, "optimizer.lr=0.002,0.008")
    assert [record.config["optimizer.lr"] for record in records] == [0.002, 0.008]
    assert all(record.metrics["val/loss"] > 0 for record in records)
    assert not [key for record in records for key in record.metrics if key.startswith(("hessian/", "sharpness/"))]


def test_a_run_ends_at_its_target_and_has_measured_the_noise(tmp_path):
    cut = ("data.batch_size=64", "optimizer.lr=0.01,0.02", "callbacks.target.target=0.6")
    for record in sweep(tmp_path, "steps_to_target", *cut, "callbacks.noise.every_n_steps=1"):
        metrics = record.metrics
        assert (metrics["target/reached"], metrics["target/value"]) == (1, pytest.approx(0.6))
        assert metrics["batch/global"] == 64
        assert 0 < metrics["target/s"] <= metrics["time/fit_s"]
        assert metrics["target/epochs"] < 100
        assert "noise/b_simple" in metrics
