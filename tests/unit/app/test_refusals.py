"""Which launchers can start the ranks of a job, and where the ranks that others start put their run."""

import os
import re

import pytest
from hydra.errors import CompactHydraException
from torch.distributed import TCPStore

from lbtrain.app import shared_place
from lbtrain.app.sweep import refusals
from lbtrain.app.sweep.refusals import devices, ranks_problem, started_by

SLURM = {"SLURM_PROCID": "1", "SLURM_NTASKS": "2", "SLURM_JOB_ID": "12345", "SLURM_STEP_ID": "3"}
TORCHRUN = {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}


@pytest.fixture(autouse=True)
def _started_by_nobody(monkeypatch):
    for name in {*SLURM, *TORCHRUN, "SLURM_JOB_NAME", "LBTRAIN_RUN_DIR"} & set(os.environ):
        monkeypatch.delenv(name)
    monkeypatch.setattr("sys.argv", ["train.py"])
    yield
    os.environ.pop("LBTRAIN_RUN_DIR", None)


def _set(monkeypatch, variables):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


def _cpu(**settings):
    return {"accelerator": "cpu", "devices": 2, "strategy": "ddp", "num_nodes": 1, **settings}


@pytest.mark.parametrize(
    ("settings", "launcher", "tasks"),
    [
        (_cpu(devices=1), "basic", 1),
        (_cpu(devices="auto"), "joblib", 1),
        (_cpu(strategy="ddp_spawn"), "joblib", 1),
        (_cpu(strategy={"_target_": "a.DDPStrategy", "start_method": "fork"}), "basic", 1),
        (_cpu(strategy={"_target_": "a.SingleDeviceStrategy", "device": "cpu"}, devices=1), "basic", 1),
        (_cpu(), "submitit_slurm", 2),
        (_cpu(num_nodes=4), "submitit_slurm", 2),
        ({}, "basic", 1),
    ],
)
def test_jobs_whose_ranks_can_start_are_let_through(settings, launcher, tasks):
    assert ranks_problem(settings, launcher, tasks) is None


@pytest.mark.parametrize("launcher", ["basic", "joblib", "submitit_local"])
@pytest.mark.parametrize(
    "settings",
    [
        _cpu(),
        _cpu(strategy="auto"),
        _cpu(strategy="fsdp"),
        _cpu(devices=[0, 1]),
        _cpu(devices="0,1"),
        _cpu(devices="2"),
        _cpu(devices=1, num_nodes=2),
        _cpu(strategy={"_target_": "a.DDPStrategy"}),
    ],
)
def test_ranks_that_would_run_the_whole_sweep_are_refused_in_one_line(settings, launcher):
    problem = ranks_problem(settings, launcher, 1)
    assert problem.startswith(f"hydra/launcher={launcher} ")
    assert problem.endswith("use hydra/launcher=local")
    assert "\n" not in problem


def test_slurm_needs_a_task_for_each_rank():
    problem = ranks_problem(_cpu(devices=4), "submitit_slurm", 1)
    assert problem.endswith("give hydra.launcher.tasks_per_node=4")


def test_all_gpus_are_counted(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    assert devices({"accelerator": "gpu", "devices": -1}) == devices({}) == 3
    assert devices({"accelerator": "cpu", "devices": -1}) == 1


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, ("", 1)),
        (SLURM, ("srun", 2)),
        (SLURM | {"SLURM_JOB_NAME": "interactive"}, ("", 1)),
        ({"SLURM_JOB_ID": "1"}, ("", 1)),
        (TORCHRUN, ("torchrun", 2)),
        (TORCHRUN | SLURM, ("torchrun", 2)),
    ],
)
def test_who_has_started_the_ranks_is_read_off_the_environment(variables, expected, monkeypatch):
    _set(monkeypatch, variables)
    assert started_by() == expected


@pytest.mark.parametrize("variables", [SLURM, TORCHRUN])
def test_a_sweep_is_not_started_once_per_rank(variables, monkeypatch):
    refusals.refuse_ranks_of_a_sweep()
    _set(monkeypatch, variables)
    with pytest.raises(CompactHydraException, match=r"has started this sweep 2 times.*hydra/launcher=local"):
        refusals.refuse_ranks_of_a_sweep()


def test_tasks_of_a_slurm_step_share_a_directory_that_a_requeued_job_keeps(monkeypatch):
    _set(monkeypatch, SLURM)
    shared_place.agree()
    assert os.environ["LBTRAIN_RUN_DIR"] == "outputs/slurm/12345.3"


@pytest.mark.parametrize("given", [["hydra.run.dir=mine"], []])
def test_a_directory_that_the_user_gives_stands(given, monkeypatch):
    _set(monkeypatch, SLURM)
    monkeypatch.setattr("sys.argv", ["train.py", *given])
    if not given:
        monkeypatch.setenv("LBTRAIN_RUN_DIR", "mine")
    shared_place.agree()
    assert os.environ.get("LBTRAIN_RUN_DIR") == (None if given else "mine")


def test_ranks_of_torchrun_take_the_directory_of_the_first(monkeypatch):
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    _set(monkeypatch, TORCHRUN | {"MASTER_PORT": str(store.port)})
    shared_place.agree()
    first = os.environ.pop("LBTRAIN_RUN_DIR")
    assert re.fullmatch(r"outputs/\d{4}-\d\d-\d\d/\d\d-\d\d-\d\d", first)
    # A rank that comes later, when the clock says something else.
    store.set("lbtrain/run_dir", "outputs/2026-01-31/12-00-00")
    shared_place.agree()
    assert os.environ["LBTRAIN_RUN_DIR"] == "outputs/2026-01-31/12-00-00"


def test_a_single_run_is_left_alone():
    shared_place.agree()
    assert "LBTRAIN_RUN_DIR" not in os.environ
