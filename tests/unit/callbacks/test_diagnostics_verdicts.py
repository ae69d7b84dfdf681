"""From the record of a run to findings: what is left out when something was not seen, and what a run has already."""

import math
import random
from dataclasses import replace

import pytest
import torch
from torch import nn

from lbtrain._lightning import Callback
from lbtrain.callbacks._diagnosis_checks import CHECKS, limits_of
from lbtrain.callbacks._diagnosis_end import is_asked_for
from lbtrain.callbacks._diagnosis_facts import is_linear
from lbtrain.callbacks._diagnosis_verdicts import VERDICTS, Case, judge
from lbtrain.callbacks._evidence import Evidence, Point, Units
from lbtrain.functional.averaging import averaging_gain
from lbtrain.functional.training_curve import Curve
from tests.modules import LeastSquares, Plain
from tests.unit.callbacks.diagnosed import Classifier, diagnosed


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def record(levels, *, every=10, rate=0.1, units=None):
    """Return the evidence of a run whose loss goes through these levels."""
    points = [Point(i * every, 0, level, 1.0, rate, units=units or {}) for i, level in enumerate(levels)]
    losses = [level for level in levels[:-1] for _ in range(every)]
    return Evidence(losses, [rate] * len(losses), points)


def judged(case):
    return judge(case, tuple(CHECKS), limits_of(None))


def test_a_run_of_which_nothing_was_recorded_leaves_all_out():
    found = judged(Case(Evidence()))
    assert found.found == {}
    assert {*found.left_out} == {*VERDICTS}
    assert found.failed == {}


def test_a_run_that_was_not_sampled_is_judged_by_its_losses():
    grown = [1.0] * 30 + [40.0] * 30
    found = judged(Case(Evidence(grown, [0.1] * 60), missing={"samples": "no process holds whole parameters"}))
    assert [f.problem for f in found.findings] == ["instability"]
    assert found.left_out["units"] == "no process holds whole parameters"
    assert {"decay", "progress"} <= {*found.found}


def test_dead_units_are_told_with_the_step_at_which_they_died():
    alive, dead = Units("relu", 64, 3, 0), Units("relu", 64, 61, 0)
    evidence = record([1.0, 0.9, 0.9, 0.9], units={"conv2": alive})
    evidence.points[2:] = [Point(p.step, 0, p.loss, 1.0, 0.1, units={"conv2": dead}) for p in evidence.points[2:]]
    (found,) = judged(Case(evidence, samples=256)).found["units"]
    assert (found.problem, found.since) == ("dead units", 20)
    assert "61 of 64 relu units are dead on 256 samples" in found.evidence


def test_invalid_data_takes_the_blame_for_a_loss_that_is_no_number():
    evidence = Evidence([1.0, 1.0, math.nan, math.nan], [0.1] * 4)
    assert [f.problem for f in judged(Case(evidence)).findings] == ["instability"]
    assert judged(Case(evidence, invalid_data=True)).findings == []


@pytest.mark.parametrize(("momentum", "offered"), [(0.0, True), (0.9, False), (0.95, False)])
def test_momentum_is_no_remedy_for_a_run_that_has_it(momentum, offered):
    levels = [1.0 - 0.001 * i for i in range(20)]
    evidence = record(levels, rate=1e-6)
    evidence.points[:] = [
        Point(p.step, 0, p.loss, math.sqrt(0.0001 * (1 - momentum) / 1e-6), 1e-6) for p in evidence.points
    ]
    (found,) = judged(Case(evidence, momentum=momentum)).found["progress"]
    assert any("momentum" in remedy.changes for remedy in found.remedies) is offered
    assert found.remedies


def test_short_runs_get_no_verdict_on_their_progress():
    for steps, judges in ((40, False), (50, True)):
        levels = [1.0 - 0.001 * i for i in range(steps // 10 + 1)]
        found = judged(Case(record(levels)))
        for name in ("progress", "plateau", "saddle", "conditioning"):
            assert (name in found.found) is judges, name
            assert judges or "the run had 40" in found.left_out[name]


def slow(levels=None, **units):
    """Return the evidence of a slow run, or of one with these levels."""
    return record(levels or [1.0 - 0.001 * i for i in range(20)], rate=1e-6, **units)


def slowly(evidence):
    evidence.points[:] = [replace(p, gradient_norm=math.sqrt(0.0001 / 1e-6)) for p in evidence.points]
    return evidence


def test_what_moves_nothing_on_is_not_called_slow():
    for dead, problems in ((0, ["slow progress"]), (64, ["dead units"])):
        evidence = slowly(slow(units={"conv": Units("relu", 64, dead, 0)}))
        assert [f.problem for f in judged(Case(evidence, samples=256)).findings] == problems


def test_units_lost_in_an_instability_have_no_rate_of_their_own():
    levels = [1.0] * 5 + [90.0] * 10
    evidence = record(levels, units={"conv": Units("relu", 64, 0, 0)})
    evidence.points[7:] = [replace(p, units={"conv": Units("relu", 64, 64, 0)}) for p in evidence.points[7:]]
    found = judged(Case(evidence, samples=256))
    assert {f.problem for f in found.findings} == {"instability", "dead units"}
    (dead,) = found.found["units"]
    assert "instability first" in dead.remedies[0].words
    assert not any({"lr", "warmup_steps"} & {*r.changes} for r in dead.remedies)


def test_a_sum_over_the_batch_multiplies_the_stability():
    levels = [1.0] * 10 + [90.0] * 10
    evidence = record(levels)
    evidence.losses[:] = [64 * loss for loss in evidence.losses]
    evidence.points[:] = [replace(p, stability=0.02, lambda_max=0.4) for p in evidence.points]
    (found,) = judged(Case(evidence, summed_over=64)).found["instability"]
    assert "1.3 times the largest stable one" in found.evidence
    assert found.remedies[0].changes == {"lr": 0.039}  # 0.1 / (2 * 1.28)
    assert found.numbers["low"] == 1.0


def fluctuating():
    draw = random.Random(0)
    levels = [2.0] + [0.5 * math.exp(draw.gauss(0, 0.2)) for _ in range(40)]
    averaging = averaging_gain(0.1, [0.5, 0.6, 0.4, 0.5, 0.55])
    return {"evidence": record(levels), "averaging": averaging, "batch_size": 64}


@pytest.mark.parametrize(
    ("known", "size"), [({}, 512), ({"per_device": 4}, 32), ({"per_device": 4, "scales_rate": True}, None)]
)
def test_a_larger_batch_is_one_of_each_device_at_the_same_rate(known, size):
    (found,) = judged(Case(**fluctuating(), **known)).found["fluctuations"]
    assert found.remedies[2].changes.get("batch_size") == size


def test_without_the_check_of_oscillations_what_swings_is_fluctuation():
    known = fluctuating()
    points = known["evidence"].points
    points[:] = [replace(p, stability=0.75, projections=(1.0, -1.0) * 4) for p in points]
    assert [f.problem for f in judged(Case(**known)).findings] == ["oscillations"]
    for checks, limits in (
        ([name for name in CHECKS if name != "oscillations"], limits_of(None)),
        (list(CHECKS), limits_of({"oscillations": {"edge": 0.6}})),
    ):
        assert [f.problem for f in judge(Case(**known), checks, limits).findings] == ["fluctuations"]


def test_a_run_whose_weights_are_averaged_does_not_fluctuate():
    class WeightAveraging(Callback):
        """Has the name of Lightning's."""

    doctor = diagnosed(Classifier(), callbacks=[WeightAveraging()], max_epochs=2)
    assert doctor.result.findings == ()
    assert "averages the weights" in doctor.result.left_out["fluctuations"]


@pytest.mark.parametrize(
    ("levels", "asked"),
    [
        ([1.0] * 8, True),
        ([1.0, 0.1, *[0.01] * 6], False),
        ([1.0, *[9.0] * 7], False),
        ([1.0] * 6 + [math.nan], False),
    ],
)
def test_the_spectrum_is_asked_for_where_much_of_the_loss_is_left(levels, asked):
    evidence = record(levels)
    assert is_asked_for(Curve.of(evidence.losses, evidence.rates, evidence.points)) is asked
    assert not is_asked_for(Curve.of(evidence.losses, evidence.rates, ()))


def test_one_linear_layer_is_a_linear_model_and_two_are_none():
    class Linear(LeastSquares):
        def __init__(self):
            super().__init__("mean")
            del self.w
            self.layer = nn.Linear(6, 1)

    assert is_linear(Linear(), record([1.0, 0.5]))
    assert not is_linear(Plain(), record([1.0, 0.5]))
    assert not is_linear(Linear(), record([1.0, 0.5], units={"layer": Units("relu", 1, 0, 0)}))
    assert not is_linear(Linear(), Evidence())


def test_softmax_regression_from_zero_weights_is_healthy():
    class Softmax(Classifier):
        def __init__(self):
            super().__init__()
            del self.hidden
            self.out = nn.Linear(6, 3)
            nn.init.zeros_(self.out.weight)
            nn.init.zeros_(self.out.bias)

        def training_step(self, batch, batch_idx):
            return nn.functional.cross_entropy(self.out(batch[0]), batch[1])

    assert diagnosed(Softmax()).result.findings == ()


def test_a_gradient_that_is_wrong_is_found_first():
    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(context, x):
            return 2 * x

        @staticmethod
        def backward(context, gradient):
            return gradient

    class Doubling(Classifier):
        def training_step(self, batch, batch_idx):
            return nn.functional.cross_entropy(self.out(torch.relu(Wrong.apply(self.hidden(batch[0])))), batch[1])

    first = diagnosed(Doubling(), max_epochs=2).result.findings[0]
    assert first.problem == "incorrect gradients"
    assert "hidden" in first.evidence
