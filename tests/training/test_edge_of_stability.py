"""Full-batch gradient descent rises to the edge of stability and stays there (Cohen et al. 2021): the example."""

import runpy
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "edge_of_stability.py"
RATE = 0.13
STEPS, EVERY = 900, 30


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("edge")


@pytest.fixture(scope="module")
def tracked(folder):
    return runpy.run_path(str(EXAMPLE))["train"](folder, top_k=1)


def test_sharpness_rises_to_the_edge_and_hovers_there(tracked):
    assert len(tracked) == STEPS // EVERY
    early, late = tracked[0]["hessian/stability"], [point["hessian/stability"] for point in tracked[-10:]]
    assert early < 0.8
    assert min(late) > 0.9
    assert max(late) < 1.3


def test_stability_is_half_the_rate_times_the_sharpness(tracked):
    for point in tracked:
        assert point["hessian/stability"] == pytest.approx(RATE * point["hessian/lambda_max"] / 2, rel=1e-6)


def test_a_tracked_point_takes_a_handful_of_products(tracked):
    spent = sorted(point["hessian/num_matvecs"] for point in tracked[1:-1])
    assert spent[len(spent) // 2] <= 8


def test_the_figure_of_the_run_is_there(tracked, folder):
    assert (folder / "figures" / "hessian_tracks.png").is_file()
