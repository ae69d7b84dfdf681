"""The verdict on modules whose reduction is known, through a Trainer."""

import math

import pytest
import torch
from torch import nn

from lbtrain import LossReductionCheck
from lbtrain._lightning import Callback
from lbtrain.callbacks._reduction import _batch_norms
from tests.modules import fit, same
from tests.unit.callbacks import reductions as r

MODULES = {
    "cross entropy": (r.Net, "mean"),
    "summed cross entropy": (r.CrossEntropySum, "sum"),
    "squared error over outputs": (r.MeanOverOutputs, "mean"),
    "CTC": (r.Ctc, "mean"),
    "masked tokens": (r.MaskedTokens, "mean over other units"),
    "NT-Xent": (r.NtXent, "batch-coupled"),
    "mined triplets": (r.Triplet, "batch-coupled"),
    "focal loss by positives": (r.Focal, "mean over other units"),
    "a dict": (r.ReturnsDict, "mean"),
    "logs and metrics": (r.LogsAndCounts, "mean"),
    "BatchNorm": (r.WithBatchNorm, "mean"),
    "dropout": (r.WithDropout, "mean"),
    "ragged lists": (r.RaggedLists, "mean"),
    "zero": (r.Zero, "unknown"),
    "fresh tokens": (r.FreshTokens, "mean over other units"),
    "summed tokens": (r.TokenSum, "sum"),
    "class weights": (r.ClassWeights, "mean over other units"),
    "BatchNorm without running statistics": (r.AlwaysBatchStatistics, "batch-coupled"),
    "units of ragged lists": (r.RaggedUnits, "mean over other units"),
    "mean and penalty": (lambda: r.Penalized("mean"), "mean"),
    "sum and penalty": (lambda: r.Penalized("sum"), "sum"),
    "mean with noise": (lambda: r.Random(0.01), "mean"),
    "sum with noise": (lambda: r.Random(0.01, r.CrossEntropySum), "sum"),
    "NT-Xent with noise": (lambda: r.Random(0.001, r.NtXent), "batch-coupled"),
    "more noise than loss": (lambda: r.Random(9.0), "unknown"),
}


def judge(module, *batches, **options):
    """Train for one step and return the verdict."""
    check = LossReductionCheck(on_problem="ignore")
    fit(module, r.one(*(batches or (module.batch(),))), [check], max_steps=1, **options)
    return check.result


@pytest.mark.parametrize("precision", ["32-true", "64-true"])
@pytest.mark.parametrize("name", MODULES)
def test_tells_what_the_loss_makes_of_its_samples(name, precision):
    build, kind = MODULES[name]
    result = judge(build(), precision=precision)
    assert result.kind == kind, result.reason
    expected = 4 if kind == "mean" or name in ("summed cross entropy", "summed tokens", "zero") else 6
    assert result.num_losses == (6 if "noise" in name else expected)
    assert math.isnan(result.deviation) == (kind == "unknown")
    assert result.num_samples == 8
    assert result.reason.startswith(f"L(8 samples) = {result.losses[0]:.6g}, its halves ")


def test_tells_how_unequal_the_units_are():
    # The halves of these sequences have 9 + 8 + 7 + 6 and 5 + 4 + 3 + 2 tokens.
    result = judge(r.MaskedTokens(), precision="64-true")
    assert result.first_share == pytest.approx(30 / 44, rel=1e-6)
    assert result.units_ratio == pytest.approx(30 / 14, rel=1e-6)


def test_equal_halves_do_not_hide_a_token_mean_behind_the_verdict():
    module = r.FreshTokens()
    nn.init.zeros_(module.net[2].weight)
    result = judge(module)
    assert result.kind == "mean"
    assert "halves differ too little to tell samples from other units" in result.reason
    assert "too little" not in judge(r.Net()).reason


@pytest.mark.filterwarnings("ignore:Found 1 module.s. in eval mode")
@pytest.mark.parametrize("frozen", [False, True])
def test_counts_what_will_normalize_over_the_batch(frozen):
    module = r.WithBatchNorm()
    module.net.append(nn.SyncBatchNorm(3))
    module.net.append(nn.InstanceNorm1d(3, track_running_stats=True))
    module.net.append(nn.LayerNorm(3))
    module.net.eval()
    counted = r.WithBatchNorm()
    if frozen:
        counted.net[1].eval()
    result = judge(counted)
    assert (result.batch_norms, result.sync_batch_norms) == (0 if frozen else 1, 0)
    assert _batch_norms(module) == (0, 0)
    assert _batch_norms(module.train()) == (1, 1)


@pytest.mark.parametrize("name", MODULES)
def test_leaves_no_trace(name):
    class Step(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            self.drawn = torch.rand(1)

    runs = []
    for callbacks in ([LossReductionCheck(on_problem="ignore")], []):
        module, step = MODULES[name][0](), Step()
        trainer = fit(module, r.one(module.batch(), module.batch()), [*callbacks, step])
        runs.append((module, step, trainer))
    (module, step, trainer), (twin, twins_step, twins_trainer) = runs
    assert same(module.state_dict(), twin.state_dict())
    assert torch.equal(step.drawn, twins_step.drawn)
    assert {k: float(v) for k, v in trainer.callback_metrics.items()} == {
        k: float(v) for k, v in twins_trainer.callback_metrics.items()
    }
    assert getattr(module, "seen", []) == getattr(twin, "seen", [])


def test_a_step_that_fails_on_a_part_of_the_batch_does_not_end_the_run():
    class Eight(r.Net):
        def training_step(self, batch, batch_idx):
            if len(batch[0]) != 8:
                raise RuntimeError("eight of them, please\nand more")
            return super().training_step(batch, batch_idx)

    result = judge(Eight())
    assert result.kind == "unknown"
    assert result.reason == (
        "training_step failed on 4 samples of the batch in eval mode (RuntimeError: eight of them, please)"
    )


def test_a_batch_that_cannot_be_split_is_described():
    class Graph:
        pass

    class OfGraph(r.Net):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch["rest"], batch_idx)

    batch = {"graph": Graph(), "rest": [r.draws(8, 6), torch.arange(8) % 3, torch.zeros(5)]}
    result = judge(OfGraph(), batch)
    assert (result.kind, result.num_losses) == ("unknown", 0)
    assert result.reason == (
        "the batch cannot be split into samples (dict: graph Graph, rest list(Tensor(8, 6), Tensor(8), Tensor(5)))"
    )


@pytest.mark.filterwarnings("ignore:`training_step` returned `None`")
def test_a_batch_without_a_loss_leaves_the_verdict_to_the_next():
    class Skips(r.Net):
        def training_step(self, batch, batch_idx):
            return None if batch[0].isnan().any() else super().training_step(batch, batch_idx)

    said = []

    class Notes(Callback):
        def on_train_batch_end(self, trainer, *_):
            check = trainer.callbacks[0]
            said.append((check.judged, check.result.kind))

    check = LossReductionCheck()
    broken = [torch.full((8, 6), math.nan), torch.zeros(8, dtype=torch.long)]
    fit(Skips(), r.one(broken, broken, r.vectors(), r.vectors()), [check, Notes()])
    assert said == [(False, "unknown"), (False, "unknown"), (True, "mean"), (True, "mean")]
