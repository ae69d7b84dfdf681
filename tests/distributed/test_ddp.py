"""Two gloo processes: the same rate, verdict and eigenvalues as one, and replicas that stay equal bit for bit."""

import pytest
import torch

from tests.distributed.ranks import Small, measured, split
from tests.distributed.start import ranks_of
from tests.modules import digits_like

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What each of two ranks saw."""
    return ranks_of("ranks", tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("case", ["measured mean", "measured sum", "accumulated"])
def test_two_ranks_with_half_the_batch_equal_one_process(ranks, case):
    reduction = "sum" if case == "measured sum" else "mean"
    alone = measured(reduction, 8)
    assert alone["verdict"] == reduction
    for rank in ranks:
        found = rank[case]
        assert found["verdict"] == alone["verdict"]
        # Under a sum the factor counts the ranks; with a mean it counts samples, wherever they are.
        assert found["rate"] == pytest.approx(0.02)
        assert alone["rate"] == pytest.approx(0.01 if reduction == "sum" else 0.02)
        for a, b in zip(found["weights"], alone["weights"], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)
        assert found["metrics"]["batch/global"] == 8
        for key, value in alone["metrics"].items():
            # Standard errors and halves are of batches, and two ranks have other batches.
            measured_here = key.startswith(("hessian/lambda", "hessian/condition", "sharpness/"))
            if measured_here and not key.endswith(("residual", "stderr", "split")):
                assert found["metrics"][key] == pytest.approx(value, rel=1e-6, abs=1e-9), key
    assert ranks[0][case]["metrics"] == ranks[1][case]["metrics"]


@pytest.mark.parametrize("how", ["", ", accumulated"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_64_samples_make_the_same_step_on_two_devices(ranks, reduction, how):
    """1 x 64 equals 2 x 32, and 2 x 16 accumulated twice."""
    alone = split(reduction, 64)
    assert alone.abs().min() > 1e-3
    for rank in ranks:
        torch.testing.assert_close(rank[f"split {reduction}{how}"], alone, rtol=1e-12, atol=1e-15)


def test_the_global_batch_names_the_ranks(ranks):
    found = ranks[0]["accumulated"]["metrics"]
    assert (found["batch/per_device"], found["batch/data_parallel"], found["batch/accumulate"]) == (2, 2, 2)


def test_rho_zero_is_plain_training_on_every_rank(ranks):
    for rank in ranks:
        plain, sam = rank["plain"]["state"], rank["rho 0"]["state"]
        assert all(torch.equal(plain[k], sam[k]) for k in plain)


@pytest.mark.parametrize("case", ["rho 0.1", "rho 0.1, window of 3"])
def test_replicas_stay_equal_bit_for_bit(ranks, case):
    first, second = (rank[case]["state"] for rank in ranks)
    weights = [k for k in first if k.startswith("net") and "running" not in k]
    assert weights
    assert all(torch.equal(first[k], second[k]) for k in weights)
    assert not torch.equal(first["net.0.weight"], ranks[0]["plain"]["state"]["net.0.weight"])


@pytest.mark.parametrize("case", ["plain", "rho 0", "rho 0.1", "rho 0.1, window of 3"])
def test_gradients_are_reduced_once_per_step(ranks, case):
    assert ranks[0][case]["reductions"] == ranks[0][case]["steps"] > 0


def test_each_rank_climbs_on_its_own_samples(ranks):
    torch.manual_seed(0)
    module = Small()
    x, y = (torch.stack(column) for column in zip(*digits_like(96, 8, dtype=torch.float64).dataset, strict=True))
    weights = list(module.parameters())
    for step in range(5):
        parts = [slice(rank + 16 * step, 16 * (step + 1), 2) for rank in range(2)]  # as the loader deals them
        gradients = [climb(module, x[part], y[part]) for part in parts]
        with torch.no_grad():
            for p, *both in zip(weights, *gradients, strict=True):
                p.sub_(0.1 * (both[0] + both[1]) / 2)
    found = ranks[0]["by hand"]["state"]
    for key, value in module.state_dict().items():
        torch.testing.assert_close(found[key], value, rtol=1e-11, atol=1e-13)


def climb(module, x, y):
    """Return the gradient at the worst point near the weights, for these samples alone."""
    weights = list(module.parameters())
    g = torch.autograd.grad(module.training_step((x, y), 0), weights)
    scale = 0.1 / torch.cat([t.reshape(-1) for t in g]).norm()
    with torch.no_grad():
        for p, t in zip(weights, g, strict=True):
            p.add_(scale * t)
    worst = torch.autograd.grad(module.training_step((x, y), 0), weights)
    with torch.no_grad():
        for p, t in zip(weights, g, strict=True):
            p.sub_(scale * t)
    return worst


def test_a_static_graph_is_refused_with_the_way_out(ranks):
    assert "set static_graph=False" in ranks[0]["static graph"]
