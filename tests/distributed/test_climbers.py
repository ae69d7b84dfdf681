"""The SAM family on two ranks: one process's result under every strategy, each rank's own ascent, few reductions."""

import os

import pytest
import torch

from tests.distributed.climbers import CLIMBERS, STEPS_PER_EPOCH, STRATEGIES, TWO_PASSES, Net, data, trained
from tests.distributed.start import ranks_of

pytestmark = pytest.mark.distributed
# FSDP of the first kind makes the weights float32, the others keep float64.
TOLERANCE = {"fsdp": {"rtol": 1e-5, "atol": 1e-6}}
EXACT = {"rtol": 1e-10, "atol": 1e-12}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What each of two ranks saw."""
    return ranks_of("climbers", tmp_path_factory.mktemp("climbers"), timeout=220)


@pytest.fixture(scope="module")
def alone():
    """Train in one process, each case once."""
    known = {}

    def train(name, accumulate=1, **options):
        key = name, accumulate, *options.items()
        if key not in known:
            callbacks = [CLIMBERS[name](**(options or {"scope": "global"}))] if name != "plain" else []
            known[key] = trained(callbacks, "alone", accumulate_grad_batches=accumulate)[:2]
        return known[key]

    return train


def equal(found, expected, kind="ddp"):
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a.to(b.dtype), b, **TOLERANCE.get(kind, EXACT))


@pytest.mark.parametrize("kind", STRATEGIES)
@pytest.mark.parametrize("name", ["plain", *CLIMBERS])
def test_scope_global_on_two_ranks_is_one_process(ranks, alone, name, kind):
    weights, numbers = alone(name)
    for rank in ranks:
        equal(rank[name, kind][0], weights, kind)
        for key in numbers:
            assert rank[name, kind][1][key] == pytest.approx(numbers[key], rel=1e-4), key
    if name != "plain":
        assert not torch.allclose(weights[0], alone("plain")[0][0], atol=1e-4)


@pytest.mark.parametrize("kind", STRATEGIES)
@pytest.mark.parametrize("name", ["plain", "SAM", "GSAM", "LookSAM", "FriendlySAM"])
def test_windows_and_a_partial_last_one_are_one_process_too(ranks, alone, name, kind):
    for rank in ranks:
        equal(rank[f"{name}, window of 4", kind][0], alone(name, 4)[0], kind)


@pytest.mark.parametrize("kind", ["fsdp2", "tensor"])
@pytest.mark.parametrize("name", TWO_PASSES)
def test_sharded_micro_batches_climb_on_the_gradient_of_all_ranks(ranks, alone, name, kind):
    for rank in ranks:
        equal(rank[f"{name}, each batch", kind][0], alone(name, 4, scope="micro_batch")[0])


@pytest.mark.parametrize("kind", STRATEGIES)
def test_rho_zero_is_plain_training_bit_for_bit(ranks, kind):
    for rank in ranks:
        plain, still = rank["plain", kind][0], rank["rho 0", kind][0]
        assert all(torch.equal(a, b) for a, b in zip(plain, still, strict=True))


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
@pytest.mark.parametrize("scope", ["rank", "global", "micro_batch"])
def test_rho_zero_is_plain_training_with_all_that_a_run_can_have(ranks, scope, precision):
    for rank in ranks:
        plain, still = rank["replicas", f"plain, {precision}"], rank["replicas", f"rho 0, {scope}, {precision}"]
        assert plain.keys() == still.keys()
        assert {"momentum 2", "logged train/loss", "logged train/acc", "net.1.running_mean"} <= plain.keys()
        assert not [k for k in plain if not torch.equal(plain[k], still[k])]


@pytest.mark.parametrize("name", CLIMBERS)
def test_replicas_stay_equal_bit_for_bit(ranks, name):
    first, second = (rank["replicas", name] for rank in ranks)
    weights = [k for k in first if k.startswith("net") and "running" not in k and "num_batches" not in k]
    assert len(weights) == 6
    assert all(torch.equal(first[k], second[k]) for k in weights)
    assert not torch.equal(first["net.0.weight"], ranks[0]["replicas", "plain"]["net.0.weight"])


# Reductions of all gradients per optimizer step that climbs; a reduction more where the plain gradient of all ranks is
# wanted, or the ascent follows it.
REDUCTIONS = {
    "rank": dict.fromkeys(TWO_PASSES, 1) | {"LookSAM": 2, "FriendlySAM": 2, "WSAM": 2},
    "global": dict.fromkeys(TWO_PASSES, 2),
    "micro_batch": dict.fromkeys(TWO_PASSES, 1) | {"LookSAM": 2, "FriendlySAM": 2, "WSAM": 2},
}


@pytest.mark.parametrize("window", ["reductions", "reductions, window of 3"])
@pytest.mark.parametrize("scope", REDUCTIONS)
@pytest.mark.parametrize("name", CLIMBERS)
def test_ranks_talk_no_more_than_the_table_says(ranks, name, scope, window):
    count, steps = ranks[0][window, name, scope]
    assert steps == (2 if "window" in window else STEPS_PER_EPOCH)
    climbs = len(range(0, steps, 4)) if name == "LookSAM" else steps
    assert count == steps + climbs * (REDUCTIONS[scope].get(name, 1) - 1)


def gradient(net, x, y):
    """Return the gradient of the mean loss, as one vector."""
    grads = torch.autograd.grad(torch.nn.functional.cross_entropy(net(x), y), list(net.parameters()))
    return torch.cat([g.reshape(-1) for g in grads])


def ascended(net, point, direction, scale, x, y):
    """Return the gradient beside a point, and go back to it."""
    vector = torch.nn.utils.vector_to_parameters
    vector(point + scale * direction, net.parameters())
    g = gradient(net, x, y)
    vector(point, net.parameters())
    return g


def by_hand(name, batches, window):
    """Train as the papers' algorithms say, each climb on its own batches; `batches[step]` lists them per climb."""
    net = Net()
    point = torch.nn.utils.parameters_to_vector(net.parameters()).detach()
    velocity, average, kept = torch.zeros_like(point), None, None
    for step, parts in enumerate(batches):
        plain = [gradient(net, x, y) for x, y in parts]
        g = sum(plain) / window
        if name == "LookSAM" and step % 4:
            descent = g + 0.7 * g.norm() / kept.norm() * kept
        else:
            towards = [p - average if name == "FriendlySAM" and average is not None else p for p in plain]
            steps = [0.1 * d / d.norm() for d in towards]
            worst = [ascended(net, point, e, 1.0, x, y) for e, (x, y) in zip(steps, parts, strict=True)]
            descent = sum(worst) / window
            if name == "GSAM":
                pairs = zip(plain, worst, strict=True)
                descent = sum(s - 0.4 * (p - (p @ s) / (s @ s) * s) for p, s in pairs) / window
            if name == "LookSAM":
                kept = descent - (descent @ g) / (g @ g) * g
            if name == "FriendlySAM":
                average = g if average is None else 0.9 * average + 0.1 * g
            if name == "WSAM coupled":
                descent = -3 * g + 4 * descent
        velocity = 0.9 * velocity + (g if name == "WSAM" else descent)
        point = point - 0.1 * velocity - (0.1 * 4 * (descent - g) if name == "WSAM" else 0)
        torch.nn.utils.vector_to_parameters(point, net.parameters())
    return list(net.parameters())


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("name", ["SAM", "GSAM", "LookSAM", "FriendlySAM", "WSAM", "WSAM coupled"])
@pytest.mark.parametrize("scope", ["rank", "micro_batch"])
def test_each_climbs_on_its_own_samples(ranks, name, scope, accumulate):
    x, y = (torch.stack(column) for column in zip(*data(96, 8, shared=True).dataset, strict=True))
    batches = []
    for step in range(STEPS_PER_EPOCH // accumulate):
        micro = [range(step * accumulate, (step + 1) * accumulate)] if scope == "rank" else []
        micro = micro or [[i] for i in range(step * accumulate, (step + 1) * accumulate)]
        # As the loader deals samples to two ranks in turn.
        indices = [torch.cat([torch.arange(16 * i + r, 16 * (i + 1), 2) for i in m]) for m in micro for r in (0, 1)]
        batches.append([(x[i], y[i]) for i in indices])
    expected = by_hand(name, batches, window=len(batches[0]))
    key = name if accumulate == 1 else f"{name}, window of 3"
    for rank in ranks:
        equal(rank[key, scope][0], expected)


@pytest.mark.parametrize("scope", ["rank", "global", "micro_batch"])
@pytest.mark.parametrize("name", TWO_PASSES)
def test_gradients_may_be_views_of_buckets(ranks, name, scope):
    for rank in ranks:
        # Not bit for bit: inner products of tensors at other addresses are summed in another order.
        torch.testing.assert_close(
            *(rank[f"{name}, {v}", scope][0] for v in ("views", "window of 3")), rtol=1e-13, atol=0
        )


@pytest.mark.parametrize("name", ["SAM", "GSAM", "FriendlySAM", "LookSAM", "WSAM"])
def test_ranks_may_train_different_branches(ranks, name):
    first, second = (rank["branches", name] for rank in ranks)
    assert all(torch.equal(first[k], second[k]) for k in first)
    assert not torch.equal(first["branches.0.weight"], ranks[0]["branches", "plain"]["branches.0.weight"])


@pytest.mark.parametrize("scope", ["rank", "global", "micro_batch"])
def test_rho_zero_is_plain_training_with_branches(ranks, scope):
    for rank in ranks:
        plain, still = rank["branches", "plain"], rank["branches, rho 0", scope]
        assert all(torch.equal(plain[k], still[k]) for k in plain)


def test_m_counts_the_samples_of_an_ascent(ranks):
    found = {scope: ranks[0]["SAM, window of 3", scope][1]["sam/m"] for scope in ("rank", "micro_batch")}
    # The last window of `global` has 2 batches of 8 samples on each of 2 ranks.
    assert {**found, "global": ranks[0]["SAM, window of 4", "ddp"][1]["sam/m"]} == {
        "rank": 24,
        "micro_batch": 8,
        "global": 32,
    }


@pytest.mark.parametrize("scope", ["rank", "micro_batch"])
def test_a_static_graph_is_refused_with_the_way_out(ranks, scope):
    assert "set static_graph=False, or SAM(scope='global')" in ranks[0]["static graph", scope]


def test_a_static_graph_with_windows_is_refused(ranks):
    assert "accumulate_grad_batches above 1, with and without SAM" in ranks[0]["static graph", "window"]


def test_a_static_graph_works_in_scope_global(ranks, alone):
    equal(ranks[0]["static graph", "global"][0], alone("SAM")[0])


def test_shards_need_scope_global(ranks):
    assert "set SAM(scope='global')" in ranks[0]["refused", "fsdp"]
    assert "under ModelParallelStrategy: set GSAM(scope='global')" in ranks[0]["refused", "fsdp2"]
    assert "scope='micro_batch' needs the gradient of each batch" in ranks[0]["refused", "fsdp, each batch"]


@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
@pytest.mark.parametrize("name", ["LookSAM", "FriendlySAM"])
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(ranks, name, kind):
    for rank in ranks:
        whole, again = rank["resumed", name, kind]
        assert all(torch.equal(a, b) for a, b in zip(whole, again, strict=True))


def test_shards_are_back_after_an_error_in_the_second_pass(ranks):
    assert all(rank["failing"] is True for rank in ranks)


def test_this_process_is_no_rank():
    assert "LOCAL_RANK" not in os.environ
