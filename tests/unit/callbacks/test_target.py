"""Steps, epochs and seconds until a metric reaches a target."""

import time

import pytest
import torch

from lbtrain import StepTime, TargetReached
from lbtrain._lightning import Callback, EarlyStopping, MisconfigurationException, ModelCheckpoint
from lbtrain.callbacks._measurement import Measurement
from tests.modules import Plain, digits_like, fit


class Scripted(Plain):
    """A module whose validation metric takes these values, one after another."""

    def __init__(self, values):
        super().__init__()
        self.values = list(values)

    def validation_step(self, batch, batch_idx):
        return None

    def on_validation_epoch_end(self):
        if not self.trainer.sanity_checking:
            self.log("val/acc", self.values.pop(0))


class Slept:
    seconds = 0.3

    def metrics(self):
        return {"slept": 1.0}


class Measuring(Measurement):
    """A measurement that only takes time, after each epoch."""

    def __init__(self):
        super().__init__(every_n_epochs=1)

    def measure(self, trainer, pl_module):
        time.sleep(Slept.seconds)
        return Slept()


def trained(values, callbacks, **options):
    data = digits_like()
    options = {"max_epochs": len(values), "num_sanity_val_steps": 0, **options}
    module = Scripted(values)
    module.val_dataloader = digits_like
    return fit(module, data, callbacks, **options)


def targets(trainer):
    return {k.removeprefix("target/"): v.item() for k, v in trainer.callback_metrics.items() if k.startswith("target/")}


def test_the_run_stops_where_the_target_is_first_reached():
    trainer = trained([0.5, 0.9, 0.97, 0.2, 1.0], [TargetReached()])
    found = targets(trainer)
    assert found.pop("s") > 0
    assert found == {"value": 0.97, "reached": 1, "steps": 18, "epochs": 3} | {"value": pytest.approx(0.97)}
    assert trainer.global_step == 18


def test_without_stop_the_first_time_counts_and_the_run_goes_on():
    trainer = trained([0.5, 0.98, 0.2, 1.0], [TargetReached(stop=False)])
    assert targets(trainer)["steps"] == 12
    assert trainer.global_step == 24


def test_a_target_that_is_not_reached_says_so_and_nothing_more():
    found = targets(trained([0.5, float("nan")], [TargetReached(target=0.6)]))
    assert found == {"value": pytest.approx(0.6), "reached": 0}


@pytest.mark.parametrize(("mode", "values"), [("min", [0.5, 0.3, 0.1]), ("max", [0.1, 0.9, 1.0])])
def test_a_value_equal_to_the_target_reaches_it_from_above_and_from_below(mode, values):
    # In 32 bits 0.3 is above 0.3 in 64 bits, and 0.9 below 0.9.
    assert targets(trained(values, [TargetReached(target=values[1], mode=mode)]))["epochs"] == 2


def test_a_validation_within_an_epoch_counts_a_share_of_it():
    trainer = trained([0.5, 0.5, 0.99, 0.5], [TargetReached()], max_epochs=2, val_check_interval=0.5)
    assert (targets(trainer)["steps"], targets(trainer)["epochs"]) == (9, 1.5)


def test_a_metric_of_training_is_looked_at_when_its_epoch_ends():
    class Logging(Plain):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            self.log("train/loss", loss, on_step=False, on_epoch=True)
            return loss

    trainer = fit(Logging(), digits_like(), [TargetReached("train/loss", 100.0, "min")], max_epochs=3)
    assert (targets(trainer)["steps"], targets(trainer)["epochs"]) == (6, 1)


def test_the_validation_before_training_does_not_count():
    class Good(Plain):
        def validation_step(self, batch, batch_idx):
            self.log("val/acc", 1.0)

    module = Good()
    module.val_dataloader = digits_like
    trainer = fit(module, digits_like(), [TargetReached()], max_epochs=3, num_sanity_val_steps=1)
    assert (targets(trainer)["steps"], targets(trainer)["epochs"]) == (6, 1)


def test_early_stopping_beside_it_ends_the_run_first():
    stopper = EarlyStopping("val/acc", mode="max", patience=1)
    trainer = trained([0.5, 0.4, 0.4, 0.99], [TargetReached(), stopper])
    assert targets(trainer)["reached"] == 0
    assert trainer.global_step == 12


def test_measurements_are_no_part_of_the_seconds():
    times, target = StepTime(), TargetReached(target=0.9)
    trainer = trained([0.1, 0.1, 0.95], [times, target, Measuring()])
    assert trainer.callback_metrics["time/measure_s"].item() >= 3 * Slept.seconds
    # Two measurements came before the target: the clock would show them.
    assert targets(trainer)["s"] < 2 * Slept.seconds
    assert targets(trainer)["s"] <= trainer.callback_metrics["time/fit_s"].item()


class Sleepy(Callback):
    def on_train_epoch_start(self, trainer, pl_module):
        time.sleep(0.2)


@pytest.mark.filterwarnings("ignore:Checkpoint directory")
@pytest.mark.parametrize("values", [[0.5, 0.5], [0.99, 0.5]], ids=["before", "after"])
def test_a_resumed_run_knows_what_came_before(tmp_path, values):
    saved = [ModelCheckpoint(tmp_path, filename="last") for _ in range(2)]
    options = {"enable_checkpointing": True, "default_root_dir": tmp_path}
    first = TargetReached(stop=False)
    trained(values, [Sleepy(), first, saved[0]], **options)
    again = TargetReached()
    data, module = digits_like(), Scripted([0.99, 0.99])
    module.val_dataloader = digits_like
    path = str(tmp_path / "last.ckpt")
    trainer = fit(module, data, [Sleepy(), again, saved[1]], max_epochs=4, ckpt_path=path, **options)
    found = targets(trainer)
    assert found["steps"] == (6 if values[0] > 0.9 else 18)
    assert trainer.global_step == (12 if values[0] > 0.9 else 18)
    assert found["s"] >= (0.2 if values[0] > 0.9 else 0.6)
    torch.load(path, weights_only=True)


def test_what_was_found_for_another_target_is_forgotten():
    callback = TargetReached(target=0.9)
    callback.load_state_dict({"seconds": 1.0, "found": {"target/value": 0.8, "target/steps": 3.0}})
    assert callback.found is None


def test_a_metric_that_nobody_logs_is_refused_with_those_that_are_there():
    with pytest.raises(MisconfigurationException, match=r"monitor='val/accuracy' .* \(val/acc\)"):
        trained([0.5, 0.5], [TargetReached("val/accuracy")])
    with pytest.raises(MisconfigurationException, match=r"logged nowhere.*\(none\)"):
        fit(Plain(), digits_like(), [TargetReached()])


def test_a_metric_of_a_later_validation_is_waited_for():
    trainer = trained([0.99], [TargetReached()], max_epochs=3, check_val_every_n_epoch=2)
    assert targets(trainer)["epochs"] == 2


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"monitor": ""}, "monitor must be the key of a metric"),
        ({"target": "high"}, "target must be a finite number in the unit of val/acc, such as 0.97, got 'high'"),
        ({"target": float("inf")}, "target must be a finite number"),
        ({"mode": "best"}, r"mode must be one of \('min', 'max'\), got 'best'"),
        ({"stop": 1}, "stop must be true or false, got 1"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, problem):
    with pytest.raises(ValueError, match=problem):
        TargetReached(**arguments)


def test_all_ranks_stop_together_or_none(monkeypatch):
    asked = []

    class Strategy:
        def reduce_boolean_decision(self, decision, all):
            asked.append((decision, all))
            return False  # another rank has not reached it

    class Rank(Callback):
        def on_train_start(self, trainer, pl_module):
            monkeypatch.setattr(trainer.strategy, "reduce_boolean_decision", Strategy().reduce_boolean_decision)

    trainer = trained([0.99, 0.5], [Rank(), TargetReached()])
    assert (True, True) in asked
    assert targets(trainer)["reached"] == 0
    assert trainer.global_step == 12
