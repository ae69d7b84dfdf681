"""Two gloo processes measure what one does, leave no trace, and end together when one of them fails or is stopped."""

import pytest
import torch

from tests.distributed.curvature import all_numbers, tracked
from tests.distributed.start import ranks_of

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What each of two ranks saw."""
    return ranks_of("curvature", tmp_path_factory.mktemp("curvature"), timeout=120)


@pytest.mark.parametrize("samples", [None, 9, 1], ids=["23 and 22 samples", "5 and 4 samples", "rank 1 has none"])
@pytest.mark.parametrize(("dtype", "rounding"), [("float64", 1e-12), ("float32", 1e-6)])
def test_two_ranks_measure_what_one_process_does(ranks, dtype, rounding, samples):
    alone = all_numbers(dtype, samples)
    both = [rank["numbers", dtype, samples] for rank in ranks]
    share = [-(-(samples or 45) // 2), (samples or 45) // 2]
    assert [found["batches"] for found in both] == [-(-count // 4) for count in share]
    for found in both:
        assert found["value"] == pytest.approx(alone["value"], rel=rounding)
        assert found["curvature"][0] == pytest.approx(alone["curvature"][0], rel=10 * rounding)
        assert found["curvature"][2] == both[0]["batches"] + both[1]["batches"]
        for name in ("gradient", "product"):
            assert alone[name].norm() > 0.01
            assert (found[name] - alone[name]).norm() <= rounding * alone[name].norm(), name
    for name in ("gradient", "product"):
        assert torch.equal(both[0][name], both[1][name])


def test_a_product_takes_one_sum_over_the_ranks_and_nothing_else(ranks):
    for rank in ranks:
        for samples in (None, 9, 1):
            assert rank["numbers", "float64", samples]["collectives"] == {"all_reduce": 1}


def test_the_failure_of_one_rank_in_a_product_is_raised_on_both_and_the_next_product_is_right(ranks):
    first, second = (rank["third product"] for rank in ranks)
    assert second["ended"][:2] == ("ArithmeticError", "the third product")
    assert first["ended"][:2] == ("RankFailedError", "rank 1: ArithmeticError: the third product")
    assert all(found["ended"][2] < 10 and found["again"] for found in (first, second))


def test_the_failure_of_one_rank_in_a_measurement_ends_the_fit_of_both(ranks):
    first, second = (rank["fit fails"] for rank in ranks)
    assert second[:2] == ("ArithmeticError", "in the middle of the measurement")
    assert first[:2] == ("RankFailedError", "rank 1: ArithmeticError: in the middle of the measurement")
    assert max(first[2], second[2]) < 20


def test_a_wish_to_stop_on_one_rank_stops_both_with_what_they_have(ranks):
    first, second = (rank["interrupted"] for rank in ranks)
    for found in (first, second):
        assert found["interrupted"]
        assert found["metrics"]["hessian/interrupted"] == 1
        assert found["metrics"]["hessian/lambda_max"] > 0
        assert found["ended"][0] in ("KeyboardInterrupt", "SystemExit")
        assert found["ended"][2] < 20
        assert len(found["tracks"]) == 1
    assert same_numbers(first["metrics"], second["metrics"])


def test_tracks_of_two_ranks_are_those_of_one_process(ranks):
    alone = tracked(8)
    first, second = (rank["tracked"] for rank in ranks)
    assert [point["step"] for point in alone["tracks"]] == [2, 4, 6]
    for a, b, expected in zip(first["tracks"], second["tracks"], alone["tracks"], strict=True):
        assert same_numbers(a, b)
        for key in ("step", "epoch", "hessian/lambda_1", "hessian/lambda_2", "hessian/lambda_max", "hessian/stability"):
            assert a[key] == pytest.approx(expected[key], rel=1e-6), key


def test_measurements_leave_no_trace_on_any_rank(ranks):
    for rank in ranks:
        seen = rank["everything"]["seen"]
        assert len(seen) >= 6
        for before, after in zip(seen[::2], seen[1::2], strict=True):
            assert before["state"].keys() == after["state"].keys()
            assert all(torch.equal(before["state"][k], after["state"][k]) for k in before["state"])
            assert torch.equal(before["torch"], after["torch"])
            for name in ("numpy", "python", "modes", "required", "plain"):
                assert before[name] == after[name], name
            for name, grad in before["grads"].items():
                left = after["grads"][name]
                assert (left is None) if grad is None else torch.equal(left, grad), name
        assert any(grad is not None for grad in seen[0]["grads"].values())


def test_training_with_measurements_is_training_without_bit_for_bit(ranks):
    for rank in ranks:
        with_, without = rank["everything"], rank["plain"]
        assert all(torch.equal(with_["end"][k], without["end"][k]) for k in without["end"])
        assert torch.equal(with_["next"], without["next"])


def same_numbers(first, second):
    """Whether two dictionaries agree, apart from durations; NaN equals NaN."""
    pairs = [(first[k], second[k]) for k in first if not k.startswith("time/")]
    return first.keys() == second.keys() and all(a == b or (a != a and b != b) for a, b in pairs)
