import math

import pytest

from lbtrain.functional.convexity import convexity_evidence
from tests.curves import ends, gradient, least_squares, network


def test_eigenvalues_of_zero_within_their_error_are_evidence_for_convexity() -> None:
    found = convexity_evidence([-1e-7, 0.2], [1e-6, 1e-6], [3.0, 4.0])
    assert (found.convex, found.proven, found.lowest) == (True, False, -1e-7)
    assert found.words == (
        "the loss looks convex here (lambda_min is -1e-07 +- 1e-06 or more at 2 points): no local optimum is in the way"
    )


def test_a_linear_model_proves_it() -> None:
    found = convexity_evidence([0.0], [0.0], [3.0], linear=True)
    assert found.proven
    assert "linear in its parameters" in found.words


@pytest.mark.parametrize("linear", [True, False])
def test_one_point_of_negative_curvature_disproves_it(linear: bool) -> None:
    found = convexity_evidence([0.1, -0.3, 0.0], [1e-3] * 3, [3.0, 2.0, 1.0], linear=linear)
    assert (found.convex, found.proven) == (False, False)
    assert found.words == "the loss is not convex: lambda_min is -0.3 with lambda_max 2"


@pytest.mark.parametrize(("low", "convex"), [(-1.1e-5, False), (-0.9e-5, True)])
def test_the_tolerance_is_a_share_of_the_largest_eigenvalue(low: float, convex: bool) -> None:
    assert convexity_evidence([low * 7], [0.0], [7.0]).convex is convex


def test_without_numbers_nothing_is_known() -> None:
    found = convexity_evidence([math.nan], [0.0], [1.0])
    assert found.convex is None
    assert math.isnan(found.lowest)


@pytest.mark.parametrize("linear", [True, False])
def test_curvature_of_exactly_zero_is_no_evidence(linear: bool) -> None:
    found = convexity_evidence([0.0, 0.0], [0.0, 0.0], [0.0, 0.0], linear=linear)
    assert (found.convex, found.proven) == (None, False)
    assert "says nothing" in found.words


def test_softmax_regression_and_least_squares_are_convex_and_a_network_is_not() -> None:
    def spectrum(problem):
        params = [p.clone().requires_grad_() for p in problem.params]
        import torch

        return ends(gradient(problem.loss, params, torch.arange(128), graph=True)[1], params, 40)[:2]

    for problem, convex in ((network(64, 10), True), (least_squares(), True), (network(64, 16, 10), False)):
        low, top = spectrum(problem)
        assert convexity_evidence([low], [0.0], [top]).convex is convex


def test_sequences_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="equally long, got 1, 2 and 1"):
        convexity_evidence([0.0], [0.0, 0.0], [1.0])
