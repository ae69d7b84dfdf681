"""A job tells how far it is, and nothing about it changes."""

import json

import pytest
import torch

from lbtrain.app import pulse
from lbtrain.app.pulse import Pulse, pulses
from lbtrain.app.sweep import jobs
from lbtrain.app.sweep.view import Beat, read_beat
from tests.modules import Plain, digits_like, fit


def beats(monkeypatch, tmp_path, **options):
    """Train, and return all that was written, the module and the trainer."""
    written = []
    replaced = pulse.os.replace
    monkeypatch.setattr(pulse, "_INTERVAL", -1.0)
    monkeypatch.setattr(
        pulse.os, "replace", lambda draft, path: (written.append(json.loads(draft.read_text())), replaced(draft, path))
    )
    torch.manual_seed(0)
    module = Plain()
    trainer = fit(module, digits_like(), [Pulse(tmp_path / "pulse")], **options)
    return written, module, trainer


def test_every_beat_says_how_far_training_is(monkeypatch, tmp_path):
    written, _, trainer = beats(monkeypatch, tmp_path, max_epochs=2)
    steps, batches = trainer.global_step, trainer.num_training_batches
    assert [beat["step"] for beat in written] == [0, *range(1, steps + 1), steps]
    assert [beat["epoch"] for beat in written[:-1]] == pytest.approx([n / batches for n in range(steps + 1)])
    assert {beat["epochs"] for beat in written} == {trainer.max_epochs}
    assert [beat["phase"] for beat in written] == [*["training"] * (steps + 1), "measuring"]
    assert written[1]["loss"] > 0
    assert read_beat(tmp_path / "pulse") == Beat(**{k: v for k, v in written[-1].items() if k != "time"})


def test_the_loss_is_that_of_the_batch_also_when_gradients_are_accumulated(monkeypatch, tmp_path):
    plain, _, _ = beats(monkeypatch, tmp_path, max_epochs=1)
    accumulated, _, _ = beats(monkeypatch, tmp_path, max_epochs=1, accumulate_grad_batches=2)
    assert accumulated[1]["loss"] == plain[1]["loss"]


def test_beats_are_rare(tmp_path, monkeypatch):
    monkeypatch.setattr(pulse, "_INTERVAL", 1000.0)
    fit(Plain(), digits_like(), [own := Pulse(tmp_path / "pulse")])
    assert read_beat(own.path).phase == "measuring"
    count = []
    monkeypatch.setattr(Pulse, "_beat", lambda self, *arguments: count.append(self.__dict__.update(_next=1e12)))
    fit(Plain(), digits_like(), [Pulse(tmp_path / "pulse")])
    assert len(count) == 2  # start and end


def test_nothing_is_written_unless_somebody_wants_to_know(monkeypatch, tmp_path):
    assert pulse.VARIABLE == jobs.PULSE
    monkeypatch.delenv(pulse.VARIABLE, raising=False)
    assert pulses() == []
    monkeypatch.setenv(pulse.VARIABLE, str(tmp_path / "pulse"))
    (own,) = pulses()
    assert own.path == tmp_path / "pulse"


def test_a_loss_that_is_no_number_is_left_out():
    assert pulse._loss({"loss": torch.tensor(float("nan"))}, 1) is None
    assert pulse._loss({"loss": torch.zeros(2)}, 1) is None
    assert pulse._loss(None, 1) is None
    assert pulse._loss({"loss": torch.tensor(0.25)}, 2) == 0.5
