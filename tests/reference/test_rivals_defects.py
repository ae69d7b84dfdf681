"""Defects found in other tools, each put as a requirement on lbtrain; where it costs milliseconds, the other is shown.

Tools and places: PyHessian, PyH (`h` hessian.py, `u` utils.py, `d` density_plot.py); hessian-eigenthings 1.0.0a5, EIG
(`lz` lanczos, `pi` power_iteration, `sd` spectral_density, `op` operators/hessian); curvlinops, CVL (`tb` _torch_base,
`er` _empirical_risk, `sp` papyan2020traces/spectrum); Google's spectral-density, GSD (`jl` lanczos, `jd` density);
sharpness-vs-generalization, TML (`s` sharpness.py); edge-of-stability, EOS; HessFormer, loss-landscape, smoothout,
hessian-spectrum. Real processes are in tests/distributed.
"""

import itertools
import math
import warnings

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset

from lbtrain import HessianSpectrum, Sharpness
from lbtrain.curvature import HessianOperator, density, lanczos, loss_along, sharpness, trace
from tests.families import dense, ends, normal, of_network, operator, quadratic, regression, size
from tests.modules import Everything, Plain, digits_like, fit, same
from tests.problems import SmallNetwork, SoftmaxRegression, generator, leaf, matrix_with
from tests.threads import in_threads

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script`:DeprecationWarning")

BULK = torch.linspace(-0.5, 0.9, 90).tolist()


def of(A, top_k=1, seed=0, **options):
    options = {"tol": 1e-10, "dtype": torch.float64, **options}
    return lanczos(lambda v: A.to(v) @ v, len(A), top_k=top_k, generator=generator(seed), **options)


def curve(A, **options):
    return density(lambda v: A @ v, len(A), generator=generator(), dtype=torch.float64, **options)


def rival(name):
    """Return another tool to show; where it is not installed the test is skipped from here on, lbtrain's part done."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # their dependencies warn at import
        return pytest.importorskip(name, exc_type=ImportError)


def eig():
    return rival("hessian_eigenthings")


def theirs(A):
    return eig().LambdaOperator(lambda v: A @ v, size=len(A), dtype=A.dtype)


def their_hessian(module, batches, **options):
    return eig().HessianOperator(module, batches, eig().supervised_loss(nn.CrossEntropyLoss()), **options)


# Eigenvalues


def test_the_largest_eigenvalue_is_the_algebraic_one_beside_a_larger_negative_one():
    # PyH h:93 and EOS take the largest magnitude; COLA's `eigmin` the smallest magnitude.
    A = matrix_with([3.0, 1.0, 0.1, -5.0])
    found = of(A, top_k=2)
    assert found.eigenvalues == pytest.approx((3.0, 1.0), abs=1e-9)
    assert found.lambda_min == pytest.approx(-5.0, abs=1e-9)


def test_close_eigenvalues_are_not_taken_as_converged_because_the_estimate_hardly_changes():
    # PyH h:131 stops when the Rayleigh quotient changes by less than 1e-3, which says nothing of the error.
    A = matrix_with([1.0, 0.98, *BULK])
    v = normal(92)
    v, before = v / size(v), 0.0
    for _ in range(100):
        now = float(v @ A @ v)
        if abs(now - before) / abs(now) < 1e-3:
            break
        v, before = A @ v / size(A @ v), now
    assert abs(now - 1.0) > 0.005
    found = of(A, top_k=2, tol=1e-4)
    assert found.converged
    for value, truth, residual in zip(found.eigenvalues, (1.0, 0.98), found.residuals, strict=True):
        assert abs(value - truth) <= residual + 1e-12
        assert residual <= 2e-4


def test_too_few_products_are_reported_as_not_converged_with_residuals_that_hold():
    # EIG lz:134 spends min(2 k, n - 1) steps whatever comes out; PyH has no residual at all.
    A = matrix_with([1.0, 0.98, *BULK])
    found = of(A, top_k=2, tol=1e-6, max_matvecs=9)
    assert not found.converged
    assert found.num_matvecs == 9
    spectrum = torch.linalg.eigvalsh(A)
    for value, residual in zip(found.eigenvalues, found.residuals, strict=True):
        assert float((spectrum - value).abs().min()) <= residual
    assert found.residuals[0] > 1e-4


def test_the_reported_value_is_the_quotient_of_the_reported_vector_and_the_bound_its_residual():
    # PyH h:131 to 136 returns the quotient of the last vector but one; HessFormer :189 takes beta too early.
    A = matrix_with([2.0, 1.9, *BULK])
    found = of(A, top_k=2, tol=1e-2, keep_vectors=True)
    for x, value, residual in zip(found.vectors.T, found.eigenvalues, found.residuals, strict=True):
        assert size(x) == pytest.approx(1.0, abs=1e-12)
        assert float(x @ A @ x) == pytest.approx(value, rel=1e-12)
        assert size(A @ x - value * x) <= residual * (1 + 1e-6) + 1e-13


def test_a_loss_of_tiny_scale_keeps_orthonormal_vectors_and_all_its_digits():
    # PyH u:57 adds 1e-6 to the norm that it divides by: Lanczos vectors are too short where beta is below 1e-4.
    # hessian-spectrum clamps beta at 1e-8.
    A = matrix_with([2.0, 1.0, *BULK])
    plain, tiny = (of(factor * A, top_k=2, keep_vectors=True) for factor in (1.0, 1e-9))
    assert tiny.eigenvalues == pytest.approx([1e-9 * x for x in plain.eigenvalues], rel=1e-9, abs=0)
    torch.testing.assert_close(tiny.vectors.T @ tiny.vectors, torch.eye(2).double(), rtol=0, atol=1e-10)


def test_the_top_eigenvalue_is_not_short_by_a_momentum():
    # EIG pi:50 takes the quotient after the momentum m was subtracted: lambda - m.
    A = torch.diag(torch.tensor([10.0, 1.0], dtype=torch.float64))
    assert of(A).lambda_max == pytest.approx(10.0, abs=1e-12)
    assert eig().power_iteration_one(theirs(A), momentum=0.5, seed=0)[0] == pytest.approx(9.5, abs=0.1)


def test_one_isolated_eigenvalue_is_reported_once_after_any_number_of_steps():
    # EIG lz:141 leaves reorthogonalization out above 50 steps: ghost copies, all of them `converged`.
    A = matrix_with([10.0, 4.0, 2.0, *BULK])
    found = of(A, top_k=6, tol=1e-12)
    assert found.num_matvecs > 50
    assert found.eigenvalues == pytest.approx((10.0, 4.0, 2.0, *BULK[:-4:-1]), abs=1e-9)
    ghosts = eig().lanczos(theirs(A), k=3, max_iter=80, which="LA", seed=0)
    assert ghosts.eigenvalues[:2].tolist() == pytest.approx([10.0, 10.0])
    assert bool(ghosts.converged[:2].all())


def test_a_repeated_eigenvalue_is_found_as_often_as_it_occurs():
    # EIG, GSD and ARPACK with a small k: one start vector meets each distinct eigenvalue once.
    problem = SoftmaxRegression()
    H = operator(lambda x, y: cross_entropy(x @ problem.W, y), [problem.W], [problem.X, problem.y], (23, 1, 16))
    assert ends(H, 4).eigenvalues == pytest.approx([problem.spectrum[0]] * 4, abs=1e-9)
    single = eig().lanczos(theirs(dense(H)), k=4, max_iter=5, which="LA", seed=0)
    assert single.eigenvalues.tolist() == pytest.approx(problem.spectrum[0:16:4], abs=1e-8)


def test_one_eigenvalue_is_iterated_until_it_has_converged():
    # EIG lz:134: k = 1 means two products.
    A = matrix_with([1.5, *BULK])
    found = of(A, tol=1e-3)
    assert found.converged
    assert found.lambda_max == pytest.approx(1.5, abs=2e-3)
    short = eig().lanczos(theirs(A), k=1, which="LA", seed=0)
    assert (short.iterations, bool(short.converged[0])) == (2, False)
    assert abs(float(short.eigenvalues[0]) - 1.5) > 0.3


def test_a_saddle_of_equal_opposite_curvatures_is_settled():
    # Power iteration (PyH h:93, EIG pi:12) turns for ever in the plane of both vectors.
    A = torch.tensor([[0.0, -1.0], [-1.0, 0.0]], dtype=torch.float64)
    found = of(A)
    assert (found.lambda_max, found.lambda_min) == pytest.approx((1.0, -1.0), abs=1e-12)
    assert found.converged
    value, _, _, _, converged = eig().power_iteration_one(theirs(A), seed=0)
    assert not converged
    assert abs(value) < 0.99


def test_more_digits_than_the_products_have_are_not_chased_and_not_claimed():
    # EOS utilities.py:115 and `eigsh` by default ask float32 products for machine precision in float64.
    A = matrix_with([5.0, 4.9, *BULK])
    found = of(A, top_k=2, tol=1e-13, dtype=torch.float32, max_matvecs=300)
    assert found.num_matvecs <= 93
    assert not found.converged
    assert 1e-13 * 5 < found.residuals[0] < 1e-4
    assert found.lambda_max == pytest.approx(5.0, abs=1e-4)


def test_the_basis_stays_within_the_memory_that_it_is_given():
    # EIG, GSD and HessFormer keep every vector: (m + 1) n numbers, 4.4 GB for 100 steps on a ResNet-18.
    A = matrix_with([2.0, 1.9, 1.8, *BULK])
    plain, bounded = of(A, top_k=3, tol=1e-6), of(A, top_k=3, tol=1e-6, memory_bytes=25 * 93 * 8)
    assert plain.num_matvecs > 25
    assert bounded.num_restarts > 0
    assert bounded.converged
    assert bounded.eigenvalues == pytest.approx((2.0, 1.9, 1.8), abs=1e-5)


def test_nothing_but_the_given_generator_decides_on_the_start():
    # PyH and CVL sp:440 draw from the global stream: the run is disturbed, and another seed there is another answer.
    A, before = matrix_with([1.5, *BULK]), torch.get_rng_state()
    first = of(A, tol=1e-2)
    torch.manual_seed(99)
    second = of(A, tol=1e-2)
    assert first == second
    torch.set_rng_state(before)
    curve(A, num_probes=1, num_steps=5)
    assert torch.equal(torch.get_rng_state(), before)


# Density


def test_the_weights_of_the_density_are_real_and_positive_for_close_eigenvalues():
    # PyH h:243 uses the general solver `eig` on a symmetric matrix: complex weights, vectors that are not orthogonal.
    A = matrix_with([1.0, 1.0 + 1e-10, 1.0 - 1e-9, 0.5, 0.5 + 1e-12, *BULK])
    found = curve(A, num_probes=4, num_steps=60)
    assert not found.weights.is_complex()
    assert not found.nodes.is_complex()
    assert bool((found.weights >= 0).all())
    assert float(found.weights.sum()) == pytest.approx(1.0, abs=1e-12)


def test_a_narrow_spectrum_is_resolved_as_well_as_a_wide_one():
    # PyH d:53 and GSD jd:69: sigma^2 = 1e-5 max(1, range) is never below 3.2e-3.
    A = matrix_with([2e-3] * 20 + [0.0] * 20)
    found = curve(A, num_probes=3, num_steps=20)
    at = lambda t: float(found.density[(found.grid - t).abs().argmin()])
    assert found.sigma < 1e-4 < 3.2e-3
    assert at(1e-3) < 1e-6 * min(at(0.0), at(2e-3))


def test_an_isolated_eigenvalue_is_one_node_per_probe_after_many_steps():
    # CVL sp:416 and hessian-spectrum run Lanczos without reorthogonalization: ghosts, that a density hides.
    A = matrix_with([30.0, *BULK])
    found = curve(A, num_probes=3, num_steps=80)
    assert int((found.nodes > 29.9).sum()) == 3
    fast_lanczos = rival("curvlinops.papyan2020traces.spectrum").fast_lanczos
    with torch.random.fork_rng():
        torch.manual_seed(0)
        values = fast_lanczos(A, 80)[0]
    assert int((values > 29.9).sum()) > 1


def test_the_directions_of_the_density_have_a_part_in_every_eigenvector():
    # EIG sd:84 and CVL draw signs, and (1, 1) or (1, -1) is an eigenvector here: half of the spectrum stays unseen.
    A = torch.tensor([[2.0, 1.0], [1.0, 2.0]], dtype=torch.float64)
    assert curve(A, num_probes=1, num_steps=2).nodes.tolist() == pytest.approx([1.0, 3.0], abs=1e-12)
    unseen = eig().spectral_density(theirs(A), num_runs=1, lanczos_steps=2, num_grid_points=10, seed=0)
    assert len(unseen.raw_eigenvalues[0][unseen.raw_weights[0] > 1e-12]) == 1


def test_a_density_has_both_ends_and_the_trace_for_its_own_products_alone():
    # CVL sp:501 solves for both boundaries with `eigsh` before its quadrature starts.
    problem = SmallNetwork()
    H = of_network(problem)
    truth = torch.linalg.eigvalsh(problem.dense_hessian())
    found = density(H, H.dim, num_probes=2, num_steps=25, generator=generator(), dtype=H.dtype)
    assert found.num_matvecs == H.num_matvecs == 50
    assert found.lambda_max == pytest.approx(float(truth[-1]), abs=found.lambda_max_residual + 1e-9)
    assert found.lambda_min == pytest.approx(float(truth[0]), abs=found.lambda_min_residual + 1e-9)
    assert abs(found.trace - float(truth.sum())) <= 20 * found.trace_stderr  # of two probes


# Traces


def test_a_negative_trace_takes_all_its_products():
    # PyH 0.1 hessian.py:186 divides by the signed trace: below zero it stops after two probes.
    values = torch.linspace(-3.0, 0.5, 60).tolist()
    H = quadratic(matrix_with(values), leaf(normal(60)))
    found = trace(H, H.dim, num_matvecs=40, generator=generator(), dtype=H.dtype)
    assert found.num_matvecs == H.num_matvecs == 40
    assert abs(found.value - sum(values)) <= 4 * found.stderr


# Products


def test_a_short_last_batch_counts_by_its_size():
    # EIG op:111 to 120 averages batches: the single sample of the last one weighs like the 29 others.
    problem = SmallNetwork()
    cut = list(zip(problem.X.split(29), problem.y.split(29), strict=True))
    v, truth = normal(59), problem.dense_hessian()
    H = HessianOperator(lambda batch: cross_entropy(problem.net(batch[0]), batch[1]), problem.params, cut)
    assert size(H @ v - truth @ v) < 1e-12 * size(truth @ v)
    assert size(their_hessian(problem.net, cut) @ v - truth @ v) > 0.1 * size(truth @ v)


@pytest.mark.parametrize("sizes", [(30,), (15, 15), (3,) * 10])
def test_the_number_of_batches_does_not_scale_the_eigenvalues(sizes):
    # loss-landscape hess_vec_prod.py:70 sums the mean losses of batches.
    problem = SmallNetwork()
    top = float(torch.linalg.eigvalsh(problem.dense_hessian())[-1])
    assert ends(of_network(problem, sizes), tol=1e-8).lambda_max == pytest.approx(top, rel=1e-8)


def test_a_summed_loss_is_measured_per_sample():
    # None of the tools asks how the loss reduces its batch: with a sum the eigenvalues are those of so many samples.
    problem = SmallNetwork()
    summed = operator(
        lambda x, y: cross_entropy(problem.net(x), y, reduction="sum"),
        problem.params,
        [problem.X, problem.y],
        reduction="sum",
    )
    torch.testing.assert_close(dense(summed), problem.dense_hessian(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("engine", ["autograd", "differences"])
def test_the_hessian_is_taken_at_the_weights_and_not_at_the_vector(engine):
    # HessFormer :95 to 97 evaluates the loss at the point `v`, and of logits.mean() at that.
    w = leaf(normal(8))
    H = operator(lambda x: (w**3).sum() / 6 + 0 * x.sum(), [w], [normal(30)], engine=engine)
    v = normal(8, seed=1)
    torch.testing.assert_close(H @ v, w.detach() * v, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(H @ (-3 * v), -3 * w.detach() * v, rtol=1e-7, atol=1e-9)


def test_a_difference_moves_the_weights_equally_far_for_every_length_of_the_vector():
    # EIG op:143 moves by eps v: a long vector, such as random signs, leaves the quadratic region.
    problem = SmallNetwork()
    v = 1e6 * normal(59)
    exact, near = of_network(problem) @ v, of_network(problem, engine="differences") @ v
    assert size(near - exact) < 1e-6 * size(exact)
    wrong = their_hessian(problem.net, [(problem.X, problem.y)], method="finite_difference") @ v
    assert size(wrong - exact) > 0.1 * size(exact)


def test_a_difference_in_half_precision_is_not_lost_in_the_rounding_of_the_weights():
    # EIG op:143 steps 0.2 in bfloat16: of weights of 3, in 4000 dimensions, none changes.
    net = nn.Linear(4000, 1, bias=False, dtype=torch.bfloat16)
    nn.init.constant_(net.weight, 3.0)
    target = torch.zeros(1, dtype=torch.bfloat16)
    loss = lambda model, batch: ((model.weight.float() - batch.float()) ** 2).sum()
    v = normal(4000).sign().float()
    H = HessianOperator(lambda batch: loss(net, batch), [net.weight], [target], engine="differences")
    assert size(H @ v - 2 * v) <= 0.1 * size(2 * v)
    assert size(H @ torch.ones(4000) - 2) <= H.error * size(torch.full((4000,), 2.0))  # along the gradient
    flat = eig().HessianOperator(net, [target], loss, method="finite_difference") @ (v / size(v)).bfloat16()
    assert not bool(flat.any())


def test_building_the_operator_costs_nothing():
    # CVL er:179 and tb:904 make a data pass, two gradients and two products before the first product is asked for.
    problem, calls = SmallNetwork(), []

    def loss(x, y):
        calls.append(len(x))
        return cross_entropy(problem.net(x), y)

    H = operator(loss, problem.params, [problem.X, problem.y])
    assert not calls
    assert H.num_matvecs == H.num_gradients == H.num_values == 0
    spent = []
    count = problem.net.register_forward_hook(lambda *_: spent.append(1))
    data = [(problem.X, problem.y)]
    rival("curvlinops").HessianLinearOperator(problem.net, nn.CrossEntropyLoss(), problem.params, data)
    count.remove()
    assert len(spent) >= 4


def test_ranks_with_different_numbers_of_batches_measure_what_one_process_does():
    # EIG ddp:63 reduces once per batch and parameter: ranks with fewer batches leave the others waiting for ever.
    alone = of_network(SmallNetwork(), (5, 10, 5, 10))
    truth = ends(alone, 2, tol=1e-6)
    networks = [SmallNetwork() for _ in range(3)]  # built here, since all threads draw from one stream

    def work(rank, group):
        problem, own = networks[rank], [(0, 5, 15, 20), (20, 30), ()][rank]
        batches = [(problem.X[a:b], problem.y[a:b]) for a, b in itertools.pairwise(own)]
        H = HessianOperator(
            lambda batch: cross_entropy(problem.net(batch[0]), batch[1]),
            problem.params,
            batches,
            all_reduce=group.all_reduce(rank),
            gather=group.gather(rank),
        )
        before = group.num_sums
        found = ends(H, 2, tol=1e-6)
        return found, H.num_matvecs, group.num_sums - before

    ranks = in_threads(3, work)
    for found, num_matvecs, _ in ranks:
        assert found.eigenvalues == pytest.approx(truth.eigenvalues, rel=1e-9)
        assert found.lambda_min == pytest.approx(truth.lambda_min, rel=1e-9)
        assert num_matvecs == found.num_matvecs == truth.num_matvecs
    assert ranks[0][2] == ranks[0][1]  # one sum for each product


# Modules


def test_a_parameter_that_the_loss_does_not_use_has_zeros():
    # PyH u:71 and EIG op:139 (no allow_unused) raise.
    problem = SmallNetwork()
    problem.net.register_parameter("unused", nn.Parameter(torch.ones(3, dtype=torch.float64)))
    params = list(problem.net.parameters())
    H = operator(lambda x, y: cross_entropy(problem.net(x), y), params, [problem.X, problem.y])
    assert int((H @ normal(62) == 0).sum()) == 3
    assert sharpness.sam_sharpness(H, params, generator=generator()).value > 0
    theirs = their_hessian(problem.net, [(problem.X, problem.y)])
    with pytest.raises(RuntimeError, match="not have been used"):
        _ = theirs @ normal(62)


def test_frozen_weights_stay_and_the_others_are_measured():
    # TML s:96 reads `.grad` of every parameter, which is None for a frozen one.
    problem = SmallNetwork()
    problem.net[0].requires_grad_(False)
    free, before = list(problem.net[2:].parameters()), problem.net[0].weight.clone()
    H = operator(lambda x, y: cross_entropy(problem.net(x), y), free, [problem.X, problem.y])
    top = float(torch.linalg.eigvalsh(problem.dense_hessian()[30:, 30:])[-1])
    assert ends(H, tol=1e-8).lambda_max == pytest.approx(top, rel=1e-8)
    assert sharpness.adaptive_sharpness(H, free, generator=generator()).value > 0
    assert torch.equal(problem.net[0].weight, before)


@pytest.mark.parametrize("engine", ["autograd", "differences"])
def test_a_measurement_leaves_gradients_weights_and_modes_alone(engine):
    # PyH h:56 fills `.grad`, and h:31 calls eval() for good; EIG op:143 and TML s:164 write the weights.
    problem = SmallNetwork()
    problem.net.train()
    problem.params[0].grad = kept = torch.full_like(problem.params[0], 7.0)
    before, stream = [p.detach().clone() for p in problem.params], torch.get_rng_state()
    H = of_network(problem, engine=engine)
    ends(H, tol=1e-4)
    trace(H, H.dim, num_matvecs=3, generator=generator(), dtype=H.dtype)
    density(H, H.dim, num_probes=1, num_steps=3, generator=generator(), dtype=H.dtype)
    loss_along(H, normal(59), [0.1])
    sharpness.keskar_sharpness(H, problem.params, generator=generator())
    assert problem.net.training
    assert problem.params[0].grad is kept
    assert bool((kept == 7.0).all())
    assert all(p.grad is None for p in problem.params[1:])
    assert all(torch.equal(p, q) for p, q in zip(problem.params, before, strict=True))
    assert all(p.requires_grad for p in problem.params)
    assert torch.equal(torch.get_rng_state(), stream)


def test_products_leave_the_buffers_of_batch_normalization_and_the_mode_alone():
    # In training mode each product of EIG (op:137) moves the running statistics; PyH switches to eval() for good.
    spectrum, states = HessianSpectrum(top_k=1, tol=0.1, max_matvecs=10), []
    for callbacks in ((), (spectrum, Sharpness(["sam"]))):
        torch.manual_seed(0)
        module = Everything()
        fit(module, digits_like(), callbacks)
        states.append(module.state_dict())
    assert spectrum.result.spectrum.num_matvecs > 1
    assert same(*states)
    assert states[0]["net.1.num_batches_tracked"] == 6
    net = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))
    matrix, mean = their_hessian(net, [next(iter(digits_like()))]), net[1].running_mean.clone()
    matrix.matvec(torch.ones(matrix.size))
    assert not torch.equal(net[1].running_mean, mean)


def test_a_dict_batch_needs_no_adapter():
    # PyH h:70 and CVL er:86 want (x, y), or a function that says how large a batch is.
    X, y, W = normal(30, 4), torch.randint(0, 3, (30,), generator=generator(1)), leaf(normal(4, 3, seed=2))
    pairs = zip(X.split(12), y.split(12), strict=True)
    named = [{"inputs": {"x": x}, "labels": labels} for x, labels in pairs]
    by_name = HessianOperator(lambda b: cross_entropy(b["inputs"]["x"] @ W, b["labels"]), [W], named)
    by_place = operator(lambda x, y: cross_entropy(x @ W, y), [W], [X, y])
    v = normal(12, seed=3)
    torch.testing.assert_close(by_name @ v, by_place @ v, rtol=1e-12, atol=1e-14)


class _Noisy(Dataset):
    """Samples that come out different at each reading, as with augmentation."""

    def __len__(self):
        return 24

    def __getitem__(self, i):
        return torch.sin(torch.arange(6.0) * (i + 1)) + torch.randn(6), i % 3


def test_data_that_change_from_reading_to_reading_are_frozen_for_the_measurement():
    # EIG only documents shuffle=False; CVL #75 stops with "deterministic matvec failed".
    spectrum = HessianSpectrum(top_k=2, tol=1e-3)
    fit(Plain(), DataLoader(_Noisy(), batch_size=9, shuffle=True), [spectrum])
    found = spectrum.result.spectrum
    assert found.converged
    assert found.residuals[0] <= 2e-3 * max(abs(found.lambda_max), abs(found.lambda_min))


# Sharpness


def test_keskar_sharpness_of_a_minimum_is_not_zero():
    # smoothout measure_sharpness.py:350 starts its search at the weights, where the gradient vanishes.
    a = torch.tensor([3.0, 1.0, 0.5], dtype=torch.float64)
    w = leaf([0.0, 0.0, 0.0])
    L = quadratic(a.diag(), w, spread=0.0)
    assert not bool(L.gradient().any())  # not even a rounding leads out of the centre
    found = sharpness.keskar_sharpness(L, [w], eps=0.01, generator=generator())
    assert found.value == pytest.approx(50 * float(a.sum()) * 0.01**2, rel=1e-9)


def test_random_starts_are_climbed_from():
    # TML s:188: a trailing comma makes the initializer a tuple, so that random starts raise.
    problem = SmallNetwork()
    L = of_network(problem)
    one, three = (sharpness.keskar_sharpness(L, problem.params, num_starts=n, generator=generator()) for n in (1, 3))
    assert (one.num_starts, three.num_starts) == (1, 3)
    assert three.num_gradients > one.num_gradients
    assert three.value >= one.value > 0


@pytest.mark.parametrize(("measure", "rho"), [(sharpness.sam_sharpness, 1.5), (sharpness.adaptive_sharpness, 5.0)])
def test_the_value_of_an_ascent_is_a_loss_that_was_met_inside_the_ball(measure, rho):
    # TML s:252 and 280: when the step is cut, the weights go back to the best ones, but delta does not.
    problem, met = SmallNetwork(), []
    start = [p.detach().clone() for p in problem.params]
    scale = [torch.ones_like(p) if measure is sharpness.sam_sharpness else p.abs() for p in start]

    def loss(x, y):
        value = cross_entropy(problem.net(x), y)
        moved = [(p.detach() - q) / c for p, q, c in zip(problem.params, start, scale, strict=True)]
        met.append((float(value.detach()), math.sqrt(sum(float(d.square().sum()) for d in moved))))
        return value

    L = operator(loss, problem.params, [problem.X, problem.y], (30,))
    found = measure(L, problem.params, rho=rho, num_steps=15, generator=generator())
    base = met[0][0]
    assert max(length for _, length in met) <= rho * (1 + 1e-9)
    assert found.value == pytest.approx(max(value for value, _ in met) - base, rel=1e-12)
    assert any(after < before for (before, _), (after, _) in itertools.pairwise(met))  # some step was cut
    short = measure(L, problem.params, rho=rho, num_steps=5, generator=generator())
    assert found.value >= short.value > 0


@pytest.mark.parametrize("rho", [1e-2, 1e-6])
def test_a_small_radius_is_used_up_exactly(rho):
    # TML s:132 projects by bisection to an absolute 1e-5: one percent of a radius of 1e-3.
    slope, w = normal(7), leaf(normal(7, seed=1))
    L = quadratic(torch.zeros(7, 7, dtype=torch.float64), w, slope, spread=0.0)
    found = sharpness.adaptive_sharpness(L, [w], rho=rho, generator=generator())
    assert found.value == pytest.approx(rho * size(w.detach() * slope), rel=1e-8)


def test_a_hessian_of_zeros_has_eigenvalues_of_zero_and_the_run_ends():
    # PyH u:57 and EIG lz:76 guard against a zero norm by an absolute number; here all products are exactly zero.
    H = regression(torch.zeros(30, 3, dtype=torch.float64), normal(30, 1), leaf(normal(3, 1)))
    found = ends(H, 3)
    assert found.eigenvalues == (0.0, 0.0, 0.0)
    assert found.converged
    assert trace(H, 3, num_matvecs=1, generator=generator(), dtype=H.dtype).value == 0.0
