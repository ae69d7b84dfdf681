"""The benchmark of the callbacks' overhead: it runs, its lines have the documented keys, and it counts evaluations."""

import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"
TIME = ["case", "plain_ms", "ratio", "low", "high", "hooks", "steps", "turns"]


@pytest.fixture(scope="module")
def bench():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FOLDER)
        yield import_module("bench_callback_overhead")
        for name in ("bench_callback_overhead", "bench_sam_step", "resnet"):
            sys.modules.pop(name)


def test_each_case_is_a_json_line_with_the_documented_keys(bench):
    tiny = ["--case", "scaling_and_check", "noise_accumulate", "--repeats", "1", "--threads", "1"]
    bounds = ["--scaling-bound", "99", "--noise-bound", "99"]
    command = [sys.executable, FOLDER / "bench_callback_overhead.py", *tiny, *bounds]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    *times, evaluations, environment = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["case"] for row in times] == ["scaling_and_check", "noise_accumulate"]
    for row in times:
        assert list(row) == TIME
        assert 0 < row["hooks"] < 1
        assert all(key in bench.__doc__ for key in row)
    assert evaluations == {"case": "evaluations", "mean": 4, "other_units": 6}
    assert environment["case"] == "environment"


@pytest.mark.parametrize(
    ("row", "over"),
    [
        ({"case": "scaling_and_check", "ratio": 1.005}, False),
        ({"case": "scaling_and_check", "ratio": 1.006}, True),
        ({"case": "noise_accumulate", "ratio": 1.031}, True),
        ({"case": "noise_default", "ratio": 1.5}, False),
        ({"case": "evaluations", "mean": 4, "other_units": 6}, False),
        ({"case": "evaluations", "mean": 4, "other_units": 7}, True),
        ({"case": "environment"}, False),
    ],
)
def test_what_is_over_its_bound_is_named(bench, row, over):
    assert (bench.exceeded(row, {"scaling_and_check": 1.005, "noise_accumulate": 1.03}) is not None) == over
