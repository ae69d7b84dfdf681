"""The generalized Gauss-Newton matrix against ``J'HJ``, made densely."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from lbtrain.functional.operator import HessianOperator
from tests.problems import generator

pytestmark = pytest.mark.filterwarnings("ignore:reduction. 'mean' divides:UserWarning")


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


with torch.random.fork_rng():
    torch.manual_seed(2)
    NET = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()
PARAMS = list(NET.parameters())
DIM = sum(p.numel() for p in PARAMS)
X, Y, T = normal(5, 3), torch.randint(0, 3, (5,), generator=generator(1)), normal(5, 3, seed=2)
P = T.softmax(1)


def cross_entropy(z):
    return functional.cross_entropy(z, Y)


def logistic(z):
    return functional.binary_cross_entropy_with_logits(z, T.sigmoid())


def soft(z):
    return -(P * z.log_softmax(1)).sum() / len(z)


# The loss as users write it, and the same as a function of the outputs that the matrix is meant for.
LOSSES = {
    "cross_entropy": (cross_entropy, cross_entropy),
    "nll_loss of log_softmax": (lambda z: functional.nll_loss(functional.log_softmax(z, 1), Y), cross_entropy),
    "nll_loss of a reshaped log_softmax": (
        lambda z: functional.nll_loss(z.log_softmax(1).t().t().view(5, 3), Y),
        cross_entropy,
    ),
    "nll_loss of the log of softmax": (
        lambda z: functional.nll_loss(torch.log(functional.softmax(z, 1)), Y),
        cross_entropy,
    ),
    "kl_div": (lambda z: functional.kl_div(z.log_softmax(1), P, reduction="batchmean"), soft),
    "a softmax likelihood by hand": (soft, soft),
    "logistic": (logistic, logistic),
    "binary_cross_entropy of sigmoid": (lambda z: functional.binary_cross_entropy(z.sigmoid(), T.sigmoid()), logistic),
    "mse_loss": (lambda z: functional.mse_loss(z, T),) * 2,
    "huber_loss": (lambda z: functional.huber_loss(z, T, delta=0.5),) * 2,
    "smooth_l1_loss": (lambda z: functional.smooth_l1_loss(z, T),) * 2,
    "poisson_nll_loss": (lambda z: functional.poisson_nll_loss(z, T.exp()),) * 2,
    "soft_margin_loss": (lambda z: functional.soft_margin_loss(z, T.sign()),) * 2,
    "gaussian_nll_loss, fixed variance": (lambda z: functional.gaussian_nll_loss(z, T, torch.ones_like(T)),) * 2,
    "two heads": (
        lambda z: functional.cross_entropy(z[:, :2], Y.clamp(max=1)) + 0.3 * functional.mse_loss(z[:, 2:], T[:, 2:]),
    )
    * 2,
    "two losses of the same outputs": (lambda z: functional.cross_entropy(z, Y) * (1 + functional.mse_loss(z, T)),) * 2,
    "outputs returned in a tuple": (lambda z: ((z**4).sum(), z), lambda z: (z**4).sum()),
    "outputs returned in a dict": (lambda z: {"loss": (z**4).sum(), "outputs": [{"a": z}]}, lambda z: (z**4).sum()),
}
# Convex in the outputs.
CONVEX = set(LOSSES) - {"two losses of the same outputs"}


def operator(loss, engine="autograd", batches=(X,), **options):
    return HessianOperator(lambda x: loss(NET(x)), PARAMS, list(batches), matrix="ggn", engine=engine, **options)


def dense(outer, net=NET):
    """Return ``J'HJ`` with the dense Jacobian of the outputs and the dense Hessian of the loss in them."""
    names, shapes = zip(*((k, p.shape) for k, p in net.named_parameters()), strict=True)

    def outputs(flat):
        pieces = [x.view(s) for x, s in zip(flat.split([s.numel() for s in shapes]), shapes, strict=True)]
        return torch.func.functional_call(net, dict(zip(names, pieces, strict=True)), (X,))

    w = torch.cat([p.detach().reshape(-1) for p in net.parameters()])
    z = outputs(w)
    J = torch.func.jacrev(outputs)(w).reshape(z.numel(), -1)
    H = torch.autograd.functional.hessian(outer, z.detach()).reshape(z.numel(), z.numel())
    return J.T @ H @ J


def full(op):
    return torch.stack([op @ e for e in torch.eye(op.dim, dtype=torch.float64)], dim=1)


@pytest.mark.parametrize("engine", ["autograd", "differences"])
@pytest.mark.parametrize("name", LOSSES)
def test_products_are_those_of_the_dense_matrix(name, engine):
    loss, outer = LOSSES[name]
    G, exact = full(operator(loss, engine)), dense(outer)
    near = 1e-10 if engine == "autograd" else 1e-7
    torch.testing.assert_close(G, exact, rtol=0, atol=near * float(exact.norm()))
    assert float(exact.norm()) > 0.1
    if name in CONVEX:
        assert float(torch.linalg.eigvalsh((G + G.T) / 2)[0]) > -near * float(exact.norm())


def test_a_linear_model_has_its_hessian_and_another_one_has_not():
    linear = nn.Linear(3, 3).double()
    options = {"params": list(linear.parameters()), "batches": [X]}
    ggn = HessianOperator(lambda x: functional.cross_entropy(linear(x), Y), matrix="ggn", **options)
    hessian = HessianOperator(lambda x: functional.cross_entropy(linear(x), Y), **options)
    torch.testing.assert_close(full(ggn), full(hessian), rtol=1e-10, atol=1e-14)
    curved = HessianOperator(lambda x: cross_entropy(NET(x)), PARAMS, [X])
    assert not torch.allclose(full(curved), full(operator(cross_entropy)), rtol=0.01)


def test_deep_supervision_counts_each_output_once():
    """A second loss on what the first outputs lead to: each ``J'HJ`` of its own, without the way through the other."""
    first, second = nn.Linear(3, 3).double(), nn.Linear(3, 3).double()
    params = [*first.parameters(), *second.parameters()]

    def loss(x):
        z = first(x)
        return functional.mse_loss(z, T) + functional.cross_entropy(second(torch.tanh(z)), Y)

    both = HessianOperator(loss, params, [X], matrix="ggn")
    shallow = HessianOperator(
        lambda x: functional.mse_loss(first(x), T) + 0 * second(x).sum(), params, [X], matrix="ggn"
    )
    deep = HessianOperator(
        lambda x: functional.cross_entropy(second(torch.tanh(first(x))), Y), params, [X], matrix="ggn"
    )
    torch.testing.assert_close(full(both), full(shallow) + full(deep), rtol=1e-10, atol=1e-13)


def test_a_loss_that_is_linear_in_the_outputs_has_a_zero_matrix():
    assert not full(operator(lambda z: functional.l1_loss(z, T))).any()


@pytest.mark.parametrize("engine", ["autograd", "differences"])
def test_a_penalty_on_the_weights_is_refused_with_the_way_out(engine):
    def loss(x):
        return functional.cross_entropy(NET(x), Y) + 0.01 * sum(p.square().sum() for p in PARAMS)

    op = HessianOperator(loss, PARAMS, [X], matrix="ggn", engine=engine)
    with pytest.raises(ValueError, match=r'not only through the outputs.*matrix="hessian"'):
        op @ normal(DIM)
    # What makes unused parameters take part, without a weight, is no penalty.
    op = HessianOperator(
        lambda x: functional.cross_entropy(NET(x), Y) + 0.0 * sum(p.sum() for p in PARAMS), PARAMS, [X]
    )
    assert torch.isfinite(op @ normal(DIM)).all()


def test_unknown_outputs_are_asked_for():
    with pytest.raises(
        ValueError, match=r"no loss function of torch.nn.functional in the loss of batch 0.*\(loss, outputs\)"
    ):
        operator(lambda z: (z**2).mean()) @ normal(DIM)
    with pytest.raises(ValueError, match="nll_loss got what does not come from log_softmax"):
        operator(lambda z: functional.nll_loss(z, Y)) @ normal(DIM)


def test_a_softmax_inside_the_network_is_left_alone():
    net = nn.Sequential(nn.Linear(3, 4), nn.Softmax(dim=1), nn.Linear(4, 3)).double()
    op = HessianOperator(lambda x: functional.mse_loss(net(x), T), list(net.parameters()), [X], matrix="ggn")
    exact = dense(lambda z: functional.mse_loss(z, T), net)
    torch.testing.assert_close(full(op), exact, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("engine", ["autograd", "differences"])
@pytest.mark.parametrize("memory", [2**30, 0])
def test_batches_add_up_by_their_samples(engine, memory):
    def loss(batch):
        return functional.cross_entropy(NET(batch[0]), batch[1])

    batches = list(zip(X.split(2), Y.split(2), strict=True))
    op = HessianOperator(loss, PARAMS, batches, matrix="ggn", engine=engine, graph_memory_bytes=memory)
    exact = dense(cross_entropy)
    for seed in range(2):
        v = normal(DIM, seed=seed)
        torch.testing.assert_close(op @ v, exact @ v, rtol=0, atol=1e-7 * float(exact.norm() * v.norm()))
    assert (op.kept_bytes > 0) == (engine == "autograd" and memory > 0)


def test_the_error_of_differences_bounds_what_is_lost_along_the_gradient():
    op = operator(cross_entropy, "differences")
    g = op.gradient()
    exact = dense(cross_entropy) @ g
    lost = float((op @ g - exact).norm() / exact.norm())
    assert lost < 1e-8
    assert 0 < op.error < 1e-6
    before = op.num_gradients
    op @ g
    assert op.num_gradients - before == 2


def test_curvlinops_agrees():
    curvlinops = pytest.importorskip("curvlinops", exc_type=ImportError)
    theirs = curvlinops.GGNLinearOperator(NET, nn.CrossEntropyLoss(), PARAMS, [(X[:3], Y[:3]), (X[3:], Y[3:])])
    v = normal(DIM)
    torch.testing.assert_close(operator(cross_entropy) @ v, theirs @ v, rtol=1e-9, atol=1e-13)
