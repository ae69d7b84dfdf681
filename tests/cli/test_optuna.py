"""Optuna searches on the digits, with the objective that each run returns through the local launcher."""

import math
import sqlite3

import pytest
from omegaconf import OmegaConf

from lbtrain.records import read_record
from tests.cli.commands import Command, run

pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="needs the extra sweep")


def test_a_search_the_wrong_way_is_refused_before_anything_starts(tmp_path):
    done = run(["-m", "hydra/sweeper=optuna", "optimizer.lr=interval(0.01,0.1)", "hydra.sweep.dir=sweep"], tmp_path)
    assert done.code == 1
    told = "objective=test/acc is at its best when one can maximize it, but hydra.sweeper.direction=minimize"
    assert done.err.startswith(told)
    assert not list(tmp_path.rglob("summary.json"))


@pytest.mark.slow
def test_the_search_that_is_shipped_finds_the_best_of_its_runs_on_the_digits(tmp_path):
    arguments = ["-m", "experiment=tune", "hydra.sweeper.n_trials=2", "hydra.sweeper.n_jobs=2", "hydra.sweep.dir=sweep"]
    small = ["trainer.max_epochs=1", "data.batch_size=256", "callbacks=[lr_scaling,sam]", "~callbacks.hessian"]
    done = run([*arguments, *small], tmp_path, timeout=200)
    assert done.code == 0, done.err
    records = [read_record(tmp_path / "sweep" / str(number)) for number in range(2)]
    losses = [record.metrics["val/loss"] for record in records]
    # The validation loss of numbers drawn from both intervals, each run another.
    assert len(set(losses)) == 2
    assert all(0.001 <= record.config["optimizer.lr"] <= 0.3 for record in records)
    assert all(0.01 <= record.config["callbacks.sam.rho"] <= 0.5 for record in records)
    best = records[losses.index(min(losses))]
    found = OmegaConf.load(tmp_path / "sweep" / "optimization_results.yaml")
    assert found.best_value == pytest.approx(min(losses))
    assert found.best_params["optimizer.lr"] == pytest.approx(best.config["optimizer.lr"])
    assert found.best_params["callbacks.sam.rho"] == pytest.approx(best.config["callbacks.sam.rho"])
    assert "Best parameters" in done.out + done.err
    assert done.out.rstrip().endswith(f"Report: {tmp_path / 'sweep' / 'report.html'}")
    assert "Traceback" not in done.err


@pytest.mark.slow
def test_a_search_goes_on_through_failed_and_diverged_runs_and_keeps_what_it_learned(planted):
    search = ["-m", *planted.small, "hydra/sweeper=optuna", "hydra.sweeper.sampler.seed=19", "hydra.sweeper.n_jobs=4"]
    search += [
        "hydra.sweeper.n_trials=4",
        "hydra.sweeper.max_failure_rate=1",
        "objective=val/loss",
        "hydra.sweep.dir=s",
    ]
    search += ["hydra.sweeper.storage=sqlite:///tune.db", "hydra.sweeper.study_name=tune"]
    # With this seed one run raises, one diverges, and two end well.
    search += ["callbacks.fault.kind=choice(raise,none)", "optimizer.lr=choice(0.001,0.01,1e30)"]
    with Command(search, planted.directory) as command:
        done = command.done(240)
        assert command.wait_alone() == []
    assert done.code == 1
    assert "1 of 4 runs failed; the search went on without them" in done.err
    assert "Traceback" not in done.err
    records = [read_record(planted.directory / "s" / str(number)) for number in range(4)]
    finished = [record for record in records if record.status == "finished"]
    assert {record.config["callbacks.fault.kind"] for record in finished} == {"none"}
    losses = [record.metrics["val/loss"] for record in finished]
    assert sum(math.isnan(loss) for loss in losses) == 1
    found = OmegaConf.load(planted.directory / "s" / "optimization_results.yaml")
    assert found.best_value == pytest.approx(min(loss for loss in losses if not math.isnan(loss)))
    with sqlite3.connect(planted.directory / "tune.db") as storage:
        told = [value for (value,) in storage.execute("select value from trial_values")]
        states = [state for (state,) in storage.execute("select state from trials")]
    assert sorted(states) == ["COMPLETE", "COMPLETE", "COMPLETE", "FAIL"]
    assert len(told) == 3
    assert told.count(math.inf) == 1
