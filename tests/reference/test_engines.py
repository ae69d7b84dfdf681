"""Losses that are hard to differentiate twice, each against a dense Hessian made row by row from its gradient."""

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from benchmarks.resnet import Block
from lbtrain.functional.operator import HessianOperator
from tests.problems import generator


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def labels(count, classes, seed=1):
    return torch.randint(0, classes, (count,), generator=generator(seed))


def seeded(make, seed=3):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make().double()


def dense_hessian(loss, params):
    """Return the Hessian ``(n, n)``: plain torch, one row for each entry of the gradient."""
    gradient = torch.autograd.grad(loss, params, create_graph=True, allow_unused=True, materialize_grads=True)
    entries = torch.cat([g.reshape(-1) for g in gradient])
    options = {"retain_graph": True, "allow_unused": True, "materialize_grads": True}
    rows = [torch.autograd.grad(e, params, **options) if e.requires_grad else None for e in entries]
    empty = [torch.zeros_like(p) for p in params]
    return torch.stack([torch.cat([r.reshape(-1) for r in (row or empty)]) for row in rows])


def agrees(operator, H, engine="autograd", reason=""):
    """Check products with three vectors, and what the operator says of them."""
    rounding = 1e-10 if engine == "autograd" else 10 * operator.dim * 1e-7
    for seed in range(3):
        v = normal(operator.dim, seed=20 + seed)
        torch.testing.assert_close(operator @ v, H @ v, rtol=0, atol=rounding * float((H @ v).abs().max()))
    assert operator.engine == engine
    assert reason in operator.reason
    assert bool(operator.reason) == bool(reason)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0, batch_first=True, norm_first=True)
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.block(x).mean(dim=1))


def attention():
    net, x, y = seeded(Attention), normal(5, 3, 4), labels(5, 2)
    return net, lambda batch: functional.cross_entropy(net(batch[0]), batch[1]), (x, y)


def hessian_of(net, loss, batch):
    return dense_hessian(loss(batch), list(net.parameters()))


def test_a_transformer_block_by_double_backward_and_flash_attention_by_differences():
    net, loss, batch = attention()
    with sdpa_kernel(SDPBackend.MATH):
        H = hessian_of(net, loss, batch)
        agrees(HessianOperator(loss, list(net.parameters()), [batch]), H)
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        operator = HessianOperator(loss, list(net.parameters()), [batch])
        agrees(operator, H, "differences", "flash_attention")
        assert 0 < operator.error < 1e-6
        with pytest.raises(RuntimeError, match=r"SDPBackend.MATH.*_orig_mod"):
            HessianOperator(loss, list(net.parameters()), [batch], engine="autograd") @ normal(operator.dim)


def test_an_lstm():
    net, head = seeded(lambda: nn.LSTM(3, 2, batch_first=True)), seeded(lambda: nn.Linear(2, 2))
    params = [*net.parameters(), *head.parameters()]

    def loss(batch):
        return functional.cross_entropy(head(net(batch[0])[0][:, -1]), batch[1])

    batch = normal(4, 3, 3), labels(4, 2)
    agrees(HessianOperator(loss, params, [batch]), dense_hessian(loss(batch), params))


def test_a_residual_block_with_batch_normalization_in_eval_mode():
    block = seeded(lambda: nn.Sequential(Block(2, 3, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    with torch.no_grad():
        block.train()(3 * normal(6, 2, 4, 4, seed=5) + 1)  # statistics of their own
    block.eval()
    buffers = {k: b.clone() for k, b in block.named_buffers()}
    params = list(block.parameters())

    def loss(batch):
        return functional.cross_entropy(block(batch[0]), batch[1])

    batch = normal(4, 2, 4, 4), labels(4, 3)
    agrees(HessianOperator(loss, params, [batch]), dense_hessian(loss(batch), params))
    assert all(torch.equal(b, buffers[k]) for k, b in block.named_buffers())


def test_tied_embeddings():
    table = seeded(lambda: nn.Embedding(5, 3)).weight
    tokens, after = labels(7, 5, 2), labels(7, 5, 3)

    def loss(batch):
        return functional.cross_entropy(torch.tanh(table[batch[0]]) @ table.T, batch[1])

    agrees(HessianOperator(loss, [table], [(tokens, after)]), dense_hessian(loss((tokens, after)), [table]))


def test_a_dict_batch_with_frozen_and_unused_parameters():
    net = seeded(lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)))
    net[0].bias.requires_grad_(False)
    unused = normal(2).requires_grad_()
    params = [*(p for p in net.parameters() if p.requires_grad), unused]

    def loss(batch):
        return functional.mse_loss(net(batch["x"]["features"]), batch["y"])

    batch = {"x": {"features": normal(6, 3)}, "y": normal(6, 2, seed=1)}
    operator = HessianOperator(loss, params, [batch])
    H = dense_hessian(loss(batch), params)
    assert not H[-2:].any()
    agrees(operator, H)
    assert (operator @ normal(operator.dim))[-2:].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("kind", ["linear", "convolution"])
def test_checkpointing_without_reentry(kind):
    layers = {"linear": lambda: nn.Linear(4, 3), "convolution": lambda: nn.Conv1d(1, 2, 2)}
    net = seeded(lambda: nn.Sequential(layers[kind](), nn.Tanh(), nn.Flatten(), nn.LazyLinear(2)))
    x = normal(3, 1, 4)
    net(x)
    params = list(net.parameters())

    def loss(batch, again=True):
        out = checkpoint(net, batch[0], use_reentrant=False) if again else net(batch[0])
        return functional.cross_entropy(out, batch[1])

    batch = x, labels(3, 2)
    agrees(HessianOperator(loss, params, [batch]), dense_hessian(loss(batch, again=False), params))


@pytest.mark.filterwarnings("ignore")  # of the compiler
@pytest.mark.parametrize("matrix", ["hessian", "ggn"])
def test_a_compiled_module_falls_back(matrix):
    net = seeded(lambda: nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 2)))
    compiled = torch.compile(net, backend="aot_eager")
    batch, params = (normal(5, 3), labels(5, 2)), list(net.parameters())
    plain = HessianOperator(lambda b: functional.cross_entropy(net(b[0]), b[1]), params, [batch], matrix=matrix)
    M = torch.stack([plain @ e for e in torch.eye(plain.dim, dtype=torch.float64)])
    assert plain.engine == "autograd"
    operator = HessianOperator(lambda b: functional.cross_entropy(compiled(b[0]), b[1]), params, [batch], matrix=matrix)
    agrees(operator, M, "differences", "double backward")


def test_a_gradient_penalty_needs_third_derivatives():
    net = seeded(lambda: nn.Sequential(nn.Conv1d(1, 2, 2), nn.Tanh(), nn.Flatten(), nn.Linear(4, 1)))
    params = list(net.parameters())

    def loss(batch):
        x = batch[0].clone().requires_grad_()
        out = net(x)
        (slope,) = torch.autograd.grad(out.sum(), x, create_graph=True)
        return functional.mse_loss(out, batch[1]) + slope.square().mean()

    batch = normal(3, 1, 3), normal(3, 1, seed=1)
    agrees(HessianOperator(loss, params, [batch]), dense_hessian(loss(batch), params))


def test_complex_numbers_between_real_parameters_and_a_real_loss():
    w = normal(4).requires_grad_()

    def loss(batch):
        return (torch.fft.rfft(torch.tanh(w) * batch[0]) * (1 + 2j)).abs().square().mean()

    agrees(HessianOperator(loss, [w], [(normal(4, seed=1)[None],)]), dense_hessian(loss((normal(4, seed=1),)), [w]))


def test_connectionist_classification_has_no_second_derivative():
    net = seeded(lambda: nn.Linear(3, 4))

    def loss(batch):
        scores = net(batch[0]).log_softmax(-1).transpose(0, 1)
        return functional.ctc_loss(scores, batch[1], torch.tensor([5, 5]), torch.tensor([2, 2]))

    batch = normal(2, 5, 3), labels(4, 3).view(2, 2) + 1
    operator = HessianOperator(loss, list(net.parameters()), [batch])
    u, v = normal(operator.dim), normal(operator.dim, seed=1)
    torch.testing.assert_close(u @ (operator @ v), v @ (operator @ u), rtol=1e-5, atol=1e-8)
    assert operator.engine == "differences"
    assert "ctc_loss" in operator.reason


def test_half_precision_weights_by_differences():
    exact = seeded(lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)))
    net = seeded(lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))).bfloat16()
    exact.load_state_dict(net.state_dict())
    x, y = normal(64, 3).bfloat16(), labels(64, 2)
    H = hessian_of(exact, lambda b: functional.cross_entropy(exact(b[0].double()), b[1]), (x, y))
    v = torch.linalg.eigh(H)[1][:, -1]
    for engine in ("autograd", "differences"):
        operator = HessianOperator(
            lambda b: functional.cross_entropy(net(b[0]).float(), b[1]), list(net.parameters()), [(x, y)], engine=engine
        )
        found = operator @ v.float()
        assert found.dtype == torch.float32
        off = float((found.double() - H @ v).norm() / (H @ v).norm())
        assert off < (0.05 if engine == "autograd" else max(0.05, operator.error))


def test_sparse_gradients_are_refused_with_the_way_out():
    table = seeded(lambda: nn.Embedding(5, 3, sparse=True)).weight
    tokens = labels(7, 5)

    def loss(batch):
        return functional.embedding(batch, table, sparse=True).square().mean()

    with pytest.raises(ValueError, match="sparse=False"):
        HessianOperator(loss, [table], [tokens]).gradient()
    with pytest.raises(ValueError, match="sparse=False"):
        HessianOperator(loss, [table], [tokens], engine="differences") @ normal(15)
