"""Sharpness on a Trainer: each measure in closed form, what it leaves alone, and what is refused before training."""

import math
import signal
from functools import partial

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lbtrain import Sharpness
from lbtrain._lightning import MisconfigurationException
from lbtrain.callbacks._sharpness_kinds import KINDS
from tests.modules import Everything, Plain, digits_like, fit, same

ALL = [*KINDS, *(f"m_{name}" for name, kind in KINDS.items() if kind.is_maximum)]
# Few steps, and a subspace that fits into the smallest module.
CHEAP = {"num_steps": 3, "num_pairs": 3, "num_probes": 3, "dim": 2}
CURVATURE = torch.tensor([4.0, 1.0, 0.25], dtype=torch.float64)
START = torch.tensor([0.5, -2.0, 1.0], dtype=torch.float64)


def cheap(name):
    """Return an entry of `measures` that costs little."""
    return {name: {key: value for key, value in CHEAP.items() if key in KINDS[name.removeprefix("m_")].arguments}}


class OfWeight(Plain):
    """A loss of one weight matrix of shape (1, 3), which training does not move."""

    def __init__(self, loss, start=START):
        super().__init__(dtype=torch.float64, lr=0.0)
        self.net, self.loss = nn.Linear(3, 1, bias=False, dtype=torch.float64), loss
        with torch.no_grad():
            self.net.weight.copy_(start[None])

    def training_step(self, batch, batch_idx):
        return self.loss(self.net.weight[0], batch[0]).mean()


def bowl(w, x):
    return 0.5 * (CURVATURE * (w - x) ** 2).sum(1)


def measured(module, data, measures, batch_size=2, **options):
    """Return the result of measuring a module on rows of data, and the metrics."""
    sharpness = Sharpness(measures, **options)
    loader = DataLoader(TensorDataset(data), batch_size=batch_size)
    return sharpness.result, fit(module, loader, [sharpness]).callback_metrics, sharpness


AT_MINIMUM = {
    "keskar": ({"eps": 2e-3}, 50 * (CURVATURE * (2e-3 * (START.abs() + 1)) ** 2).sum()),
    "sam": ({"rho": 0.1, "num_steps": 40}, 0.1**2 * 4 / 2),
    "sam_inf": ({"rho": 0.1}, 0.1**2 / 2 * CURVATURE.sum()),
    "adaptive": ({"rho": 0.3, "num_steps": 40}, 0.3**2 / 2 * (CURVATURE * START**2).max()),
    "adaptive_inf": ({"rho": 0.2}, 0.2**2 / 2 * (CURVATURE * START**2).sum()),
    "adaptive_kwon": ({"rho": 0.3, "eta": 0.5}, 0.3**2 / 2 * (CURVATURE * (START.abs() + 0.5) ** 2).max()),
    "scaled_hessian": ({"tol": 1e-8}, (CURVATURE * START**2).max()),
    "relative_flatness": ({}, (START**2).sum() * CURVATURE.sum()),
}


@pytest.mark.parametrize("name", AT_MINIMUM)
def test_at_the_minimum_of_a_quadratic_each_measure_is_its_closed_form(name):
    arguments, exact = AT_MINIMUM[name]
    arguments = {"num_steps": 60, **arguments} if name == "adaptive_kwon" else arguments
    _, metrics, sharpness = measured(OfWeight(bowl), START.repeat(4, 1), {name: arguments})
    assert metrics[f"sharpness/{name}"].item() == pytest.approx(float(exact), rel=1e-6)
    assert metrics[f"sharpness/{name}_stderr"].item() == pytest.approx(0, abs=1e-9)
    assert sharpness.result[name].value == metrics[f"sharpness/{name}"].item()


@pytest.mark.parametrize(("name", "scale"), [("average", torch.ones(3)), ("adaptive_average", START)])
@pytest.mark.parametrize(("p", "variance"), [(2, 1.0), (math.inf, 1 / 3)])
def test_averages_over_a_quadratic_are_half_the_trace_times_the_variance(name, scale, p, variance):
    arguments = {"rho": 0.3, "p": p, "num_pairs": 300}
    _, _, sharpness = measured(OfWeight(bowl), START.repeat(4, 1), {name: arguments}, batch_size=4)
    found, exact = sharpness.result[name], 0.3**2 / 2 * variance * float((CURVATURE * scale**2).sum())
    assert abs(found.value - exact) < 4 * found.stderr < exact


SLOPES = torch.tensor([[3.0, 0.0, 4.0], [1.0, -2.0, 2.0], [0.0, 5.0, -12.0], [2.0, 1.0, 2.0]], dtype=torch.float64)
G = SLOPES.mean(0)
ON_A_SLOPE = {
    "keskar": 100 * 1e-3 * (G.abs() * (START.abs() + 1)).sum() / (1 + G @ START + 20),
    "sam": 0.05 * G.norm(),
    "sam_one_step": 0.05 * G.norm(),
    "sam_inf": 0.001 * G.abs().sum(),
    "average": 0,
    "adaptive": 0.5 * (START * G).norm(),
    "adaptive_inf": 0.001 * (START * G).abs().sum(),
    "adaptive_kwon": 0.5 * ((START.abs() + 0.01) * G).norm(),
    "adaptive_average": 0,
    "scaled_hessian": 0,
    "relative_flatness": 0,
    "m_sam": 0.05 * SLOPES.norm(dim=1).mean(),
    "m_sam_inf": 0.001 * SLOPES.abs().sum(1).mean(),
    "m_adaptive": 0.5 * (START * SLOPES).norm(dim=1).mean(),
}


def test_on_a_slope_each_measure_with_its_defaults_is_the_dual_norm_of_the_gradient():
    _, metrics, _ = measured(OfWeight(lambda w, x: 20 + x @ w), SLOPES, list(ON_A_SLOPE), batch_size=1)
    for name, exact in ON_A_SLOPE.items():
        assert metrics[f"sharpness/{name}"].item() == pytest.approx(float(exact), rel=1e-9, abs=1e-12), name


def test_the_error_bar_of_a_maximum_is_the_one_over_batches():
    _, metrics, _ = measured(OfWeight(lambda w, x: x @ w), SLOPES, ["sam", "sam_inf"], batch_size=1)
    along = SLOPES @ (0.05 * G / G.norm())
    assert metrics["sharpness/sam_stderr"].item() == pytest.approx(float(along.std()) / 2, rel=1e-9)
    assert metrics["sharpness/sam_inf_stderr"].item() == pytest.approx(float((SLOPES @ G.sign()).std()) * 5e-4)


@pytest.mark.parametrize("name", ALL)
def test_any_measure_leaves_no_trace_and_bears_what_modules_have(name):
    # Frozen and unused parameters, batch normalization, dropout, metrics, a list that grows.
    module, twin, sharpness = Everything(), Everything(), Sharpness([cheap(name)])
    twin.load_state_dict(module.state_dict())
    fit(module, digits_like(), [sharpness])
    fit(twin, digits_like())
    assert same(module.state_dict(), twin.state_dict())
    assert module.calls == twin.calls == 6
    assert all(
        (a.grad is None) == (b.grad is None) for a, b in zip(module.parameters(), twin.parameters(), strict=True)
    )
    assert math.isfinite(sharpness.result[name].value)
    assert module.training == twin.training


@pytest.mark.parametrize("name", [name for name in ALL if not name.startswith("m_")])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_neither_the_batch_size_nor_the_order_of_the_samples_nor_the_reduction_matters(name, reduction):
    # 9 leaves a short last batch, which must count by its size.
    values = []
    for batch_size, shuffle in ((48, False), (9, False), (9, True)):
        torch.manual_seed(0)
        module = Plain(dtype=torch.float64, lr=0.0, reduction=reduction)
        sharpness = Sharpness([cheap(name)])
        fit(module, digits_like(48, batch_size, dtype=torch.float64, shuffle=shuffle), [sharpness])
        values.append(sharpness.result[name].value)
    assert values == pytest.approx([values[0]] * 3, rel=1e-6)
    assert values[0] != 0


def test_a_measure_says_the_same_whichever_others_are_taken():
    alone, together = Sharpness([{"average": {"num_pairs": 2}}]), Sharpness(["keskar", {"average": {"num_pairs": 2}}])
    for sharpness in (alone, together):
        torch.manual_seed(0)
        fit(Plain(lr=0.0), digits_like(), [sharpness])
    assert alone.result["average"].value == together.result["average"].value


def test_the_default_measures_cost_about_sixty_gradients():
    module, sharpness = Plain(dtype=torch.float64), Sharpness()
    fit(module, digits_like(dtype=torch.float64), [sharpness], max_epochs=3)
    assert [entry.name for entry in sharpness.result.measured] == ["keskar", "sam", "average", "adaptive"]
    assert 30 < sharpness.result.cost <= 62
    assert sharpness.result["sam"].num_gradients == sharpness.result["sam"].detail.num_gradients <= 10


def test_the_keys_are_those_of_the_page():
    sharpness = Sharpness([cheap(name) for name in ("keskar", "sam", "average", "scaled_hessian")])
    trainer = fit(Plain(), digits_like(), [sharpness])
    found = {key.removeprefix("sharpness/") for key in trainer.callback_metrics if key.startswith("sharpness/")}
    names = {"keskar", "sam", "average", "scaled_hessian"}
    more = {"keskar_corner", "average_batch_stderr", "scaled_hessian_residual"}
    assert found == names | {f"{name}_stderr" for name in names} | more


def test_an_interrupted_measurement_keeps_what_was_done():
    class Stopped(Plain):
        calls = 0

        def training_step(self, batch, batch_idx):
            self.calls += 1
            if self.calls == 20:
                signal.raise_signal(signal.SIGINT)
            return super().training_step(batch, batch_idx)

    module, sharpness = Stopped(lr=0.0), Sharpness(["sam_one_step", {"keskar": {"num_steps": 50}}])
    before = [p.detach().clone() for p in module.parameters()]
    with pytest.raises(SystemExit):  # the run ends as one that the user interrupted
        fit(module, digits_like(48, 24), [sharpness])
    assert [entry.name for entry in sharpness.result.measured] == ["sam_one_step"]
    assert sharpness.result.interrupted
    assert sharpness.result.metrics()["sharpness/interrupted"] == 1.0
    assert all(torch.equal(p, q) for p, q in zip(module.parameters(), before, strict=True))


def test_tracks_hold_each_measurement_with_its_step():
    sharpness = Sharpness(["sam_one_step"], every_n_steps=2)
    fit(Plain(), digits_like(), [sharpness])
    assert [point["step"] for point in sharpness.tracks] == [2, 4, 6]
    assert sharpness.tracks[-1]["sharpness/sam_one_step"] == sharpness.result["sam_one_step"].value


def test_relative_flatness_is_of_the_last_linear_layer_or_of_the_one_named():
    module = Plain(dtype=torch.float64, lr=0.0)
    both = {"relative_flatness": {}, "last": {"kind": "relative_flatness", "layer": "net.2"}}
    first = {"first": {"kind": "relative_flatness", "layer": "net.0.weight", "num_probes": None}}
    sharpness = Sharpness({**both, **first})
    fit(module, digits_like(dtype=torch.float64), [sharpness])
    assert sharpness.result["relative_flatness"].value == sharpness.result["last"].value
    assert sharpness.result["first"].value != sharpness.result["last"].value
    assert sharpness.result["first"].detail.exact


class Unused(Plain):
    """Has linear layers at its end that the loss does not depend on."""

    def __init__(self, used=True):
        super().__init__(dtype=torch.float64, lr=0.0)
        self.spare, self.scale = nn.Linear(4, 4), nn.Parameter(torch.ones(3))
        self.used = used

    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx) if self.used else self.scale.square().sum()


def test_relative_flatness_passes_by_layers_that_the_loss_does_not_use():
    loader = digits_like(dtype=torch.float64)
    both = {"relative_flatness": {"num_probes": None}}
    both["last"] = {"kind": "relative_flatness", "layer": "net.2", "num_probes": None}
    sharpness = Sharpness(both)
    fit(Unused(), loader, [sharpness])
    assert sharpness.result["relative_flatness"].value == sharpness.result["last"].value > 0
    with pytest.raises(MisconfigurationException, match="of layer=None: the loss depends on the weight of no"):
        fit(Unused(used=False), loader, [Sharpness("relative_flatness")])


def test_two_callbacks_that_share_a_measure_are_refused_and_a_name_of_its_own_helps():
    message = r"under sharpness/sam: .*measures=\{'sam_2': \{'kind': 'sam'\}\}"
    with pytest.raises(MisconfigurationException, match=message):
        fit(Plain(), digits_like(), [Sharpness("sam"), Sharpness(["keskar", "sam"])])
    pair = [Sharpness("sam_one_step"), Sharpness({"sam_2": {"kind": "sam_one_step", "rho": 0.1}})]
    metrics = fit(Plain(), digits_like(), pair).callback_metrics
    assert 0 < metrics["sharpness/sam_one_step"] < metrics["sharpness/sam_2"]


def test_normalized_logits_are_blind_to_the_length_of_the_last_layer():
    # Adaptive measures do not change with the factor then; plain ones do.
    measures = {"adaptive": {"num_steps": 3}, "scaled_hessian": {"tol": 1e-6}, "sam": {"num_steps": 3}}
    found = {}
    for normalized in (False, True):
        for factor in (1.0, 7.0):
            torch.manual_seed(0)
            module = Plain(dtype=torch.float64, lr=0.0)
            with torch.no_grad():
                module.net[2].weight.mul_(factor)
                module.net[2].bias.mul_(factor)
            sharpness = Sharpness(measures, normalize_logits=normalized)
            fit(module, digits_like(dtype=torch.float64), [sharpness])
            found[normalized, factor] = sharpness.result
    same_loss = found[True, 7.0].loss
    assert same_loss == pytest.approx(found[True, 1.0].loss, rel=1e-12)
    assert found[False, 7.0].loss > 1.5 * found[False, 1.0].loss
    for name in ("adaptive", "scaled_hessian"):
        assert found[True, 7.0][name].value == pytest.approx(found[True, 1.0][name].value, rel=1e-6)
        assert abs(found[False, 7.0][name].value / found[False, 1.0][name].value - 1) > 0.5
    assert abs(found[True, 7.0]["sam"].value / found[True, 1.0]["sam"].value - 1) > 0.1


class Untrained(Plain):
    """A module that must not come to training."""

    def on_train_batch_start(self, batch, batch_idx):
        raise AssertionError("trained")


class SquaredError(Untrained):
    """Has no logits."""

    def training_step(self, batch, batch_idx):
        x, y = batch
        return nn.functional.mse_loss(self.net(x)[:, 0], y.to(x))


@pytest.mark.parametrize(
    ("module", "sharpness", "message"),
    [
        (Untrained, partial(Sharpness, ["keskar_subspace"]), "dim=100 of the 53 trainable parameters"),
        (
            Untrained,
            partial(Sharpness, {"relative_flatness": {"layer": "net.7"}}),
            r"layer='net.7': .* there are net.0.weight, net.2.weight",
        ),
        (
            SquaredError,
            partial(Sharpness, ["sam"], normalize_logits=True),
            "calls no torch.nn.functional.cross_entropy",
        ),
    ],
)
def test_what_could_not_be_measured_is_refused_before_training(module, sharpness, message):
    with pytest.raises(MisconfigurationException, match=message):
        fit(module(), digits_like(), [sharpness()])


def test_a_diverged_run_is_not_a_number():
    sharpness = Sharpness([cheap(name) for name in ALL])
    fit(Plain(lr=math.inf), digits_like(), [sharpness], max_epochs=2)
    assert all(math.isnan(entry.value) for entry in sharpness.result.measured)
    assert len(sharpness.result.measured) == len(ALL)


def test_a_result_names_what_it_has():
    sharpness = Sharpness(["sam_one_step"])
    fit(Plain(), digits_like(), [sharpness])
    with pytest.raises(KeyError, match="'sam' was not measured; there are sam_one_step"):
        sharpness.result["sam"]
