"""Each sick run of the gallery gets its diagnosis first and is cured by the remedy; no healthy run gets any."""

import math

import pytest

from tests.sick_runs import CURABLE, GALLERY, HEALTHY, SICK, run

# Half the training loss, says the claim; infinite for a run that has diverged.
CURED = 0.5
# One of each kind that takes a second; the others are for .ci/run.
QUICK = {
    "wrong_backward",
    "nan_labels",
    "dead_relu",
    "quadratic_divergence",
    "quadratic_oscillation",
    "hard_thresholds",
    "healthy_softmax",
    "healthy_least_squares",
}


def marked(names):
    return [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in names]


@pytest.fixture(scope="module")
def left(tmp_path_factory):
    """Return what trains a run of the gallery, once."""
    known = {}

    def trained(name):
        if name not in known:
            known[name] = run(name, tmp_path_factory.mktemp(name))
        return known[name]

    return trained


@pytest.mark.parametrize("name", marked(SICK))
@pytest.mark.filterwarnings("ignore")  # of Lightning and lbtrain on sick runs: they are what the runs are for
def test_a_sick_run_gets_its_diagnosis_first(name, left):
    outcome = left(name)
    assert outcome.first == GALLERY[name].problem, outcome.diagnosis["findings"]
    assert outcome.diagnosis["status"] == "finished"


@pytest.mark.parametrize("name", marked(name for name in GALLERY if name not in SICK))
@pytest.mark.filterwarnings("ignore")
def test_a_healthy_run_gets_no_diagnosis(name, left):
    assert left(name).first == HEALTHY, left(name).diagnosis["findings"]


@pytest.mark.slow
@pytest.mark.parametrize("name", CURABLE)
@pytest.mark.filterwarnings("ignore")
def test_the_first_remedy_halves_the_loss_at_the_end_at_least(name, left, tmp_path):
    sick = left(name)
    assert sick.cure, sick.diagnosis["findings"]
    cured = run(name, tmp_path, *sick.cure)
    assert math.isfinite(cured.loss), sick.cure
    assert cured.loss <= CURED * sick.loss, sick.cure


@pytest.mark.filterwarnings("ignore")
def test_a_larger_batch_is_told_as_one_device_has_it_under_accumulation(tmp_path):
    outcome = run("tiny_batch", tmp_path, "trainer.accumulate_grad_batches=4", "data.samples=128")
    told = [word for remedy in outcome.diagnosis["findings"][0]["remedies"] for word in remedy["overrides"]]
    # Eight times 2: with 4 batches to a step, eight times the samples of a step.
    assert "data.batch_size=16" in told


@pytest.mark.filterwarnings("ignore")
def test_a_summed_loss_is_told_with_the_rate_after_the_warmup(tmp_path):
    warmup = "scheduler={_target_:torch.optim.lr_scheduler.LinearLR,_partial_:true,start_factor:0.01,total_iters:5}"
    (found,) = run("summed_loss", tmp_path, warmup, "trainer.max_epochs=1").diagnosis["findings"]
    assert (found["problem"], found["numbers"]["rate"]) == ("summed loss", 0.1)
    rates = [remedy["changes"]["lr"] for remedy in found["remedies"] if "lr" in remedy["changes"]]
    assert all(rate == pytest.approx(0.1 / 64) for rate in rates)
