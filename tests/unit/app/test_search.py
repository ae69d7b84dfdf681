"""Searches: which way is better, and what becomes of runs that diverge or fail."""

import math

import pytest
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import CompactHydraException
from hydra.plugins.launcher import Launcher
from omegaconf import OmegaConf

from lbtrain.app.sweep import after_sweep
from lbtrain.app.sweep.search import SearchingSweeper, refuse_wrong_way, worst

# Of the same class name as the other.
SUBMITIT = {"_target_": "hydra_plugins.hydra_submitit_launcher.submitit_launcher.LocalLauncher"}
LOCAL = {"_target_": "hydra_plugins.lbtrain_launcher.LocalLauncher"}


def config(objective="val/loss", direction="minimize", **sweeper):
    sweeper = {"direction": direction, **sweeper} if direction else sweeper
    return OmegaConf.create({"objective": objective, "hydra": {"sweeper": sweeper, "launcher": LOCAL}})


def returned(value, status=JobStatus.COMPLETED):
    result = JobReturn(status=status)
    result.return_value = value
    return result


class Inner(Launcher):
    def __init__(self, *values):
        self.values = values

    def setup(self, **_):
        pass

    def launch(self, job_overrides, initial_job_idx):
        return [v if isinstance(v, JobReturn) else returned(v) for v in self.values]


@pytest.mark.parametrize(("objective", "direction"), [("test/acc", "minimize"), ("val/loss", "maximize")])
def test_a_search_for_the_worst_is_refused(objective, direction):
    with pytest.raises(CompactHydraException, match=r"give hydra.sweeper.direction="):
        refuse_wrong_way(config(objective, direction))


@pytest.mark.parametrize(
    ("objective", "direction"), [("test/acc", "maximize"), ("time/fit_s", "minimize"), ("test/acc", None)]
)
def test_other_searches_and_sweeps_are_let_through(objective, direction):
    refuse_wrong_way(config(objective, direction))


@pytest.mark.parametrize(("direction", "expected"), [("minimize", math.inf), ("maximize", -math.inf)])
def test_a_diverged_run_is_told_to_the_search_as_the_worst_there_is(direction, expected):
    assert worst(config("x", direction)) == expected
    launcher = after_sweep.CheckedLauncher(Inner(math.nan, 0.5), None, config("x", direction))
    assert [result.return_value for result in launcher.launch([[], []], 0)] == [expected, 0.5]
    assert len(launcher.results) == 2


def test_a_plain_sweep_keeps_nan():
    launcher = after_sweep.CheckedLauncher(Inner(math.nan), None, config(direction=None))
    assert math.isnan(launcher.launch([[]], 0)[0].return_value)


class Ending:
    def __init__(self, error=None):
        self.error = error

    def sweep(self, arguments):
        if self.error:
            raise self.error


FAILED = returned(RuntimeError("planted"), JobStatus.FAILED)


@pytest.mark.parametrize(
    ("results", "error", "message"),
    [
        ([returned(0.1), FAILED, returned(0.2)], None, "1 of 3 runs failed; the search went on without them"),
        ([FAILED, FAILED], ValueError("No trials are completed yet."), "all 2 runs of this search failed"),
        ([returned(0.1), FAILED], RuntimeError("`Study.stop` is supposed to be"), "grid sampler stops there"),
        ([returned(None)], ValueError("No trials are completed yet."), "none of the 1 finished runs has the metric"),
    ],
)
def test_the_end_of_a_search_says_what_failed(results, error, message):
    with pytest.raises(CompactHydraException, match=message):
        SearchingSweeper(Ending(error), [results], config()).sweep([])


def test_an_error_of_the_sweeper_itself_is_not_hidden():
    for kind in (ValueError, RuntimeError):
        with pytest.raises(kind, match="sampler"):
            SearchingSweeper(Ending(kind("sampler")), [[returned(0.1)]], config()).sweep([])
    assert SearchingSweeper(Ending(), [[returned(0.1)]], config()).sweep([]) is None


class Broken(Launcher):
    def __init__(self, error):
        self.error = error

    def setup(self, **_):
        pass

    def launch(self, job_overrides, initial_job_idx):
        raise self.error


def test_what_a_launcher_reports_of_a_dead_job_is_one_line_and_what_to_do(monkeypatch, tmp_path):
    submitit = pytest.importorskip("submitit")
    monkeypatch.setattr(after_sweep, "_check_jobs", lambda *_: None)
    own = OmegaConf.merge(config(direction=None), {"hydra": {"sweep": {"dir": str(tmp_path)}, "launcher": SUBMITIT}})
    lost = submitit.core.utils.UncompletedJobError("Job 7 has not produced any output\nmore")
    with pytest.raises(CompactHydraException, match=rf"(?s)Job 7 has not .*python -m lbtrain.study {tmp_path}") as told:
        after_sweep.CheckedLauncher(Broken(lost), None, own).launch([[]], 0)
    assert "more" not in str(told.value)
    with pytest.raises(OSError, match="disk"):
        after_sweep.CheckedLauncher(Broken(OSError("disk")), None, own).launch([[]], 0)
