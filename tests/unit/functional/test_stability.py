import math

import pytest
import torch

from lbtrain.functional.lanczos import lanczos
from lbtrain.functional.stability import stability, step_scale
from tests.problems import generator, leaf, matrix_with

VALUES = [3.0, 2.0, 1.0, 0.5, 0.1, 0.0]
A = matrix_with(VALUES)
STILL = 1 - 1e-13  # a second moment that does not move


def measure(optimizer, params, H=A):
    hvp = lambda v: H @ v
    spectrum = lanczos(hvp, len(H), tol=1e-10, generator=generator(), dtype=torch.float64)
    return stability(optimizer, params, hvp, spectrum, tol=1e-10, generator=generator(1))


def second_moment(n=6):
    return torch.linspace(0.2, 3.0, n, dtype=torch.float64) ** 2


def prepare(optimizer, amsgrad=False, centered=False):
    """Give an adaptive optimizer a state whose second moment stays as it is."""
    for group in optimizer.param_groups:
        for p in group["params"]:
            v, zero = second_moment(p.numel()).view_as(p), torch.zeros_like(p)
            if isinstance(optimizer, torch.optim.RMSprop):
                state = {"step": torch.tensor(1.0), "square_avg": v, "momentum_buffer": zero.clone()}
                if centered:
                    state |= {"grad_avg": zero + 0.1}
            else:
                # Bias correction with b2 so near 1: v / (1 - b2^t), kept still by the large t.
                state = {"step": torch.tensor(1e13, dtype=torch.float64), "exp_avg": zero.clone(), "exp_avg_sq": v}
                if amsgrad:
                    state["max_exp_avg_sq"] = 4 * v
            optimizer.state[p] = state


def build(name, options, lr):
    w = leaf(1e-6 * torch.randn(6, generator=generator(2), dtype=torch.float64))
    cls = getattr(torch.optim, name)
    adaptive = {"betas": (options.get("b1", 0.9), STILL)} if name.startswith("Adam") else {}
    adaptive |= {"alpha": STILL} if name == "RMSprop" else {}
    optimizer = cls([w], lr=lr, **adaptive, **{k: v for k, v in options.items() if k != "b1"})
    if name != "SGD":
        prepare(optimizer, options.get("amsgrad", False), options.get("centered", False))
    return w, optimizer


def growth(name, options, lr, steps=600):
    """Run the real optimizer on the quadratic; return how much the weights grew over the second half."""
    w, optimizer = build(name, options, lr)
    sizes = []
    for step in range(steps):
        w.grad = A @ w.detach()
        optimizer.step()
        if step in {steps // 2, steps - 1}:
            sizes.append(float((A @ w.detach()).norm()))
        if not math.isfinite(float(w.detach().norm())) or float(w.detach().norm()) > 1e-1:
            return math.inf
    return sizes[1] / sizes[0] if sizes[0] > 0 else 0.0


OPTIMIZERS = [
    ("SGD", {}),
    ("SGD", {"weight_decay": 0.3}),
    ("SGD", {"dampening": 0.5}),  # without momentum torch does not dampen
    ("SGD", {"momentum": 0.9}),
    ("SGD", {"momentum": 0.9, "dampening": 0.4, "weight_decay": 0.3}),
    ("SGD", {"momentum": 0.9, "nesterov": True}),
    ("SGD", {"momentum": 0.8, "nesterov": True, "weight_decay": 0.1}),
    ("Adam", {}),
    ("Adam", {"b1": 0.5, "weight_decay": 0.3}),
    ("Adam", {"amsgrad": True}),
    ("AdamW", {"weight_decay": 0.0}),
    ("AdamW", {"weight_decay": 0.2}),
    ("AdamW", {"weight_decay": 0.2, "b1": 0.5, "amsgrad": True}),
    ("RMSprop", {}),
    ("RMSprop", {"momentum": 0.9, "weight_decay": 0.3}),
    ("RMSprop", {"centered": True}),
    ("RMSprop", {"centered": True, "momentum": 0.8, "weight_decay": 0.3}),
]


def edge(name, options):
    """Return the rate at which the value is 1; the decay of AdamW makes it a fixed point and not a ratio."""
    lr = 0.01
    for _ in range(60):
        w, optimizer = build(name, options, lr)
        value = measure(optimizer, [w]).value
        lr /= value
        if abs(value - 1) < 1e-9:
            return lr
    raise AssertionError(f"no edge found, the value is {value} at {lr}")


@pytest.mark.parametrize(("name", "options"), OPTIMIZERS, ids=lambda x: str(x))
def test_the_real_optimizer_decays_below_the_edge_and_diverges_above(name, options):
    lr = edge(name, options)
    assert growth(name, options, 0.98 * lr) < 1
    assert growth(name, options, 1.02 * lr) > 1


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, 0.1 * 3 / 2),
        ({"momentum": 0.9}, 0.1 * 3 / 3.8),
        ({"momentum": 0.9, "nesterov": True}, 0.1 * 3 * 2.8 / 3.8),
        ({"weight_decay": 1.0}, 0.1 * 4 / 2),
    ],
)
def test_sgd_needs_no_further_products(options, expected):
    w = leaf(torch.ones(6))
    found = measure(torch.optim.SGD([w], lr=0.1, **options), [w])
    assert found.value == pytest.approx(expected, rel=1e-9)
    assert found.num_matvecs == 0
    assert "SGD" in found.law


@pytest.mark.parametrize(
    ("options", "threshold"),
    [
        ({}, 2 / 0.1),
        ({"momentum": 0.9}, 3.8 / 0.1),
        ({"momentum": 0.9, "nesterov": True}, 3.8 / 2.8 / 0.1),
        ({"momentum": 0.9, "dampening": 0.5, "weight_decay": 4.0}, 3.8 / 0.05 - 4),
    ],
)
def test_the_threshold_of_sgd_is_the_curvature_at_which_the_value_is_one(options, threshold):
    w = leaf(torch.ones(6))
    optimizer = torch.optim.SGD([w], lr=0.1, **options)
    found = measure(optimizer, [w])
    assert found.threshold == pytest.approx(threshold, rel=1e-12)
    at_edge = measure(optimizer, [w], H=A * (threshold / 3))
    assert at_edge.value == pytest.approx(1.0, rel=1e-9)
    assert math.isnan(found.preconditioned)
    assert math.isnan(found.preconditioned_threshold)
    assert measure(torch.optim.SGD([w], lr=0.0), [w]).threshold == math.inf


@pytest.mark.parametrize(
    ("name", "options", "threshold"),
    [
        ("Adam", {}, 3.8 / (0.1 * 0.01)),
        ("Adam", {"b1": 0.5, "weight_decay": 0.3}, 3.0 / (0.5 * 0.01)),
        ("AdamW", {"weight_decay": 2.0}, (2 - 0.02) * 1.9 / (0.1 * 0.01)),
        ("RMSprop", {"momentum": 0.8}, 3.6 / 0.01),
    ],
)
def test_the_preconditioned_curvature_has_a_threshold_of_its_own(name, options, threshold):
    w, optimizer = build(name, options, 0.01)
    found = measure(optimizer, [w])
    correction = 1 - STILL**1e13 if name.startswith("Adam") else 1.0
    P = (second_moment() / correction).sqrt() + 1e-8
    decay = options.get("weight_decay", 0.0) if name == "Adam" else 0.0
    dense = float(torch.linalg.eigvals((A + decay * torch.eye(6)) / P[:, None]).real.max())
    assert found.preconditioned == pytest.approx(dense, rel=1e-6)
    assert found.preconditioned_threshold == pytest.approx(threshold, rel=1e-12)
    assert found.value == pytest.approx(dense / threshold, rel=1e-6)
    assert math.isnan(found.threshold)


def test_groups_with_edges_of_their_own_have_no_one_threshold():
    u, w = leaf(torch.ones(3)), leaf(torch.ones(3))
    groups = [{"params": [u], "lr": 0.1}, {"params": [w], "lr": 0.4}]
    for cls in (torch.optim.SGD, torch.optim.Adam):
        optimizer = cls(groups, lr=1.0)
        u.grad, w.grad = torch.ones_like(u), torch.ones_like(w)
        optimizer.step()
        found = measure(optimizer, [u, w])
        assert found.value > 0
        assert all(math.isnan(x) for x in (found.threshold, found.preconditioned, found.preconditioned_threshold))


def test_groups_with_rates_of_their_own_match_the_dense_answer():
    u, w, frozen = leaf(torch.ones(2)), leaf(torch.ones(3)), leaf(torch.ones(1))
    groups = [{"params": [u], "lr": 0.1, "momentum": 0.9}, {"params": [w], "lr": 0.4, "weight_decay": 0.7}]
    found = measure(torch.optim.SGD(groups, lr=1.0), [u, w, frozen])
    s = torch.tensor([0.1 / 3.8] * 2 + [0.2] * 3 + [0.0], dtype=torch.float64)
    decay = torch.diag(torch.tensor([0.0] * 2 + [0.7] * 3 + [0.0], dtype=torch.float64))
    dense = torch.linalg.eigvalsh(s.sqrt()[:, None] * (A + decay) * s.sqrt())[-1]
    assert found.value == pytest.approx(float(dense), rel=1e-8)
    assert 0 < found.num_matvecs <= 7


def test_adam_after_real_steps_matches_the_dense_answer():
    w = leaf(torch.linspace(-1, 1, 6))
    optimizer = torch.optim.Adam([w], lr=1e-2)
    for _ in range(5):
        w.grad = A @ w.detach()
        optimizer.step()
    state = optimizer.state[w]
    P = (1 - 0.9**5) * ((state["exp_avg_sq"] / (1 - 0.999**5)).sqrt() + 1e-8)
    dense = torch.linalg.eigvals(A / P[:, None]).real.max() * 1e-2 * 0.1 / 3.8
    found = measure(optimizer, [w])
    assert found.value == pytest.approx(float(dense), rel=1e-8)
    assert found.residual < 1e-8


def test_a_parameter_without_gradient_does_not_move_under_adam():
    u, w = leaf(torch.ones(3)), leaf(torch.ones(3))
    optimizer = torch.optim.Adam([u, w], lr=1e-2)
    u.grad = torch.ones(3, dtype=torch.float64)
    optimizer.step()
    scale, decay, _ = step_scale(optimizer, [u, w])
    assert (scale[:3] > 0).all()
    assert scale[3:].tolist() == [0.0] * 3
    assert decay == 0.0


class Renamed(torch.optim.SGD):
    pass


class Stepping(torch.optim.SGD):
    def step(self, closure=None):
        return None


def test_what_has_no_law_is_nan_and_says_why():
    w, other = leaf(torch.ones(6)), leaf(torch.ones(6))
    cases = [
        (torch.optim.Adam([w]), "no optimizer step yet"),
        (torch.optim.Adagrad([w]), "no law for Adagrad"),
        (Stepping([w], lr=0.1), "no law for Stepping"),
        (torch.optim.SGD([w], lr=0.1, maximize=True), "maximize"),
        (torch.optim.SGD([other], lr=0.1), "no measured parameter"),
    ]
    for optimizer, reason in cases:
        found = measure(optimizer, [w])
        assert math.isnan(found.value)
        assert math.isnan(found.residual)
        assert reason in found.law


def test_a_subclass_with_the_same_step_and_a_scheduler_count():
    w = leaf(torch.ones(6))
    optimizer = Renamed([w], lr=0.1)
    torch.optim.lr_scheduler.StepLR(optimizer, 1)  # wraps the step of this one object
    assert measure(optimizer, [w]).value == pytest.approx(0.15, rel=1e-9)
