"""From a sweep's overrides to the command of each job."""

import fcntl
import os
import sys

import pytest
from hydra.errors import CompactHydraException
from omegaconf import OmegaConf

from lbtrain.app import launcher


@pytest.fixture(autouse=True)
def _no_sweep_of_another_test(monkeypatch):
    monkeypatch.setattr(launcher, "_claimed", {})
    monkeypatch.setattr(launcher, "_started", [])


def config(directory, **hydra):
    base = {"sweep": {"dir": str(directory), "subdir": "${hydra.job.num}"}, "job": {"num": None}, "runtime": {}}
    return OmegaConf.create({"hydra": {**base, "overrides": {"hydra": []}, **hydra}})


def trainers(*pairs):
    return [OmegaConf.create({"trainer": {"accelerator": kind, "devices": devices}}) for kind, devices in pairs]


@pytest.mark.parametrize(
    ("configs", "slots", "expected"),
    [
        (trainers(*[("cpu", 1)] * 20), None, (8, 1)),
        (trainers(("cpu", 1), ("cpu", 2), ("cpu", 1), ("cpu", 1)), None, (4, 1)),
        (trainers(("cpu", 1)), None, (1, 8)),
        (trainers(("gpu", 1), ("cpu", 1)), None, (1, 8)),
        (trainers(("gpu", -1), ("gpu", -1)), 2, (2, 4)),
        (trainers(("cpu", "auto"), ("cpu", 16)), None, (1, 1)),
        ([OmegaConf.create({})] * 3, 2, (2, 4)),
    ],
)
def test_cores_are_shared_out(configs, slots, expected, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    assert launcher._shares(configs, slots) == expected


def test_job_command_repeats_the_sweep_s_settings(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py", "-m", "--config-dir", "own conf", "--config-name=mine", "seed=0,1"])
    given = ["hydra.launcher.slots=2", "hydra.sweep.dir=${oc.env:NO_SUCH_VARIABLE}", "+hydra.job.env_set.A=1"]
    own = config(tmp_path / "a b", overrides={"hydra": given})
    job_config = OmegaConf.merge(own, {"trainer": {"enable_progress_bar": True}, "seed": 1})
    job = launcher._job(own, job_config, ["seed=1", "hydra.verbose=true"], tmp_path / "a b", 3, "label")
    assert job.argv == (
        "train.py",
        "--config-name=mine",
        "--config-dir=own conf",
        "seed=1",
        "trainer.enable_progress_bar=false",
        "+hydra.job.env_set.A=1",
        "hydra.verbose=true",
        "hydra.mode=RUN",
        f"hydra.run.dir='{tmp_path}/a b/3'",
        f"hydra.sweep.dir='{tmp_path}/a b'",
        "hydra.job.num=3",
    )
    assert job.directory == tmp_path / "a b" / "3"
    assert job.overrides == ("seed=1",)
    assert job.config == {"trainer.enable_progress_bar": False, "seed": 1}


def test_quotes_and_backslashes_of_a_directory_survive():
    assert launcher._quoted("a'b\\c") == "'a\\'b\\\\c'"


def test_directory_of_another_running_sweep_is_left_alone(tmp_path):
    (tmp_path / "sweep").mkdir()
    other = os.open(tmp_path / "sweep", os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    try:
        own = config(tmp_path / "sweep")
        assert launcher._claim(own) == tmp_path / "sweep-2"
        assert own.hydra.sweep.dir == str(tmp_path / "sweep-2")
        # A sweeper that comes back with its next batch of jobs stays where it is.
        assert launcher._claim(own) == tmp_path / "sweep-2"
    finally:
        os.close(other)
    for opened in launcher._claimed.values():
        os.close(opened)


@pytest.mark.parametrize(
    ("slots", "method", "message"),
    [
        (0, "spawn", "slots must be a whole number from 1 on, or null, got 0"),
        (1.5, "spawn", "slots must be"),
        (1, "fork", "start_method must be forkserver or spawn, got 'fork'"),
    ],
)
def test_bad_arguments_are_refused(slots, method, message, tmp_path):
    with pytest.raises(CompactHydraException, match=message):
        launcher.launch(config(tmp_path), [], [], 0, slots, method)


def test_without_a_sweep_nothing_is_shown(capsys):
    launcher.show_last_sweep()
    assert capsys.readouterr().out == ""
