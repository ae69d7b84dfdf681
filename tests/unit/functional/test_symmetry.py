"""Units that stay alike are found; random, zero and constant weights that gradients tell apart are no problem."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from lbtrain.functional.symmetry import symmetries, symmetry_finding
from tests.problems import generator


def batch(samples=64, features=5, classes=4):
    x = torch.randn(samples, features, generator=generator(1))
    return x, torch.randint(0, classes, (samples,), generator=generator(2))


def state(net, x=None, y=None):
    """Return weights and gradients by name."""
    given = batch()
    x, y = given[0] if x is None else x, given[1] if y is None else y
    names, params = zip(*net.named_parameters(), strict=True)
    grads = torch.autograd.grad(functional.cross_entropy(net(x), y), params, allow_unused=True)
    pairs = zip(names, grads, params, strict=True)
    return dict(zip(names, params, strict=True)), {n: torch.zeros_like(p) if g is None else g for n, g, p in pairs}


def mlp(activation=nn.ReLU, hidden=8, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, hidden), activation(), nn.Linear(hidden, 4))


def finding(net, **data):
    return symmetry_finding(symmetries(*state(net, **data)))


def zeroed(module):
    with torch.no_grad():
        for p in module.parameters():
            p.zero_()
    return module


def duplicate(net, i=1, j=6, sign=1):
    """Make unit j of the hidden layer the same as unit i, up to sign, behind it, too."""
    with torch.no_grad():
        net[0].weight[j] = sign * net[0].weight[i]
        net[0].bias[j] = sign * net[0].bias[i]
        net[2].weight[:, j] = sign * net[2].weight[:, i]
    return net


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("hidden", [2, 8, 256])
def test_random_weights_are_never_alike(seed, hidden):
    found = symmetries(*state(mlp(hidden=hidden, seed=seed)), permuted=True)
    assert (found.groups, found.lasting, found.zeros, found.stuck, found.permuted) == ((), (), (), (), ())
    assert found.units == {"0.weight": hidden, "2.weight": 4}
    assert symmetry_finding(found) is None


def test_softmax_regression_at_zero_weights_is_fine():
    found = symmetries(*state(zeroed(nn.Linear(5, 4))))
    assert found.zeros == ("weight",)
    assert [g.units for g in found.groups] == [(0, 1, 2, 3)]
    assert (found.lasting, found.stuck) == ((), ())
    assert symmetry_finding(found) is None


def test_two_classes_at_zero_weights_are_fine():
    x, y = batch(classes=2)
    assert finding(zeroed(nn.Linear(5, 2)), x=x, y=y) is None


def test_classes_without_a_sample_are_no_symmetry():
    x, y = batch(classes=4)
    assert finding(zeroed(nn.Linear(5, 50)), x=x, y=y) is None


def test_a_last_layer_of_zeros_behind_random_ones_is_fine():
    net = mlp()
    zeroed(net[2])
    assert finding(net) is None


def test_a_first_layer_of_zeros_before_random_ones_is_fine_where_gradients_flow():
    net = mlp(nn.Tanh)
    zeroed(net[0])
    found = symmetries(*state(net))
    assert found.zeros == ("0.weight",)
    assert symmetry_finding(found) is None


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh, nn.Sigmoid])
def test_a_network_of_zeros_is_a_problem(activation):
    found = finding(zeroed(mlp(activation)))
    assert found.problem == "symmetries"
    assert found.evidence.startswith("layer 0.weight: the weights of all 8 units are zero")
    assert found.remedies[0].changes == {"init_scale": 1.0}
    assert found.since == 0


def test_a_network_of_zeros_without_rows_to_compare_is_a_problem():
    # One unit and one output: nothing is alike, and nothing moves.
    net = zeroed(nn.Sequential(nn.Linear(3, 1, bias=False), nn.Linear(1, 1, bias=False)))
    x = torch.randn(8, 3, generator=generator())
    names, params = zip(*net.named_parameters(), strict=True)
    grads = torch.autograd.grad((net(x) - 1).square().mean(), params)
    found = symmetries(dict(zip(names, params, strict=True)), dict(zip(names, grads, strict=True)))
    assert found.stuck == ("0.weight", "1.weight")
    assert "all weights are zero" in symmetry_finding(found).evidence


def test_zero_weights_with_random_biases_are_fine():
    net = mlp()
    with torch.no_grad():
        net[0].weight.zero_()
        net[2].weight.zero_()
    assert finding(net) is None


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh])
def test_a_pair_of_equal_units_is_found_and_stays_equal_in_training(activation):
    net = duplicate(mlp(activation))
    found = symmetries(*state(net))
    assert [(g.name, g.units, g.signs) for g in found.lasting] == [("0.weight", (1, 6), (1, 1))]
    words = symmetry_finding(found).evidence
    assert words.startswith("layer 0.weight: 2 of 8 units have equal incoming weights")
    assert "units 1 and 6" in words
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5, momentum=0.9)
    for _ in range(20):
        optimizer.zero_grad()
        functional.cross_entropy(net(batch()[0]), batch()[1]).backward()
        optimizer.step()
    assert torch.allclose(net[0].weight[1], net[0].weight[6], rtol=1e-4)
    assert symmetries(*state(net), tol=1e-4).lasting[0].units == (1, 6)


def test_units_of_opposite_sign_are_alike_behind_an_odd_activation_only():
    found = symmetries(*state(duplicate(mlp(nn.Tanh), sign=-1)))
    assert [(g.units, g.signs) for g in found.lasting] == [((1, 6), (1, -1))]
    assert "up to sign" in symmetry_finding(found).evidence
    broken = symmetries(*state(duplicate(mlp(nn.ReLU), sign=-1)))
    assert [g.units for g in broken.groups] == [(1, 6)]
    assert broken.lasting == ()


def test_signs_are_those_among_the_units_that_stay_alike():
    w = torch.tensor([[1.0, 2.0], [-1.0, -2.0], [-1.0, -2.0]])
    g = torch.tensor([[5.0, 5.0], [1.0, 0.0], [1.0, 0.0]])
    found = symmetries({"a.weight": w, "b.weight": w[:1]}, {"a.weight": g, "b.weight": g[:1]})
    assert [(t.units, t.signs) for t in found.groups] == [((0, 1, 2), (1, -1, -1))]
    assert [(t.units, t.signs) for t in found.lasting] == [((1, 2), (1, 1))]


def test_equal_units_with_different_outgoing_weights_will_part():
    net = duplicate(mlp())
    with torch.no_grad():
        net[2].weight[:, 6].mul_(0.5)
    found = symmetries(*state(net))
    assert [g.units for g in found.groups] == [(1, 6)]
    assert symmetry_finding(found) is None


def test_units_with_equal_weights_and_another_bias_are_not_alike():
    net = duplicate(mlp())
    with torch.no_grad():
        net[0].bias[6] += 0.1
    assert symmetries(*state(net)).groups == ()


def test_constant_weights_in_all_hidden_units_are_a_problem():
    net = mlp()
    with torch.no_grad():
        net[0].weight.fill_(0.1)
        net[0].bias.zero_()
        net[2].weight.fill_(0.1)
    found = symmetries(*state(net))
    assert found.constant == {"0.weight": 8, "2.weight": 4}
    assert "8 of 8 units" in symmetry_finding(found).evidence


def test_equal_filters_of_a_convolution_are_found():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4))
    with torch.no_grad():
        net[0].weight[4], net[0].bias[4] = net[0].weight[2], net[0].bias[2]
        net[4].weight[:, 4] = net[4].weight[:, 2]
    x = torch.randn(64, 1, 6, 6, generator=generator())
    assert [g.units for g in symmetries(*state(net, x=x)).lasting] == [(2, 4)]


def test_two_kinds_of_twins_in_one_layer_are_two_groups():
    net = duplicate(duplicate(mlp(), 0, 3), 2, 5)
    duplicate(net, 0, 7)
    assert [g.units for g in symmetries(*state(net)).lasting] == [(0, 3, 7), (2, 5)]


def test_pruned_units_of_zeros_are_dead_and_not_alike():
    net = mlp()
    with torch.no_grad():
        for i in (2, 5):
            net[0].weight[i], net[0].bias[i] = 0, 0
    assert finding(net) is None


def test_without_gradients_nothing_is_known_to_last():
    weights, _ = state(duplicate(mlp()))
    found = symmetries(weights)
    assert [g.units for g in found.groups] == [(1, 6)]
    assert found.lasting is None
    assert symmetry_finding(found) is None


def test_a_permutation_of_inputs_is_weaker_evidence_and_asked_for():
    net = mlp()
    with torch.no_grad():
        net[0].weight[3] = net[0].weight[0].flip(0)
    found = symmetries(*state(net), permuted=True)
    assert [g.units for g in found.permuted] == [(0, 3)]
    assert symmetries(*state(net)).permuted == ()
    assert symmetry_finding(found) is None


def test_coarse_weights_of_one_input_that_tie_by_chance_are_no_problem():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(1, 512, bias=False), nn.Tanh(), nn.Linear(512, 4))
    with torch.no_grad():
        net[0].weight.copy_((net[0].weight * 64).round() / 64)
    x, y = batch(features=1)
    found = symmetries(*state(net, x=x, y=y))
    assert found.groups
    assert symmetry_finding(found) is None


def test_few_twins_in_a_large_layer_count_by_their_share():
    found = symmetries(*state(duplicate(mlp(hidden=256))))
    assert symmetry_finding(found) is None
    assert symmetry_finding(found, min_share=0.005).numbers["alike"] == 2


def test_weights_that_are_not_finite_equal_nothing():
    weights = {"weight": torch.full((3, 4), float("nan")), "b.weight": torch.randn(3, 3, generator=generator())}
    assert symmetries(weights, weights).groups == ()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tol": -1.0}, "tol must be at least 0"),
        ({"gradient_tol": 1.0}, "gradient_tol must be"),
        ({"gradients": {"w": torch.zeros(3, 2)}}, "gradient and weight must have one shape"),
    ],
)
def test_wrong_arguments_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        symmetries({"w": torch.zeros(2, 3)}, **change)
