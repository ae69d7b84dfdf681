"""GradientNoiseScale: every source equals per-sample gradients by hand, and the training never notices."""

import inspect
import logging
import math
import re
import shlex
from collections import Counter
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, TensorDataset

from lbtrain import SAM, LearningRateScaling, LossReductionCheck, MomentumSAM
from lbtrain._lightning import (
    Callback,
    GradientAccumulationScheduler,
    MisconfigurationException,
    ModelCheckpoint,
    plugins,
    strategies,
)
from lbtrain.app.instantiate import validate
from lbtrain.callbacks._noise_norms import length
from lbtrain.callbacks._noise_words import refuse_unmeasurable, sentence
from lbtrain.callbacks.noise import GradientNoiseScale
from lbtrain.functional.running_noise import NoiseScale
from tests.modules import Everything, Plain, Quadratic, digits_like, fit, same

CONF = Path(__file__).parents[3] / "conf"
STILL = lambda p: torch.optim.SGD(p, lr=0.0)
KEYS = {f"noise/{key}" for key in ("b_simple", "b_simple_stderr", "gradient_sq", "trace_sigma", "adascale_gain")}


def still(reduction="mean", dtype=torch.float64):
    """Return a module that stays where it is."""
    torch.manual_seed(0)
    return Plain(reduction=reduction, optimizer=STILL, dtype=dtype)


def noise(**options):
    return GradientNoiseScale(**{"every_n_steps": 1, "forget": 0.0, "reduction": "mean", **options})


def scaled(scale=2.0**10):
    return plugins.MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=scale))


def per_sample(module, loader):
    """Return the gradient of each sample's loss, one row each."""
    rows = []
    for sample in zip(*loader.dataset.tensors, strict=True):
        loss = module.training_step([t[None] for t in sample], 0)
        grads = torch.autograd.grad(loss, list(module.parameters()))
        rows.append(torch.cat([g.reshape(-1) for g in grads]))
    return torch.stack(rows)


def by_hand(gradients, sizes, *, summed=False):
    """Return (|G|^2, tr Sigma) from the gradients of micro-batches of these sizes, solved for anew."""
    parts = [p.mean(0) for p in gradients.split(sizes)]
    k, b = len(sizes), torch.tensor(sizes, dtype=torch.float64)
    if summed:
        parts = [n * p for n, p in zip(sizes, parts, strict=True)]
        mean = torch.stack(parts).mean(0)
        s = torch.stack([p @ p / n for n, p in zip(sizes, parts, strict=True)]).mean()
        trace = (s - mean @ mean / b.mean()) / (1 - 1 / k)
        return float((s - trace) / b.mean()), float(trace)
    small, mean = torch.stack([p @ p for p in parts]).mean(), torch.stack(parts).mean(0)
    trace = (small - mean @ mean) / ((1 / b).mean() * (1 - 1 / k))
    return float(small - trace * (1 / b).mean()), float(trace)


def mean_by_hand(module, loader, windows, *, summed=False):
    """Return the mean over optimizer steps, given the sizes of each one's micro-batches."""
    rows = per_sample(module, loader)
    ends = [sum(map(sum, windows[: i + 1])) for i in range(len(windows))]
    steps = [rows[end - sum(sizes) : end] for end, sizes in zip(ends, windows, strict=True)]
    found = [by_hand(step, sizes, summed=summed) for step, sizes in zip(steps, windows, strict=True)]
    return tuple(sum(column) / len(found) for column in zip(*found, strict=True))


def told(callback):
    return callback.result.gradient_sq, callback.result.trace_sigma


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize(
    ("samples", "accumulate", "windows"),
    [
        (48, 3, [[8, 8, 8]] * 2),
        (44, 3, [[8, 8, 8], [8, 8, 4]]),
        (48, 1, [[4, 4]] * 6),
        (21, 1, [[4, 4]] * 2 + [[2, 3]]),
    ],
)
def test_micro_batches_and_halves_are_the_per_sample_gradients(samples, accumulate, windows, reduction):
    loader, callback = digits_like(samples, dtype=torch.float64), noise(reduction=reduction)
    fit(still(reduction), loader, [callback], accumulate_grad_batches=accumulate)
    # Halves are compared as means: each gradient is divided by its size.
    expected = mean_by_hand(still(), loader, windows, summed=reduction == "sum" and accumulate > 1)
    assert told(callback) == pytest.approx(expected, rel=1e-10)
    assert callback.result.num_estimates == len(windows)


@pytest.mark.parametrize("accumulate", [1, 4])
def test_the_noise_of_a_quadratic_is_the_covariance_of_its_inputs(accumulate):
    # The gradient of a sample is A w - x: Sigma = cov x, and |G|^2 = |A w - mean x|^2.
    generator = torch.Generator().manual_seed(0)
    scales = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)
    x = torch.randn(4000, 3, generator=generator, dtype=torch.float64) * scales
    matrix, start = torch.diag(torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)), torch.tensor([2.0, 1.0, -1.0])
    module, callback = Quadratic(matrix, start.double(), lr=0.0), noise()
    fit(module, DataLoader(TensorDataset(x), 8), [callback], accumulate_grad_batches=accumulate)
    found, sigma, g = callback.result, float(scales.square().sum()), float((matrix @ start.double()).square().sum())
    assert found.num_estimates == 500 / accumulate
    assert abs(found.trace_sigma - sigma) < 4 * found.trace_sigma_stderr < 0.4 * sigma
    assert abs(found.gradient_sq - g) < 4 * found.gradient_sq_stderr < 0.4 * g
    assert abs(found.b_simple - sigma / g) < 4 * found.stderr


def trained(callbacks, *, build=Everything, **options):
    """Return all that training leaves behind."""
    torch.manual_seed(0)
    module = build()
    seen = []

    class Gradients(Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            seen.extend(p.grad.clone() for p in pl_module.parameters() if p.grad is not None)

    trainer = fit(module, digits_like(40), [*callbacks, Gradients()], log_every_n_steps=1, max_epochs=2, **options)
    momenta = [v["momentum_buffer"] for v in trainer.optimizers[0].state_dict()["state"].values()]
    logged = {k: v for k, v in trainer.callback_metrics.items() if not k.startswith(("noise/", "loss/"))}
    named = {f"{name} {i}": t for name, ts in (("gradient", seen), ("momentum", momenta)) for i, t in enumerate(ts)}
    leftover = {f"left {i}": p.grad for i, p in enumerate(module.parameters()) if p.grad is not None}
    facts = {"next": torch.rand(2), "calls": torch.tensor([module.calls, len(module.losses)])}
    return {**module.state_dict(), **logged, **named, **leftover, **facts}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"accumulate_grad_batches": 2},
        {"accumulate_grad_batches": 3, "gradient_clip_val": 0.05},
        {"precision": "bf16-mixed", "accumulate_grad_batches": 2},
    ],
    ids=str,
)
@pytest.mark.parametrize("climb", [False, True])
def test_the_training_is_the_same_bit_for_bit(options, climb):
    build = lambda: [SAM(0.05)] if climb else []
    callback = GradientNoiseScale(every_n_steps=2)
    plain, measured = trained(build(), **options), trained([callback, *build()], **options)
    assert same(plain, measured)
    assert callback.result.num_estimates > 0


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_training_under_a_gradient_scaler_is_the_same_bit_for_bit(accumulate):
    options = {"accumulate_grad_batches": accumulate}
    plain = trained([], plugins=scaled(), **options)
    assert same(plain, trained([noise(reduction="auto")], plugins=scaled(), **options))


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_loss_scale_is_undone(accumulate):
    found = []
    for scale in (1.0, 2.0**10):
        callback = noise()
        module = still(dtype=torch.float32)
        fit(module, digits_like(), [callback], plugins=scaled(scale), accumulate_grad_batches=accumulate)
        found.append(told(callback))
    assert found[1] == pytest.approx(found[0], rel=2e-2, abs=2e-3)
    callback = noise()
    fit(still(dtype=torch.float32), digits_like(), [callback], accumulate_grad_batches=accumulate)
    assert found[1] == pytest.approx(told(callback), rel=2e-2, abs=2e-3)


def test_a_step_whose_gradient_overflows_is_left_out():
    class Overflowing(Plain):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            return loss * torch.tensor(float("inf")) if batch_idx == 3 else loss

    callback = noise()
    fit(Overflowing(), digits_like(), [callback], plugins=scaled(), accumulate_grad_batches=2)
    assert callback.result.num_estimates == 2
    assert math.isfinite(callback.result.trace_sigma)
    assert callback.state_dict()["skipped"] == {"gradients that were not finite": 1}


def test_clipping_comes_later():
    loader, found = digits_like(dtype=torch.float64), []
    for clip in (None, 1e-3):
        callback = noise()
        fit(still(), loader, [callback], accumulate_grad_batches=2, gradient_clip_val=clip)
        found.append(told(callback))
    assert found[0] == found[1]


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("checked", [False, True])
@pytest.mark.filterwarnings("ignore:.*sum")
def test_a_summed_loss_tells_the_noise_of_the_mean_one(checked, accumulate):
    found = []
    for reduction in ("mean", "sum"):
        check = [LossReductionCheck()] if checked else []
        callback = noise(reduction="auto")
        fit(still(reduction), digits_like(dtype=torch.float64), [callback, *check], accumulate_grad_batches=accumulate)
        found.append(told(callback))
        assert callback.state_dict()["reduction"] == reduction
    assert found[1] == pytest.approx(found[0], rel=1e-10)


class Counting(Plain):
    """Counts its evaluations in a place that nobody puts back."""

    counts = Counter()  # noqa: RUF012

    def training_step(self, batch, batch_idx):
        Counting.counts["grad" if torch.is_grad_enabled() else "no grad"] += 1
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize(("accumulate", "every", "extra"), [(2, 1, 0), (1, 1, 12), (1, 4, 4)])
def test_micro_batches_cost_no_gradient_and_halves_two(accumulate, every, extra):
    Counting.counts.clear()
    callback = noise(every_n_steps=every)
    fit(Counting(), digits_like(), [callback], accumulate_grad_batches=accumulate)
    assert Counting.counts == {"grad": 6 + extra}
    assert callback.result.num_gradients == extra


def test_the_reduction_is_asked_for_once():
    Counting.counts.clear()
    fit(Counting(), digits_like(), [noise(reduction="auto"), LossReductionCheck()], accumulate_grad_batches=2)
    assert Counting.counts["grad"] == 6
    assert Counting.counts["no grad"] <= 6
    Counting.counts.clear()
    fit(Counting(), digits_like(), [noise(reduction="auto")], accumulate_grad_batches=2)
    assert Counting.counts["no grad"] <= 6


class Operations(TorchDispatchMode):
    """Count the operations that torch runs."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.counts[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def operations(callbacks, **options):
    with Operations() as found:
        fit(still(dtype=torch.float32), digits_like(), callbacks, log_every_n_steps=0, **options)
    return found.counts


def test_steps_that_are_not_measured_run_no_operation_more():
    options = {"accumulate_grad_batches": 2}
    plain = operations([], **options)
    assert operations([noise(every_n_steps=100)], max_steps=0, **options) == operations([], max_steps=0, **options)
    first = operations([noise(every_n_steps=100)], max_steps=1, **options) - operations([], max_steps=1, **options)
    assert operations([noise(every_n_steps=100)], **options) - plain == first
    assert first["linalg_vector_norm"] == 2 * 4 + 2  # each parameter's in each micro-batch, theirs, and the step's


@pytest.mark.parametrize("accumulate", [1, 2])
def test_no_step_waits_for_the_device(accumulate):
    class Reads(Callback):
        def on_train_end(self, trainer, pl_module):
            self.reads = mode.counts["_local_scalar_dense"]

    reads = []
    for callbacks in ([], [noise()]):
        seen = Reads()
        with Operations() as mode:
            options = {"log_every_n_steps": 0, "accumulate_grad_batches": accumulate}
            fit(still(dtype=torch.float32), digits_like(), [seen, *callbacks], **options)
        reads.append(seen.reads)
    assert reads[0] == reads[1]


def hooks_of(module):
    return [len(p._backward_hooks or ()) for p in module.parameters()]


def test_hooks_stay_on_the_parameters_for_measured_steps_only():
    seen = []

    class Watch(Callback):
        def on_before_backward(self, trainer, pl_module, loss):
            seen.append(max(hooks_of(pl_module)))

    module = still()
    fit(module, digits_like(64, dtype=torch.float64), [noise(every_n_steps=2), Watch()], accumulate_grad_batches=2)
    assert seen == [1, 1, 0, 0, 1, 1, 0, 0]
    assert max(hooks_of(module)) == 0


def test_parameters_that_join_the_optimizer_are_measured_from_then_on():
    seen = []

    class Joining(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch == 1:
                trainer.optimizers[0].add_param_group({"params": list(pl_module.net[2].parameters())})

        def on_before_backward(self, trainer, pl_module, loss):
            seen.append(hooks_of(pl_module))

    module = still()
    module.optimizer = lambda _: torch.optim.SGD(module.net[0].parameters(), lr=0.0)
    loader = digits_like(16, dtype=torch.float64)
    fit(module, loader, [noise(), Joining()], accumulate_grad_batches=2, max_epochs=2)
    assert seen == [[1, 1, 0, 0]] * 2 + [[1] * 4] * 2


def test_hooks_are_gone_after_an_error():
    class Failing(Plain):
        def training_step(self, batch, batch_idx):
            if batch_idx == 1:
                raise ZeroDivisionError
            return super().training_step(batch, batch_idx)

    module = Failing()
    with pytest.raises(ZeroDivisionError):
        fit(module, digits_like(), [noise()], accumulate_grad_batches=2)
    assert max(hooks_of(module)) == 0


class Odd(Plain):
    """Shared, frozen, unused and sparse parameters, a hook of its own, and gradients taken inside the step."""

    def __init__(self):
        super().__init__(optimizer=STILL, dtype=torch.float64)
        self.frozen, self.unused = nn.Linear(3, 3).double().requires_grad_(False), nn.Parameter(torch.ones(2))
        self.shared = nn.Linear(3, 3).double()
        self.words = nn.Embedding(3, 3, sparse=True, dtype=torch.float64)

    def training_step(self, batch, batch_idx):
        x, y = batch
        logits = self.frozen(self.shared(self.shared(self.net(x)))) + self.words(y)
        loss = nn.functional.cross_entropy(logits, y)
        inner = torch.autograd.grad(loss, list(self.net.parameters()), create_graph=True)
        return loss + 0.0 * sum(g.sum() for g in inner)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_odd_parameters_count_as_they_are_trained(accumulate):
    torch.manual_seed(0)
    module, loader, callback = Odd(), digits_like(16, dtype=torch.float64), noise()
    fit(module, loader, [callback], accumulate_grad_batches=accumulate)
    rows = []
    for x, y in zip(*loader.dataset.tensors, strict=True):
        params = [p for p in module.parameters() if p.requires_grad and p is not module.unused]
        grads = torch.autograd.grad(module.training_step((x[None], y[None]), 0), params)
        rows.append(torch.cat([(g.to_dense() if g.is_sparse else g).reshape(-1) for g in grads]))
    windows = [[8, 8]] if accumulate == 2 else [[4, 4], [4, 4]]
    steps = torch.stack(rows).split(16 // len(windows))
    expected = [by_hand(step, sizes) for step, sizes in zip(steps, windows, strict=True)]
    expected = tuple(sum(column) / len(expected) for column in zip(*expected, strict=True))
    assert told(callback) == pytest.approx(expected, rel=1e-9)


def test_only_what_the_optimizer_has_counts():
    loader, found = digits_like(dtype=torch.float64), []
    for build in (lambda p: torch.optim.SGD(list(p)[:2], lr=0.0), STILL):
        module, callback = still(), noise()
        module.optimizer = build
        fit(module, loader, [callback], accumulate_grad_batches=2)
        found.append(told(callback))
    rows = per_sample(still(), loader)[:, : 6 * 5 + 5]
    expected = [by_hand(step, [8, 8]) for step in rows.split(16)]
    assert found[0] == pytest.approx(tuple(sum(c) / 3 for c in zip(*expected, strict=True)), rel=1e-10)
    assert found[0] != found[1]


class Steep(Plain):
    """Its gradients are a thousand times as long."""

    def training_step(self, batch, batch_idx):
        return 1000 * super().training_step(batch, batch_idx)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_half_precision_is_squared_in_single(accumulate):
    found = []
    for precision, dtype in (("64-true", torch.float64), ("16-true", torch.float16)):
        torch.manual_seed(0)
        module, callback = Steep(optimizer=STILL, dtype=dtype), noise()
        fit(
            module,
            digits_like(dtype=torch.float64),
            [callback],
            precision=precision,
            accumulate_grad_batches=accumulate,
        )
        found.append(told(callback))
    assert found[0][1] > 1e6  # float16 ends at 65504
    assert found[1] == pytest.approx(found[0], rel=1e-2, abs=1e-2 * found[0][1])


def test_the_norm_of_a_gradient_may_exceed_its_precision():
    assert float(length(torch.full((10_000,), 1000.0, dtype=torch.float16))) == pytest.approx(1e5, rel=1e-4)
    indices, values = torch.tensor([[1, 1, 3]]), torch.tensor([[1.0], [2.0], [4.0]])
    assert (
        float(length(torch.sparse_coo_tensor(indices, values, (5, 1), check_invariants=True))) == 5
    )  # entries given twice are summed


def test_a_gradient_in_pieces_is_left_out():
    class Twice(Plain):
        def backward(self, loss):
            loss.backward(retain_graph=True)
            loss.backward()

    callback = noise()
    fit(Twice(), digits_like(), [callback], accumulate_grad_batches=2)
    assert callback.result.num_estimates == 0
    assert "came in pieces" in str(callback.state_dict()["skipped"])


def test_an_accumulation_schedule_changes_the_source():
    callback = noise()
    schedule = GradientAccumulationScheduler({0: 1, 1: 3})
    trainer = fit(still(), digits_like(dtype=torch.float64), [callback, schedule], max_epochs=2)
    assert trainer.global_step == 8
    assert (callback.result.num_estimates, callback.result.num_gradients) == (8, 12)
    assert callback.result.global_batch == 24


def test_partial_windows_are_left_out():
    callback = noise()
    fit(still(), digits_like(40, dtype=torch.float64), [callback], accumulate_grad_batches=2)
    assert callback.result.num_estimates == 2
    assert callback.state_dict()["skipped"] == {"steps of fewer micro-batches than accumulate_grad_batches": 1}
    assert told(callback) == pytest.approx(mean_by_hand(still(), digits_like(40, dtype=torch.float64), [[8, 8]] * 2))


@pytest.mark.filterwarnings("ignore:.*returned `None`")
@pytest.mark.parametrize("reduction", ["mean", "auto"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_batches_without_a_loss_are_left_out(accumulate, reduction):
    class Sometimes(Plain):
        def training_step(self, batch, batch_idx):
            return None if batch_idx in (0, 3) else super().training_step(batch, batch_idx)

    callback = noise(reduction=reduction)
    fit(Sometimes(), digits_like(), [callback], accumulate_grad_batches=accumulate)
    assert callback.result.num_estimates == (4 if accumulate == 1 else 1)
    assert sum(callback.state_dict()["skipped"].values()) == 2


def test_lbfgs_is_measured_where_its_step_begins():
    module, loader = still(), digits_like(16, dtype=torch.float64)
    module.optimizer = lambda p: torch.optim.LBFGS(p, lr=0.0)
    callback = noise()
    fit(module, loader, [callback], accumulate_grad_batches=2)
    assert told(callback) == pytest.approx(mean_by_hand(still(), loader, [[8, 8]]), rel=1e-10)


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(accumulate, tmp_path):
    options = {"accumulate_grad_batches": accumulate, "enable_checkpointing": True, "default_root_dir": tmp_path}
    results = []
    for run, epochs, path in (
        ("whole", 3, None),
        ("first", 1, None),
        ("again", 3, tmp_path / "first" / "epoch=0.ckpt"),
    ):
        torch.manual_seed(0)
        callback = GradientNoiseScale(every_n_steps=2, forget=0.1)
        saving = ModelCheckpoint(tmp_path / run, filename="{epoch}", save_top_k=-1)
        fit(Plain(), digits_like(), [callback, saving], max_epochs=epochs, ckpt_path=path, **options)
        results.append((str(callback.result), callback.state_dict()))
    assert results[0] == results[2]
    assert results[0][1]["noise"]["count"] > results[1][1]["noise"]["count"] > 0


def test_a_reduction_that_is_given_holds_in_a_resumed_run():
    state = GradientNoiseScale().state_dict() | {"reduction": "mean"}
    for given, kept in (("auto", "mean"), ("sum", "sum")):
        callback = GradientNoiseScale(reduction=given)
        callback.load_state_dict(state)
        assert callback.state_dict()["reduction"] == kept


def test_a_second_fit_starts_anew():
    callback, found = noise(), []
    for _ in range(2):
        fit(still(), digits_like(dtype=torch.float64), [callback], accumulate_grad_batches=2)
        found.append(callback.result)
    assert found[0] == found[1]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_numbers_are_logged_at_the_log_interval(accumulate, monkeypatch):
    callback, steps = noise(), []
    module = still()
    log_dict = module.log_dict

    def logging(numbers, **options):
        steps.append((module.trainer.global_step, set(numbers)))
        log_dict(numbers, **options)

    monkeypatch.setattr(module, "log_dict", logging)
    loader = digits_like(48 * accumulate, dtype=torch.float64)
    trainer = fit(module, loader, [callback], accumulate_grad_batches=accumulate, log_every_n_steps=2)
    assert steps == [(step, KEYS) for step in (2, 4, 6)]
    assert set(trainer.callback_metrics) == KEYS
    assert trainer.callback_metrics["noise/b_simple"] == pytest.approx(callback.result.b_simple)
    assert trainer.callback_metrics["noise/trace_sigma"] == pytest.approx(callback.result.trace_sigma)


@pytest.mark.parametrize(
    ("options", "others", "base"),
    [({"base_batch_size": 4}, [], 4), ({}, [LearningRateScaling(2, rule="none")], 2), ({}, [], 8)],
)
def test_the_gain_counts_from_the_base_batch(options, others, base):
    callback = noise(**options)
    fit(still(), digits_like(dtype=torch.float64), [callback, *others], accumulate_grad_batches=3)
    found = callback.result
    assert (found.global_batch, found.base_batch) == (24, base)
    g, t = told(callback)
    assert found.gain == pytest.approx((t / base + g) / (t / 24 + g), nan_ok=True)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_short_last_batch_does_not_change_the_global_batch(accumulate):
    callback = noise()
    fit(still(), digits_like(44, dtype=torch.float64), [callback], accumulate_grad_batches=accumulate)
    assert callback.result.global_batch == 8 * accumulate


def test_batches_that_do_not_tell_their_size_are_asked_about():
    class Pairs(Plain):
        def training_step(self, batch, batch_idx):
            return super().training_step((batch["x"], batch["y"]), batch_idx)

    def collate(samples):
        x, y = (torch.stack(column) for column in zip(*samples, strict=True))
        return {"x": x, "y": y, "matrix": torch.zeros(3, 5)}

    def loader():
        return DataLoader(digits_like(dtype=torch.float64).dataset, 8, collate_fn=collate)

    def module():
        torch.manual_seed(0)
        return Pairs(optimizer=STILL, dtype=torch.float64)

    asked = r"GradientNoiseScale must count.*matrix Tensor\(3, 5\).*GradientNoiseScale\(batch_size=\.\.\.\)"
    for accumulate, windows in ((1, [[4, 4]] * 6), (2, [[8, 8]] * 3)):
        with pytest.raises(MisconfigurationException, match=asked):
            fit(module(), loader(), [noise()], accumulate_grad_batches=accumulate)
        callback = noise(batch_size=8)
        fit(module(), loader(), [callback], accumulate_grad_batches=accumulate)
        expected = mean_by_hand(still(), digits_like(dtype=torch.float64), windows)
        assert told(callback) == pytest.approx(expected, rel=1e-10)


def test_a_size_that_a_batch_cannot_be_split_by_is_left_out():
    callback = noise(batch_size=5)
    fit(still(), digits_like(dtype=torch.float64), [callback])
    assert callback.result.num_estimates == 0
    assert callback.state_dict()["skipped"] == {"batches that could not be split into halves": 6}


def test_batches_of_one_sample_are_said_and_left_out(caplog):
    callback = noise()
    with pytest.warns(UserWarning, match="a batch of one sample has no halves") as warned:
        said = said_by(still(), digits_like(3, 1, dtype=torch.float64), callback, caplog)
    assert len([w for w in warned if "one sample" in str(w.message)]) == 1
    assert "there was no estimate: 3 x batches of one sample" in said
    assert callback.result.num_estimates == callback.result.num_gradients == 0
    assert math.isnan(callback.result.b_simple)


def test_micro_batches_of_one_sample_are_measured():
    loader, callback = digits_like(12, 1, dtype=torch.float64), noise()
    fit(still(), loader, [callback], accumulate_grad_batches=4)
    assert told(callback) == pytest.approx(mean_by_hand(still(), loader, [[1] * 4] * 3), rel=1e-10)


def said_by(module, loader, callback, caplog, **options):
    """Return what the callback says at the end."""
    with caplog.at_level(logging.INFO):
        fit(module, loader, [callback], **options)
    return next(m for m in caplog.messages if "noise scale" in m)


def test_a_sentence_at_the_end_tells_the_numbers(caplog):
    callback = noise()
    said = said_by(still(), digits_like(dtype=torch.float64), callback, caplog, accumulate_grad_batches=2)
    assert said == sentence(callback.result, {})


def result(**facts):
    usual = {"b_simple": 164.0, "stderr": 12.0, "gradient_sq": 1.0, "gradient_sq_stderr": 0.05, "trace_sigma": 164.0}
    rest = {"trace_sigma_stderr": 3.0, "gain": 2.0, "global_batch": 512, "base_batch": 64, "num_estimates": 50}
    return NoiseScale(**{**usual, **rest, "num_gradients": 0, **facts})


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        (
            {},
            "at global batch 512 you are 3.1 times above the noise scale (164 +- 12): the linear rule is past its "
            "range",
        ),
        (
            {"global_batch": 32},
            "at global batch 32 you are 5.1 times below the noise scale (164 +- 12): the linear rule still holds up to "
            "about 164",
        ),
        ({"global_batch": 180}, "at global batch 180 you are at the noise scale (164 +- 12): the linear rule is at"),
        (
            {"global_batch": 8, "b_simple": 27.9, "stderr": 13.0},
            "at global batch 8 you may be below or above the noise scale (27.9 +- 13), which is too uncertain to tell",
        ),
        (
            {"gradient_sq": 0.0, "gradient_sq_stderr": 0.0, "trace_sigma": 0.0, "trace_sigma_stderr": 0.0},
            "by 50 estimates the gradient is zero",
        ),
        (
            {"gradient_sq_stderr": 0.6, "trace_sigma": 1.0},
            "zero within its error; more estimates tell more",
        ),
        ({"num_estimates": 1, "stderr": math.nan}, "is 164 samples by 1 estimate, which shows no error"),
        ({"gradient_sq_stderr": 0.6}, "by 50 estimates the squared gradient is 1 +- 0.6, zero within its error; it is"),
        ({"gradient_sq_stderr": 0.6}, "at least about 72 samples"),
        ({"gradient_sq": -1.0, "gradient_sq_stderr": 0.1}, "above the number of training samples"),
        ({"trace_sigma": -1.0}, "the gradient shows no variance"),
        ({"b_simple": 0.0, "stderr": 0.0}, "at global batch 512 you are above the noise scale (0 +- 0)"),
        ({"num_estimates": 0}, "there was no estimate: 3 x steps that failed"),
    ],
)
def test_the_sentence_says_what_the_numbers_mean(facts, said):
    assert said in sentence(result(**facts), {"steps that failed": 3})


def test_the_sentence_knows_of_runs_too_short_to_measure():
    assert sentence(result(num_estimates=0), {}).endswith("there was no estimate: no step was measured")


def test_sam_is_measured_on_halves_of_the_plain_gradient():
    found = []
    for climb in ([], [SAM(0.5)]):
        callback = noise()
        fit(still(), digits_like(dtype=torch.float64), [callback, *climb])
        found.append(told(callback))
    assert found[0] == found[1]
    callback = noise()
    fit(still(), digits_like(dtype=torch.float64), [SAM(0.5), callback], accumulate_grad_batches=3)
    assert (callback.result.num_estimates, callback.result.num_gradients) == (2, 4)


def test_momentum_sam_must_come_later():
    module = Plain(optimizer=lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9))
    with pytest.raises(MisconfigurationException, match="put GradientNoiseScale before MomentumSAM"):
        fit(module, digits_like(), [MomentumSAM(), noise()])
    fit(module, digits_like(), [noise(), MomentumSAM()])


class DeepSpeedStrategy(strategies.SingleDeviceStrategy):
    """By its name alone."""


class OwnEngine(strategies.SingleDeviceStrategy):
    """A strategy that accumulates by itself."""

    handles_gradient_accumulation = True


@pytest.mark.parametrize(
    "strategy",
    [DeepSpeedStrategy("cpu"), OwnEngine("cpu"), strategies.FSDPStrategy(), strategies.ModelParallelStrategy()],
    ids=lambda s: type(s).__name__,
)
def test_strategies_without_a_gradient_per_rank_are_refused_with_the_way_out(strategy):
    callback = noise()
    trainer = type("Trainer", (), {"strategy": strategy, "callbacks": [callback]})()
    with pytest.raises(MisconfigurationException, match=rf"{type(strategy).__name__} never has.*use strategy='ddp'"):
        refuse_unmeasurable(trainer, callback)


def test_manual_optimization_is_refused():
    module = Plain()
    module.automatic_optimization = False
    with pytest.raises(MisconfigurationException, match="GradientNoiseScale .*needs automatic optimization"):
        fit(module, digits_like(), [noise()])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every_n_steps": 0}, "every_n_steps must be a whole number of optimizer steps, at least 1, got 0"),
        ({"every_n_steps": None}, "every_n_steps must be"),
        ({"forget": 1}, "forget must be at least 0 and below 1, got 1"),
        ({"base_batch_size": 0}, "base_batch_size must be a whole number of samples, at least 1, got 0"),
        ({"batch_size": True}, "batch_size must be a whole number of samples, at least 1, got True"),
        ({"reduction": "token"}, "reduction must be auto, mean or sum, got 'token'"),
    ],
)
def test_an_argument_out_of_range_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        GradientNoiseScale(**options)


def test_the_page_shows_the_arguments_the_keys_and_code_that_runs():
    page = (CONF.parent / "docs" / "noise.md").read_text()
    rows = [line.split("|")[1:3] for line in page.splitlines() if line.startswith("| `")]
    cells = {name.strip(" `"): value.strip(" `") for name, value in rows}
    parameters = inspect.signature(GradientNoiseScale).parameters.values()
    assert {k: v for k, v in cells.items() if "/" not in k} == {p.name: str(p.default).strip() for p in parameters} | {
        "reduction": '"auto"'
    }
    assert {k for k in cells if "/" in k} == KEYS
    (command,) = re.findall(r"```bash\n(.*?)\n```", page, re.DOTALL)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", shlex.split(command)[2:])
    validate(cfg)
    assert cfg.callbacks.noise.every_n_steps == 5
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    names = {"Trainer": lambda callbacks: fit(Plain(), digits_like(), callbacks)}
    exec(code, names)
    assert names["trainer"].callbacks[0].result.num_estimates == 1


def test_a_module_without_trained_parameters_is_refused():
    module = Plain()
    module.configure_optimizers = lambda: None
    with (
        pytest.warns(UserWarning, match="returned `None`"),
        pytest.raises(MisconfigurationException, match="there are none"),
    ):
        fit(module.requires_grad_(False), digits_like(), [GradientNoiseScale(reduction="mean")])
