"""Two gloo ranks: the noise scale by all per-sample gradients, one reduction of two scalars, the same training."""

import math

import pytest
import torch

from tests.distributed.noise import CASES, EVEN, UNEVEN, still
from tests.distributed.start import ranks_of
from tests.modules import digits_like, same

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What each of two ranks saw."""
    return ranks_of("noise", tmp_path_factory.mktemp("noise"))


@pytest.fixture(scope="module")
def rows():
    """The gradient of each sample's loss, one row each."""
    module, found = still(), []
    for x, y in digits_like(96, dtype=torch.float64).dataset:
        grads = torch.autograd.grad(module.training_step((x[None], y[None]), 0), list(module.parameters()))
        found.append(torch.cat([g.reshape(-1) for g in grads]))
    return torch.stack(found)


def steps_of(deal, accumulate):
    """Return the sample numbers of the micro-batches of each optimizer step, over both ranks."""
    turns = list(zip(deal.batches(0), deal.batches(1), strict=True))
    whole = len(turns) // accumulate * accumulate
    return [[part for turn in turns[i : i + accumulate] for part in turn] for i in range(0, whole, accumulate)]


def by_hand(rows, parts, *, summed):
    """Return (|G|^2, tr Sigma): two equations in two unknowns, solved as such."""
    k, b = len(parts), torch.tensor([len(p) for p in parts], dtype=torch.float64)
    each = torch.stack([rows[p].sum(0) if summed else rows[p].mean(0) for p in parts])
    squares, of_mean = each.square().sum(1), each.mean(0).square().sum()
    if summed:
        left = torch.stack([b.mean(), b.mean() ** 2]), torch.stack([torch.ones(()), b.mean() / k])
        right = torch.stack([(squares / b).mean(), of_mean])
    else:
        left = torch.ones(2), torch.stack([(1 / b).mean(), (1 / b).mean() / k])
        right = torch.stack([squares.mean(), of_mean])
    return torch.linalg.solve(torch.stack([column.double() for column in left], 1), right)


@pytest.mark.parametrize("deal", ["", ", uneven"])
@pytest.mark.parametrize("case", CASES)
def test_ranks_and_windows_are_the_per_sample_gradients(ranks, rows, case, deal):
    accumulate = CASES[case].get("accumulate_grad_batches", 1)
    steps = steps_of(UNEVEN if deal else EVEN, accumulate)
    summed = CASES[case].get("reduction") == "sum"
    expected = torch.stack([by_hand(rows, parts, summed=summed) for parts in steps]).mean(0)
    for rank in ranks:
        found = rank[case + deal][0]
        assert (found["gradient_sq"], found["trace_sigma"]) == pytest.approx(tuple(expected.tolist()), rel=1e-9)
        assert (found["num_estimates"], found["num_gradients"]) == (len(steps), 0)
    assert ranks[0][case][0]["global_batch"] == 8 * accumulate


@pytest.mark.parametrize("case", [*CASES, *(f"{case}, uneven" for case in CASES), "SAM"])
def test_all_ranks_have_the_same_running_means(ranks, case):
    first, second = (rank[case][1]["noise"] for rank in ranks)
    assert first == second
    assert first["count"] > 0


def test_under_sam_halves_are_averaged_over_the_ranks(ranks, rows):
    found, count = torch.zeros(2, dtype=torch.float64), 0
    for step in steps_of(UNEVEN, 1):
        if min(map(len, step)) > 1:  # a rank with one sample leaves the step without an estimate
            for part in step:
                halves = [part[: len(part) // 2], part[len(part) // 2 :]]
                a, b = (rows[half].mean(0) for half in halves)
                trace = (a - b) @ (a - b) / sum(1 / len(half) for half in halves)
                found += torch.stack([a @ b, trace]) / 2
            count += 1
    result, state = ranks[0]["SAM"]
    assert (result["gradient_sq"], result["trace_sigma"]) == pytest.approx(tuple((found / count).tolist()), rel=1e-9)
    assert result["num_estimates"] == count < len(steps_of(UNEVEN, 1))
    assert sum(state["skipped"].values()) == len(steps_of(UNEVEN, 1)) - count


def test_a_rank_with_single_samples_leaves_all_without_an_estimate(ranks):
    for rank in ranks:
        result, state = rank["one rank has single samples"]
        assert result["num_estimates"] == 0
        assert sum(state["skipped"].values()) == 19
        assert math.isnan(result["b_simple"])


@pytest.mark.parametrize("windows", [False, True])
@pytest.mark.parametrize("climb", ["", "SAM"])
def test_the_training_is_the_same_bit_for_bit_on_every_rank(ranks, climb, windows):
    for rank in ranks:
        assert same(rank["plain", climb, windows]["state"], rank["beside", climb, windows]["state"])


@pytest.mark.parametrize("windows", [False, True])
@pytest.mark.parametrize("climb", ["", "SAM"])
def test_a_measured_step_reduces_two_scalars_once_and_nothing_else(ranks, climb, windows):
    for rank in ranks:
        plain, beside = rank["plain", climb, windows], rank["beside", climb, windows]
        measured = -(-plain["steps"] // 2)
        assert beside["reductions"] == plain["reductions"]
        assert rank["estimates", climb, windows] == measured
        more = {size: n - plain["asked"].get(size, 0) for size, n in beside["asked"].items()}
        assert {size: n for size, n in more.items() if n} == {2: measured}


def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(ranks):
    for rank in ranks:
        whole, first, again = rank["resumed"]
        assert str(whole) == str(again)  # NaN is not NaN
        assert 0 < first["num_estimates"] < whole["num_estimates"]
