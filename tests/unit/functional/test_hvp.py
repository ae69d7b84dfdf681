import pytest
import torch
from torch import nn

from lbtrain.functional.hvp import MeanLoss
from lbtrain.functional.vectors import flatten
from tests.problems import LinearRegression, SmallNetwork, generator, leaf, matrix_with, split_quadratic

ALL, NONE = 2**30, 0


def random_vector(n, seed=11, dtype=torch.float64):
    return torch.randn(n, generator=generator(seed), dtype=dtype)


def test_quadratic_in_unequal_batches():
    A = matrix_with([3.0, 1.0, -1.0, 0.5])
    w = leaf(random_vector(4))
    loss, v = split_quadratic(A, w, [0.5, 0.3, 0.2]), random_vector(4, 12)
    torch.testing.assert_close(loss(v), A @ v, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(loss.gradient(), A @ w.detach(), rtol=1e-12, atol=1e-12)
    assert loss.value() == pytest.approx(0.5 * (w @ A @ w).item(), rel=1e-12)


@pytest.mark.parametrize("memory", [ALL, NONE, 3000])
@pytest.mark.parametrize("batch_size", [30, 8, 7])
def test_network_matches_the_dense_hessian_with_and_without_kept_graphs(memory, batch_size):
    problem = SmallNetwork()
    loss, H = problem.loss(batch_size, graph_memory_bytes=memory), problem.dense_hessian()
    for seed in range(3):
        v = random_vector(59, seed)
        torch.testing.assert_close(loss.hvp(v), H @ v, rtol=1e-10, atol=1e-12)
    assert loss.num_matvecs == 3


def test_a_short_last_batch_counts_by_its_size():
    problem = LinearRegression([4.0, 1.0, 0.0])
    whole, parts = problem.loss(23), problem.loss(10)
    v = random_vector(6)
    torch.testing.assert_close(parts(v), whole(v), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(parts.gradient(), whole.gradient(), rtol=1e-12, atol=1e-12)
    assert parts.value() == pytest.approx(whole.value(), rel=1e-13)
    assert parts.batch_values().shape == (3,)


def test_value_and_gradient_agree_with_each_alone():
    loss = SmallNetwork(torch.float32).loss(8)
    value, gradient = loss.value_and_gradient()
    assert value == loss.value()
    assert torch.equal(gradient, loss.gradient())
    assert gradient.dtype == torch.float32
    assert (loss.num_gradients, loss.num_values) == (2, 1)


@pytest.mark.parametrize("memory", [ALL, 3000, NONE])
def test_slope_is_value_and_gradient_and_spares_the_first_product_a_pass(memory):
    problem, calls = SmallNetwork(), []
    plain = problem.loss(8)
    counted = [lambda f=f: calls.append(1) or f() for f in plain.losses]
    loss = MeanLoss(plain.params, counted, plain.weights, graph_memory_bytes=memory)
    value, gradient = loss.slope()
    assert value == pytest.approx(plain.value(), rel=1e-14)
    torch.testing.assert_close(gradient, plain.gradient(), rtol=1e-12, atol=1e-15)
    assert (loss.num_gradients, len(calls)) == (1, len(counted))
    v = random_vector(59)
    torch.testing.assert_close(loss(v), plain(v), rtol=1e-12, atol=1e-14)
    assert (len(calls) == len(counted)) == (memory == ALL)
    with torch.no_grad():
        plain.params[0].add_(0.1)
    torch.testing.assert_close(loss.slope()[1], plain.gradient(), rtol=1e-12, atol=1e-15)


def test_memory_decides_which_graphs_are_kept():
    problem = SmallNetwork()
    calls = []

    def build(memory):
        calls.clear()
        inner = problem.loss(10)
        counted = [lambda f=f, i=i: (calls.append(i), f())[1] for i, f in enumerate(inner.losses)]
        loss = MeanLoss(problem.params, counted, inner.weights, graph_memory_bytes=memory)
        for _ in range(3):
            loss(random_vector(59))
        return loss, list(calls)

    loss, order = build(ALL)
    assert order == [0, 1, 2]
    one_graph = loss.kept_bytes // 3
    # Each storage once: less than ten copies of all activations and parameters, more than one.
    assert 10 * 11 * 8 < one_graph < 10 * (10 * 15 + 59) * 8
    assert build(NONE)[1] == [0, 1, 2] * 3
    loss, order = build(int(2.5 * one_graph))
    assert order == [0, 1, 2, 2, 2]
    assert loss.kept_bytes <= 2.5 * one_graph
    loss.release()
    assert loss.kept_bytes == 0


def test_kept_graphs_follow_the_weights():
    problem = SmallNetwork()
    loss, v = problem.loss(30), random_vector(59)
    before = loss(v)
    with torch.no_grad():
        for p in problem.params:
            p.mul_(1.5)
    torch.testing.assert_close(loss(v), problem.dense_hessian() @ v, rtol=1e-10, atol=1e-12)
    assert not torch.allclose(loss(v), before)


def test_graphs_are_kept_again_after_the_weights_moved():
    w, calls = leaf([1.0, 2.0]), []
    loss = MeanLoss([w], [lambda: (calls.append(1), (w**3).sum())[1]], [1.0])
    for moves in (1, 2):
        for _ in range(3):
            loss(torch.ones(2, dtype=torch.float64))
        assert len(calls) == moves
        with torch.no_grad():
            w.add_(1.0)


def test_unused_parameter_gets_zeros():
    used, unused = leaf([1.0, 2.0]), leaf([5.0])
    loss = MeanLoss([used, unused], [lambda: (used**3).sum()], [1.0])
    assert loss.gradient().tolist() == [3.0, 12.0, 0.0]
    assert loss(torch.ones(3, dtype=torch.float64)).tolist() == [6.0, 12.0, 0.0]


def test_linear_and_constant_losses_have_no_curvature():
    w = leaf([1.0, 2.0])
    loss = MeanLoss([w], [lambda: 3 * w.sum(), lambda: torch.tensor(7.0)], [0.5, 0.5])
    assert loss.gradient().tolist() == [1.5, 1.5]
    assert loss(torch.ones(2, dtype=torch.float64)).tolist() == [0.0, 0.0]
    assert loss.value() == 8.0


def test_tied_weight():
    w = leaf([1.0])
    loss = MeanLoss([w], [lambda: 0.5 * ((w * w - 1) ** 2).sum()], [1.0])
    assert loss(torch.ones(1, dtype=torch.float64)).item() == pytest.approx(4.0)


def test_leaves_grad_alone_and_works_under_no_grad():
    problem = SmallNetwork()
    marks = [torch.full_like(p, 0.25) for p in problem.params]
    for p, mark in zip(problem.params, marks, strict=True):
        p.grad = mark
    loss = problem.loss(10)
    with torch.no_grad():
        loss.gradient(), loss(random_vector(59)), loss.value()
    assert all(p.grad is mark and bool((mark == 0.25).all()) for p, mark in zip(problem.params, marks, strict=True))


def test_ranks_with_unequal_batches_sum_to_one_process():
    problem = SmallNetwork()
    whole, v = problem.loss(10), random_vector(59)
    shares = [(0, 1), (2,), ()]
    sums, calls = [], []
    for own in shares:
        part = MeanLoss(problem.params, [whole.losses[i] for i in own], [whole.weights[i] for i in own])
        sums.append((part(v), part.gradient(), part.value()))
        counting = MeanLoss(
            problem.params, part.losses, part.weights, all_reduce=lambda t: (calls.append(t.shape), t)[1]
        )
        counting(v), counting.gradient()
    torch.testing.assert_close(sum(s[0] for s in sums), whole(v), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(sum(s[1] for s in sums), whole.gradient(), rtol=1e-12, atol=1e-14)
    assert sum(s[2] for s in sums) == pytest.approx(whole.value(), rel=1e-14)
    # One reduction for each product and each gradient, on every rank, with three words behind the numbers.
    assert calls == [(62,)] * 6


def test_half_precision_weights_get_float32_vectors():
    w = leaf([1.0, 2.0], torch.bfloat16)
    loss = MeanLoss([w], [lambda: (w.float() ** 2).sum()], [1.0])
    product = loss(torch.tensor([1.0, 0.5]))
    assert product.dtype == torch.float32
    assert product.tolist() == [2.0, 1.0]


def test_no_second_derivative_says_what_to_do():
    q = leaf(torch.randn(1, 1, 8, 4, generator=generator()), torch.float32)
    loss = MeanLoss([q], [lambda: nn.functional.scaled_dot_product_attention(q, q, q).square().mean()], [1.0])
    with (
        torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.FLASH_ATTENTION),
        pytest.raises(RuntimeError, match=r"SDPBackend.MATH.*_orig_mod"),
    ):
        loss(torch.ones(32))
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        assert torch.isfinite(loss(torch.ones(32))).all()


def test_other_errors_come_through_unchanged():
    w = leaf([1.0])
    loss = MeanLoss([w], [lambda: w @ torch.ones(2, dtype=torch.float64)], [1.0])
    with pytest.raises(RuntimeError) as caught:
        loss(torch.ones(1, dtype=torch.float64))
    assert "second derivative" not in str(caught.value)


def test_inference_mode_is_refused_with_the_way_out():
    loss = SmallNetwork().loss(30)
    with torch.inference_mode(), pytest.raises(RuntimeError, match="on_train_end"):
        loss.gradient()


def test_arguments_are_checked():
    w = leaf([1.0, 2.0])
    with pytest.raises(ValueError, match="require a gradient, got 0 tensors"):
        MeanLoss([], [], [])
    with pytest.raises(ValueError, match="of which 1 do not"):
        MeanLoss([w.detach()], [], [])
    with pytest.raises(ValueError, match="each tensor once, got 3 of which 1 repeat"):
        MeanLoss([w, leaf([1.0]), w], [], [])
    with pytest.raises(ValueError, match=r"got one of shape \(2,\); pass \[tensor\]"):
        MeanLoss(w, [], [])
    with pytest.raises(ValueError, match="1 losses and 2 weights"):
        MeanLoss([w], [lambda: w.sum()], [0.5, 0.5])
    with pytest.raises(ValueError, match=r"losses\[0\] must return one number, got shape \(2,\)"):
        MeanLoss([w], [lambda: w * 1], [1.0]).value()
    with pytest.raises(ValueError, match=r"shape \(2,\)"):
        MeanLoss([w], [lambda: w.sum()], [1.0]).hvp(torch.ones(3))


def test_flatten_order_is_that_of_the_parameters():
    problem = SmallNetwork()
    loss = problem.loss(30)
    loss.losses[0]().backward()
    torch.testing.assert_close(loss.gradient(), flatten([p.grad for p in problem.params]), rtol=0, atol=0)
