"""Progress of a sweep: one line per event, and on a terminal a view of the jobs that run."""

import io
import json
import math
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from rich.console import Console

from lbtrain.app.sweep import progress as progress_of
from lbtrain.app.sweep.job import PULSE_NAME, Job
from lbtrain.app.sweep.progress import Progress
from lbtrain.app.sweep.view import Beat, Row, read_beat, span, time_left, view
from lbtrain.records import RunRecord


def record(status="finished", error=None, **metrics):
    return RunRecord("r", status, error, (), {}, metrics, {}, None, "2026-01-01T00:00:00+00:00", 1.0)


def job(number, label="run", directory=Path("x"), ckpt=None, of=3):
    return Job(f"run {number} of {of}", label, (), directory, (), {}, ckpt=ckpt)


def test_lines_say_which_run_of_how_many(capsys):
    long = job(1, "callbacks=[lr_scaling] " + "x=1 " * 60)
    second, third = job(2, "seed=1"), job(3, "seed=2")
    with Progress(3, 2) as progress:
        assert progress.live is False
        assert math.isinf(progress.interval)
        progress.skipped(third, record(**{"test/acc": 0.5}))
        progress.started(long, 1)
        progress.started(second, 1)
        progress.refresh()
        progress.ended(second, record(**{"train/loss": 0.123, "test/acc": math.nan, "hessian/lambda_max": 2.0}), 3.4, 1)
        progress.retried(long, record("failed", "ValueError: [red] is no colour"), 0.6, 1, 2)
        progress.started(job(1, "callbacks=[lr_scaling]", ckpt=Path("a/last.ckpt")), 2)
        progress.ended(long, record("failed", "ValueError: [red] is no colour"), 0.6, 2)
    assert capsys.readouterr().out.splitlines() == [
        "3 runs, 2 at a time",
        "run 3 of 3 was finished before: seed=2 (test acc 0.5)",
        "run 1 of 3 starts: callbacks=[lr_scaling] " + "x=1 " * 60,
        "run 2 of 3 starts: seed=1",
        "run 2 of 3 done: train loss 0.123, test acc nan, lambda_max 2 (3 s)",
        "run 1 of 3 failed in attempt 1 of 2: ValueError: [red] is no colour (1 s; folder x)",
        "run 1 of 3 goes on from last.ckpt, attempt 2: callbacks=[lr_scaling]",
        "run 1 of 3 FAILED: ValueError: [red] is no colour (1 s; folder x)",
    ]


@pytest.mark.parametrize(("first", "told"), [("dead units", ", dead units"), ("none", "")])
def test_the_first_problem_of_a_diagnosed_run_is_told(capsys, first, told):
    progress = Progress(1, 1)
    progress.started(job(1, of=1), 1)
    progress.ended(job(1, of=1), record(**{"train/loss": 2.3, "diagnosis/first": first}), 0.0, 1)
    assert capsys.readouterr().out.splitlines()[-1] == f"run 1 of 1 done: train loss 2.3{told} (0 s)"


def test_run_without_numbers_says_so(capsys):
    progress = Progress(1, 1)
    progress.started(job(1, of=1), 1)
    progress.ended(job(1, of=1), record(**{"loss/reduction": "mean"}), 0.0, 1)
    assert capsys.readouterr().out.splitlines() == [
        "1 run, 1 at a time",
        "run 1 of 1 starts: run",
        "run 1 of 1 done: no metrics (0 s)",
    ]


@pytest.mark.parametrize("place", ["/a/b-1", "/a b's"])
def test_a_sweep_that_is_interrupted_says_how_it_goes_on(place):
    progress = Progress(6, 1, sweep=Path(place))
    progress.skipped(job(1), record())
    progress.started(job(2), 1)
    progress.ended(job(2), record(), 1.0, 1)
    told, _, command = progress.so_far().partition("; to go on, repeat the command with ")
    assert told == "2 of 6 runs finished"
    (word,) = shlex.split(command)  # as a shell reads it, and then Hydra
    assert OverridesParser.create().parse_override(word).value() == place


def terminal(width=100, **environment):
    return Console(
        file=io.StringIO(), force_terminal=True, width=width, height=24, highlight=False, _environ=environment
    )


def drawn(progress, width=100):
    """Return the lines of the view as they stand on the terminal."""
    console = Console(record=True, file=io.StringIO(), width=width, height=24)
    console.print(progress._drawn())
    return [line.rstrip() for line in console.export_text().splitlines()]


def test_a_terminal_shows_how_many_jobs_are_where_and_how_far_each_is(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress_of.time, "monotonic", lambda: now[0])
    with Progress(6, 2, terminal(TERM="xterm")) as progress:
        assert progress.live
        assert progress.interval <= 1
        progress.skipped(job(6), record())
        progress.started(job(1, "seed=0", tmp_path), 1)
        progress.started(job(2, "seed=1 batch_size=1024", tmp_path / "none"), 1)
        now[0] += 30
        beat = {"epoch": 2.5, "epochs": 10, "step": 9, "steps": None, "loss": 0.123456, "time": 0, "phase": "training"}
        (tmp_path / PULSE_NAME).write_text(json.dumps(beat))
        lines = drawn(progress)
        # A quarter in 30 s: 90 s are left of each of the two, and three of 120 s wait.
        assert lines[0] == "1 done, 2 running, 0 failed, 3 left; about 4 min left"
        assert [line.split() for line in lines[1:]] == [
            ["run", "1", "of", "3", "seed=0", "epoch", "3/10", "loss", "0.1235", "30", "s"],
            ["run", "2", "of", "3", "seed=1", "batch_size=1024", "starting", "30", "s"],
        ]
        progress.ended(job(2), record("failed", "x"), 30.0, 1)
        assert drawn(progress)[0].startswith("1 done, 1 running, 1 failed, 3 left; about ")
        progress.refresh()
    written = progress._console.file.getvalue()
    assert "epoch 3/10" in written
    assert "run 2 of 3 FAILED: x (30 s; folder x)" in written


def test_long_labels_are_cut_to_the_width_of_the_terminal():
    rows = [Row("run 1 of 2", "x" * 300, 1.0, Beat(loss=1.0))]
    console = Console(record=True, file=io.StringIO(), width=60)
    console.print(view({"done": 0}, rows, None))
    lines = console.export_text().splitlines()
    assert len(lines) == 2
    assert lines[0].rstrip() == "0 done; time left unknown"
    assert max(map(len, lines)) <= 60
    assert "1 s" in lines[1]


@pytest.mark.parametrize("environment", [{"TERM": "dumb"}, {"TERM": "unknown"}])
def test_a_dumb_terminal_gets_lines_alone(environment):
    with Progress(1, 1, terminal(**environment)) as progress:
        assert progress.live is False
        progress.started(job(1), 1)
        progress.refresh()
    assert "\x1b" not in progress._console.file.getvalue()


@pytest.mark.parametrize(
    ("beat", "fraction", "words"),
    [
        (Beat(0.0, 30), 0.0, "epoch 1/30"),
        (Beat(29.5, 30), 29.5 / 30, "epoch 30/30"),
        (Beat(30.0, 30), 1.0, "epoch 30/30"),
        (Beat(1.0, None, 50, 200), 0.25, "step 50/200"),
        (Beat(3.0, 4, 50, 200), 0.75, "epoch 4/4"),  # whichever ends first
        (Beat(3.0, None, 50, None), 0.0, "step 50"),
        (Beat(30.0, 30, phase="measuring"), 1.0, "measuring"),
    ],
)
def test_how_far_a_job_is(beat, fraction, words):
    assert (beat.fraction, beat.words) == (pytest.approx(fraction), words)


def row(seconds, fraction=None):
    return Row("run", "label", seconds, None if fraction is None else Beat(fraction, 1))


@pytest.mark.parametrize(
    ("done", "running", "waiting", "together", "expected"),
    [
        ([], [], 4, 2, None),
        ([], [row(5.0), row(5.0, 0.01)], 4, 2, None),
        ([10.0, 20.0], [], 4, 2, 30.0),
        ([10.0], [row(4.0), row(40.0)], 0, 2, 6.0),  # the longest that runs decides
        ([], [row(30.0, 0.25)], 2, 1, 90.0 + 240.0),
        ([100.0], [row(100.0, 1.0)], 0, 1, 0.0),
    ],
)
def test_time_left_follows_from_what_is_known_of_the_jobs(done, running, waiting, together, expected):
    found = time_left(done, running, waiting, together)
    assert found == (expected if expected is None else pytest.approx(expected))


@pytest.mark.parametrize(
    ("seconds", "expected"), [(0.4, "0 s"), (59.4, "59 s"), (300, "5 min"), (7500, "2 h 05 min"), (3599, "1 h 00 min")]
)
def test_durations_are_short(seconds, expected):
    assert span(seconds) == expected


@pytest.mark.parametrize("text", ["", "{", "{}", "[]"])
def test_a_sign_of_life_that_cannot_be_read_is_none(text, tmp_path):
    (tmp_path / "pulse").write_text(text)
    assert read_beat(tmp_path / "pulse") is None
    assert read_beat(tmp_path / "nothing") is None


@pytest.mark.parametrize(
    ("groups", "line"),
    [
        ([], None),
        ([[1, 2]], "runs 1 and 2 are the same: seed=0 is given twice; the report counts one of them"),
        (
            [[1, 3, 5], [2, 4]],
            "runs 1, 3 and 5 are the same: seed=0 is given 3 times; the report counts one of them; so it is with 1 "
            "more setting",
        ),
    ],
)
def test_runs_that_are_the_same_are_named_in_one_line(groups, line, capsys):
    progress = Progress(5, 1)
    progress.same([[replace(job(n, of=5), overrides=("seed=0",)) for n in group] for group in groups])
    assert capsys.readouterr().out.splitlines()[1:] == ([line] if line else [])
