"""What the recorder does at the steps between two samples, and how it follows the largest eigenvalue."""

import pytest
import torch

from lbtrain.callbacks._recorder_curvature import TopEigenvalue
from lbtrain.callbacks._recorder_losses import StepLosses
from lbtrain.callbacks._recorder_pace import Pace
from lbtrain.functional.operator import HessianOperator
from tests.modules import Plain, digits_like, fit, same
from tests.problems import matrix_with
from tests.unit.callbacks.recorded import Recording


@pytest.mark.parametrize("interval", [1, 2, 3, 7, 8, 9, 10, 37, 150])
def test_nothing_is_due_at_a_quiet_step_and_something_right_behind_the_last_one(interval):
    pace = Pace(interval, 5)

    def is_busy(step):
        return pace.is_due(step) or pace.is_mean_due(step) or pace.is_due(step + 1)

    for step in range(3 * interval + 20):
        quiet = max(pace.quiet(step), 0)
        assert not any(is_busy(step + k) for k in range(1, quiet + 1))
        assert is_busy(step + quiet + 1)


class Scheduled(Plain):
    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.999)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


@pytest.mark.parametrize("options", [{}, {"accumulate_grad_batches": 2}])
def test_quiet_steps_leave_the_same_record_as_if_none_were(options, monkeypatch):
    taken, take = [], StepLosses.take
    monkeypatch.setattr(StepLosses, "take", lambda *args: taken.append(take(*args)) or taken[-1])

    def state():
        torch.manual_seed(0)
        recording = Recording(num_samples=16, every_n_steps=290)
        fit(Scheduled(), digits_like(30, 4), [recording], max_steps=600, max_epochs=-1, **options)
        kept = recording.state_dict()
        return kept["evidence"], kept["losses"], kept["mean"]["mean"]

    short = state()
    assert sum(taken) == (0 if options else pytest.approx(580, abs=20))
    assert len(short[0]["losses"]) + len(short[1]["values"]) == 600
    monkeypatch.setattr(Pace, "quiet", lambda self, step: 0)
    long = state()
    assert short[:2] == long[:2]
    assert same(short[2], long[2])


def test_a_loss_that_is_no_plain_number_is_left_to_the_long_way():
    losses, value = StepLosses(), torch.tensor(1.0)
    assert losses.take({"loss": value}, 0.1)
    graph = torch.ones((), requires_grad=True) * 2
    for outputs in (value, None, {}, {"loss": 1.0}, {"loss": graph}, {"loss": value.reshape(1)}):
        assert not losses.take(outputs, 0.1)
    assert not losses.take({"loss": value}, torch.tensor(0.1))
    losses.see(value)
    assert not losses.take({"loss": value}, 0.1)  # it is the second batch of its step
    assert len(losses) == 1


def quadratic(matrix, start):
    """Return a loss w'Aw / 2 as a function of parameters, and these."""
    w = torch.nn.Parameter(start.clone())
    return HessianOperator(lambda _: w @ matrix @ w / 2, [w], [None], sizes=[1]), w


def test_an_eigenvector_that_is_of_no_use_any_more_does_not_hide_the_new_one():
    values = [8.0, *torch.linspace(1.0, 0.1, 39).tolist()]
    old, new = (matrix_with(values, seed=seed) for seed in (1, 2))
    top, start = TopEigenvalue(0), torch.ones(40, dtype=torch.float64)
    for matrix in (old, new):
        loss, w = quadratic(matrix, start)
        found, _ = top.measure(loss, loss.gradient(), None, [("w", w.shape)])
        assert found == pytest.approx(8.0, rel=0.15)
        assert loss.num_matvecs <= 7
    found, _ = top.measure(loss, loss.gradient(), None, [("w", w.shape)])
    assert found == pytest.approx(8.0, rel=0.01)


def test_the_largest_eigenvalue_is_found_where_there_is_no_gradient():
    matrix = matrix_with([4.0, -1.0, 0.5, 0.2], seed=0)
    loss, w = quadratic(matrix, torch.zeros(4, dtype=torch.float64))
    top = TopEigenvalue(0)
    for _ in range(2):
        found, _ = top.measure(loss, loss.gradient(), None, [("w", w.shape)])
        assert found == pytest.approx(4.0, rel=0.02)
