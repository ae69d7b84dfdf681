"""The verdict through a Trainer, what it costs, and what is done about a sum."""

import math

import pytest
import torch
from torch import nn

from lbtrain import LossReductionCheck
from lbtrain._lightning import CSVLogger, MisconfigurationException
from tests.modules import Everything, Plain, digits_like, fit, same


class PerPixel(Plain):
    """Mean over samples and outputs; still a mean over the batch."""

    def training_step(self, batch, batch_idx):
        return nn.functional.mse_loss(self.net(batch[0]), torch.zeros(len(batch[0]), 3))


class Coupled(Plain):
    """Each sample against the others: neither law holds."""

    def training_step(self, batch, batch_idx):
        z = nn.functional.normalize(self.net(batch[0]), dim=1)
        return nn.functional.cross_entropy(z @ z.T, torch.arange(len(z)))


@pytest.mark.parametrize(
    ("module", "kind"),
    [
        (lambda: Plain(), "mean"),
        (lambda: Plain(reduction="sum", lr=0.01), "sum"),
        (lambda: PerPixel(), "mean"),
        (lambda: Coupled(), "other"),
    ],
    ids=["mean", "sum", "pixels", "coupled"],
)
def test_the_verdict(module, kind):
    check = LossReductionCheck(on_sum="ignore")
    fit(module(), digits_like(), [check])
    assert check.result.kind == kind


@pytest.mark.parametrize("precision", ["bf16-mixed", "64-true", "bf16-true"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_verdict_in_other_precisions(precision, reduction):
    check = LossReductionCheck(on_sum="ignore")
    fit(Plain(reduction=reduction, lr=0.01), digits_like(samples=64, batch_size=32), [check], precision=precision)
    assert check.result.kind == reduction


def test_dropout_and_batch_statistics_do_not_matter():
    class Noisy(Everything):
        def training_step(self, batch, batch_idx):
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    check = LossReductionCheck()
    fit(Noisy(), digits_like(), [check])
    assert check.result.kind == "mean"


def test_a_sum_warns_with_the_way_out():
    with pytest.warns(UserWarning, match=r"is a sum over the batch .*Use reduction='mean'"):
        fit(Plain(reduction="sum", lr=0.01), digits_like(), [LossReductionCheck()])


def test_a_sum_ends_the_run_before_its_first_step():
    module = Plain(reduction="sum")
    before = {k: v.clone() for k, v in module.state_dict().items()}
    with pytest.raises(MisconfigurationException, match="is a sum over the batch"):
        fit(module, digits_like(), [LossReductionCheck(on_sum="error")])
    assert same(before, module.state_dict())


def test_checking_leaves_no_trace_and_costs_four_evaluations():
    counted = []

    class Counting(Everything):
        def training_step(self, batch, batch_idx):
            counted.append(len(batch[1]))
            return super().training_step(batch, batch_idx)

    modules = [Counting(), Counting()]
    modules[1].load_state_dict(modules[0].state_dict())
    trainers = [fit(modules[0], digits_like(), [LossReductionCheck()]), fit(modules[1], digits_like())]
    assert counted[:4] == [8, 4, 4, 16]
    assert len(counted) == 4 + 6 + 6
    assert same(modules[0].state_dict(), modules[1].state_dict())
    for key, value in trainers[1].callback_metrics.items():
        assert torch.equal(value, trainers[0].callback_metrics[key])


def test_a_batch_of_one_says_unknown():
    check = LossReductionCheck()
    fit(Plain(), digits_like(3, 1), [check])
    assert check.result.kind == "unknown"
    assert math.isnan(check.result.deviation)


def test_the_verdict_is_among_the_hyperparameters(tmp_path):
    fit(
        Plain(),
        digits_like(),
        [LossReductionCheck()],
        logger=CSVLogger(tmp_path, name="", version=""),
        log_every_n_steps=1,
    )
    assert "loss/reduction: mean" in (tmp_path / "hparams.yaml").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"on_sum": "raise"}, r"on_sum must be one of \['warn', 'error', 'ignore'\], got 'raise'"),
        ({"rtol": 0.5}, "rtol must be"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        LossReductionCheck(**arguments)
