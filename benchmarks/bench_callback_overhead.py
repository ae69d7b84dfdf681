"""What LearningRateScaling, LossReductionCheck and GradientNoiseScale add to a training step.

    python benchmarks/bench_callback_overhead.py
    python benchmarks/bench_callback_overhead.py --threads 1 --clock cpu    # on a machine with other work

Prints one JSON line per case; the last line is the environment. If a bound is exceeded, the script says which and
fails.

The app's convolutional network on images of 8 x 8 at batch 64, through the Trainer. The loops of a case take turns in
one process, an epoch without and an epoch with the callbacks, so that other work on the machine slows them alike; each
turn begins with the other one. An epoch is timed after its first step, in which the one-time check of the loss falls.
  case                 scaling_and_check, noise_accumulate (windows of 4 batches, measured in every step),
                       noise_default (the same in every 10th), noise_halves (single batches, every 10th), nothing (no
                       callback in either loop: how much of a ratio is noise of the machine)
  plain_ms             milliseconds of an optimizer step without callbacks, median over epochs
  ratio, low, high     time with the callbacks over the time without, median and quartiles over turns
  hooks                time inside the callbacks' Trainer hooks, as a share of the step; finer than the ratio, but
                       without the hooks that run within backward
  steps, turns         timed optimizer steps per epoch, epochs of each loop
`case: evaluations`. Loss evaluations of the one-time check: of a mean, and of a mean over other units, the longest.
  mean, other_units
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial

import torch
from bench_sam_step import Bench, environment, prepare, spread
from torch import nn

from lbtrain import GradientNoiseScale, LearningRateScaling, LossReductionCheck
from lbtrain._lightning import Callback, LightningModule
from lbtrain.app.networks import ConvNet

BATCH = 64
SHAPE = (1, 8, 8)
STEPS = 60  # timed optimizer steps of an epoch
HOOKS = (
    "on_train_batch_start",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_before_zero_grad",
    "on_train_batch_end",
)


def scaling_and_check() -> list[Callback]:
    return [LearningRateScaling(16, batch_size=BATCH), LossReductionCheck()]


# Callbacks, and the batches of a step.
CASES: dict[str, tuple[Callable[[], list[Callback]], int]] = {
    "scaling_and_check": (scaling_and_check, 1),
    "noise_accumulate": (lambda: [GradientNoiseScale(every_n_steps=1)], 4),
    "noise_default": (lambda: [GradientNoiseScale()], 4),
    "noise_halves": (lambda: [GradientNoiseScale()], 1),
    "nothing": (list, 1),
}


class Stopwatch:
    """Add up the time inside the hooks of callbacks, after the first batches."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def watch(self, callback: Callback) -> Callback:
        """Time the hooks that the callback has."""
        for name in HOOKS:
            if getattr(type(callback), name) is not getattr(Callback, name):
                setattr(callback, name, self._timed(getattr(callback, name)))
        return callback

    def _timed(self, hook: Callable[..., None]) -> Callable[..., None]:
        def timed(trainer, *args, **kwargs) -> None:
            since = time.perf_counter()
            hook(trainer, *args, **kwargs)
            passed = time.perf_counter() - since
            if trainer.global_step > 0:  # not in the step of the one-time check
                self.seconds += passed

        return timed


def measure_time(case: str, options: argparse.Namespace) -> dict:
    """Return the line of a case."""
    build, accumulate = CASES[case]
    bench = Bench(ConvNet, SHAPE, BATCH, options.device, clock=options.clock)
    watch = Stopwatch()
    loops = {
        "plain": partial(bench.by_trainer, bench.classifier, list, accumulate=accumulate),
        "with": partial(bench.by_trainer, bench.classifier, build, accumulate=accumulate),
        "watched": partial(
            bench.by_trainer, bench.classifier, lambda: [watch.watch(c) for c in build()], accumulate=accumulate
        ),
    }
    times: dict[str, list[float]] = {"plain": [], "with": []}
    for run in loops.values():
        run(1)
    watch.seconds = 0.0
    watched = loops["watched"](STEPS)
    for turn in range(options.repeats):
        for name in ("plain", "with") if turn % 2 else ("with", "plain"):
            times[name].append(loops[name](STEPS))
    row = {"case": case, "plain_ms": round(statistics.median(times["plain"]), 3)}
    row |= spread([b / a for a, b in zip(times["plain"], times["with"], strict=True)], ("ratio", "low", "high"))
    return row | {"hooks": round(1000 * watch.seconds / STEPS / watched, 5), "steps": STEPS, "turns": options.repeats}


class Counted(LightningModule):
    """Counts how often its loss is evaluated; a mean over samples, or over units of which samples have 1 to 4."""

    def __init__(self, note: Callable[[int], None], *, weighted: bool) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(()))
        self.note, self.weighted = note, weighted

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> torch.Tensor:
        """Return the mean."""
        self.note(batch_idx)
        images, labels = batch
        weights = 1.0 + (labels % 4 if self.weighted else 0 * labels)
        return (weights * images.flatten(1).square().mean(1)).sum() / weights.sum() * self.w

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return SGD."""
        return torch.optim.SGD(self.parameters(), lr=0.01)


def measure_evaluations(options: argparse.Namespace) -> dict:
    """Return the line of the one-time check."""
    row: dict[str, str | int] = {"case": "evaluations"}
    for name, weighted in (("mean", False), ("other_units", True)):
        calls: list[int] = []  # not an attribute, which would be put back after the check
        module = Counted(calls.append, weighted=weighted)
        bench = Bench(ConvNet, SHAPE, BATCH, options.device)
        bench.by_trainer(lambda _, module=module: module, scaling_and_check, STEPS)
        row[name] = len(calls) - STEPS - 1  # the warm-up batch is the one that is judged
    return row


def exceeded(row: dict, bounds: dict[str, float]) -> str | None:
    """Return what to say about a line that is over its bound."""
    if row["case"] == "evaluations":
        most = max(row["mean"], row["other_units"])
        return f"the check takes {most} evaluations, more than 6" if most > 6 else None
    bound = bounds.get(row["case"])
    if bound is None or row["ratio"] <= bound:
        return None
    return f"{row['case']} takes {row['ratio']} plain steps, more than {bound}"


def rows(options: argparse.Namespace) -> Iterator[dict]:
    """Measure all cases."""
    for case in options.case:
        yield measure_time(case, options)
    yield measure_evaluations(options)
    yield environment(options)


def parsed() -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", nargs="+", choices=CASES, default=list(CASES), help="default: all")
    parser.add_argument("--repeats", type=int, default=60, help="turns, that is epochs of each loop of a case")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads of torch")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--clock", default="wall", choices=("wall", "cpu"), help="cpu: the process' processor time")
    parser.add_argument("--scaling-bound", type=float, default=1.005, help="largest ratio of scaling_and_check")
    parser.add_argument("--noise-bound", type=float, default=1.03, help="largest ratio of noise_accumulate")
    return parser.parse_args()


def main() -> None:
    options = parsed()
    prepare(options)
    bounds = {"scaling_and_check": options.scaling_bound, "noise_accumulate": options.noise_bound}
    complaints = []
    for row in rows(options):
        print(json.dumps(row), flush=True)
        complaints.append(exceeded(row, bounds))
    if any(complaints):
        sys.exit("\n".join(complaint for complaint in complaints if complaint))


if __name__ == "__main__":
    main()
