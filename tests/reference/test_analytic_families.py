"""Families of losses with known curvature, each from a loss on samples in uneven batches to the reported number.

In float64. Here every family goes the whole way, from loss and batches by operator and method to a number. What one
link of it must do alone is proven elsewhere, and not again here:

 1. linear regression: also test_lanczos.py, on the spectrum alone
 2. softmax and logistic regression: also test_measuring.py, on a Trainer
 3. quadratics with a chosen spectrum, trace and Frobenius norm: here
 4. a saddle of plus and minus one: here
 5. deep linear chains: here
 6. tied, frozen and unused weights: here
 7. rescaled ReLU layers: also test_adaptive_sharpness.py, test_average_sharpness.py, test_relative_flatness.py
 8. sharpness of linear losses and of quadratics: also test_sharpness.py and its neighbours, with their edge cases
 9. traces: here; the variance formulas over seeds are in test_trace.py
10. quadrature of the spectrum: here; its moments, its mass and its width are in test_density.py
11. gradient noise of known covariance: test_noise.py
12. the preconditioner of Adam: here; every threshold, just below and just above, by running the optimizer on a
    quadratic: test_stability.py
13. no trace left: test_traceless.py and test_measuring.py; equal to one process: tests/distributed; finite differences
    within their reported error: here, and in test_finite_differences.py on all kinds of losses
14. the generalized Gauss-Newton matrix: here
"""

import math

import pytest
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, mse_loss, softmax

from lbtrain.curvature import critical_point, density, lanczos, sharpness, stability, trace
from lbtrain.functional.weight_scale import weight_scale
from tests.families import SIZES, dense, ends, normal, of_network, operator, quadratic, regression, size
from tests.problems import LinearRegression, SmallNetwork, SoftmaxRegression, descending, generator, leaf, matrix_with
from tests.relu_network import ReluNetwork

VALUES = [5.0, 3.0, 3.0, 1.0, 0.2, 0.0, -0.5, -2.0]
ENGINES = pytest.mark.parametrize("engine", ["autograd", "differences"])


def probes(routine, matrix, **options):
    return routine(matrix, matrix.dim, generator=generator(), dtype=matrix.dtype, **options)


# 1. Linear regression: H = 2 / (n c) X'X (x) I_c


@ENGINES
@pytest.mark.parametrize("outputs", [1, 3])
def test_linear_regression_has_each_chosen_eigenvalue_once_per_output(outputs, engine):
    problem = LinearRegression([4.0, 1.0, 1.0, 0.25, 0.0], outputs, samples=30)
    H = regression(problem.X, problem.Y, problem.W, engine=engine)
    gram = problem.X.T @ problem.X / 30
    torch.testing.assert_close(dense(H), 2 / outputs * torch.kron(gram, torch.eye(outputs).double()), rtol=0, atol=1e-9)
    found = ends(H, 5 * outputs, tol=1e-8)
    assert found.eigenvalues == pytest.approx(problem.spectrum, abs=1e-7)
    assert found.lambda_min == pytest.approx(0.0, abs=1e-7)
    assert found.converged


# 2. Softmax regression: H = mean x x' (x) (diag p - p p')


def test_softmax_regression_at_zero_has_classes_minus_one_of_each_eigenvalue():
    problem = SoftmaxRegression(samples=30)
    H = operator(lambda x, y: cross_entropy(x @ problem.W, y), [problem.W], [problem.X, problem.y])
    found = ends(H, 16)
    assert found.eigenvalues == pytest.approx(problem.spectrum[:16], abs=1e-9)
    assert found.lambda_min == pytest.approx(0.0, abs=1e-9)


def test_softmax_regression_anywhere_is_the_covariance_of_the_classes_times_that_of_the_inputs():
    X, y, W = normal(30, 4), torch.randint(0, 3, (30,), generator=generator(1)), leaf(normal(4, 3, seed=2))
    H = operator(lambda x, y: cross_entropy(x @ W, y), [W], [X, y])
    p = softmax(X @ W.detach(), dim=1)
    truth = sum(torch.kron(torch.outer(x, x), q.diag() - torch.outer(q, q)) for x, q in zip(X, p, strict=True)) / 30
    torch.testing.assert_close(dense(H), truth, rtol=0, atol=1e-13)


def test_logistic_regression_at_zero_is_a_quarter_of_the_inputs_covariance():
    X, w = normal(30, 5), leaf(torch.zeros(5))
    y = (normal(30, seed=1) > 0).double()
    H = operator(lambda x, y: binary_cross_entropy_with_logits(x @ w, y), [w], [X, y])
    assert ends(H, 5).eigenvalues == pytest.approx(descending(torch.linalg.eigvalsh(X.T @ X / 120)), rel=1e-9)


# 3. Quadratics


@ENGINES
def test_a_quadratic_has_its_spectrum_trace_and_frobenius_norm_whatever_its_batches_are_alone(engine):
    A, b = matrix_with(VALUES), normal(8, seed=1)
    H = quadratic(A, leaf(normal(8)), b, engine=engine)
    assert all(float((torch.linalg.eigvalsh(block) + 2).abs().max()) > 3 for block in _batch_matrices(H))
    found, exact = ends(H, 4, tol=1e-7), probes(trace, H, num_matvecs=8)
    assert found.eigenvalues == pytest.approx([5.0, 3.0, 3.0, 1.0], abs=1e-6)
    assert found.lambda_min == pytest.approx(-2.0, abs=1e-6)
    assert exact.value == pytest.approx(sum(VALUES), abs=1e-6)
    assert exact.frobenius_squared == pytest.approx(sum(x * x for x in VALUES), abs=1e-5)


def _batch_matrices(H):
    """Return the matrices of the single batches, as 8 products give them."""
    unit = torch.eye(8, dtype=torch.float64)
    along = lambda v: H.curvatures(v)
    diagonal = torch.stack([along(e) for e in unit])
    found = diagonal.new_zeros(diagonal.shape[1], 8, 8)
    for i in range(8):
        for j in range(i):
            mixed = (along(unit[i] + unit[j]) - diagonal[i] - diagonal[j]) / 2
            found[:, i, j] = found[:, j, i] = mixed
        found[:, i, i] = diagonal[i]
    return found


@pytest.mark.parametrize("method", ["hutchinson", "hutch++", "xtrace"])
def test_the_trace_of_an_indefinite_quadratic_lies_within_four_standard_errors(method):
    values = torch.linspace(-1.0, 2.0, 70).tolist()
    H = quadratic(matrix_with(values), leaf(normal(70)))
    found = probes(trace, H, method=method, num_matvecs=60)
    assert abs(found.value - sum(values)) <= 4 * found.stderr
    assert abs(found.frobenius_squared - sum(x * x for x in values)) <= 4 * found.frobenius_squared_stderr
    assert found.num_matvecs == H.num_matvecs == 60


def test_one_run_has_both_ends_the_trace_the_norm_and_a_quadrature():
    values = [6.0, 5.0, *torch.linspace(-0.5, 1.0, 68).tolist(), -3.0]
    A = matrix_with(values)
    H = quadratic(A, leaf(normal(71)))
    found = ends(H, 2, tol=1e-4, trace_probes=20, keep_vectors=True)
    assert found.eigenvalues == pytest.approx((6.0, 5.0), abs=1e-3)
    assert found.lambda_min == pytest.approx(-3.0, abs=1e-3)
    assert abs(float(found.min_vector @ A @ found.min_vector) + 3.0) < 1e-3
    assert abs(found.trace.value - sum(values)) <= 4 * found.trace.stderr
    assert abs(found.trace.frobenius_squared - sum(x * x for x in values)) <= 4 * found.trace.frobenius_squared_stderr
    assert found.trace.stderr < 0.1 * sum(values)
    assert float(found.density.weights.sum()) == pytest.approx(1.0, abs=1e-12)
    assert (found.density.lambda_max, found.density.lambda_min) == pytest.approx((6.0, -3.0), abs=1e-3)
    assert found.num_matvecs == H.num_matvecs
    assert found.trace.num_matvecs == 20


# 4. A saddle: f = (w1 w2 - 1)^2 / 2 at zero


def _saddle():
    w = leaf([0.0, 0.0])
    # (w1 w2 x - 1)^2 / 2 of samples x whose mean is 1; the rest of it is flat at zero.
    X = 1 + normal(30) - normal(30).mean()
    return operator(lambda x: 0.5 * ((w[0] * w[1] * x - 1) ** 2).mean(), [w], [X])


def test_a_saddle_of_plus_and_minus_one_is_exact_after_two_products():
    H = _saddle()
    found = ends(H, keep_vectors=True)
    assert (found.lambda_max, found.lambda_min) == pytest.approx((1.0, -1.0), abs=1e-12)
    assert found.num_matvecs <= 3
    assert found.vectors[:, 0].abs().tolist() == pytest.approx([0.5**0.5] * 2)
    verdict = critical_point(found, size(H.gradient()), H.value(), 0.0)
    assert (verdict.kind, verdict.negative_ratio) == ("saddle", pytest.approx(1.0))


# 5. Deep linear chains: (prod w - y)^2 / 2


@pytest.mark.parametrize("depth", [2, 3, 6])
def test_a_balanced_chain_has_one_eigenvalue_of_depth_times_a_power_of_its_product(depth):
    w, x, y = leaf([3 ** (1 / depth)] * depth), normal(30), 3.0
    x = x / x.square().mean().sqrt()
    H = operator(lambda x: 0.5 * ((w.prod() * x - y * x) ** 2).mean(), [w], [x])
    found = ends(H, 2)
    assert found.eigenvalues == pytest.approx((depth * y ** (2 - 2 / depth), 0.0), abs=1e-9)
    assert found.lambda_min == pytest.approx(0.0, abs=1e-9)


def test_an_unbalanced_chain_has_rank_one_along_the_inverse_weights():
    w, x = leaf([0.5, 2.0, 1.5, 2.0]), normal(30)
    x = x / x.square().mean().sqrt()
    H = operator(lambda x: 0.5 * ((w.prod() * x - 3 * x) ** 2).mean(), [w], [x])
    g = 3 / w.detach()
    torch.testing.assert_close(dense(H), torch.outer(g, g), rtol=0, atol=1e-12)
    found = ends(H, keep_vectors=True)
    assert found.lambda_max == pytest.approx(float(g @ g), rel=1e-12)
    assert abs(float(found.vectors[:, 0] @ g)) == pytest.approx(size(g), rel=1e-9)
    low_rank = probes(trace, H, method="hutch++", num_matvecs=3)
    assert low_rank.value == pytest.approx(float(g @ g), rel=1e-9)


# 6. Tied, frozen and unused weights


@pytest.mark.parametrize(("value", "curvature"), [(1.0, 4.0), (0.0, -2.0), (2.0, 22.0)])
def test_a_tied_weight_counts_once_with_both_of_its_uses(value, curvature):
    net = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)).double()
    net[1].weight = net[0].weight
    nn.init.constant_(net[0].weight, value)
    x = normal(30, 1)
    x = x / x.square().mean().sqrt()
    H = operator(lambda x: 0.5 * ((net(x) - x) ** 2).mean(), list(net.parameters()), [x])
    assert H.dim == 1
    assert ends(H).lambda_max == pytest.approx(curvature, rel=1e-12)  # f = (w w - 1)^2 / 2, f'' = 6 w^2 - 2


@ENGINES
@pytest.mark.parametrize("as_block", [False, True])
def test_frozen_weights_leave_the_principal_block_of_the_others(as_block, engine):
    A = matrix_with(VALUES)
    free, frozen, X = leaf(normal(3)), leaf(normal(5, seed=1)), normal(30, seed=2)
    frozen.requires_grad_(as_block)

    def loss(x):
        w = torch.cat([free, frozen])
        return 0.5 * w @ (A @ w) + (x * w.sum()).mean()

    H = operator(loss, [free, frozen] if as_block else [free], [X], engine=engine)
    H = H.block([free]) if as_block else H
    truth = torch.linalg.eigvalsh(A[:3, :3])
    found = ends(H, 2, tol=1e-7)
    assert H.dim == 3
    assert found.eigenvalues == pytest.approx(descending(truth)[:2], abs=1e-7)
    assert found.lambda_min == pytest.approx(float(truth[0]), abs=1e-7)


@ENGINES
@pytest.mark.parametrize("matrix", ["hessian", "ggn"])
def test_an_unused_weight_has_rows_of_zeros(matrix, engine):
    problem, unused = LinearRegression([4.0, 1.0], outputs=1, samples=30), leaf([7.0, 7.0])
    loss = lambda x, y: mse_loss(x @ problem.W, y)
    H = operator(loss, [unused, problem.W], [problem.X, problem.Y], matrix=matrix, engine=engine)
    M = dense(H)
    assert not bool(M[:2].any())
    assert float(M[:, :2].abs().max()) <= (0.0 if engine == "autograd" else 1e-14)
    assert torch.linalg.eigvalsh(M).tolist() == pytest.approx([0.0, 0.0, 2.0, 8.0], abs=1e-8)


# 7. Rescaled ReLU layers


def test_rescaled_relu_layers_change_the_hessian_and_nothing_that_is_relative():
    def measure(factor):
        net = ReluNetwork(factor)
        loss = lambda x, y: nn.functional.softplus(-y * ((x @ net.W.T).relu() @ net.V.T)).mean()
        H = operator(loss, net.params, [net.x, net.y], (7, 1, 12))
        relative = [
            sharpness.scaled_spectrum(H, tol=1e-10, generator=generator()).lambda_max,
            sharpness.adaptive_sharpness(H, net.params, rho=0.1, generator=generator()).value,
            sharpness.adaptive_average_sharpness(H, net.params, generator=generator()).value,
            *(sharpness.relative_flatness(H, w, num_probes=None, generator=generator()).value for w in net.params),
        ]
        return ends(H).lambda_max, relative

    (plain, before), (rescaled, after) = measure(1.0), measure(4.0)
    assert before == pytest.approx(after, rel=1e-7)
    assert all(value > 1e-3 for value in before)
    assert rescaled > 2 * plain


# 8. Sharpness of losses whose maximum is known


def test_a_linear_loss_rises_by_the_dual_norm_of_its_slope():
    slope, w = normal(7), leaf(normal(7, seed=1))
    L = quadratic(torch.zeros(7, 7, dtype=torch.float64), w, slope, spread=0.0)
    rises = lambda measure, **options: measure(L, [w], generator=generator(), **options).value
    c = w.detach().abs()
    assert rises(sharpness.sam_sharpness, rho=0.3) == pytest.approx(0.3 * size(slope), rel=1e-12)
    one_norm = float(slope.abs().sum())
    assert rises(sharpness.sam_sharpness, rho=0.3, p=math.inf) == pytest.approx(0.3 * one_norm, rel=1e-12)
    assert rises(sharpness.adaptive_sharpness, rho=0.3) == pytest.approx(0.3 * size(c * slope), rel=1e-12)
    assert rises(sharpness.average_sharpness, rho=0.3) == pytest.approx(0.0, abs=1e-12)
    box = float((slope.abs() * 0.01 * (c + 1)).sum())
    assert rises(sharpness.keskar_sharpness, eps=0.01) == pytest.approx(100 * box / (1 + L.value()), rel=1e-10)


@pytest.mark.parametrize("height", [0.0, 2.0])
def test_at_a_quadratic_minimum_sharpness_is_that_of_its_eigenvalues_and_diagonal(height):
    a, center = torch.tensor([4.0, 1.0, 0.5, 0.0], dtype=torch.float64), torch.tensor([0.0, 1.0, -2.0, 3.0]).double()
    w = leaf(center)
    L = quadratic(a.diag(), w, -a * center, height=height + float(a @ center**2) / 2)
    assert L.value() == pytest.approx(height, abs=1e-12)
    sam = sharpness.sam_sharpness(L, [w], rho=0.1, num_steps=40, generator=generator())
    assert sam.value == pytest.approx(0.1**2 * 4.0 / 2, rel=1e-9)
    keskar = sharpness.keskar_sharpness(L, [w], eps=0.01, generator=generator())
    box = 0.01 * (center.abs() + 1)
    assert keskar.value == pytest.approx(50 * float(a @ box**2) / (1 + height), rel=1e-9)
    c = weight_scale([w])
    scaled = sharpness.scaled_spectrum(L, tol=1e-10, generator=generator())
    assert scaled.lambda_max == pytest.approx(float((a * c * c).max()), rel=1e-9)
    for scale, truth in ((None, float(a.sum())), (c, float(a @ c**2))):
        mean = sharpness.average_sharpness(L, [w], rho=0.1, scale=scale, num_pairs=200, generator=generator())
        assert abs(mean.value - 0.1**2 / 2 * truth) <= 4 * mean.stderr
        assert mean.stderr < 0.1 * mean.value


# 9. Traces


def test_one_random_sign_vector_is_exact_for_a_diagonal_hessian():
    # The batches are not diagonal, only their mean is.
    a = normal(12)
    H = quadratic(a.diag(), leaf(normal(12, seed=1)))
    half = dense(H.halves()[0])
    assert float((half - half.diag().diag()).abs().max()) > 0.1
    assert probes(trace, H, num_matvecs=1).value == pytest.approx(float(a.sum()), rel=1e-10)


@pytest.mark.parametrize(("method", "num_matvecs"), [("hutch++", 12), ("xtrace", 10)])
def test_fewer_samples_than_weights_make_a_low_rank_whose_trace_a_sketch_holds(method, num_matvecs):
    X, W = normal(4, 40), leaf(normal(40, 1, seed=1))
    H = regression(X, normal(4, 1, seed=2), W, sizes=(1, 3))
    found = probes(trace, H, method=method, num_matvecs=num_matvecs)
    assert found.value == pytest.approx(2 * float(X.square().sum()) / 4, rel=1e-9)
    assert found.stderr <= 1e-9 * found.value


# 10. Quadrature of the spectrum


def test_few_distinct_eigenvalues_are_the_nodes_and_their_shares_the_weights():
    distinct, counts = [2.0, 0.5, -1.0], [2, 20, 8]
    H = quadratic(matrix_with([x for x, c in zip(distinct, counts, strict=True) for _ in range(c)]), leaf(normal(30)))
    found = probes(density, H, num_probes=50, num_steps=20)
    assert found.num_matvecs == 150  # three steps each, then the run is over
    assert found.nodes.sort().values.tolist() == pytest.approx(sorted(distinct * 50), abs=1e-9)
    for value, count in zip(distinct, counts, strict=True):
        estimate, stderr = found.trace_of(lambda t, value=value: ((t - value).abs() < 1e-6).double())
        assert abs(estimate - count) <= 4 * stderr
        assert stderr < 0.1 * 30


def test_random_inputs_have_the_edges_and_the_moments_of_marchenko_and_pastur():
    n, d = 480, 120
    X = normal(n, d)
    H = regression(X, normal(n, 1, seed=1), leaf(torch.zeros(d, 1)), sizes=(200, 30, 250), graph_memory_bytes=2**24)
    found = probes(density, H, num_probes=4, num_steps=30)
    ratio = d / n
    low, high = (2 * (1 + sign * ratio**0.5) ** 2 for sign in (-1, 1))  # 2 X'X / n
    # The extreme eigenvalues scatter about the edges by n^(-2/3) (Johnstone 2001), here 0.016 of the scale of one.
    assert (found.lambda_min, found.lambda_max) == pytest.approx((low, high), abs=0.15)
    truth = torch.linalg.eigvalsh(2 * X.T @ X / n)
    assert found.lambda_max == pytest.approx(float(truth[-1]), abs=found.lambda_max_residual + 1e-9)
    assert found.lambda_min >= float(truth[0]) - 1e-9
    assert abs(found.trace - float(truth.sum())) <= 4 * found.trace_stderr
    assert float(truth.square().mean()) == pytest.approx(4 * (1 + ratio), rel=0.05)
    assert abs(found.frobenius_squared - float(truth.square().sum())) <= 4 * found.frobenius_squared_stderr
    half, error = found.trace_of(lambda t: (t < 2.0).double())
    assert abs(half - float((truth < 2.0).sum())) <= 4 * error + 1.0  # a step is no polynomial: one node's worth


@pytest.mark.parametrize("factor", [1e-4, 1e3])
def test_a_loss_on_another_scale_has_the_same_density_on_another_scale(factor):
    problem = SmallNetwork()
    plain, scaled = (probes(density, of_network(problem, factor=f), num_probes=2, num_steps=12) for f in (1.0, factor))
    assert scaled.nodes.tolist() == pytest.approx((factor * plain.nodes).tolist(), rel=1e-8, abs=1e-10 * factor)
    assert scaled.sigma == pytest.approx(factor * plain.sigma, rel=1e-9)
    torch.testing.assert_close(factor * scaled.density, plain.density, rtol=1e-6, atol=1e-6)
    assert float(torch.trapezoid(scaled.density, scaled.grid)) == pytest.approx(1.0, abs=1e-7)


# 12. The preconditioner of Adam


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_adam_after_real_steps_is_measured_by_the_eigenvalues_of_the_preconditioned_matrix(decay):
    A, w = matrix_with(VALUES), leaf(normal(8))
    H = quadratic(A, w, normal(8, seed=1))
    optimizer = torch.optim.Adam([w], lr=0.02, betas=(0.8, 0.95), eps=1e-6, weight_decay=decay)
    for _ in range(7):
        w.grad = H.gradient()
        optimizer.step()
    v = optimizer.state[w]["exp_avg_sq"]
    P = (1 - 0.8**7) * ((v / (1 - 0.95**7)).sqrt() + 1e-6)
    I = torch.eye(8, dtype=torch.float64)  # noqa: E741
    truth = float(torch.linalg.eigvals(torch.diag(1 / P) @ (A + decay * I)).real.max())
    edge = (2 + 2 * 0.8) / ((1 - 0.8) * 0.02)
    found = stability(optimizer, [w], H, ends(H), tol=1e-9, generator=generator())
    assert found.value == pytest.approx(truth / edge, rel=1e-7)
    assert found.preconditioned == pytest.approx(truth, rel=1e-7)
    assert found.preconditioned_threshold == pytest.approx(edge, rel=1e-12)


@pytest.mark.parametrize(
    ("options", "edge"),
    [
        ({}, 2 / 0.1),
        ({"momentum": 0.9}, 3.8 / 0.1),
        ({"momentum": 0.9, "dampening": 0.5}, 3.8 / 0.05),
        ({"momentum": 0.9, "nesterov": True}, 3.8 / (2.8 * 0.1)),
        ({"weight_decay": 1.5}, 2 / 0.1 - 1.5),
    ],
)
def test_sgd_is_at_the_edge_where_the_largest_eigenvalue_is_that_of_the_formula(options, edge):
    w = leaf(normal(8))
    H = quadratic(matrix_with([edge, *VALUES[:7]]), w)
    found = stability(torch.optim.SGD([w], lr=0.1, **options), [w], H, ends(H), generator=generator())
    assert found.value == pytest.approx(1.0, rel=1e-9)
    assert found.threshold == pytest.approx(edge, rel=1e-12)
    assert found.num_matvecs == 0


# 13. Two engines, one matrix


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_differences_agree_with_double_backward_within_the_error_that_they_report(dtype):
    problem = SmallNetwork(dtype)
    exact, near = of_network(problem), of_network(problem, engine="differences")
    assert (exact.engine, exact.error) == ("autograd", 0.0)
    v = near.gradient()  # the direction that the error is reported for
    off = size(near @ v - exact @ v)
    assert near.engine == "differences"
    assert 0 < off <= near.error * size(exact @ v)
    assert near.error < (1e-3 if dtype == torch.float32 else 1e-7)
    tol = 1e-3 if dtype == torch.float32 else 1e-6
    a, b = (lanczos(H, H.dim, top_k=3, tol=tol, generator=generator(), dtype=dtype) for H in (exact, near))
    assert a.eigenvalues == pytest.approx(b.eigenvalues, abs=3 * tol * a.lambda_max)
    assert a.lambda_min == pytest.approx(b.lambda_min, abs=3 * tol * a.lambda_max)


# 14. The generalized Gauss-Newton matrix J' H_out J


@pytest.mark.parametrize("loss", ["squares", "softmax"])
def test_of_a_model_that_is_linear_in_its_weights_it_is_the_hessian(loss):
    X, W = normal(30, 4), leaf(normal(4, 3, seed=1))
    if loss == "squares":
        evaluate, target = (lambda x, y: mse_loss(x @ W, y)), normal(30, 3, seed=2)
    else:
        evaluate, target = (lambda x, y: cross_entropy(x @ W, y)), torch.randint(0, 3, (30,), generator=generator(2))
    hessian, ggn = (operator(evaluate, [W], [X, target], matrix=m) for m in ("hessian", "ggn"))
    torch.testing.assert_close(dense(ggn), dense(hessian), rtol=0, atol=1e-12)


def _network_ggn(problem):
    """Return J' H_out J of a small network, ``(59, 59)``, by torch.func."""
    names = [n for n, _ in problem.net.named_parameters()]

    def outputs(*params):
        return torch.func.functional_call(problem.net, dict(zip(names, params, strict=True)), (problem.X,))

    params = tuple(p.detach() for p in problem.params)
    J = torch.cat([j.flatten(2) for j in torch.func.jacrev(outputs, tuple(range(len(params))))(*params)], dim=2)
    p = softmax(outputs(*params), dim=1)
    inner = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    return torch.einsum("sci,scd,sdj->ij", J, inner, J) / len(problem.X)


@ENGINES
def test_of_a_network_it_is_the_jacobians_with_the_outputs_hessian_between(engine):
    problem = SmallNetwork()
    truth = _network_ggn(problem)
    ggn = of_network(problem, matrix="ggn", engine=engine)
    torch.testing.assert_close(dense(ggn), truth, rtol=0, atol=1e-12 if engine == "autograd" else 1e-7)


def test_it_has_no_negative_eigenvalue_where_the_hessian_has_some():
    problem = SmallNetwork()
    hessian, ggn = of_network(problem), of_network(problem, matrix="ggn")
    below, above = ends(hessian), ends(ggn)
    assert below.lambda_min < -1e-3
    assert above.lambda_min >= -1e-12
    assert above.lambda_max == pytest.approx(float(torch.linalg.eigvalsh(_network_ggn(problem))[-1]), rel=1e-9)
    # Both matrices belong to the same loss.
    assert ggn.value() == hessian.value()
    torch.testing.assert_close(ggn.gradient(), hessian.gradient(), rtol=0, atol=0)


def test_the_batches_are_uneven():
    assert sum(SIZES) == 30
    assert min(SIZES) == 1
