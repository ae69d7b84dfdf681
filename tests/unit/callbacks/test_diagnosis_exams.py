"""What the examination of a first batch makes of a run: its words, its rates, and what it keeps to itself."""

import math
import re
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from lbtrain import OptimizationDiagnostics
from lbtrain.callbacks import _random_loss
from lbtrain.callbacks._diagnosis_checks import CHECKS, thresholds_of
from lbtrain.callbacks._diagnosis_exams import find_invalid
from lbtrain.callbacks._diagnosis_result import Diagnosis, reviewed
from lbtrain.callbacks._diagnosis_scene import Scene
from lbtrain.functional.diagnosis import Finding, Remedy
from tests.unit.callbacks.diagnosed import Classifier, clusters, diagnosed


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Let runs leave their files in a place that goes."""
    monkeypatch.chdir(tmp_path)


def only(*checks):
    """Return which checks to make: these."""
    return {name: name in checks for name in CHECKS}


def zeroed():
    """Return a network whose first layer is zero, and so the gradient of all."""
    module = Classifier(bias=0.0)
    nn.init.zeros_(module.hidden.weight)
    return module


def examined(module, *checks, loader=None, **options):
    """Train a step and return the findings by problem, and what was left out."""
    made = diagnosed(module, loader, checks=only(*checks), fit_options={"max_steps": 1}, **options).result
    return {finding.problem: finding for finding in made.findings}, made.left_out


class Stack(Classifier):
    """A network of any layers."""

    def __init__(self, *layers, **options):
        super().__init__(**options)
        self.layers = nn.Sequential(*layers)

    def training_step(self, batch, batch_idx):
        x, y = batch
        return nn.functional.cross_entropy(self.layers(x), y, reduction=self.reduction)


class Centred(nn.Module):
    """Standardizes in code of its own."""

    def forward(self, x):
        return (x - 1000.0) / 2


class Times(nn.Module):
    """Changes the unit only."""

    def forward(self, x):
        return x / 1000


class TestInputs:
    @pytest.mark.parametrize("first", [nn.BatchNorm1d(6, affine=False), Centred()])
    def test_that_the_network_standardizes_are_no_problem(self, first):
        found, left_out = examined(Stack(first, nn.Linear(6, 3)), "inputs", loader=clusters(shift=1000.0))
        assert (found, left_out) == ({}, {})

    @pytest.mark.parametrize("layers", [[Times()], []])
    def test_that_reach_the_first_weights_as_they_are_stay_one(self, layers):
        found, _ = examined(Stack(*layers, nn.Linear(6, 3)), "inputs", loader=clusters(shift=1000.0))
        assert list(found) == ["ill-conditioned inputs"]

    def test_before_a_normalization_that_comes_too_late_are_one(self):
        late = Stack(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 3))
        assert list(examined(late, "inputs", loader=clusters(shift=1000.0))[0]) == ["ill-conditioned inputs"]


class TestAtFirstSight:
    """The gradient of the subset is taken only where something is to be seen without it."""

    CHECKS = ("data", "inputs", "symmetries")

    @pytest.fixture
    def taken(self, monkeypatch):
        seen, take = [], Scene.take_slopes
        monkeypatch.setattr(Scene, "take_slopes", lambda scene: (seen.append(scene), take(scene))[1])
        return seen

    def test_a_fit_network_on_fit_data_needs_none(self, taken):
        assert (examined(Classifier(), *self.CHECKS), taken) == (({}, {}), [])

    @pytest.mark.parametrize("check", CHECKS)
    def test_what_looks_unfit_needs_one(self, check, taken):
        module, loader = Classifier(), clusters(shift=1000.0 if check == "inputs" else 0.0)
        if check == "data":
            loader.dataset.tensors[0][0, 0] = math.nan
        if check == "symmetries":
            module = zeroed()
        found, left_out = examined(module, *self.CHECKS, loader=loader, num_samples=192)
        assert (len(found), left_out, len(taken)) == (1, {}, 1)

    def test_one_that_fails_leaves_out_what_cannot_do_without_it(self, monkeypatch):
        def failing(scene):
            raise RuntimeError("no gradient")

        monkeypatch.setattr(Scene, "take_slopes", failing)
        with pytest.warns(UserWarning, match="'symmetries' failed and is left out"):
            found, left_out = examined(zeroed(), *self.CHECKS)
        assert (found, left_out) == ({}, {"symmetries": "it failed with RuntimeError"})
        shifted = clusters(shift=1000.0)
        found, left_out = examined(Classifier(), *self.CHECKS, loader=shifted)
        assert (list(found), left_out) == (["ill-conditioned inputs"], {})


class TestALossThatRepeatsItself:
    @pytest.mark.parametrize(
        ("reduction", "random", "evaluated"), [("mean", False, 0), ("sum", False, 0), ("mean", True, 3)]
    )
    def test_is_known_from_the_reduction_and_one_that_draws_is_told(
        self, reduction, random, evaluated, monkeypatch, caplog
    ):
        class Scaled(Classifier):
            def training_step(self, batch, batch_idx):
                loss = super().training_step(batch, batch_idx)
                return loss * (1 + torch.rand(())) if random else loss

        seen, evaluate = [], _random_loss._evaluate
        monkeypatch.setattr(_random_loss, "_evaluate", lambda *args: (seen.append(args), evaluate(*args))[1])
        caplog.set_level("INFO")
        examined(Scaled(reduction=reduction), "reduction")
        assert len(seen) == evaluated
        assert sum("is random in eval mode" in r.getMessage() for r in caplog.records) == random


class TestSummedLoss:
    def test_is_told_with_the_rate_that_a_warmup_climbs_to(self):
        class Warming(Classifier):
            def configure_optimizers(self):
                optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
                return [optimizer], [torch.optim.lr_scheduler.LinearLR(optimizer, 0.01, total_iters=50)]

        found, _ = examined(Warming(reduction="sum"), "reduction")
        assert found["summed loss"].numbers["rate"] == pytest.approx(0.1)

    def test_asks_no_other_rate_of_adam(self):
        adam = Classifier(reduction="sum", optimizer=lambda p: torch.optim.AdamW(p, lr=1e-3))
        (mean,) = examined(adam, "reduction")[0]["summed loss"].remedies
        assert mean.changes == {"reduction": "mean"}

    def test_of_a_steady_run_does_not_ask_for_another_rate_and_of_an_unstable_one_does(self):
        lower = Remedy("or divide", {"lr": 0.01})
        summed = Finding("summed loss", "a sum", {"batch": 16.0, "rate": 0.16}, 8.0, remedies=(Remedy("mean"), lower))
        rise = Finding("instability", "it rose", {}, 1.0)
        (steady,) = reviewed(Diagnosis((summed,), ("reduction",))).findings
        assert len(steady.remedies) == 1
        for unstable in (Diagnosis((summed, rise), ()), Diagnosis((summed,), (), status="failed")):
            assert reviewed(unstable) is unstable

    def test_that_cannot_be_told_keeps_the_message_of_the_error_to_itself(self):
        class Failing(Classifier):
            def training_step(self, batch, batch_idx):
                if not self.training and len(batch[0]) != 16:
                    raise RuntimeError("token=SECRET (of mine)\nand more")
                return super().training_step(batch, batch_idx)

        _, left_out = examined(Failing(), "reduction")
        assert re.fullmatch(r"training_step failed on .* in eval mode \(RuntimeError\)", left_out["reduction"])


def test_invalid_samples_are_named_by_what_they_are_samples_of():
    subset = [torch.zeros(2, 3), torch.tensor([[math.nan]] * 2)]
    scene = SimpleNamespace(loss=math.nan, batch=torch.zeros(3, 1), subset_batches=lambda: subset)
    assert "2 of 4 samples of the fixed subset have" in find_invalid(scene, {}).evidence
    scene.subset_batches, scene.batch[1] = list, math.inf  # the whole of the data is read when training ends
    assert find_invalid(scene, {}).evidence.endswith(
        "1 of 3 samples of the first batch has values that are not finite (1 infinite): number 1, from 0"
    )
    scene.loss = 0.5
    assert find_invalid(scene, {}) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"checks": ["gradients"]}, r"such as {'gradients': False} to leave out, got \['gradients'\]"),
        ({"checks": "units"}, "such as {'units': False} to leave out"),
        ({"thresholds": [0.5]}, "such as {'units': {'dead_share': 0.3}}"),
        ({"thresholds": {"units": {"dead_share": -1}}}, "above 0 and at most 1, got -1; its default is 0.8"),
        ({"thresholds": {"units": {"dead_share": 80}}}, "above 0 and at most 1, got 80"),
        ({"thresholds": {"instability": {"factor": 0}}}, "above 0, got 0"),
        ({"thresholds": {"flow": {"ratio": math.nan}}}, "must be finite, got nan; to leave the check out"),
        ({"thresholds": {"oscillations": {"correlation": -2}}}, "above -1 and at most 1"),
        ({"thresholds": {"gradients": {"directions": 1.5}}}, "must be a whole number"),
        ({"num_samples": 15}, "num_samples must be at least 16, got 15: "),
    ],
)  # fmt: skip
def test_arguments_are_checked_when_it_is_built(options, message):
    with pytest.raises(ValueError, match=message):
        OptimizationDiagnostics(**options)


def test_every_default_threshold_may_be_given():
    given = {check: {k: v for k, v in thresholds_of(check).items() if v is not None} for check in CHECKS}
    assert OptimizationDiagnostics(thresholds=given).thresholds == given
