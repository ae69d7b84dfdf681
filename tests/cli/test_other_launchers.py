"""Sweeps under Hydra's other launchers, and ranks that torchrun and Slurm start; in commands, as a user types them."""

import os

import pytest
from hydra import compose, initialize_config_module
from hydra.core.plugins import Plugins

from lbtrain.records import read_record
from tests.cli.commands import SMALL, TRAIN, Command, run

pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="needs the extra sweep")

# A step of a Slurm job with one task; srun sets these.
STEP = {"SLURM_JOB_ID": "4242", "SLURM_STEP_ID": "0", "SLURM_JOB_NAME": "train", "SLURM_NODELIST": "127.0.0.1"}
STEP |= {"SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_NNODES": "1"}

# Slurm's signal, in the middle of a step: between the gradients and the optimizer.
PREEMPTED = """
import json
import os
import signal

import torch

from lbtrain._lightning import Callback


class Preempted(Callback):
    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        if trainer.global_step == 7 and "SLURM_RESTART_COUNT" not in os.environ:
            os.kill(os.getpid(), signal.SIGUSR1)

    def on_train_batch_end(self, trainer, pl_module, *_):
        # Runs before what saves: the weights that must be saved.
        if trainer.global_step == 8 and "SLURM_RESTART_COUNT" not in os.environ:
            torch.save(pl_module.state_dict(), "weights.pt")
"""


def _program(directory, name, text):
    path = directory / "bin" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return f"{path.parent}{os.pathsep}{os.environ['PATH']}"


def test_slurm_gets_a_script_with_a_task_per_gpu_and_a_signal_that_lightning_does_not_take(tmp_path, monkeypatch):
    import submitit

    # submitit looks for srun; nothing is started.
    monkeypatch.setenv("PATH", _program(tmp_path, "srun", "exit 1"))
    kept = []

    def keep(executor, *_):
        kept.append(executor)
        raise KeyboardInterrupt

    monkeypatch.setattr(submitit.AutoExecutor, "map_array", keep)
    given = ["hydra/launcher=submitit_slurm", f"hydra.sweep.dir={tmp_path}", "hydra.launcher.tasks_per_node=4"]
    given += ["hydra.launcher.gpus_per_node=4", "hydra.launcher.nodes=2", "hydra.launcher.timeout_min=90"]
    given += ["hydra.launcher.partition=big", "hydra.launcher.max_num_timeout=3", "hydra.job.name=train"]
    with initialize_config_module("lbtrain.conf", version_base="1.3"):
        config = compose("train", [*given, "trainer=ddp", "trainer.devices=4"], return_hydra_config=True)
    launcher = Plugins.instance()._instantiate(config.hydra.launcher)
    launcher.setup(hydra_context=None, task_function=None, config=config)
    with pytest.raises(KeyboardInterrupt):
        launcher.launch([["seed=0"], ["seed=1"]], 0)
    (executor,) = kept
    script = executor._executor._make_submission_file_text("COMMAND", "0")
    options = {line.removeprefix("#SBATCH --") for line in script.splitlines() if line.startswith("#SBATCH")}
    expected = {"nodes=2", "ntasks-per-node=4", "gpus-per-node=4", "time=90", "partition=big", "job-name=train"}
    assert expected <= options
    # SIGUSR1 is Lightning's.
    assert "signal=USR2@120" in options
    assert "srun" in script


@pytest.mark.parametrize("launcher", ["basic", "joblib"])
def test_ranks_are_refused_in_one_line_before_any_job_starts(launcher, tmp_path):
    arguments = ["-m", *SMALL, f"hydra/launcher={launcher}", "hydra.sweep.dir=sweep", "trainer=cpu,ddp_cpu"]
    done = run(arguments, tmp_path)
    assert done.code == 1
    assert done.err.splitlines()[0] == (
        f"hydra/launcher={launcher} runs jobs in one process, and each rank that DDPStrategy starts would run the "
        "whole sweep again; use hydra/launcher=local"
    )
    assert "Traceback" not in done.err
    assert not list(tmp_path.rglob("summary.json"))


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["submitit_local", "joblib", "basic"])
def test_a_failing_job_leaves_the_others_finished_and_the_comparison_is_shown(launcher, planted):
    arguments = ["-m", *planted.small, f"hydra/launcher={launcher}", "hydra.sweep.dir=sweep"]
    with Command([*arguments, "callbacks.fault.kind=none,raise"], planted.directory) as command:
        done = command.done(240)
        assert command.wait_alone() == []
    sweep = planted.directory / "sweep"
    good, bad = (read_record(sweep / number) for number in "01")
    assert (good.status, bad.status) == ("finished", "failed")
    assert bad.error.startswith("RuntimeError: planted fault")
    assert done.code == 1
    assert "2 runs: 1 finished" in done.out
    assert f"Report: {sweep / 'report.html'}" in done.out
    assert good.metrics["batch/global"] == 256


@pytest.mark.slow
def test_a_typo_is_found_before_the_first_job_of_another_launcher(tmp_path):
    arguments = ["-m", *SMALL, "hydra/launcher=basic", "hydra.sweep.dir=sweep", "+optimizer.lrr=1,2"]
    done = run(arguments, tmp_path)
    assert done.code == 1
    assert "lrr" in done.err
    assert "did you mean 'lr'" in done.err
    assert "Traceback" not in done.err
    assert not list(tmp_path.rglob("summary.json"))


@pytest.mark.slow
@pytest.mark.distributed
def test_ranks_of_torchrun_on_two_nodes_leave_one_record(tmp_path):
    def torchrun(rank, port):
        own = ["-m", "torch.distributed.run", "--nnodes=2", f"--node_rank={rank}", "--nproc_per_node=1"]
        own += ["--master_addr=127.0.0.1", f"--master_port={port}", TRAIN[1], *SMALL]
        return Command(
            [*own, "trainer=ddp_cpu", "trainer.devices=1", "trainer.num_nodes=2"], tmp_path, program=TRAIN[:1]
        )

    port = _free_port()
    with torchrun(0, port) as first, torchrun(1, port) as second:
        ends = first.done(200), second.done(200)
    assert [end.code for end in ends] == [0, 0], ends
    _is_one_run_of_two_ranks(tmp_path)


@pytest.mark.slow
@pytest.mark.distributed
def test_tasks_of_a_slurm_step_leave_one_record_in_the_directory_of_the_job(tmp_path):
    tasks = {**STEP, "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "MASTER_PORT": str(_free_port())}
    own = [{**tasks, "SLURM_PROCID": rank, "SLURM_LOCALID": rank} for rank in "01"]
    arguments = [*SMALL, "trainer=ddp_cpu"]
    with Command(arguments, tmp_path, **own[0]) as first, Command(arguments, tmp_path, **own[1]) as second:
        ends = first.done(200), second.done(200)
    assert [end.code for end in ends] == [0, 0], ends
    assert _is_one_run_of_two_ranks(tmp_path) == tmp_path / "outputs" / "slurm" / "4242.0"


def _is_one_run_of_two_ranks(directory):
    (summary,) = directory.rglob("summary.json")
    record = read_record(summary.parent)
    assert record.status == "finished"
    assert record.metrics["batch/data_parallel"] == 2
    assert len(list(directory.rglob("metrics.csv"))) == len(list(directory.rglob(".hydra"))) == 1
    return summary.parent


def _free_port():
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.slow
def test_a_requeued_job_goes_on_from_the_end_of_the_step_in_which_the_signal_came(tmp_path):
    import torch

    # What Slurm does with a job that is put back into its queue: it ends it.
    path = _program(tmp_path, "scontrol", 'echo "$@" >> scontrol.log; kill -TERM $PPID')
    (tmp_path / "preempted.py").write_text(PREEMPTED)
    arguments = ["trainer.max_epochs=3", "data.batch_size=256", "callbacks=[lr_scaling,checkpoint,sam]"]
    arguments += ["+callbacks.preempted._target_=preempted.Preempted"]
    first = run(arguments, tmp_path, PATH=path, **STEP)
    place = tmp_path / "outputs" / "slurm" / "4242.0"
    assert first.code != 0
    assert (tmp_path / "scontrol.log").read_text() == "requeue 4242\n"
    assert read_record(place).status == "failed"
    (saved,) = place.glob("hpc_ckpt_*.ckpt")
    checkpoint, weights = torch.load(saved), torch.load(tmp_path / "weights.pt")
    assert checkpoint["global_step"] == 8
    # Not those that SAM's second pass had shifted, nor those of before the step.
    assert all(torch.equal(checkpoint["state_dict"][key], value) for key, value in weights.items())
    again = run(arguments, tmp_path, PATH=path, **STEP, SLURM_RESTART_COUNT="1")
    assert again.code == 0, again.err
    record = read_record(place)
    assert record.status == "finished"
    assert "requeued: going on from" in again.out + again.err
    steps = [
        int(line.split(",")[_column(place, "step")]) for line in (place / "metrics.csv").read_text().splitlines()[1:]
    ]
    assert max(steps) == 18
    assert not list(place.glob("hpc_ckpt_*.ckpt"))
    # Of the final weights, not of those with which the job went on: Lightning would load these again to test.
    final = torch.load(place / "checkpoints" / "last.ckpt")
    assert final["global_step"] == 18
    _agrees_with_its_last_weights(record, final["state_dict"])


def _column(place, name):
    return (place / "metrics.csv").read_text().splitlines()[0].split(",").index(name)


def _agrees_with_its_last_weights(record, state):
    from lbtrain.app.data import DigitsData
    from lbtrain.app.instantiate import instantiate

    with initialize_config_module("lbtrain.conf", version_base="1.3"):
        model = instantiate(compose("train").model)
    model.load_state_dict(state)
    data = DigitsData(seed=0)
    data.setup("test")
    right = sum(int((model.eval()(x).argmax(1) == y).sum()) for x, y in data.test_dataloader())
    assert right / 360 == pytest.approx(record.metrics["test/acc"])
