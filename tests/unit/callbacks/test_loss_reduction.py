"""The check in a run: its line, what it costs, what it points out, and what is done about that."""

import math
import re
import warnings
from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, IterableDataset, SequentialSampler

from lbtrain import LossReductionCheck
from lbtrain._lightning import CSVLogger, GradientAccumulationScheduler, MisconfigurationException
from lbtrain.callbacks import _loss_problems, _reduction, loss_reduction
from lbtrain.callbacks._loss_problems import PROBLEMS, Problem
from lbtrain.functional.reduction import find_reduction
from tests.modules import Everything, Plain, digits_like, fit, same
from tests.unit.callbacks import reductions as r


def problems(module, loader, *callbacks, check=None, **options):
    """Train and return the problems' messages by name."""
    check = check or LossReductionCheck()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(module, loader, [check, *callbacks], **options)
    told = [str(w.message) for w in caught if "If this is meant: LossReductionCheck(" in str(w.message)]
    return {re.search(r"\(on_problem=\{'(\w+)': 'ignore'\}\)$", text)[1]: text for text in told}


@pytest.fixture
def two_devices(monkeypatch):
    monkeypatch.setattr(_loss_problems, "data_parallel", lambda trainer: 2)


@pytest.mark.parametrize("precision", ["bf16-mixed", "64-true", "bf16-true"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_verdict_in_other_precisions(precision, reduction):
    check = LossReductionCheck(on_problem="ignore")
    fit(Plain(reduction=reduction, lr=0.01), digits_like(samples=64, batch_size=32), [check], precision=precision)
    assert check.result.kind == reduction


@pytest.mark.parametrize(
    ("precision", "rtol", "used"),
    [
        ("32-true", None, 1e-5),
        ("32-true", 1e-3, 1e-3),
        ("64-true", None, 1e-8),
        ("64-true", 1e-3, 1e-3),
        ("bf16-mixed", None, 0.02),
        ("bf16-mixed", 1e-3, 0.02),
        ("bf16-true", 0.1, 0.1),
    ],
)
def test_the_tolerance_follows_the_precision(precision, rtol, used, monkeypatch):
    seen = []
    found = _reduction.find_reduction
    monkeypatch.setattr(_reduction, "find_reduction", lambda *a, **k: seen.append(k["rtol"]) or found(*a, **k))
    fit(Plain(), digits_like(), [LossReductionCheck(rtol=rtol)], precision=precision, max_steps=1)
    assert seen == [used]


@pytest.mark.parametrize(
    ("matmul", "cudnn", "module", "used"),
    [
        ("highest", True, torch.nn.Linear(2, 2), False),
        ("high", False, torch.nn.Linear(2, 2), True),
        ("highest", True, torch.nn.Conv2d(1, 1, 1), True),
        ("highest", True, torch.nn.LSTM(1, 1), True),
        ("highest", False, torch.nn.Conv2d(1, 1, 1), False),
    ],
)
def test_knows_where_a_gpu_may_round_to_tf32(matmul, cudnn, module, used, monkeypatch):
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: matmul)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", cudnn)
    assert _reduction._uses_tf32(module) is used


def test_checking_leaves_no_trace_and_costs_at_most_six_evaluations():
    counted = []

    class Counting(Everything):
        def training_step(self, batch, batch_idx):
            counted.append(len(batch[1]))
            return super().training_step(batch, batch_idx)

    modules = [Counting(), Counting()]
    modules[1].load_state_dict(modules[0].state_dict())
    trainers = [fit(modules[0], digits_like(), [LossReductionCheck()]), fit(modules[1], digits_like())]
    assert counted[:6] == [8, 4, 4, 16, 8, 16]  # this module adds noise to its inputs
    assert len(counted) == 6 + 6 + 6
    assert same(modules[0].state_dict(), modules[1].state_dict())
    for key, value in trainers[1].callback_metrics.items():
        assert torch.equal(value, trainers[0].callback_metrics[key])


def line_of(caplog):
    (line,) = [m for m in caplog.messages if m.startswith("loss reduction ")]
    return line


def test_one_line_says_the_verdict_and_its_numbers(caplog):
    caplog.set_level("INFO")
    check = LossReductionCheck()
    fit(r.Net(), r.one(r.vectors(), r.vectors()), [check])
    whole, first, second, doubled = check.result.losses
    assert line_of(caplog) == (
        f"loss reduction mean: L(8 samples) = {whole:.6g}, its halves {first:.6g} and {second:.6g}, twice over "
        f"{doubled:.6g}"
    )


@pytest.mark.parametrize(("layers", "text"), [(1, "1 BatchNorm layer"), (2, "2 BatchNorm layers")])
def test_the_line_says_what_batch_normalization_does_in_training(layers, text, caplog):
    caplog.set_level("INFO")
    module = r.WithBatchNorm()
    for _ in range(layers - 1):
        module.net.append(torch.nn.BatchNorm1d(3))
    fit(module, r.one(r.vectors()), [LossReductionCheck()])
    assert line_of(caplog).endswith(f"; batch-coupled in training by {text} over 8 samples per device")


def test_the_verdict_is_among_the_hyperparameters(tmp_path):
    logger = CSVLogger(tmp_path, name="", version="")
    fit(Plain(), digits_like(), [LossReductionCheck()], logger=logger, log_every_n_steps=1)
    assert "loss/reduction: mean" in (tmp_path / "hparams.yaml").read_text()


def test_a_mean_in_whole_batches_and_windows_has_no_problem():
    assert problems(r.Net(), digits_like(64, 8), accumulate_grad_batches=4) == {}
    assert problems(r.Ctc(), r.one(*[r.transcripts()] * 4), accumulate_grad_batches=2) == {}


def test_a_sum_is_told_with_its_numbers_and_the_way_out():
    told = problems(r.CrossEntropySum(), digits_like(64, 8))
    assert list(told) == ["sum"]
    assert re.search(
        r"is a sum over the batch \(L\(8 samples\) = .*\).* Use reduction='mean' in training_step", told["sum"]
    )


@pytest.mark.usefixtures("two_devices")
def test_a_sum_that_devices_and_accumulation_average():
    told = problems(r.CrossEntropySum(), digits_like(64, 8), accumulate_grad_batches=4)
    assert list(told) == ["sum", "averaged_sum"]
    assert "is 1/8 of the sum over the global batch 64 = 8 x 2 x 4" in told["averaged_sum"]


@pytest.mark.parametrize(
    ("name", "options", "coupled"),
    [
        ("SGD", {"weight_decay": 0.08}, True),
        ("Adam", {"weight_decay": 0.08}, True),
        ("NAdam", {"weight_decay": 0.08}, True),
        ("NAdam", {"weight_decay": 0.08, "decoupled_weight_decay": True}, False),
        ("SGD", {}, False),
        ("AdamW", {"weight_decay": 0.08}, False),
        ("AdamW", {}, False),
    ],
)
def test_weight_decay_beside_a_sum(name, options, coupled):
    module = r.CrossEntropySum()
    module.configure_optimizers = lambda: getattr(torch.optim, name)(module.parameters(), lr=0.01, **options)
    told = problems(module, digits_like(16, 8))
    assert list(told) == (["sum", "decay_beside_sum"] if coupled else ["sum"])
    if coupled:
        assert (
            f"{name} adds weight_decay=0.08 to a gradient that is a sum over 8 samples: it weighs as 0.01 would"
            in (told["decay_beside_sum"])
        )


def test_weight_decay_beside_a_mean_is_nobodys_problem():
    optimizer = lambda p: torch.optim.SGD(p, lr=0.01, weight_decay=0.1)
    assert problems(Plain(optimizer=optimizer), digits_like(16, 8)) == {}


def test_the_decay_that_is_told_is_what_the_step_does():
    """One step on a sum with weight decay is one on the mean, at 8 times the rate and an eighth of the decay."""
    weights = []
    for module, rate, decay in ((r.CrossEntropySum, 0.01, 0.08), (r.Net, 0.08, 0.01)):
        module = module()
        optimizer = torch.optim.SGD(module.parameters(), lr=rate, weight_decay=decay)
        module.configure_optimizers = lambda optimizer=optimizer: optimizer
        fit(module.double(), r.one(r.vectors()), precision="64-true", max_steps=1)
        weights.append(torch.cat([p.detach().flatten() for p in module.parameters()]))
    torch.testing.assert_close(*weights, rtol=1e-13, atol=0)


def test_a_token_mean_under_accumulation_is_told_with_the_ratio_of_units():
    told = problems(r.MaskedTokens(), r.one(*[r.sequences()] * 4), accumulate_grad_batches=4)
    assert list(told) == ["other_units"]
    # The halves hold 30 and 14 tokens.
    assert "one half of the first batch holds 2.1 times the units of the other" in told["other_units"]
    assert "A step averages 4 such means (32 = 8 x 1 x 4)" in told["other_units"]
    assert "a unit of the emptier weighs 2.1 times one of the fuller" in told["other_units"]


def test_the_ratio_of_units_is_what_accumulation_makes_of_them():
    """The mean of the halves' token means weighs tokens of the second half 30 / 14 times as much."""
    module, batch = r.MaskedTokens(), r.sequences()
    halves = [{k: v[part] for k, v in batch.items()} for part in (slice(0, 4), slice(4, 8))]
    losses = [module.training_step(half, 0) for half in halves]
    tokens = [int((half["labels"] != -100).sum()) for half in halves]
    assert tokens == [30, 14]
    weighed = (30 * losses[0] + 14 * (30 / 14) * losses[1]) / (30 + 14 * (30 / 14))
    torch.testing.assert_close(sum(losses) / 2, weighed)


@pytest.mark.usefixtures("two_devices")
def test_a_contrastive_loss_on_several_devices_is_told_how_many_others_a_sample_sees():
    told = problems(r.NtXent(), r.one(*[r.vectors()] * 4), accumulate_grad_batches=4)
    assert list(told) == ["batch_coupled"]
    assert "each sample sees 7 others, not 63" in told["batch_coupled"]
    assert "made of 8 batches (64 = 8 x 2 x 4)" in told["batch_coupled"]


@pytest.mark.parametrize("module", [r.MaskedTokens, r.NtXent])
def test_one_batch_per_step_has_no_such_problem(module):
    assert problems(module(), r.one(*[module.batch()] * 4)) == {}


def test_a_partial_window_is_told_with_its_share():
    told = problems(r.Net(), digits_like(72, 8), accumulate_grad_batches=4)
    assert list(told) == ["partial_window"]
    assert "an epoch has 9 batches, 4 to a step: the last step has 1" in told["partial_window"]
    assert "so it is 0.25 of the mean over its batches" in told["partial_window"]


def test_the_share_of_a_partial_window_is_what_lightning_makes_of_it():
    """9 equal batches, accumulate 4: the last step is a quarter of the others."""

    class Linear(r.Net):
        def training_step(self, batch, batch_idx):
            return sum(p.sum() for p in self.parameters())

    weights = []
    for steps in (2, 3):
        module = Linear(lr=1.0)
        start = next(module.parameters()).detach().clone()
        fit(module, r.one(*[r.vectors()] * 9), accumulate_grad_batches=4, max_steps=steps)
        weights.append(float((start - next(module.parameters()).detach()).mean()))
    assert weights == pytest.approx([2, 2.25])


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"accumulate_grad_batches": 3}, False),
        ({"accumulate_grad_batches": 4, "limit_train_batches": 8}, False),
        ({"accumulate_grad_batches": 4, "max_steps": 2}, False),
        ({"accumulate_grad_batches": 4, "max_steps": 3}, True),
        ({"accumulate_grad_batches": 16}, True),
    ],
)
def test_a_partial_window_that_is_never_reached_is_no_problem(options, told):
    assert ("partial_window" in problems(r.Net(), digits_like(72, 8), **options)) == told


class Stream(IterableDataset):
    def __iter__(self):
        yield from (r.vectors() for _ in range(9))


def test_a_loader_without_a_length_has_no_partial_window_to_tell_of():
    loader = DataLoader(Stream(), batch_size=None)
    assert problems(r.Net(), loader, accumulate_grad_batches=4) == {}


@pytest.mark.parametrize(("schedule", "epochs", "told"), [({0: 3, 1: 4}, 2, True), ({0: 3, 1: 4}, 1, False)])
def test_an_accumulation_that_changes_later_is_told_of_at_once(schedule, epochs, told):
    scheduler = GradientAccumulationScheduler(schedule)
    found = problems(r.Net(), digits_like(72, 8), scheduler, max_epochs=epochs)
    assert ("partial_window" in found) == told
    assert not told or "9 batches, 4 to a step" in found["partial_window"]


def test_units_are_told_of_where_only_later_epochs_accumulate():
    scheduler = GradientAccumulationScheduler({0: 1, 1: 4})
    told = problems(r.MaskedTokens(), r.one(*[r.sequences()] * 4), scheduler, max_epochs=2)
    assert "A step averages 4 such means (32 = 8 x 1 x 4)" in told["other_units"]


def test_a_partial_window_that_is_fixed_is_no_problem():
    check = LossReductionCheck(fix_partial_window=True)
    assert problems(r.Net(), digits_like(72, 8), check=check, accumulate_grad_batches=4) == {}


@pytest.mark.parametrize(
    ("samples", "told"), [(67, True), (68, True), (69, False), (71, False), (64, False), (3, False)]
)
def test_a_short_last_batch_is_told_from_twice_the_weight_on(samples, told):
    found = problems(r.Net(), digits_like(samples, 8))
    assert ("short_batch" in found) == told
    if told:
        short = samples % 8
        assert f"has {short} samples per device, the others 8" in found["short_batch"]
        assert f"weighs {8 / short:.2g} times one of theirs" in found["short_batch"]


@pytest.mark.parametrize(("shuffle", "consequence"), [(True, "noise, without a bias"), (False, "always these samples")])
def test_a_short_batch_is_noise_where_the_order_changes(shuffle, consequence):
    asked = LossReductionCheck(on_problem={"short_batch": "warn"})
    assert consequence in problems(r.Net(), digits_like(66, 8, shuffle=shuffle), check=asked)["short_batch"]


@pytest.mark.parametrize("on_problem", ["warn", {"sum": "error"}])
def test_noise_of_a_short_batch_is_told_without_a_warning(on_problem, caplog):
    caplog.set_level("INFO")
    check = LossReductionCheck(on_problem=on_problem)
    assert problems(r.Net(), digits_like(66, 8, shuffle=True), check=check) == {}
    assert any("weighs 4 times one of theirs. With shuffling" in record.getMessage() for record in caplog.records)
    with pytest.raises(MisconfigurationException, match="has 2 samples per device"):
        fit(r.Net(), digits_like(66, 8, shuffle=True), [LossReductionCheck(on_problem="error")])


def loaders():
    data = digits_like(66, 8).dataset
    rank = DistributedSampler(data, num_replicas=3, rank=0, shuffle=True)  # 22 samples each
    return {
        "dropped": (DataLoader(data, 8, drop_last=True), None),
        "per rank": (DataLoader(data, 10, sampler=rank), "has 2 samples per device, the others 10"),
        "per rank, in order": (
            DataLoader(data, 10, sampler=DistributedSampler(data, 3, 0, shuffle=False)),
            "always these samples",
        ),
        "batch sampler": (
            DataLoader(data, batch_sampler=BatchSampler(SequentialSampler(data), 8, drop_last=False)),
            "has 2 samples per device, the others 8",
        ),
        "own batch sampler": (DataLoader(data, batch_sampler=[[0, 1], [2]]), None),
        "several": ({"a": digits_like(66, 8), "b": digits_like(66, 8)}, None),
    }


@pytest.mark.parametrize("name", loaders())
def test_a_short_batch_is_read_off_the_samplers(name):
    class First(r.Net):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch["a"] if isinstance(batch, dict) else batch, batch_idx)

    loader, told = loaders()[name]
    asked = LossReductionCheck(on_problem={"short_batch": "warn"})
    found = problems(First(), loader, check=asked, use_distributed_sampler=False)
    assert ("short_batch" in found) == (told is not None)
    assert told is None or told in found["short_batch"]


@pytest.mark.parametrize(
    "options", [{"limit_train_batches": 8}, {"max_steps": 8}, {"max_steps": 2, "accumulate_grad_batches": 4}]
)
def test_a_short_batch_that_is_never_reached_is_no_problem(options):
    assert problems(r.Net(), digits_like(66, 8), **options) == {}


def test_a_sum_does_not_mind_a_short_batch():
    assert list(problems(r.CrossEntropySum(), digits_like(66, 8))) == ["sum"]


def test_an_unknown_verdict_says_what_the_batch_looks_like():
    check = LossReductionCheck()
    told = problems(Plain(), digits_like(3, 1), check=check)
    assert (check.result.kind, math.isnan(check.result.deviation)) == ("unknown", True)
    assert list(told) == ["unknown"]
    assert "is unknown: a batch of 1 has no halves. The batch is list: Tensor(1, 6), Tensor(1)" in told["unknown"]


def test_each_problem_warns_errs_or_keeps_silent_as_told():
    actions = {"sum": "ignore", "averaged_sum": "error", "partial_window": "error"}
    module = r.CrossEntropySum()
    module.configure_optimizers = lambda: torch.optim.SGD(module.parameters(), lr=0.01, weight_decay=0.1)
    before = {k: v.clone() for k, v in module.state_dict().items()}
    with (
        pytest.warns(UserWarning, match="SGD adds weight_decay") as caught,
        pytest.raises(MisconfigurationException, match=r"(?s)^devices and accumulation.*\nan epoch has 9 batches"),
    ):
        fit(module, digits_like(72, 8), [LossReductionCheck(actions)], accumulate_grad_batches=4)
    assert sum("on_problem" in str(w.message) for w in caught) == 1
    assert same(before, module.state_dict())


@pytest.mark.parametrize("action", ["warn", "ignore", "error"])
def test_one_action_goes_for_all(action):
    check = LossReductionCheck(on_problem=action)
    if action == "error":
        with pytest.raises(MisconfigurationException, match="is a sum over the batch"):
            problems(r.CrossEntropySum(), digits_like(), check=check)
    else:
        assert list(problems(r.CrossEntropySum(), digits_like(), check=check)) == (["sum"] if action == "warn" else [])
    assert check.result.kind == "sum"


def test_the_check_forgets_the_last_fit():
    check = LossReductionCheck(on_problem="ignore")
    for module, kind in ((r.Net(), "mean"), (r.CrossEntropySum(), "sum")):
        fit(module, digits_like(), [check])
        assert check.result.kind == kind


def test_manual_optimization_is_refused():
    module = r.Net()
    module.automatic_optimization = False
    with pytest.raises(MisconfigurationException, match="LossReductionCheck re-evaluates training_step"):
        fit(module, digits_like(), [LossReductionCheck()])


def test_every_rank_takes_the_verdict_and_the_problems_of_the_first(monkeypatch):
    """This is the second of two ranks: it finds a mean, and hears of a sum."""
    theirs = find_reduction(lambda part: float(len(part)), 8)
    sent, heard = [], [theirs, {"sum": Problem("told by the first rank")}]
    strategy = SimpleNamespace(broadcast=lambda value: sent.append(value) or heard.pop(0))
    published = []
    monkeypatch.setattr(loss_reduction, "reduction_on", lambda *_, **__: find_reduction(lambda part: 1.0, 8))
    monkeypatch.setattr(loss_reduction, "problems_of", lambda trainer, found, *_, **__: {"here": found.kind})
    monkeypatch.setattr(loss_reduction, "publish", lambda _, metrics: published.append(metrics))
    check = LossReductionCheck(on_problem={"sum": "error"})
    with pytest.raises(MisconfigurationException, match="^told by the first rank$"):
        check.verdict(SimpleNamespace(strategy=strategy), None, None)
    assert [getattr(value, "kind", value) for value in sent] == ["mean", {"here": "sum"}]
    assert published == [{"loss/reduction": "sum"}]
    assert check.result is theirs


@pytest.mark.parametrize("theirs", [[8, 8.0, 4.0, 4.0, 16.0], [None], [8, _reduction.NO_LOSS]])
def test_ranks_that_share_parameters_evaluate_as_often_as_the_first(theirs, monkeypatch):
    """Their forward passes wait for each other, so what the first rank has found decides on all."""
    heard, evaluated = list(theirs), []

    class Six(r.Net):
        def training_step(self, batch, batch_idx):
            evaluated.append(len(batch[0]))
            return super().training_step(batch, batch_idx)

    def judge(trainer, *args, **kwargs):
        monkeypatch.setattr(trainer.strategy, "broadcast", lambda value, src=0: heard.pop(0))
        found.append(_reduction.reduction_on(trainer, *args, **kwargs))
        monkeypatch.undo()
        raise KeyError("enough")

    found = []
    monkeypatch.setattr(_reduction, "is_sharded", lambda trainer: True)
    monkeypatch.setattr(loss_reduction, "reduction_on", judge)
    with pytest.raises(KeyError, match="enough"):
        fit(Six(), r.one(r.vectors(6)), [LossReductionCheck()])  # 6 samples, where the first rank has 8
    assert heard == []
    assert found[0].kind == ("sum" if len(theirs) == 5 else "unknown")
    assert evaluated == [8, 4, 4, 16][: len(theirs) - 1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"on_problem": "raise"}, r"^on_problem must be one of \['warn', 'error', 'ignore'\], got 'raise'"),
        ({"on_problem": {"sum": "raise"}}, r"^on_problem\['sum'\] must be one of .*, got 'raise'"),
        ({"on_problem": {"partial": "warn"}}, "'partial', which is no problem: did you mean 'partial_window'"),
        ({"on_problem": {"short": "warn"}}, "did you mean 'short_batch'"),
        ({"on_problem": {"xyz": "warn"}}, f"All are {re.escape(str(list(PROBLEMS)))}"),
        ({"rtol": 0.5}, "rtol must be above 0 and below 0.2, got 0.5"),
        ({"rtol": 0.0}, "rtol must be"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        LossReductionCheck(**arguments)
