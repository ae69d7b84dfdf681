"""FixedSubsetLoss: which samples, when, and that training does not notice it."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from lbtrain import SAM, FixedSubsetLoss
from lbtrain._lightning import Callback, MisconfigurationException, ModelCheckpoint
from tests.modules import Everything, Plain, digits_like, fit, same
from tests.unit.callbacks.test_tracking import Kept


def curve_of(callback):
    return [(point["step"], point["subset/loss"]) for point in callback.tracks]


def dense(module, loader, indices=slice(None)):
    x, y = loader.dataset.tensors
    with torch.no_grad():
        return cross_entropy(module.net(x[indices]), y[indices]).item()


class Truth(Callback):
    """The loss on all data at the start and after each step."""

    def __init__(self, loader):
        self.loader, self.found = loader, []

    def on_train_start(self, trainer, pl_module):
        self.found.append((0, dense(pl_module, self.loader)))

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.found.append((trainer.global_step, dense(pl_module, self.loader)))


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_logs_the_mean_over_the_samples_at_the_start_at_each_nth_step_and_at_the_end(reduction):
    loader = digits_like(44, 8, shuffle=True, dtype=torch.float64)  # a short last batch, which counts by its size
    truth, curve, logger = Truth(loader), FixedSubsetLoss(None, every_n_steps=2, batch_size=5), Kept()
    lr = 0.3 if reduction == "mean" else 0.03
    module = Plain(dtype=torch.float64, reduction=reduction, lr=lr)
    trainer = fit(module, loader, [truth, curve], max_epochs=1, max_steps=5, logger=logger)
    expected = [found for found in truth.found if found[0] in {0, 2, 4, 5}]
    assert [step for step, _ in curve_of(curve)] == [0, 2, 4, 5]
    assert [v for _, v in curve_of(curve)] == pytest.approx([v for _, v in expected], rel=1e-12)
    assert curve.result.loss == trainer.callback_metrics["subset/loss"].item() == curve.tracks[-1]["subset/loss"]
    assert curve.result.seconds > 0
    assert [step for step, row in logger.rows if "subset/loss" in row] == [0, 2, 4, 5]


def test_the_samples_are_the_same_at_each_step_and_others_for_another_seed():
    curves = [FixedSubsetLoss(16, 1, seed=seed) for seed in (0, 0, 1)]
    for curve in curves:
        fit(Plain(lr=0.0), digits_like(shuffle=True), [curve])
    values = [{value for _, value in curve_of(curve)} for curve in curves]
    assert [len(v) for v in values] == [1, 1, 1]
    assert values[0] == values[1] != values[2]
    chosen = torch.randperm(48, generator=torch.Generator().manual_seed(0))[:16]
    module, loader = Plain(lr=0.0), digits_like()
    again = FixedSubsetLoss(16)
    fit(module, loader, [again])
    assert again.result.loss == pytest.approx(dense(module, loader, chosen), rel=1e-6)


@pytest.mark.parametrize("accumulate", [1, 4])
def test_training_is_the_same_bit_for_bit_with_it(accumulate):
    states = []
    for extra in ([], [FixedSubsetLoss(20, 1)]):
        torch.manual_seed(0)
        module = Everything()
        fit(module, digits_like(), [SAM(), *extra], max_epochs=2, accumulate_grad_batches=accumulate)
        states.append(module.state_dict() | {"stream": torch.get_rng_state(), "losses": torch.tensor(module.losses)})
    assert same(*states)


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_a_resumed_run_goes_on_with_the_curve(tmp_path):
    def module():
        torch.manual_seed(0)
        return Plain()

    whole = FixedSubsetLoss(20, 4)
    fit(module(), digits_like(), [whole], max_epochs=2)
    saving = ModelCheckpoint(tmp_path, filename="last", save_on_train_epoch_end=True)  # before the end adds a point
    fit(module(), digits_like(), [FixedSubsetLoss(20, 4), saving], max_epochs=1, enable_checkpointing=True)
    resumed = FixedSubsetLoss(20, 4)
    fit(module(), digits_like(), [resumed], max_epochs=2, ckpt_path=tmp_path / "last.ckpt")
    assert curve_of(resumed) == curve_of(whole)
    assert [step for step, _ in curve_of(whole)] == [0, 4, 8, 12]


def test_another_fit_starts_another_curve():
    curve = FixedSubsetLoss(20, None)
    for _ in range(2):
        fit(Plain(), digits_like(), [curve])
    assert [step for step, _ in curve_of(curve)] == [0, 6]


def test_two_of_them_are_refused_since_they_would_share_a_key():
    with pytest.raises(MisconfigurationException, match="two FixedSubsetLoss .* subset/loss: keep one"):
        fit(Plain(), digits_like(), [FixedSubsetLoss(8), FixedSubsetLoss(16)])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_samples": 0}, "num_samples must be a whole number of samples, at least 1, or None, got 0"),
        ({"every_n_steps": 0}, "every_n_steps must be a whole number of steps"),
        ({"batch_size": 2.5}, "batch_size must be"),
        ({"seed": -1}, "seed must be"),
    ],
)
def test_arguments_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        FixedSubsetLoss(**options)
