"""The benchmark of the local launcher: it runs, its lines have the documented keys, and its bounds are held to."""

import argparse
import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"
PACKING = ["case", "jobs", "cores", "packed_s", "serial_s", "ratio", "low", "high"]
BOUNDS = argparse.Namespace(packing_bound=0.6, launcher_bound=0.3)


@pytest.fixture(scope="module")
def bench():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FOLDER)
        yield import_module("bench_packing")
        sys.modules.pop("bench_packing")


def printed(*words):
    command = [sys.executable, FOLDER / "bench_packing.py", *words, "--packing-bound", "99", "--launcher-bound", "99"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.distributed
def test_the_launcher_s_time_is_a_json_line_with_the_documented_keys(bench):
    row, environment = printed("--case", "launcher", "--empty-jobs", "2")
    assert list(row) == ["case", "empty_jobs", "per_job_s"]
    assert all(key in bench.__doc__ for key in row)
    assert row["per_job_s"] > 0
    assert environment["case"] == "environment"


@pytest.mark.slow
@pytest.mark.distributed
def test_packing_is_a_json_line_with_the_documented_keys(bench):
    row, _ = printed("--case", "packing", "--jobs", "2", "--epochs", "1")
    assert list(row) == PACKING
    assert all(key in bench.__doc__ for key in row)
    assert row["ratio"] == pytest.approx(row["packed_s"] / row["serial_s"], abs=0.01)


@pytest.mark.parametrize(
    ("row", "over"),
    [
        ({"case": "packing", "ratio": 0.6}, False),
        ({"case": "packing", "ratio": 0.601}, True),
        ({"case": "launcher", "per_job_s": 0.3}, False),
        ({"case": "launcher", "per_job_s": 0.31}, True),
        ({"case": "environment"}, False),
    ],
)
def test_what_is_over_its_bound_is_named(bench, row, over):
    assert (bench.exceeded(row, BOUNDS) is not None) == over
