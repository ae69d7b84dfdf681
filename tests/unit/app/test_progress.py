"""Progress of a sweep, off a terminal: one line per event."""

from lbtrain.app.progress import Progress
from lbtrain.records import RunRecord


def record(status="finished", error=None, **metrics):
    return RunRecord("r", status, error, (), {}, metrics, {}, None, "2026-01-01T00:00:00+00:00", 1.0)


def test_lines_say_which_run_of_how_many(capsys):
    with Progress(3, 2) as progress:
        progress.started(0, "callbacks=[lr_scaling] " + "x=1 " * 60)
        progress.started(1, "seed=1")
        progress.ended(1, record(**{"train/loss": 0.1234, "test/acc": float("nan"), "hessian/lambda_max": 2.0}), 3.4)
        progress.ended(0, record("failed", "ValueError: [red] is no colour"), 0.6)
    assert capsys.readouterr().out.splitlines() == [
        "3 runs, 2 at a time",
        "run 1 of 3 starts: callbacks=[lr_scaling] " + "x=1 " * 60,
        "run 2 of 3 starts: seed=1",
        "run 2 of 3 done: train loss 0.123, test acc nan, lambda_max 2 (3 s)",
        "run 1 of 3 FAILED: ValueError: [red] is no colour (1 s)",
    ]


def test_run_without_numbers_says_so(capsys):
    progress = Progress(1, 1)
    progress.started(0, "run")
    progress.ended(0, record(**{"loss/reduction": "mean"}), 0.0)
    assert "run 1 of 1 done: no metrics (0 s)" in capsys.readouterr().out
