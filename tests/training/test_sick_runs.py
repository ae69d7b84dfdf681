"""Each sick run of the gallery gets its diagnosis first and is cured by the remedy; no healthy run gets any."""

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
    assert cured.loss <= CURED * sick.loss, sick.cure
