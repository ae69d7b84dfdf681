"""What the bare command does, and how fast: bounds in seconds, held with nothing beside."""

import csv
import sys

import pytest

from lbtrain.records import read_record
from tests.cli.commands import ROOT, run

pytestmark = pytest.mark.alone


@pytest.fixture(scope="module")
def default(tmp_path_factory):
    directory = tmp_path_factory.mktemp("default")
    return directory / "run", run(["hydra.run.dir=run"], directory, OMP_NUM_THREADS=None)


def test_bare_command_prints_the_line_a_bar_and_the_table(default):
    directory, done = default
    assert done.code == 0, done.err
    assert done.seconds < 30
    lines = [line.strip() for line in (done.out + done.err).splitlines()]
    said = "global batch 64 = 64 x 1 x 1, lr 0.01 -> 0.04 (linear, base 16); terminal step lr/(1-momentum) 0.4"
    assert lines.count(said) == 1
    assert "Epoch 29/29" in done.out
    for row in ("loss", "accuracy", "lambda_max", "stability", "sharpness, Keskar", "sharpness, SAM", "time, fit"):
        assert any(row in line for line in done.out.splitlines() if "│" in line), row
    assert f"results: {directory}" in done.out
    assert "Warning" not in done.out + done.err


def test_bare_command_leaves_record_metrics_and_checkpoints(default):
    directory, _ = default
    record = read_record(directory)
    assert record.status == "finished"
    assert record.metrics["lr/scaled"] == pytest.approx(0.04)
    assert record.metrics["loss/reduction"] == "mean"
    assert record.metrics["test/acc"] > 0.95
    assert record.metrics["gap/loss"] == pytest.approx(record.metrics["test/loss"] - record.metrics["train/loss"])
    assert record.metrics["hessian/lambda_max_residual"] < 1e-3 * record.metrics["hessian/lambda_max"]
    with (directory / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert sum(bool(row["val/acc"]) for row in rows) == 30
    assert any(row["gap/acc"] for row in rows)
    assert (directory / "checkpoints" / "last.ckpt").is_file()


@pytest.mark.parametrize("flags", [("--cfg", "job"), ("--help",)])
def test_questions_are_answered_fast_and_without_torch(flags, tmp_path):
    script = f"""
import runpy, sys
sys.argv = {["train.py", *flags]!r}
try:
    runpy.run_path({str(ROOT / "train.py")!r}, run_name="__main__")
finally:
    loaded = [name for name in ("torch", "pytorch_lightning", "lightning", "wandb", "sklearn") if name in sys.modules]
    print("loaded:", loaded)
"""
    done = run(["-c", script], tmp_path, program=(sys.executable,))
    assert done.code == 0, done.err
    assert done.seconds < 3
    assert "loaded: []" in done.out
    assert "batch_size: 64" in done.out
