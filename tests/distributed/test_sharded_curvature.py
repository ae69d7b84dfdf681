"""FSDP's shards: two ranks find the curvature that one process does, in step, without a trace, and end together."""

import pytest
import torch

from tests.distributed.sharded_curvature import all_numbers, spectrum
from tests.distributed.start import ranks_of

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

# Lightning's FSDP turns the weights of "32-true" to float32; FSDP2 leaves the float64 of the module.
ROUNDING = {"fsdp": 1e-6, "fsdp2": 1e-12}


@pytest.fixture(scope="module", params=["fsdp", "fsdp2"])
def sharded(request, tmp_path_factory):
    """The strategy, and what each of two ranks saw."""
    folder = tmp_path_factory.mktemp("sharded") / request.param
    folder.mkdir()
    return request.param, ranks_of("sharded_curvature", folder, timeout=220)


@pytest.mark.parametrize("samples", [None, 9, 1], ids=["23 and 22 samples", "5 and 4 samples", "rank 1 has none"])
def test_values_gradients_and_products_of_shards_are_those_of_one_process(sharded, samples):
    kind, ranks = sharded
    alone, rounding = all_numbers("alone", samples), ROUNDING[kind]
    for found in (rank["numbers", samples] for rank in ranks):
        assert found["value"] == pytest.approx(alone["value"], rel=rounding)
        assert (found["gradient"] - alone["gradient"]).norm() <= 10 * rounding * alone["gradient"].norm()
        assert 0 < found["error"] < 1e3 * rounding
        assert (found["product"] - alone["product"]).norm() <= found["error"] * alone["product"].norm()
        assert found["curvature"][0] == pytest.approx(alone["curvature"][0], rel=10 * found["error"])
        assert found["engine"][0] == "differences"
        assert "shards" in found["engine"][1]
    assert ranks[0]["numbers", samples]["passes"] == ranks[1]["numbers", samples]["passes"] > 0


def test_batches_are_what_the_ranks_evaluate_together(sharded):
    ranks = sharded[1]
    # 23 and 22 samples in batches of 4, so 6 passes of both ranks: as one process sees them in batches of 8.
    alone = all_numbers("alone", None, batch_size=8)
    for found in (rank["numbers", None] for rank in ranks):
        assert found["curvature"][2] == alone["curvature"][2] == 6
        assert found["curvature"][1] == pytest.approx(alone["curvature"][1], rel=100 * found["error"])
        assert found["halves"] == pytest.approx(alone["halves"], rel=100 * found["error"])


def test_a_loss_summed_over_samples_counts_each_as_often_as_one_that_is_averaged(sharded):
    for rank in sharded[1]:
        mean, summed = rank["numbers", 9], rank["summed"]
        close = 100 * (mean["error"] + summed["error"])
        for key in ("value", "curvature", "halves"):
            assert summed[key] == pytest.approx(mean[key], rel=close, abs=close), key


@pytest.mark.parametrize("optimizer", ["SGD", "SGD with momentum", "Adam"])
def test_spectrum_and_stability_of_shards_are_those_of_one_process(sharded, optimizer):
    kind, ranks = sharded
    first, second = (rank["spectrum", optimizer] for rank in ranks)
    alone = spectrum("alone", optimizer)
    scale = alone["metrics"]["hessian/lambda_max"]
    # Training itself is in float32 under Lightning's FSDP.
    close = 1e-3 if kind == "fsdp" else 2e-5
    for key in ("lambda_1", "lambda_2", "lambda_3", "lambda_min"):
        expected = alone["metrics"][f"hessian/{key}"]
        assert first["metrics"][f"hessian/{key}"] == pytest.approx(expected, abs=close * scale), key
    expected = alone["metrics"]["hessian/stability"]
    assert first["metrics"]["hessian/stability"] == pytest.approx(expected, rel=2e-2 if kind == "fsdp" else 1e-3)
    assert first["metrics"]["hessian/gradient_norm"] == pytest.approx(
        alone["metrics"]["hessian/gradient_norm"], rel=close
    )
    assert first["metrics"].keys() == second["metrics"].keys()
    assert all(same(first["metrics"][k], second["metrics"][k]) for k in first["metrics"] if not k.startswith("time/"))


def test_training_with_measurements_is_training_without_bit_for_bit(sharded):
    for rank in sharded[1]:
        with_, without = rank["trained", True], rank["trained", False]
        assert len(with_["seen"]) >= 4
        assert all(torch.equal(a, b) for a, b in zip(with_["weights"], without["weights"], strict=True))


def test_measurements_leave_no_trace_in_the_parts_held_here(sharded):
    for rank in sharded[1]:
        seen = rank["trained", True]["seen"]
        assert any(grad is not None for grad in seen[0]["grads"].values())
        for before, after in zip(seen[::2], seen[1::2], strict=True):
            for part in ("state", "grads"):
                assert before[part].keys() == after[part].keys()
                for name, value in before[part].items():
                    left = after[part][name]
                    assert left is None if value is None else torch.equal(left, value), name
            assert torch.equal(before["torch"], after["torch"])
            for name in ("numpy", "python", "modes", "required"):
                assert before[name] == after[name], name


def test_a_rank_without_its_batch_ends_the_product_of_both_and_the_next_one_is_right(sharded):
    first, second = (rank["failure"] for rank in sharded[1])
    assert second["ended"][:2] == ("OSError", "a bad file")
    assert first["ended"][:2] == ("RankFailedError", "rank 1: OSError: a bad file")
    assert first["again"]
    assert second["again"]


def test_a_wish_to_stop_on_one_rank_stops_both_with_the_eigenvalues_so_far(sharded):
    first, second = (rank["interrupted"] for rank in sharded[1])
    assert first["interrupted"]
    assert first == second
    assert first["num_matvecs"] < 20


def test_a_rank_that_fails_inside_a_pass_ends_both_with_its_message(sharded):
    first, second = (rank["breaking"] for rank in sharded[1])
    assert second[:2] == ("ArithmeticError", "inside a layer")
    assert first[:2] == ("RankFailedError", "rank 1: ArithmeticError: inside a layer")
    assert first[2] < 60


def test_what_shards_do_not_allow_is_refused_with_the_reason_and_the_way_out(sharded):
    kind, ranks = sharded
    for rank in ranks:
        assert "strategy='ddp'" in rank["sharpness"]
        assert "set matrix='hessian'" in rank["ggn"]
        assert "engine='auto'" in rank["autograd"]
        if kind == "fsdp2":
            assert "tensor parallelism" in rank["tensor"]


def same(first, second):
    """Whether two numbers or texts are the same; NaN is NaN."""
    return first == second or (first != first and second != second)
