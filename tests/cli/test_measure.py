"""`measure` on the command line: the numbers of the run, from its checkpoint alone."""

import json

import pytest

from lbtrain.records import read_record
from tests.cli.commands import run

# Few samples, and as few products as will do.
SMALL = ("trainer.max_epochs=2", "data.batch_size=64", "data.test_fraction=0.9", "model=linear", "logger=csv")
HESSIAN = ("callbacks.hessian.top_k=1", "callbacks.hessian.max_matvecs=12", "callbacks.hessian.trace_probes=0")
HESSIAN = (*HESSIAN, "callbacks.hessian.split_check=false", "callbacks.hessian.figures=[line]")
CALLBACKS = "callbacks=[lr_scaling,sam,hessian,sharpness,checkpoint,random_state]"
ALL = (*SMALL, *HESSIAN, CALLBACKS, "callbacks.sharpness.measures=[sam]", "callbacks.checkpoint.save_top_k=-1")
LAST = "ckpt_path=run/checkpoints/last.ckpt"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    directory = tmp_path_factory.mktemp("trained")
    done = run([*ALL, "hydra.run.dir=run"], directory)
    assert done.code == 0, done.err
    return directory


def left_in(directory):
    return json.loads((directory / "measurement.json").read_text())


def curvature(metrics):
    parts = ("hessian/", "sharpness/", "test/", "train/")
    return {k: v for k, v in metrics.items() if k.startswith(parts) and isinstance(v, float)}


def test_checkpoint_gives_the_numbers_of_its_run(trained):
    before = sorted((p.name, p.stat().st_mtime_ns, p.stat().st_size) for p in (trained / "run").rglob("*"))
    done = run(["measure", LAST, "hydra.run.dir=measured"], trained, TERM="dumb")
    assert done.code == 0, done.err
    assert "with the config of its run (trainer.max_epochs=2 data.batch_size=64" in done.out
    assert "stability" in done.out
    left, summary = left_in(trained / "measured"), read_record(trained / "run")
    assert curvature(left["metrics"]) == pytest.approx(curvature(summary.metrics), rel=1e-6)
    assert {"hessian/lambda_max", "hessian/stability", "sharpness/sam", "test/acc"} <= set(curvature(summary.metrics))
    # Nothing is left but the measurement, and nothing of the run is touched.
    names = {str(p.relative_to(trained / "measured")) for p in (trained / "measured").rglob("*") if p.is_file()}
    assert {n for n in names if not n.startswith(".hydra")} == {
        "measurement.json",
        "measure.log",
        "spectrum.json",
        "figures/hessian_line.png",
    }
    assert sorted((p.name, p.stat().st_mtime_ns, p.stat().st_size) for p in (trained / "run").rglob("*")) == before
    assert "Warn" not in done.out + done.err


@pytest.mark.distributed
def test_two_processes_measure_what_one_does(trained):
    done = run(["measure", LAST, "trainer=ddp_cpu", "hydra.run.dir=two"], trained, MASTER_PORT=None)
    assert done.code == 0, done.err
    found, there = curvature(left_in(trained / "two")["metrics"]), curvature(read_record(trained / "run").metrics)
    for key in ("hessian/lambda_max", "hessian/stability", "test/loss"):
        assert found[key] == pytest.approx(there[key], rel=1e-4)


@pytest.mark.slow
def test_several_checkpoints_are_measured_one_after_another(trained):
    words = ["measure", "-m", "ckpt_path=run/checkpoints/epoch*.ckpt", "callbacks=[hessian]", "hydra.sweep.dir=all"]
    done = run([*words, "data.batch_size=128"], trained, COLUMNS="200", TERM="dumb")
    assert done.code == 0, done.err
    left = [left_in(trained / "all" / str(number)) for number in (0, 1)]
    assert [entry["checkpoint"]["epoch"] for entry in left] == [0, 1]
    assert [entry["overrides"] for entry in left] == [["callbacks=[hessian]", "data.batch_size=128"]] * 2
    rows = [line for line in done.out.splitlines() if "epoch00" in line and "│" in line]
    assert [f"{entry['metrics']['hessian/lambda_max']:.3g}" in row for entry, row in zip(left, rows, strict=True)] == [
        True
    ] * 2


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["ckpt_path=run/checkpoints/lst.ckpt"], 2, "does not exist: the nearest are run/checkpoints/last.ckpt"),
        (["-m", "ckpt_path=run/*.ckpt"], 2, "no checkpoint matches run/*.ckpt"),
        ([LAST, "callbacks.hesian.top_k=2"], 1, "Did you mean 'hessian'?"),
        ([LAST, "callbacks=[sam]"], 1, "callbacks=[sam] measures nothing: write callbacks=[hessian,sharpness]"),
        (["ckpt_path=other.ckpt", "callbacks=[hessian]"], 1, "other.ckpt cannot be read as a checkpoint"),
    ],
)
def test_what_goes_wrong_is_said_with_the_next_move(words, code, message, trained):
    (trained / "other.ckpt").write_text("no checkpoint")
    done = run(["measure", *words, "hydra.run.dir=wrong"][: None if "-m" not in words else -1], trained)
    assert done.code == code, done.err
    assert message in done.err
    assert "Traceback" not in done.err


def test_help_says_what_to_write(tmp_path):
    done = run(["measure"], tmp_path)
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("usage: lbtrain measure ckpt_path=RUN/checkpoints/last.ckpt")
    assert not list(tmp_path.iterdir())
