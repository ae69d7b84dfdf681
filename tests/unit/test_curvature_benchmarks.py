"""The benchmarks of curvature: they run, their lines have the documented keys, and what they compare is the same."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"
TOP = ["case", "tool", "top_k", "tol", "products", "gradients", "max_error", "certified", "peak_mib"]
GROWTH = ["case", "samples", "parameters", "gradient_ms", "product_ms", "gradients", "top_s", "products"]


def printed(name, *arguments):
    done = subprocess.run(
        [sys.executable, FOLDER / name, *arguments], capture_output=True, text=True, timeout=200, check=False
    )
    # A bound that a loaded machine exceeds in so short a run is no failure of the script.
    assert done.returncode == 0 or "bounds exceeded" in done.stderr or "is below" in done.stderr, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


@pytest.mark.slow
def test_eigenvalues_of_all_tools_agree_with_the_reference():
    small = ["--samples", "60", "--repeats", "1", "--top", "2", "--threads", "1", "--no-memory"]
    *rows, last = printed("bench_top_eigenvalues.py", *small, "--case", "product", "top", "both_ends")
    assert last["environment"]["samples"] == 60
    assert [row["case"] for row in rows[:4]] == ["product"] * 4
    found = [row for row in rows if row["case"] in {"top", "both_ends"}]
    ours = [row for row in found if row["tool"].startswith("lbtrain")]
    assert len(ours) == 3
    for row in ours:
        assert list(row) == TOP
        assert row["max_error"] < row["certified"] <= 1e-3
    measured = [row for row in found if "skipped" not in row and row not in ours]
    assert {row["tool"].split()[0].rstrip(",") for row in measured} <= {"curvlinops", "pyhessian", "eigenthings"}
    assert all(row["max_error"] < 0.02 for row in measured if row["tool"].startswith("curvlinops"))


@pytest.mark.slow
@pytest.mark.distributed
def test_two_processes_find_the_eigenvalue_of_one():
    *rows, _ = printed("bench_curvature_scaling.py", "--samples", "40", "--widths", "2", "--repeats", "1")
    assert [row["case"] for row in rows] == ["samples", "parameters", "ranks"]
    assert [list(row) for row in rows[:2]] == [GROWTH] * 2
    assert rows[2]["difference"] < 1e-5
