import math

import pytest
import torch
from torch import nn

from lbtrain.functional.critical_point import critical_point
from lbtrain.functional.hvp import MeanLoss
from lbtrain.functional.layers import layer_name, layer_shares, layers
from lbtrain.functional.results import Spectrum
from tests.problems import generator, leaf, matrix_with, quadratic

NAN, INF = math.nan, math.inf


def ends(low: float, top: float, residual: float = 0.0, *, converged: bool = True) -> Spectrum:
    """Return a spectrum of which both ends are known."""
    return Spectrum((top,), (residual,), low, residual, converged, 7)


def verdict_on(loss: MeanLoss, **thresholds: float):
    """Return the verdict on a loss of one parameter, with its dense Hessian's spectrum."""
    (w,) = loss.params
    hessian = torch.stack([loss.hvp(e) for e in torch.eye(loss.dim, dtype=torch.float64)])
    values = torch.linalg.eigvalsh(hessian)
    value, gradient = loss.value_and_gradient()
    spectrum = ends(float(values[0]), float(values[-1]))
    return critical_point(spectrum, float(gradient.norm()), value, float(w.detach().norm()), **thresholds)


def test_at_the_origin_of_a_product_the_loss_has_a_saddle() -> None:
    w = leaf([0.0, 0.0])
    found = verdict_on(MeanLoss([w], [lambda: 0.5 * (w[0] * w[1] - 1) ** 2], [1.0]))
    assert (found.kind, found.negative_ratio) == ("saddle", 1.0)
    assert found.words == "saddle: lambda_min -1 +- 0 is negative, 1 times lambda_max 1"


def test_where_the_product_is_right_the_loss_has_a_minimum_with_a_flat_direction() -> None:
    w = leaf([2.0, 0.5])
    found = verdict_on(MeanLoss([w], [lambda: 0.5 * (w[0] * w[1] - 1) ** 2], [1.0]))
    assert (found.kind, found.negative_ratio) == ("minimum", 0.0)
    assert "0 within its error" in found.words
    assert "lambda_max 4.25" in found.words


def test_beside_the_minimum_the_weights_are_not_critical_and_then_they_are() -> None:
    A, w = matrix_with([5.0, 2.0, 1.0]), leaf([1.0, -2.0, 3.0])
    found = verdict_on(quadratic(A, w, height=1.0))
    assert found.kind == "not critical"
    with torch.no_grad():
        w.mul_(1e-2)
    found = verdict_on(quadratic(A, w, height=1.0), reach=1e3)
    assert found.words == "minimum: the smallest eigenvalue found is positive, lambda_min 1 +- 0, with lambda_max 5"


def test_a_deep_linear_network_of_small_weights_lies_on_a_plateau() -> None:
    w = leaf([1e-2, 1e-2, 1e-2])
    assert verdict_on(MeanLoss([w], [lambda: 0.5 * (w.prod() - 1) ** 2], [1.0])).kind == "plateau"
    with torch.no_grad():
        w.fill_(0.5)
    assert verdict_on(MeanLoss([w], [lambda: 0.5 * (w.prod() - 1) ** 2], [1.0])).kind == "not critical"


@pytest.mark.parametrize(("factor", "kind"), [(1 - 1e-6, "minimum"), (1 + 1e-6, "not critical")])
def test_the_promise_of_a_gradient_step_is_g_squared_over_twice_lambda_max(factor: float, kind: str) -> None:
    slope = factor * math.sqrt(2 * 8.0 * 0.02 * 3.0)  # |g|^2 / (2 lambda_max) = 0.02 loss
    assert critical_point(ends(0.5, 8.0), slope, 3.0, 100.0, share=0.02).kind == kind


@pytest.mark.parametrize(("factor", "kind"), [(1 - 1e-6, "minimum"), (1 + 1e-6, "not critical")])
def test_the_step_is_cut_where_it_would_leave_the_reach(factor: float, kind: str) -> None:
    r, top, loss = 0.1 * 2.0, 0.3, 5.0  # |g| / lambda_max lies far outside r
    slope = factor * (0.01 * loss + 0.5 * r * r * top) / r
    # Strong curvature the other way, so that it is no plateau; its sign is not asked for with so large a threshold.
    assert critical_point(ends(-3.0, top), slope, loss, 2.0, negative=100.0).kind == kind


@pytest.mark.parametrize(("factor", "kind"), [(1 - 1e-6, "plateau"), (1 + 1e-6, "saddle")])
def test_a_plateau_ends_where_slope_and_curvature_together_change_the_loss(factor: float, kind: str) -> None:
    r, slope, loss = 0.1 * 2.0, 0.04, 3.0
    low = -factor * (0.01 * loss - r * slope) * 2 / r**2  # the stronger end decides
    assert critical_point(ends(low, -low / 10), slope, loss, 2.0).kind == kind


def test_no_point_of_a_plateau_changes_the_loss_and_a_step_keeps_its_promise() -> None:
    kinds = set()
    for seed in range(40):
        draw = generator(seed)
        spectrum = (2 * torch.rand(4, generator=draw, dtype=torch.float64) - 0.5).tolist()
        A, w = matrix_with(spectrum, seed), leaf(torch.randn(4, generator=draw, dtype=torch.float64))
        b = torch.randn(4, generator=draw, dtype=torch.float64) * 10 ** (-2.0 * (seed % 2))
        height = [1.0, 100.0][seed // 2 % 2]
        with torch.no_grad():
            w.mul_(0.1 if seed % 4 < 2 else 1.0)
        loss = quadratic(A, w, b, height)
        found = verdict_on(loss)
        kinds.add(found.kind)
        base, g, r = loss.value(), loss.gradient(), 0.1 * float(w.detach().norm())

        def at(step: torch.Tensor, w=w, A=A, b=b, height=height) -> float:
            there = w.detach() + step
            return float(height + b @ there + 0.5 * there @ A @ there)

        if found.kind == "plateau":
            directions = torch.randn(50, 4, generator=draw, dtype=torch.float64)
            steps = [r * d / d.norm() for d in [*directions, g, -g]]
            assert max(abs(at(s) - base) for s in steps) <= 0.01 * abs(base)
        elif found.kind == "not critical":
            t = min(r, float(g.norm()) / max(spectrum)) if max(spectrum) > 0 else r
            assert base - at(-t * g / g.norm()) > 0.01 * abs(base)
    assert {"plateau", "not critical"} <= kinds


@pytest.mark.parametrize(
    ("low", "residual", "kind"),
    [
        (-0.0301, 0.0, "saddle"),
        (-0.0299, 0.0, "minimum"),
        (-0.0400, 0.0099, "saddle"),
        (-0.0400, 0.0101, "unknown"),
        (-0.0200, 0.0099, "minimum"),
        (-0.0200, 0.0101, "unknown"),
    ],
)
def test_a_negative_eigenvalue_counts_with_its_error_against_lambda_max(low, residual, kind) -> None:
    found = critical_point(ends(low, 3.0, residual), 0.0, 1.0, 10.0)
    assert found.kind == kind
    assert found.words.startswith(f"{kind}: ")
    assert found.negative_ratio == pytest.approx(-low / 3)


@pytest.mark.parametrize(
    ("low", "words"),
    [
        (0.5, "the smallest eigenvalue found is positive"),
        (1e-4, "0 within its error"),
        (-1e-4, "0 within its error"),
        (-0.01, "but for a slight downward curvature, lambda_min -0.01 +- 0.001, 0.0033 times lambda_max 3"),
    ],
)
def test_the_words_on_a_minimum_say_what_its_smallest_eigenvalue_bears(low: float, words: str) -> None:
    found = critical_point(ends(low, 3.0, 1e-3), 0.0, 1.0, 10.0)
    assert found.kind == "minimum"
    assert words in found.words


def test_a_maximum_is_called_one() -> None:
    found = critical_point(ends(-3.0, -1.0), 0.0, 1.0, 10.0)
    assert (found.kind, found.negative_ratio) == ("saddle", INF)
    assert found.words == "saddle: a maximum even, lambda_min -3 +- 0 and lambda_max -1 are both negative"
    assert "lambda_max 0 is not positive" in critical_point(ends(-3.0, 0.0), 0.0, 1.0, 10.0).words


def test_what_has_not_converged_is_said() -> None:
    assert critical_point(ends(1.0, 3.0, converged=False), 0.0, 1.0, 10.0).words.endswith("have not converged")


def test_without_a_gradient_and_curvature_all_is_flat_at_any_distance() -> None:
    assert critical_point(ends(0.0, 0.0), 0.0, 1.0, 0.0).kind == "plateau"
    assert critical_point(ends(-1.0, -1.0), 1e-9, 1.0, 0.0).kind == "not critical"  # falls for ever
    assert critical_point(ends(1.0, 2.0), 1e-9, 1.0, 0.0).kind == "minimum"


def test_a_loss_of_zero_has_no_scale_and_no_slope_is_small_there() -> None:
    assert critical_point(ends(0.5, 2.0), 0.0, 0.0, 1.0).kind == "minimum"
    assert critical_point(ends(0.5, 2.0), 0.1, 0.0, 1.0).words == (
        "not critical: a step of length 0.05 down the gradient promises to lower the loss 0 by 0.0025 "
        "(|g| 0.1, lambda_max 2)"
    )


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ((ends(0.0, 1.0), 0.1, NAN, 1.0), "unknown: the loss is nan"),
        ((ends(0.0, 1.0), INF, 1.0, 1.0), "unknown: the gradient norm is inf"),
        ((ends(0.0, 1.0), 0.1, 1.0, NAN), "unknown: the weight norm is nan"),
        ((ends(NAN, NAN), 0.1, 1.0, 1.0), "unknown: lambda_max is nan"),
        ((ends(NAN, 1.0), 0.1, 1.0, 1.0), "unknown: lambda_min is nan"),
        ((ends(0.0, 1.0, NAN), 0.1, 1.0, 1.0), "unknown: the residual of lambda_min is nan"),
    ],
)
def test_after_divergence_the_kind_is_unknown(numbers, words: str) -> None:
    found = critical_point(*numbers)
    assert (found.kind, found.words) == ("unknown", words)
    assert math.isnan(found.negative_ratio) == math.isnan(numbers[0].lambda_min)


@pytest.mark.parametrize("name", ["share", "negative", "reach"])
def test_thresholds_must_be_positive(name: str) -> None:
    with pytest.raises(ValueError, match=f"need share, negative and reach above 0, got .*{name} = 0.*defaults"):
        critical_point(ends(0.0, 1.0), 0.0, 1.0, 1.0, **{name: 0})


def test_norms_cannot_be_negative() -> None:
    for norms in ((-1.0, 1.0), (1.0, -1.0)):
        with pytest.raises(ValueError, match="norms cannot be negative, got .*-1.0"):
            critical_point(ends(0.0, 1.0), norms[0], 1.0, norms[1])


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Sequential(nn.LayerNorm(3), nn.Linear(3, 1, bias=False)))


def test_shares_add_weight_and_bias_of_a_layer_and_the_largest_comes_first() -> None:
    net = network()
    vector = torch.zeros(18)
    vector[0], vector[8], vector[9], vector[17] = 1.0, 2.0, 3.0, 4.0  # Linear weight and bias, LayerNorm, Linear
    assert layer_shares(vector, net.named_parameters()) == (
        ("2.1", pytest.approx(16 / 30)),
        ("2.0", pytest.approx(9 / 30)),
        ("0", pytest.approx(5 / 30)),
    )


def test_shares_of_a_vector_do_not_change_with_its_length_or_precision() -> None:
    net, vector = network(), torch.randn(18, generator=generator())
    whole = dict(layer_shares(vector, net.named_parameters()))
    assert sum(whole.values()) == pytest.approx(1.0)
    for other in (1e-30 * vector.double(), 1e18 * vector):
        assert dict(layer_shares(other, net.named_parameters())) == pytest.approx(whole, rel=1e-6)
    assert dict(layer_shares(300 * vector.half(), net.named_parameters())) == pytest.approx(whole, rel=1e-2)


def test_a_vector_without_direction_lies_in_no_layer() -> None:
    net = network()
    with pytest.raises(ValueError, match="vector must not be zero"):
        layer_shares(torch.zeros(18), net.named_parameters())
    with pytest.raises(ValueError, match=r"vector must have shape \(18,\)"):
        layer_shares(torch.zeros(17), net.named_parameters())
    assert all(math.isnan(share) for _, share in layer_shares(torch.full((18,), NAN), net.named_parameters()))


def test_layers_keep_the_order_of_the_network() -> None:
    found = layers(network().named_parameters())
    assert [(name, [tuple(p.shape) for p in params]) for name, params in found] == [
        ("0", [(3, 2), (3,)]),
        ("2.0", [(3,), (3,)]),
        ("2.1", [(1, 3)]),
    ]


@pytest.mark.parametrize(
    ("parameter", "layer"),
    [
        ("net.0.weight", "net.0"),
        ("weight", "root"),
        ("_orig_mod.net.0.bias", "net.0"),
        ("net._fsdp_wrapped_module.0._checkpoint_wrapped_module.weight", "net.0"),
        ("net.0.parametrizations.weight.original0", "net.0"),
    ],
)
def test_a_layer_is_named_by_its_module_without_what_torch_wraps_around(parameter: str, layer: str) -> None:
    assert layer_name(parameter) == layer


def test_real_wrappers_of_torch_do_not_show_in_layer_names() -> None:
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))
    assert [name for name, _ in layers(nn.Sequential(layer).named_parameters())] == ["0"]
    compiled = torch.compile(nn.Sequential(nn.Linear(2, 2)), backend="eager")
    assert [name for name, _ in layers(compiled.named_parameters())] == ["0"]
