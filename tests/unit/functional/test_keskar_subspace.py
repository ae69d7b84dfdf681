import itertools
import math

import pytest
import torch

from lbtrain.functional.hvp import MeanLoss
from lbtrain.functional.keskar_subspace import keskar_subspace_sharpness
from tests.problems import SmallNetwork, generator, leaf, matrix_with

W = torch.tensor([0.5, -2.0, 0.0, 3.0, 1.0, -0.2], dtype=torch.float64)
G = torch.tensor([1.0, -2.0, 0.5, 3.0, 0.1, 2.0], dtype=torch.float64)


def subspace(n, dim, w=None, seed=0):
    """Return ``A`` of a seed and, for weights, the coordinates ``A+ w``: drawn as in the definition."""
    A = torch.randn(n, dim, generator=generator(seed), dtype=torch.float64)
    A = A / A.norm(dim=0)
    return A, None if w is None else torch.linalg.pinv(A) @ w


def around(H, w, height=0.0):
    """Return ``height + (x - w)' H (x - w) / 2``, whose gradient at ``w`` is zero, and its parameter at ``w``."""
    x = leaf(w)
    return MeanLoss([x], [lambda: height + 0.5 * (x - w) @ (H @ (x - w))], [1.0]), x


@pytest.mark.parametrize("dim", [1, 3, 6])
def test_of_a_linear_loss_is_its_corner(dim):
    w, eps = leaf(W), 1e-2
    loss = MeanLoss([w], [lambda: 10 + G @ w], [1.0])
    A, coordinates = subspace(6, dim, W)
    exact = 100 * eps * float(((A.T @ G).abs() * (coordinates.abs() + 1)).sum()) / (11 + float(G @ W))
    found = keskar_subspace_sharpness(loss, [w], eps=eps, dim=dim, generator=generator())
    assert found.value == pytest.approx(exact, rel=1e-8)


@pytest.mark.parametrize("height", [0.0, 3.0])
@pytest.mark.parametrize("dim", [1, 2, 4])
def test_at_a_quadratic_minimum_is_the_highest_corner_although_the_gradient_is_zero_there(dim, height):
    H = matrix_with([5.0, 3.0, 1.0, 0.5, 0.2, 0.1])
    loss, w = around(H, W, height)
    A, coordinates = subspace(6, dim, W)
    b = 1e-3 * (coordinates.abs() + 1)
    corners = [b * torch.tensor(s, dtype=torch.float64) for s in itertools.product([-1.0, 1.0], repeat=dim)]
    exact = 100 * max(float(0.5 * z @ (A.T @ H @ A) @ z) for z in corners) / (1 + height)
    found = keskar_subspace_sharpness(loss, [w], dim=dim, num_starts=8, generator=generator())
    assert found.value == pytest.approx(exact, rel=1e-7)


@pytest.mark.parametrize("seed", range(5))
def test_is_never_zero_at_a_minimum(seed):
    loss, w = around(matrix_with([5.0, 3.0, 1.0, 0.5, 0.2, 0.1]), W)
    assert not loss.gradient().any()
    found = keskar_subspace_sharpness(loss, [w], dim=3, num_starts=1, num_steps=1, generator=generator(seed))
    assert found.value > 0


def test_is_zero_at_a_maximum():
    loss, w = around(-matrix_with([5.0, 3.0, 1.0, 0.5, 0.2, 0.1]), W)
    assert keskar_subspace_sharpness(loss, [w], dim=3, generator=generator()).value == 0.0


def test_stays_in_the_box_of_the_subspace():
    w, seen, eps = leaf(W), [], 0.1
    H = matrix_with([5.0, 3.0, 1.0, -0.5, -2.0, -30.0])

    def watched():
        seen.append(w.detach().clone())
        return 0.1 * G @ w + 0.5 * (w - W) @ H @ (w - W)

    keskar_subspace_sharpness(MeanLoss([w], [watched], [1.0]), [w], eps=eps, dim=3, generator=generator())
    A, coordinates = subspace(6, 3, W)
    shares = []
    for x in seen:
        z = torch.linalg.pinv(A) @ (x - W)
        assert torch.allclose(A @ z, x - W, atol=1e-12)
        shares.append(float((z.abs() / (eps * (coordinates.abs() + 1))).max()))
    assert 0.99 < max(shares) <= 1 + 1e-9


@pytest.mark.parametrize("seed", [2, 5])
def test_more_starts_never_lose_and_can_find_a_higher_corner(seed):
    loss, w = around(matrix_with([5.0, 3.0, 1.0, 0.5, 0.2, 0.1]), W)
    first, two, eight = (
        keskar_subspace_sharpness(loss, [w], dim=4, num_starts=k, generator=generator(seed)).value for k in (1, 2, 8)
    )
    assert first <= two * (1 + 1e-9)
    assert two < eight


def test_beats_random_points_of_the_box():
    problem, eps = SmallNetwork(), 0.05
    loss = problem.loss(30)
    found = keskar_subspace_sharpness(loss, problem.params, eps=eps, dim=5, generator=generator())
    w = torch.cat([p.detach().flatten() for p in problem.params])
    A, coordinates = subspace(59, 5, w)
    base, source = loss.value(), generator(4)
    for _ in range(20):
        z = eps * (coordinates.abs() + 1) * torch.randn(5, generator=source, dtype=torch.float64).sign()
        torch.nn.utils.vector_to_parameters(w + A @ z, problem.params)
        assert found.value >= 100 * (loss.value() - base) / (1 + base) * (1 - 1e-9)


def test_the_seed_names_the_subspace():
    problem = SmallNetwork()
    measure = lambda source: keskar_subspace_sharpness(problem.loss(30), problem.params, dim=5, generator=source).value
    source = generator()
    first, second = measure(source), measure(source)
    assert first == measure(generator())
    assert first != second


def test_percent_of_one_plus_the_loss_when_the_loss_is_scaled():
    H = matrix_with([5.0, 3.0, 1.0, 0.5, 0.2, 0.1])
    values = []
    for factor in (1.0, 1e-4):
        loss, w = around(factor * H, W, height=2 * factor)
        values.append(keskar_subspace_sharpness(loss, [w], dim=3, generator=generator()).value)
    assert values[1] == pytest.approx(1e-4 * values[0] * 3 / (1 + 2e-4), rel=1e-6)


def test_error_bar_is_over_batches():
    w, shares, slopes = leaf(W), [0.5, 0.4, 0.1], [1.0, 2.0, 9.0]
    loss = MeanLoss([w], [lambda a=a: 1 - G @ W * a + a * (G @ w) for a in slopes], shares)
    found = keskar_subspace_sharpness(loss, [w], dim=2, generator=generator())
    mean = sum(s * a for s, a in zip(shares, slopes, strict=True))
    spread = math.sqrt(1.5 * sum(s**2 * (a - mean) ** 2 for s, a in zip(shares, slopes, strict=True)))
    assert found.stderr / found.value == pytest.approx(spread / mean, rel=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_come_back_bit_for_bit_and_the_cost_is_counted(dtype):
    problem = SmallNetwork(dtype)
    before, loss = [p.detach().clone() for p in problem.params], problem.loss(8)
    loss.gradient()
    found = keskar_subspace_sharpness(loss, problem.params, eps=0.1, dim=20, num_starts=2, generator=generator())
    assert found.value > 0
    assert all(torch.equal(p, q) for p, q in zip(problem.params, before, strict=True))
    assert 2 <= found.num_gradients == loss.num_gradients - 1 <= 22
    assert found.num_values == loss.num_values <= 3


def test_weights_come_back_after_an_error():
    w, calls = leaf(torch.rand(1000, generator=generator())), []
    before = w.detach().clone()

    def failing():
        calls.append(0)
        if len(calls) == 4:
            raise KeyError("disk")
        return (w**2).sum()

    with pytest.raises(KeyError):
        keskar_subspace_sharpness(MeanLoss([w], [failing], [1.0]), [w], generator=generator())
    assert torch.equal(w, before)


def test_a_diverged_run_is_nan_at_once_and_an_overflow_beside_it_ends():
    w = leaf(W)
    found = keskar_subspace_sharpness(
        MeanLoss([w], [lambda: w.sum() * math.inf], [1.0]), [w], dim=2, generator=generator()
    )
    assert math.isnan(found.value)
    assert found.num_gradients == 0
    loss = MeanLoss([w], [lambda: torch.where((w == W).all(), w.sum(), w.sum() * math.nan)], [1.0])
    assert keskar_subspace_sharpness(loss, [w], dim=2, generator=generator()).value == 0.0
    assert torch.equal(w, W)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "the 6 parameters of the loss, got 100; keskar_sharpness"),
        ({"dim": 0}, "got 0"),
        ({"dim": 2, "eps": 0.0}, r"eps = 0\.0"),
        ({"dim": 2, "num_steps": 0}, "num_steps = 0"),
        ({"dim": 2, "num_starts": 0}, "num_starts must be at least 1, got 0"),
    ],
)
def test_arguments_are_checked(arguments, message):
    loss, w = around(torch.eye(6, dtype=torch.float64), W)
    with pytest.raises(ValueError, match=message):
        keskar_subspace_sharpness(loss, [w], generator=generator(), **arguments)
