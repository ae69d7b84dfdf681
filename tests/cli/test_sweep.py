"""A sweep: each job a process of its own, and none disturbed by another's end."""

import json
import re

import pytest

from lbtrain.records import read_record
from tests.cli.commands import Command
from tests.cli.wandb_file import read

LEAKS = {"PL_GLOBAL_SEED": "77", "LOCAL_RANK": "1", "RANK": "1", "WANDB_RUN_ID": "leaked", "OMP_NUM_THREADS": None}


@pytest.fixture(scope="module")
def sweep(planted_once, wandb_service):
    """Four jobs: two finish, one raises, one is killed; all with wandb, and in an environment full of traps."""
    arguments = ["-m", *planted_once.small, "callbacks.fault.kind=none,raise,kill,none", "logger=[csv,wandb]"]
    # The same override twice is one job each: what sets them apart is the order alone.
    arguments += ["seed=null", "data.seed=0", "tags=[paper]", "+my_token=sk-very-secret"]
    arguments += ["logger.wandb.notes=${my_token}"]
    with Command(
        [*arguments, "hydra.sweep.dir=a/sweep"], planted_once.directory, **LEAKS, **wandb_service.variables
    ) as c:
        done = c.done()
        left = c.wait_alone()
    return planted_once.directory / "a" / "sweep", done, left


def test_failing_jobs_leave_the_others_finished(sweep):
    directory, done, _ = sweep
    records = [read_record(directory / str(number)) for number in range(4)]
    assert [record.status for record in records] == ["finished", "failed", "failed", "finished"]
    assert records[1].error == "RuntimeError: planted fault, token None"
    assert records[2].error.startswith("ended by signal SIGKILL before the run was complete")
    assert records[2].config == records[1].config | {"callbacks.fault.kind": "kill"}
    assert "callbacks.fault.kind=kill" in records[2].overrides
    assert not any("secret" in override for override in records[2].overrides)
    assert done.code == 1


def test_progress_says_which_run_of_how_many(sweep):
    _, done, _ = sweep
    lines = done.out.splitlines()
    assert re.fullmatch(r"4 runs, \d+ at a time", lines[0])
    assert "run 2 of 4 starts: callbacks.fault.kind=raise" in lines
    assert (
        sum(bool(re.fullmatch(r"run [14] of 4 done: train loss .*, test acc .* \(\d+ s\)", line)) for line in lines)
        == 2
    )
    assert sum(line.startswith("run 2 of 4 FAILED: RuntimeError: planted fault") for line in lines) == 1
    assert sum(line.startswith("run 3 of 4 FAILED: ended by signal SIGKILL") for line in lines) == 1


def test_report_is_written_and_lists_the_failures(sweep):
    directory, done, _ = sweep
    assert {"report.html", "report.md", "results.csv", "figures"} <= {path.name for path in directory.iterdir()}
    assert re.search(r"4 runs: 2 finished .*and 2 failed", done.out)
    assert "planted fault" in (directory / "report.md").read_text()
    assert f"Report: {directory / 'report.html'}" in done.out


def test_jobs_are_processes_of_their_own_and_inherit_nothing(sweep):
    directory, _, left = sweep
    seen = [json.loads((directory / str(number) / "seen0.json").read_text()) for number in range(4)]
    assert len({job["pid"] for job in seen}) == 4
    # Lightning sets no seed variable for seed=null, and the parent's must not stand in for it.
    assert all(job["PL_GLOBAL_SEED"] is job["RANK"] is None for job in seen)
    assert all(int(job["OMP_NUM_THREADS"]) >= 1 for job in seen)
    assert left == []


def test_jobs_without_a_seed_are_not_one_run_twice(sweep):
    directory, _, _ = sweep
    first, last = (read_record(directory / number).metrics["train/loss"] for number in ("0", "3"))
    assert first != last


def test_secrets_stay_out_of_the_job_directories(sweep):
    directory, _, _ = sweep
    files = [
        path for path in directory.rglob("*") if path.is_file() and not {".hydra", "multirun.yaml"} & set(path.parts)
    ]
    assert not [path for path in files if b"my_token=sk" in path.read_bytes()]
    # The note that the user made of the secret is in wandb's own file: it was asked for.
    assert not [path for path in files if b"sk-very-secret" in path.read_bytes() and path.suffix != ".wandb"]


def wandb_run(directory):
    (file,) = directory.glob("wandb/offline-run-*/*.wandb")
    return read(file)


def test_wandb_has_one_run_per_job_with_group_name_tags_and_exit_code(sweep):
    directory, _, _ = sweep
    # The service of the killed job may die with it before it writes anything.
    runs = [wandb_run(directory / number) for number in ("0", "1", "3")]
    assert len({found["run"].run_id for found in runs} - {"leaked"}) == 3
    assert [found["exit"] for found in runs] == [0, 1, 0]
    for found in runs:
        assert found["run"].run_group == "a/sweep"
        assert found["run"].job_type == "train"
        assert set(found["run"].tags) == {"lbtrain", "paper"}
        assert found["run"].project == "lbtrain"
    assert "kind=raise" in runs[1]["run"].display_name
    assert "secret" not in runs[1]["run"].display_name


def test_wandb_config_has_the_flat_block(sweep):
    directory, _, _ = sweep
    config = wandb_run(directory / "0")["config"]
    expected = {"global_batch": 256, "per_device_batch": 256, "accumulate": 1, "world": 1, "k": 16}
    expected |= {"rho": 0.0, "method": "", "lr_base": 0.01, "lr_rule": "linear", "seed": None, "data.batch_size": 256}
    assert {key: config[key] for key in expected} == expected
    assert config["lr_scaled"] == pytest.approx(0.16)
    assert "git_sha" in config
    assert "my_token" not in config


def test_wandb_summary_and_history_hold_the_numbers(sweep):
    directory, _, _ = sweep
    found, metrics = wandb_run(directory / "0"), read_record(directory / "0").metrics
    for key in ("test/acc", "test/loss", "gap/acc", "gap/loss", "train/acc", "lr/scaled", "time/fit_s"):
        assert found["summary"][key] == pytest.approx(metrics[key]), key
    assert found["summary"]["train/loss"] == pytest.approx(metrics["train/loss"])
    assert any("val/acc" in row for row in found["history"])
    assert set(found["summary"]["val/acc"]) == {"last", "max"}
    assert set(found["summary"]["val/loss"]) == {"last", "min"}
    assert found["metrics"]["val/acc"].summary.max
    assert found["metrics"]["val/loss"].summary.min


def test_wandb_without_a_key_asks_nobody(sweep, wandb_service):
    assert wandb_service.calls() == 0
