"""From a sweep's overrides to the command of each job, and to what it may use."""

import ast
import fcntl
import inspect
import os
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest
from hydra.errors import CompactHydraException
from omegaconf import OmegaConf

from hydra_plugins.lbtrain_launcher import LocalLauncher
from lbtrain.app.sweep import claim, launcher
from lbtrain.app.sweep.asked import Asked
from lbtrain.app.sweep.earlier import Place
from lbtrain.app.sweep.job import Job, argv_of, quoted, tasks
from lbtrain.app.sweep.leaks import cleared_environment, leaks
from lbtrain.app.sweep.needs import Machine, Need
from lbtrain.records import RunRecord


@pytest.fixture(autouse=True)
def _no_sweep_of_another_test(monkeypatch):
    monkeypatch.setattr(claim, "_claimed", {})
    monkeypatch.setattr(claim, "_new", {})
    monkeypatch.setattr(launcher, "_started", [])
    monkeypatch.setattr(launcher, "_given", set())


def config(directory, **hydra):
    base = {"sweep": {"dir": str(directory), "subdir": "${hydra.job.num}"}, "job": {"num": None}, "runtime": {}}
    return OmegaConf.create({"hydra": {**base, "overrides": {"hydra": []}, **hydra}})


def job(n=1, **changes):
    return replace(Job(f"run {n} of 4", "label", (), Path("x"), ("train.py",), {}), **changes)


def test_job_command_repeats_the_sweep_s_settings(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py", "-m", "--config-dir", "own conf", "--config-name=mine", "seed=0,1"])
    given = ["hydra.launcher.slots=2", "hydra.sweep.dir=${oc.env:NO_SUCH_VARIABLE}", "+hydra.job.env_set.A=1"]
    sweep = tmp_path / "a b"
    own = config(sweep, overrides={"hydra": given})
    job_config = OmegaConf.merge(own, {"trainer": {"enable_progress_bar": True}, "seed": 1})
    overrides = ["seed=1", "hydra.verbose=true"]
    assert argv_of(own, job_config, overrides, sweep / "3", sweep, 3) == (
        "train.py",
        "--config-name=mine",
        "--config-dir=own conf",
        "seed=1",
        "trainer.enable_progress_bar=false",
        "+hydra.job.env_set.A=1",
        "hydra.verbose=true",
        "hydra.mode=RUN",
        f"hydra.run.dir='{sweep}/3'",
        f"hydra.sweep.dir='{sweep}'",
        "hydra.job.num=3",
    )
    assert tasks(overrides) == ("seed=1",)
    assert job_config.trainer.enable_progress_bar is False
    assert job_config.hydra.runtime.output_dir == str(sweep / "3")


def test_quotes_and_backslashes_of_a_directory_survive():
    assert quoted("a'b\\c") == "'a\\'b\\\\c'"


def test_a_job_goes_on_from_its_own_checkpoint_in_place_of_the_one_it_began_with():
    own = job(argv=("train.py", "seed=1", "ckpt_path=first.ckpt"))
    assert own.command == own.argv
    assert replace(own, ckpt=Path("a b/last.ckpt")).command == ("train.py", "seed=1", "ckpt_path='a b/last.ckpt'")


def test_directory_of_another_running_sweep_is_left_alone(tmp_path, capsys):
    (tmp_path / "sweep").mkdir()
    other = os.open(tmp_path / "sweep", os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    try:
        own = config(tmp_path / "sweep")
        assert claim.claim(own) == tmp_path / "sweep-2"
        assert own.hydra.sweep.dir == str(tmp_path / "sweep-2")
        # A sweeper that comes back with its next batch of jobs stays where it is.
        assert claim.claim(own) == tmp_path / "sweep-2"
        told = f"another sweep writes to {tmp_path}/sweep; this one writes to {tmp_path}/sweep-2\n"
        assert capsys.readouterr().out == told
    finally:
        os.close(other)
    for opened in claim._claimed.values():
        os.close(opened)


def test_a_named_directory_of_another_running_sweep_is_refused(tmp_path):
    own = config(tmp_path, overrides={"hydra": [f"hydra.sweep.dir={tmp_path}"]})
    other = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    try:
        with pytest.raises(CompactHydraException, match=f"another sweep writes to {tmp_path}; wait for it, end it, or"):
            claim.claim(own)
    finally:
        os.close(other)
    assert not tmp_path.with_name(f"{tmp_path.name}-2").exists()


@pytest.mark.parametrize("left", [None, "new file", "old folder", "locked", "kept"])
def test_a_sweep_that_is_refused_leaves_no_folder_that_it_has_made(left, tmp_path):
    sweep = tmp_path / "day" / "time"
    if left == "old folder":
        sweep.mkdir(parents=True)
    claim.note(sweep)
    sweep.mkdir(parents=True, exist_ok=True)
    (sweep / "multirun.yaml").touch()
    if left == "new file":
        (sweep / "x").touch()
    if left == "kept":
        claim.keep()
    other = os.open(sweep, os.O_RDONLY)
    if left == "locked":
        fcntl.flock(other, fcntl.LOCK_EX)
    claim.remove_unused()
    os.close(other)
    assert (sweep / "multirun.yaml").exists() == (left is not None)
    assert (tmp_path / "day").exists() == (left is not None)


@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [
        ("slots", 0, "slots must be a whole number from 1 on, or null, got 0; give 1 or more, or leave it out"),
        ("slots", 1.5, "slots must be"),
        ("slots", True, "slots must be"),
        ("slots", "two", "slots must be .* got 'two'"),
        ("devices_per_job", 0, "devices_per_job must be a whole number from 1 on, or null"),
        ("jobs_per_device", 0, "jobs_per_device must be a whole number from 1 on, got 0"),
        ("jobs_per_device", None, "jobs_per_device must be"),
        ("retries", -1, "retries must be a whole number from 0 on, got -1"),
        ("timeout_s", 0, "timeout_s must be a number of seconds above 0, or null, got 0; give 3600 for an hour"),
        ("timeout_s", float("nan"), "timeout_s must be"),
        ("timeout_s", "1h", "timeout_s must be"),
        ("skip_finished", 1, "skip_finished must be true, false or null, got 1"),
        ("start_method", "fork", "start_method must be forkserver or spawn, got 'fork'"),
    ],
)
def test_bad_arguments_are_refused(argument, value, message):
    with pytest.raises(CompactHydraException, match=f"hydra.launcher.{message}"):
        Asked(**{argument: value})


@pytest.mark.parametrize(
    ("given", "asked", "expected"),
    [
        ([], None, False),
        (["hydra.sweep.dir=x"], None, True),
        (["hydra.sweep.dir=x"], False, False),
        (["hydra.sweep.subdir=x"], None, False),
        ([], True, True),
    ],
)
def test_earlier_jobs_count_where_the_directory_is_named(given, asked, expected, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(launcher, "find_places", lambda *arguments, given: seen.append((*arguments, given)))
    own = config(tmp_path, overrides={"hydra": given})
    configs = [config(tmp_path), config(tmp_path)]
    launcher._places(own, configs, tmp_path, 3, Asked(skip_finished=asked))
    assert seen == [(tmp_path, configs, ["3", "4"], 3, expected, set())]


def test_jobs_are_told_by_their_place_in_the_sweep_wherever_they_run(tmp_path):
    places = [Place(tmp_path / "7", 7, "new"), Place(tmp_path / "1", 1, "resume", tmp_path / "last.ckpt")]
    configs = [config(tmp_path), config(tmp_path)]
    jobs = launcher._jobs(config(tmp_path), configs, [["seed=0"], ["seed=1"]], tmp_path, 0, places)
    assert [own.title for own in jobs] == ["run 1 of 2", "run 2 of 2"]
    assert [own.directory.name for own in jobs] == ["7", "1"]
    assert "hydra.job.num=7" in jobs[0].argv
    assert [own.ckpt for own in jobs] == [None, tmp_path / "last.ckpt"]
    later = launcher._jobs(config(tmp_path), configs, [["seed=0"], ["seed=1"]], tmp_path, 2, places)
    assert [own.title for own in later] == ["run 3", "run 4"]


@pytest.mark.parametrize(("seed", "same"), [(0, [["run 1 of 3", "run 3 of 3"]]), (None, [])])
def test_jobs_with_one_config_are_the_same_unless_each_draws_its_seed(seed, same, tmp_path):
    places = [Place(tmp_path / str(n), n, "new") for n in range(3)]
    configs = [OmegaConf.merge(config(tmp_path), {"seed": own}) for own in (seed, 1, seed)]
    jobs = launcher._jobs(config(tmp_path), configs, [[f"seed={own.seed}"] for own in configs], tmp_path, 0, places)
    assert [[own.title for own in group] for group in launcher._same(jobs)] == same


def test_a_sweep_says_at_its_start_which_jobs_are_the_same(tmp_path, monkeypatch, capsys):
    places = [Place(tmp_path / str(n), n, "finished") for n in range(2)]
    monkeypatch.setattr(launcher, "_places", lambda *given: places)
    left = RunRecord("r", "finished", None, (), {}, {}, {}, None, "2026-01-01T00:00:00+00:00", 1.0)
    monkeypatch.setattr(launcher, "_record", lambda own: left)
    configs = [OmegaConf.merge(config(tmp_path), {"seed": 0}) for _ in range(2)]
    launcher.launch(config(tmp_path / "sweep"), configs, [["seed=0"], ["seed=0"]], 0, Asked())
    assert capsys.readouterr().out.splitlines()[1:2] == [
        "runs 1 and 2 are the same: seed=0 is given twice; the report counts one of them"
    ]
    for opened in claim._claimed.values():
        os.close(opened)


def cpu(devices):
    return OmegaConf.create({"trainer": {"accelerator": "cpu", "devices": devices}})


@pytest.mark.parametrize(
    ("configs", "asked", "expected"),
    [
        ([cpu(1)] * 4, Asked(), (4, [2, 2, 2, 2])),
        ([cpu(1), cpu(2)], Asked(), (2, [4, 2])),
        ([cpu(1)] * 4, Asked(slots=1), (1, [8, 8, 8, 8])),
        ([cpu(1)] * 4, Asked(devices_per_job=4), (2, [4, 4, 4, 4])),
        ([cpu(1)] * 4, Asked(devices_per_job=8, jobs_per_device=2), (2, [4] * 4)),
    ],
)
def test_cores_are_shared_out(configs, asked, expected):
    jobs = [job(n) for n in range(1, len(configs) + 1)]
    together, told = launcher._shared_out(jobs, configs, range(len(configs)), Machine(8), asked)
    assert (together, [own.threads for own in told]) == expected


def test_jobs_that_are_finished_take_nothing():
    together, told = launcher._shared_out([job(1), job(2)], [cpu(99), cpu(2)], [1], Machine(8), Asked())
    assert (together, told[0].need, told[1].need) == (1, Need("cpu", 1), Need("cpu", 2, 2))


def test_the_job_that_asks_for_too_much_is_named():
    configs = [cpu(1), OmegaConf.create({"trainer": {"accelerator": "gpu", "devices": 3}})]
    with pytest.raises(CompactHydraException, match="run 2 of 4: trainer.devices must be among the 2 GPUs"):
        launcher._shared_out([job(1), job(2)], configs, [0, 1], Machine(8, ("0", "1")), Asked())


def test_variables_of_ranks_tasks_and_runs_are_taken_out_and_put_back(monkeypatch):
    traps = ["RANK", "TORCHELASTIC_RUN_ID", "SLURM_NTASKS", "WANDB_RUN_ID", "PL_GLOBAL_SEED", "OMPI_COMM_WORLD_RANK"]
    kept = ["WANDB_MODE", "WANDB_API_KEY", "WANDB_PROJECT", "SLURM_JOB_ID", "SLURM_CPUS_PER_TASK", "HOME"]
    for name in (*traps, *kept):
        monkeypatch.setenv(name, "7")
    with cleared_environment():
        assert not [name for name in traps if name in os.environ]
        assert all(os.environ[name] == "7" for name in kept)
    assert all(os.environ[name] == "7" for name in (*traps, *kept))
    assert leaks(kept) == []


def test_the_page_on_sweeps_has_the_arguments_of_the_launcher():
    page = (Path(__file__).parents[3] / "docs" / "sweeps.md").read_text()
    rows = [line.split("|")[1:3] for line in page.split("## GPUs")[0].splitlines() if line.startswith("| `")]
    documented = {name.strip(" `"): ast.literal_eval(default.strip(" `")) for name, default in rows}
    signature = inspect.signature(LocalLauncher).parameters
    assert documented == {name: parameter.default for name, parameter in signature.items()}
    assert list(documented) == [field.name for field in fields(Asked)]


def test_a_comparison_that_is_interrupted_says_how_to_make_it(tmp_path, monkeypatch, capsys):
    def interrupted(place):
        raise KeyboardInterrupt

    monkeypatch.setattr("lbtrain.study.__main__.show", interrupted)
    launcher._started.append(tmp_path)
    ignored = []
    monkeypatch.setattr(launcher, "ignore", lambda: ignored.append(1))
    with pytest.raises(SystemExit, match="130"):
        launcher.show_last_sweep()
    assert f"python -m lbtrain.study {tmp_path}" in capsys.readouterr().err
    assert ignored == [1]


def test_without_a_sweep_nothing_is_shown(capsys):
    launcher.show_last_sweep()
    assert capsys.readouterr().out == ""
