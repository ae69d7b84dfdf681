"""One run from the command line."""

import csv
import sys

import pytest

from lbtrain.records import read_record
from tests.cli.commands import ROOT, SMALL, TRAIN, run


@pytest.fixture(scope="module")
def default(tmp_path_factory):
    directory = tmp_path_factory.mktemp("default")
    return directory / "run", run(["hydra.run.dir=run"], directory)


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


def test_console_script_is_the_same_command(tmp_path):
    # The script beside the interpreter of the tests.
    name = TRAIN[0].rpartition("/")[0] + "/lbtrain"
    script = run(["--cfg", "job"], tmp_path, program=(name,))
    assert (script.code, script.out) == (0, run(["--cfg", "job"], tmp_path).out)


@pytest.mark.distributed
def test_two_processes_write_one_record_and_count_each_sample_once(tmp_path):
    name = "with space, and = sign"
    done = run(["trainer=ddp_cpu", f"hydra.run.dir='{name}'", *SMALL, "data.batch_size=64"], tmp_path)
    assert done.code == 0, done.err
    both = done.out + done.err
    assert both.count("global batch 128 = 64 x 2 x 1, lr 0.01 -> 0.08 (linear, base 16)") == 1
    assert both.count("results:") == 1
    record = read_record(tmp_path / name)
    assert record.metrics["batch/data_parallel"] == 2
    # 1797 images: 360 for testing, 1293 of the others for training; repeats would make other denominators.
    for key, samples in (("test/acc", 360), ("train/acc", 1293)):
        right = record.metrics[key] * samples
        assert right == pytest.approx(round(right), abs=1e-3)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_ctrl_c_leaves_a_record_that_says_so(planted):
    done = run([*planted.small, "callbacks.fault.kind=interrupt", "hydra.run.dir=run"], planted.directory)
    assert done.code == 130
    assert "interrupted" in done.err
    assert "Traceback" not in done.err
    record = read_record(planted.directory / "run")
    assert (record.status, record.error) == ("failed", "KeyboardInterrupt")


def test_failing_run_is_recorded_with_its_reason_and_without_secrets(planted):
    secret = "sk-4711-very-secret"
    overrides = ["+token=${oc.env:TEST_API_TOKEN}", f"+api_key={secret}-2", "tags=[${token},${api_key}]"]
    arguments = [*planted.small, "callbacks.fault.kind=raise", "hydra.run.dir=run", *overrides]
    done = run(arguments, planted.directory, TEST_API_TOKEN=secret)
    assert done.code == 1
    assert "RuntimeError: planted fault, token ***" in done.err
    assert "Traceback" in done.err
    record = read_record(planted.directory / "run")
    assert (record.status, record.error) == ("failed", "RuntimeError: planted fault, token ***")
    assert record.metrics["lr/scaled"] == pytest.approx(0.16)
    assert record.config["data.batch_size"] == 256
    leaked = [
        path.relative_to(planted.directory / "run")
        for path in (planted.directory / "run").rglob("*")
        if path.is_file() and ".hydra" not in path.parts and secret in path.read_text(errors="replace")
    ]
    assert not leaked
