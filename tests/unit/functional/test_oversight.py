import math

import pytest
import torch

from lbtrain.functional._krylov import KrylovBasis
from lbtrain.functional._oversight import chance_of_oversight
from tests.problems import generator

DIM, LEVELS = 40, (0.5, 0.1)


def sweep(values, seed, rows):
    basis = KrylovBasis(len(values), rows, torch.float64, "cpu")
    basis.begin(torch.randn(len(values), generator=generator(seed), dtype=torch.float64))
    while not basis.full and not basis.broken:
        basis.step(lambda v: values * v)
    return basis


def hidden(bulk):
    return torch.cat([torch.ones(1), bulk]).double()


@pytest.mark.parametrize("bulk", [torch.linspace(-0.5, 0.8, DIM - 1), torch.linspace(-1, 1, DIM - 1) ** 5 * 0.5])
def test_starts_that_look_empty_are_as_rare_as_the_bound_says(bulk):
    """One hidden eigenvalue 1: a run that stops as soon as the chance is below a level overlooks it that rarely."""
    values, trials = hidden(bulk), 400
    for level in LEVELS:
        missed = 0
        for seed in range(trials):
            basis = sweep(values, seed, 12)
            looks = [chance_of_oversight(DIM, basis.alphas[:j], basis.betas[:j], 1.0) for j in range(1, 13)]
            missed += any(chance <= level for chance in looks)
        assert missed / trials <= level + 4 * math.sqrt(level * (1 - level) / trials)
        assert missed > 0  # the bound says something: at this level some starts do look empty


def test_the_part_in_a_direction_is_never_above_christoffels_bound():
    values = hidden(torch.linspace(-0.5, 0.8, DIM - 1))
    for seed in range(50):
        start = torch.randn(DIM, generator=generator(seed), dtype=torch.float64)
        part = float(start[0] ** 2 / start.norm() ** 2)
        for rows in (1, 2, 5, 8):
            basis = sweep(values, seed, rows)
            # Undo the step from the part to its chance.
            chance = chance_of_oversight(DIM, basis.alphas, basis.betas, 1.0)
            assert chance == 1.0 or part <= chance**2 * math.pi / (2 * DIM) * (1 + 1e-9)


def test_the_chance_of_a_chebyshev_matrix_is_a_sum_of_chebyshev_polynomials():
    # The measure 1 / (pi sqrt(1 - t^2)): p_0 = 1, p_i = sqrt(2) T_i.
    rows, t, dim = 9, 1.3, 10**9
    betas = [math.sqrt(0.5)] + [0.5] * (rows - 1)
    total = 1 + 2 * sum(math.cosh(i * math.acosh(t)) ** 2 for i in range(1, rows + 1))
    expected = math.sqrt(2 * dim / math.pi / total)
    assert chance_of_oversight(10**3, [0.0] * rows, betas, t) == pytest.approx(expected / 10**3, rel=1e-12)


def test_sums_too_large_for_a_float_do_not_overflow():
    short, long = ([0.0] * n for n in (100, 3000))
    chances = [chance_of_oversight(10, a, [0.5] * len(a), 1.5) for a in (short, long)]
    assert 0 < chances[0] < 1e-30
    assert chances[1] == 0.0
    # 100 steps of p_i = U_i, the second kind: sinh((i + 1) a) / sinh(a), cosh(a) = 1.5.
    a = math.acosh(1.5)
    total = sum((math.sinh((i + 1) * a) / math.sinh(a)) ** 2 for i in range(101))
    assert chances[0] == pytest.approx(math.sqrt(20 / math.pi / total), rel=1e-9)
    scaled = chance_of_oversight(10, [0.0] * 400, [5e-5] * 400, 1e-2)  # each term is rescaled on the way
    assert scaled == 0.0


def test_it_knows_nothing_without_steps_or_with_a_ritz_value_above():
    assert chance_of_oversight(10, [], [], 1.0) == 1.0
    assert chance_of_oversight(10, [2.0], [0.5], 1.0) == 1.0
    assert chance_of_oversight(10, [0.0, 0.0], [1.5, 0.5], 1.0) == 1.0  # Ritz values -1.5 and 1.5
    assert chance_of_oversight(10, [0.0, 0.0], [0.5, 0.0], 1.0) == 0.0  # an invariant space below the threshold
