import math

import pytest
import torch
from torch import Tensor

from lbtrain.functional.hvp import MeanLoss
from lbtrain.functional.landscape import line_distances, loss_along, loss_on_plane
from tests.problems import SmallNetwork, generator, leaf, matrix_with, quadratic, split_quadratic

SHARES = (0.5, 0.3, 0.2)


def problem() -> tuple[Tensor, Tensor, Tensor, MeanLoss]:
    """Return a quadratic with a slope: matrix, weights, linear part and loss."""
    A, w = matrix_with([5.0, 2.0, -1.0, 0.0]), leaf(torch.randn(4, generator=generator(1), dtype=torch.float64))
    b = torch.randn(4, generator=generator(2), dtype=torch.float64)
    return A, w, b, quadratic(A, w, b, height=3.0)


def value_at(A: Tensor, b: Tensor, w: Tensor) -> float:
    return float(3.0 + b @ w + 0.5 * w @ A @ w)


def test_along_a_line_a_quadratic_is_the_parabola_of_its_slope_and_curvature() -> None:
    A, w, b, loss = problem()
    v = torch.tensor([3.0, -1.0, 2.0, 0.5], dtype=torch.float64)
    u, g = v / v.norm(), b + A @ w.detach()
    line = loss_along(loss, v, (-2.0, -0.5, 0.0, 0.1, 3.0))
    base = value_at(A, b, w.detach())
    exact = [base + d * float(g @ u) + 0.5 * d * d * float(u @ A @ u) for d in line.distances]
    assert line.values == pytest.approx(exact, rel=1e-12)
    assert line.base == pytest.approx(base, rel=1e-14)
    assert line.values[2] == line.base
    assert line.num_values == loss.num_values == 6
    assert all(math.isnan(error) for error in line.stderr)  # one batch tells nothing about its error


def test_the_error_of_a_rise_is_that_of_a_weighted_mean_over_batches() -> None:
    w = leaf([1.0, -1.0, 0.5, 2.0])
    loss = split_quadratic(matrix_with([4.0, 3.0, 2.0, 1.0]), w, SHARES)
    line = loss_along(loss, torch.ones(4, dtype=torch.float64), (0.0, 0.7))
    before = [f().item() for f in loss.losses]
    with torch.no_grad():
        w.add_(0.35)  # 0.7 along (1, 1, 1, 1) / 2
    rises = [f().item() - x for f, x in zip(loss.losses, before, strict=True)]
    mean = sum(s * r for s, r in zip(SHARES, rises, strict=True))
    spread = sum(s * s * (r - mean) ** 2 for s, r in zip(SHARES, rises, strict=True))
    assert line.stderr == pytest.approx((0.0, math.sqrt(3 / 2 * spread)), rel=1e-9)
    assert line.values[1] - line.base == pytest.approx(mean, rel=1e-12)


def test_on_a_plane_the_first_index_goes_along_the_first_direction() -> None:
    A, w, b, loss = problem()
    u, v = torch.eye(4, dtype=torch.float64)[1], torch.eye(4, dtype=torch.float64)[3]
    plane = loss_on_plane(loss, 5 * u, 0.1 * v, (-1.0, 0.0, 2.0), second_distances=(0.0, 0.5))
    assert (plane.first, plane.second) == ((-1.0, 0.0, 2.0), (0.0, 0.5))
    for a, row in zip(plane.first, plane.values, strict=True):
        exact = [value_at(A, b, w.detach() + a * u + c * v) for c in plane.second]
        assert row == pytest.approx(exact, rel=1e-12)
    assert plane.values[1][0] == plane.base
    assert plane.num_values == loss.num_values == 7


def test_of_the_second_direction_only_what_stands_upright_on_the_first_counts() -> None:
    _, _, _, loss = problem()
    u, v = torch.eye(4, dtype=torch.float64)[:2]
    straight = loss_on_plane(loss, u, v, (-1.0, 0.0, 1.0))
    leaning = loss_on_plane(loss, u, v + 40 * u, (-1.0, 0.0, 1.0))
    for one, other in zip(straight.values, leaning.values, strict=True):
        assert one == pytest.approx(other, rel=1e-9)


def test_the_weights_come_back_bit_for_bit_also_after_an_error() -> None:
    w = leaf([0.1, -0.0, 1e-40, 3.0], torch.float32)
    before = w.detach().clone().view(torch.int32)
    calls = []

    def breaks() -> Tensor:
        calls.append(w.detach().clone())
        if len(calls) == 4:
            raise RuntimeError("no more")
        return (w**2).sum()

    u, v = torch.ones(4), torch.tensor([1.0, -1.0, 0.0, 0.0])
    for task in (
        lambda loss: loss_along(loss, u, (0.1, 0.2, 0.3, 0.4)),
        lambda loss: loss_on_plane(loss, u, v, (0.1, 0.2)),
    ):
        calls.clear()
        with pytest.raises(RuntimeError, match="no more"):
            task(MeanLoss([w], [breaks], [1.0]))
        assert not torch.equal(calls[-1], calls[0])  # it was away
        assert torch.equal(w.detach().view(torch.int32), before)
        calls[:] = [w] * 4
        task(MeanLoss([w], [breaks], [1.0]))
        assert torch.equal(w.detach().view(torch.int32), before)


def test_a_loss_that_overflows_far_out_is_told_as_it_is() -> None:
    w = leaf([1.0], torch.float32)
    line = loss_along(MeanLoss([w], [lambda: w.exp().sum()], [1.0]), torch.ones(1), (0.0, 200.0))
    assert line.values == (pytest.approx(math.e), math.inf)


def test_a_network_over_uneven_batches_is_the_network_in_one() -> None:
    problem = SmallNetwork()
    direction = torch.randn(59, generator=generator(3), dtype=torch.float64)
    whole, parts = (loss_along(problem.loss(size), direction, (-1.0, 0.5)) for size in (30, 7))
    assert parts.values == pytest.approx(whole.values, rel=1e-12)
    assert all(0 < error < 1 for error in parts.stderr)


def test_ranks_that_hold_their_shares_see_the_whole_loss() -> None:
    problem, direction = SmallNetwork(), torch.randn(59, generator=generator(3), dtype=torch.float64)
    here = problem.loss(30)
    # Two ranks with the same batch: each one's weight is a half, and the sum over ranks doubles.
    rank = MeanLoss(here.params, here.losses, [0.5], all_reduce=lambda t: 2 * t)
    assert loss_along(rank, direction, (0.5,)).values == pytest.approx(loss_along(here, direction, (0.5,)).values)


def test_at_the_ends_of_its_distances_a_quadratic_has_risen_as_asked() -> None:
    for curvature in (3.0, -3.0):
        found = line_distances(curvature, 0.5, num_points=5)
        assert found == pytest.approx((-found[4], -found[4] / 2, 0.0, found[4] / 2, found[4]))
        assert 0.5 * 3.0 * found[4] ** 2 == pytest.approx(0.5)
        assert found[2] == 0.0
    assert line_distances(1e-9, 0.5, limit=2.0)[-1] == line_distances(0.0, 0.5, limit=2.0)[-1] == 2.0
    assert len(line_distances(1.0, 1.0)) % 2 == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rise": 0.0}, "need rise > 0"),
        ({"rise": math.nan}, "need rise > 0"),
        ({"limit": 0.0}, "limit = 0.0"),
        ({"num_points": 4}, "an odd num_points"),
        ({"num_points": 1}, "an odd num_points"),
        ({"curvature": 0.0}, "nothing bounds the distance with curvature = 0.0 and limit = inf; set limit"),
        ({"curvature": math.nan}, "nothing bounds the distance with curvature = nan"),
    ],
)
def test_distances_need_a_rise_and_a_bound(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        line_distances(**{"curvature": 1.0, "rise": 1.0, **arguments})


@pytest.mark.parametrize("direction", [torch.zeros(4), torch.ones(3), torch.full((4,), math.inf), torch.ones(2, 2)])
def test_a_direction_is_a_finite_vector_of_the_parameters_length(direction: Tensor) -> None:
    _, w, _, loss = problem()
    before = w.detach().clone()
    with pytest.raises(ValueError, match=r"direction must be finite and not zero, of shape \(4,\), got shape"):
        loss_along(loss, direction, (1.0,))
    with pytest.raises(ValueError, match="second must be finite and not zero"):
        loss_on_plane(loss, torch.ones(4), direction, (1.0,))
    assert torch.equal(w.detach(), before)


@pytest.mark.parametrize("distances", [(), (0.0,), (1.0, math.inf), (1.0, math.nan)])
def test_distances_are_finite_and_not_all_zero(distances: tuple[float, ...]) -> None:
    _, _, _, loss = problem()
    u, v = torch.eye(4)[:2]
    with pytest.raises(ValueError, match="^distances must be finite and not all zero, got .*see line_distances"):
        loss_along(loss, u, distances)
    with pytest.raises(ValueError, match="^distances must be finite"):
        loss_on_plane(loss, u, v, distances, second_distances=(1.0,))
    with pytest.raises(ValueError, match="^second_distances must be finite"):
        loss_on_plane(loss, u, v, (1.0,), second_distances=distances)


def test_parallel_directions_span_no_plane() -> None:
    w = leaf(torch.ones(50), torch.float32)
    loss = MeanLoss([w], [lambda: (w**2).sum()], [1.0])
    u = torch.randn(50, generator=generator(5))
    with pytest.raises(ValueError, match="first and second must not be parallel"):
        loss_on_plane(loss, u, -3 * u, (1.0,))
