"""Which engine "auto" takes, and what it says: custom operations that tell the truth, that lie, and that say so."""

import pytest
import torch
from torch import nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional

from lbtrain.functional._convolution import FastConvolutions, _Convolution
from lbtrain.functional.hvp import MeanLoss
from lbtrain.functional.operator import HessianOperator
from tests.problems import generator, leaf


class _Cube(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3


class Fine(_Cube):
    @staticmethod
    def backward(ctx, g):
        return 3 * ctx.saved_tensors[0] ** 2 * g


class Lies(_Cube):
    @staticmethod
    def backward(ctx, g):
        return 3 * ctx.saved_tensors[0].detach() ** 2 * g


class Marked(_Cube):
    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        return 3 * ctx.saved_tensors[0] ** 2 * g


def linear(y):
    return y.sum()


def quartic(y):
    return (y**2).sum() / 2


# With y = x^3: H = diag(6 x) of the sum, diag(15 x^4) of half the sum of squares.
OUTER = pytest.mark.parametrize(("outer", "curvature"), [(linear, [6.0, 12.0]), (quartic, [15.0, 240.0])])
V = torch.tensor([1.0, -2.0], dtype=torch.float64)


def operator(cube, outer, **options):
    w = leaf([1.0, 2.0])
    return HessianOperator(lambda b: outer(cube.apply(w)), [w], [torch.ones(1)], **options)


@OUTER
def test_a_truthful_custom_operation_costs_two_gradients_once(outer, curvature):
    op = operator(Fine, outer)
    for _ in range(3):
        torch.testing.assert_close(op @ V, V * torch.tensor(curvature), rtol=1e-12, atol=0, check_dtype=False)
    assert op.engine == "autograd"
    assert op.num_gradients == 2
    assert op.kept_bytes > 0


@OUTER
@pytest.mark.parametrize("cube", [Lies, Marked])
def test_a_lying_custom_operation_is_found_and_named(cube, outer, curvature):
    op = operator(cube, outer)
    torch.testing.assert_close(op @ V, V * torch.tensor(curvature), rtol=1e-6, atol=0, check_dtype=False)
    assert op.engine == "differences"
    assert op.reason.startswith("products are taken by finite differences: ")
    assert cube.__name__ in op.reason
    assert 0 < op.error < 1e-5


def test_the_mark_is_found_without_a_gradient():
    op = operator(Marked, quartic, engine="autograd")
    with pytest.raises(RuntimeError, match="the backward of Marked is marked @once_differentiable"):
        op @ V
    assert op.num_gradients == 0


@pytest.mark.parametrize("cube", [Lies, Marked])
def test_double_backward_alone_raises_and_leaves_the_weights(cube):
    op = operator(cube, linear, engine="autograd")
    with pytest.raises(RuntimeError, match=r'second derivative.*engine="differences"'):
        op @ V
    assert op.params[0].tolist() == [1.0, 2.0]
    w = op.params[0]
    with pytest.raises(RuntimeError, match="second derivative"):
        MeanLoss([w], [lambda: linear(cube.apply(w))], [1.0])(V)


@pytest.mark.parametrize("cube", [Fine, Lies, Marked])
def test_the_slope_before_the_products_is_right_and_changes_nothing_about_them(cube):
    op = operator(cube, linear)
    value, gradient = op.slope()
    assert (value, gradient.tolist()) == (9.0, [3.0, 12.0])
    torch.testing.assert_close(op @ V, V * torch.tensor([6.0, 12.0]), rtol=1e-6, atol=0, check_dtype=False)
    assert op.engine == ("autograd" if cube is Fine else "differences")


def test_gradients_alone_cost_no_check():
    op = operator(Lies, linear)
    op.gradient(), op.value()
    assert op.num_gradients == 1
    assert op.engine == "autograd"


def test_torchs_own_operations_cost_no_check():
    w = leaf([1.0, 2.0])
    op = HessianOperator(lambda b: (w**3).sum(), [w], [torch.ones(1)])
    op @ V
    assert op.num_gradients == 0


def test_kinks_beside_a_truthful_custom_operation_are_no_lie():
    class Same(Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, g):
            return g.clone()

    disagreed = 0
    for seed in range(4):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            net = nn.Sequential(nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
        x = torch.randn(100, 10, generator=generator(seed))
        y = torch.randint(0, 4, (100,), generator=generator(seed))
        params = list(net.parameters())
        loss = lambda b, net=net: functional.cross_entropy(Same.apply(net(b[0])), b[1])
        op = HessianOperator(loss, params, [(x, y)])
        op @ torch.ones(op.dim)
        disagreed += op.num_gradients > 2
        assert op.engine == "autograd"
    assert disagreed >= 1  # else the kinks were not in the way, and the test says nothing


@pytest.mark.parametrize("cube", [Lies, Marked])
@pytest.mark.parametrize("place", ["network", "loss"])
def test_the_gauss_newton_matrix_falls_back_where_it_has_to(cube, place):
    """Outputs ``z = x^3`` under a square, or ``z = x`` with twice the sum of cubes: ``J'HJ`` is 9 x^4, or 12 x."""
    w = leaf([1.0, 2.0])
    losses = {
        "network": lambda b: (lambda z: ((z**2).sum() / 2, z))(cube.apply(w)),
        "loss": lambda b: (lambda z: (2 * cube.apply(z).sum(), z))(w.view_as(w)),
    }
    truth = {"network": 9 * w.detach() ** 4, "loss": 12 * w.detach()}
    op = HessianOperator(losses[place], [w], [torch.ones(1)], matrix="ggn")
    torch.testing.assert_close(op @ V, V * truth[place], rtol=1e-6, atol=0)
    # It takes no second derivative of the network: there a backward only has to be linear in what it is given.
    assert op.engine == ("autograd" if (cube, place) == (Lies, "network") else "differences")


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("options", [{}, {"stride": 2, "padding": 1}, {"padding": 2, "dilation": 2, "groups": 2}])
@pytest.mark.parametrize("biased", [True, False])
def test_fast_convolutions_have_torchs_values_and_three_derivatives(dims, options, biased):
    convolve = getattr(functional, f"conv{dims}d")
    shapes = [(2, 4, *[6] * dims), (6, 4 // options.get("groups", 1), *[3] * dims), (6,)][: 3 if biased else 2]
    given = [leaf(torch.randn(s, generator=generator(i), dtype=torch.float64)) for i, s in enumerate(shapes)]
    directions = [torch.randn(s, generator=generator(9 + i), dtype=torch.float64) for i, s in enumerate(shapes)]

    def derivatives(create_graph):
        out = convolve(*given, **options)
        first = torch.autograd.grad(torch.tanh(out).square().sum(), given, create_graph=True)
        second = torch.autograd.grad(first, given, directions, create_graph=create_graph, retain_graph=True)
        return [out, *first, *second, *(torch.autograd.grad(second, given, directions) if create_graph else ())]

    for create_graph in (False, True):
        plain = derivatives(create_graph)
        with FastConvolutions():
            fast = derivatives(create_graph)
            assert type(convolve(*given, **options).grad_fn).__name__ == f"{_Convolution.__name__}Backward"
        for mine, torchs in zip(fast, plain, strict=True):
            torch.testing.assert_close(mine, torchs, rtol=1e-11, atol=1e-12)


def test_convolutions_of_other_kinds_stay_torchs_own():
    x, w = torch.randn(1, 2, 4, generator=generator()), leaf(torch.randn(2, 2, 3, generator=generator()), torch.float32)
    with FastConvolutions():
        for out in (functional.conv1d(x, w, padding="same"), functional.conv1d(x[0], w)):
            assert "_Convolution" not in type(out.grad_fn).__name__
        with torch.autocast("cpu", torch.bfloat16):
            assert functional.conv1d(x, w).dtype == torch.bfloat16
