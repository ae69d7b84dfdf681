"""Where a job that Slurm has requeued goes on, and when its state is saved."""

import os
import signal
from types import SimpleNamespace

import pytest
import torch

from lbtrain.app import requeue

STEP = {"SLURM_PROCID": "0", "SLURM_NTASKS": "1", "SLURM_JOB_NAME": "train"}


@pytest.fixture
def slurm(monkeypatch):
    for name in ("TORCHELASTIC_RUN_ID", "SLURM_RESTART_COUNT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in STEP.items():
        monkeypatch.setenv(name, value)


def _saved(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"global_step": 1, "loops": {}, "optimizer_states": []}, path)
    return str(path)


def test_a_run_goes_on_from_the_newest_of_what_was_saved_on_the_signal(tmp_path, slurm):
    assert requeue.kept(tmp_path) is None
    _saved(tmp_path / "hpc_ckpt_9.ckpt")
    newest = _saved(tmp_path / "hpc_ckpt_10.ckpt")
    assert requeue.kept(tmp_path) == newest


def test_a_run_that_was_ended_without_a_signal_goes_on_from_its_last_checkpoint(tmp_path, slurm, monkeypatch):
    last = _saved(tmp_path / "checkpoints" / "last.ckpt")
    assert requeue.kept(tmp_path) is None
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert requeue.kept(tmp_path) == last
    assert requeue.kept(tmp_path / "other") is None


def test_outside_of_slurm_nothing_is_taken_up(tmp_path, slurm, monkeypatch):
    _saved(tmp_path / "hpc_ckpt_1.ckpt")
    monkeypatch.setenv("SLURM_JOB_NAME", "interactive")
    assert requeue.kept(tmp_path) is None
    assert requeue.at_step_end() == []


def test_what_was_saved_is_removed_by_rank_zero_after_fit(tmp_path):
    _saved(tmp_path / "hpc_ckpt_1.ckpt")
    waits = []
    for zero in (False, True):
        trainer = SimpleNamespace(is_global_zero=zero, strategy=SimpleNamespace(barrier=lambda: waits.append(1)))
        requeue.forget(trainer, tmp_path)
        assert (tmp_path / "hpc_ckpt_1.ckpt").exists() != zero
    assert len(waits) == 2


@pytest.fixture
def ended(slurm):
    """A trainer under Slurm, the callback, and what Lightning's answer to the signal was called with."""
    calls = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: calls.append(number))
    environment = SimpleNamespace(auto_requeue=True, requeue_signal=signal.SIGUSR1)
    strategy = SimpleNamespace(reduce_boolean_decision=lambda came, all: came)
    connector = SimpleNamespace(cluster_environment=environment)
    trainer = SimpleNamespace(strategy=strategy, _accelerator_connector=connector, global_step=5)
    (callback,) = requeue.at_step_end()
    yield trainer, callback, calls
    signal.signal(signal.SIGUSR1, before)


def test_the_answer_waits_for_the_end_of_the_step(ended):
    trainer, callback, calls = ended
    callback.on_train_start(trainer, None)
    os.kill(os.getpid(), signal.SIGUSR1)
    callback.on_train_batch_end(trainer, None)  # a batch of several that make up the step
    assert calls == []
    trainer.global_step = 6
    callback.on_train_batch_end(trainer, None)
    assert calls == [signal.SIGUSR1]
    trainer.global_step = 7
    callback.on_train_batch_end(trainer, None)
    callback.on_validation_end(trainer, None)
    assert calls == [signal.SIGUSR1]


def test_a_rank_without_the_signal_answers_with_the_others(ended):
    trainer, callback, calls = ended
    trainer.strategy.reduce_boolean_decision = lambda came, all: True
    callback.on_train_start(trainer, None)
    callback.on_validation_end(trainer, None)
    assert calls == [signal.SIGUSR1]


def test_lightning_s_answer_stays_switched_off(ended):
    trainer, callback, calls = ended
    trainer._accelerator_connector.cluster_environment.auto_requeue = False
    callback.on_train_start(trainer, None)
    callback.on_train_end(trainer, None)
    os.kill(os.getpid(), signal.SIGUSR1)
    assert calls == [signal.SIGUSR1]  # at once: of whoever has it
