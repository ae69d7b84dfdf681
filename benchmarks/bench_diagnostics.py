"""What OptimizationDiagnostics adds to the time of a training, at its default sampling and at others.

    python benchmarks/bench_diagnostics.py
    python benchmarks/bench_diagnostics.py --steps 3000 --batch 64 256 --repeats 9
    python benchmarks/bench_diagnostics.py --threads 1 --clock cpu     # on a machine with other work

Prints one JSON line per case; the last line is the environment. If a bound is exceeded, the script says which and
fails.

The app's convolutional network on images of 8 x 8, through the Trainer, for so many optimizer steps. The three runs of
a turn, without the callback, with it, and with clocks around its hooks, go side by side in processes of their own: only
one at a time, for so many steps, so that a change of the machine's pace meets all of them. A run is timed from the
start of `fit` to its end, with all that the callback does at the start and at the end: its examinations, the table and
its files.
  steps, batch         optimizer steps of a run, samples of a batch
  plain_s              seconds of a run without the callback, median over turns
  share                seconds inside the callback's hooks, in percent of the rest of the run with the clocks, median;
                       the clocks are in it; what Lightning takes to call the hooks is not
  calls                what Lightning takes to call the hooks of a step, in percent of a step: a callback that has the
                       same hooks and does nothing is there at every third step of a further run
  clocks               what the clocks around its hooks say at other steps, when it does nothing
  cost                 share + calls - clocks, the added time as it can be known best
  added, low, high     how much longer a run with it is, in percent: median and quartiles. Two plain runs differ by a
                       percent, too
  measured             what the callback says that it spent, in percent of its run, median
  samples, evaluations of a run: sampled steps; values, gradients and Hessian products on the samples' data
  found                problems that it found, which there should be none of
  turns                of three runs
"""

import argparse
import contextlib
import importlib
import io
import json
import logging
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection

import torch
from bench_sam_step import environment, prepare, spread
from torch.utils.data import DataLoader, TensorDataset

from lbtrain import OptimizationDiagnostics
from lbtrain._lightning import Callback, Trainer
from lbtrain.app.models import Classifier
from lbtrain.app.networks import ConvNet
from lbtrain.callbacks._diagnosis_result import Diagnosis

SAMPLES = 4096  # of the training data
CLASSES = 10
FORKS = multiprocessing.get_context("fork")
STRETCH = 20  # steps of a run at a time
CALLED = 1500  # steps of the run in which the calls are clocked


class Baton:
    """Lets one of several processes run at a time, in turn; each clocks itself.

    Args:
        now: Tells the seconds.
        first: Which of them begins.
    """

    def __init__(self, now: Callable[[], float], first: int) -> None:
        self.now, self.seconds, self.since = now, 0.0, 0.0
        self.turns = [FORKS.Semaphore(int(own == first)) for own in range(len(RUNS))]
        self.gone = [FORKS.Event() for _ in RUNS]

    def take(self, own: int) -> None:
        """Wait for one's turn, and start one's clock."""
        self.turns[own].acquire()
        self.since = self.now()

    def hand_over(self, own: int, *, for_good: bool = False) -> None:
        """Stop one's clock, and let the next one run that has not ended, perhaps oneself."""
        self.seconds += self.now() - self.since
        if for_good:
            self.gone[own].set()
        order = [(own + k) % len(RUNS) for k in range(1, len(RUNS) + 1)]
        following = next((other for other in order if not self.gone[other].is_set()), own)
        self.turns[following].release()


class Relay(DataLoader):
    """Hands the baton over behind every so many batches."""

    baton: Baton | None = None
    own = count = 0

    def __iter__(self) -> Iterator:
        for batch in super().__iter__():
            self.count += 1
            if self.baton is not None and self.count % STRETCH == 0:
                self.baton.hand_over(self.own)
                self.baton.take(self.own)
            yield batch


def data(batch: int) -> Relay:
    """Return images of 10 classes that can be told apart, so that a run looks like one."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, CLASSES, (SAMPLES,), generator=generator)
    centres = torch.randn(CLASSES, 1, 8, 8, generator=generator)
    images = centres[labels] + 0.5 * torch.randn(SAMPLES, 1, 8, 8, generator=generator)
    return Relay(TensorDataset(images, labels), batch_size=batch, shuffle=True, drop_last=True)


class Timed(OptimizationDiagnostics):
    """The callback, with the seconds that its hooks take."""

    def __init__(self, now: Callable[[], float]) -> None:
        super().__init__()
        self.now, self.inside = now, 0.0


def timed(work: Callable[..., None]) -> Callable[..., None]:
    """Return a hook that does what another one does, and times it."""

    def hook(self: Timed, *args: object, **options: object) -> None:
        now = self.now  # read at each step: the less is done here, the less of it counts as the callback's
        since = now()
        work(self, *args, **options)
        self.inside += now() - since

    return hook


for name in vars(OptimizationDiagnostics):
    if callable(getattr(OptimizationDiagnostics, name)) and (name.startswith("on_") or name in ("setup", "teardown")):
        setattr(Timed, name, timed(getattr(OptimizationDiagnostics, name)))


RUNS: tuple[Callable[..., Callback | None], ...] = (lambda now: None, lambda now: OptimizationDiagnostics(), Timed)
Answer = tuple[float, float, Diagnosis | None]


def run(steps: int, options: argparse.Namespace, callback: Callback | None, loader: Relay) -> None:
    """Train."""
    torch.manual_seed(0)
    module = Classifier(ConvNet(), lambda params: torch.optim.SGD(params, lr=0.01, momentum=0.9))
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            accelerator=options.device,
            devices=1,
            max_steps=steps,
            max_epochs=-1,
            callbacks=[callback] if callback else [],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
        )
        trainer.fit(module, loader)
        if options.device == "cuda":
            torch.cuda.synchronize()


def calls(steps: int, batch: int, options: argparse.Namespace) -> tuple[float, float]:
    """Return what Lightning takes to call the callback's hooks, and what clocks in them take, in percent of a step."""
    unused = {name: None for name, hook in vars(OptimizationDiagnostics).items() if name.startswith("on_") and not hook}
    idle = type("Idle", (Callback,), unused)
    used = {
        name: timed(getattr(Callback, name))
        for name in vars(OptimizationDiagnostics).keys() - unused
        if name.startswith("on_")
    }
    clocked = type("Clocked", (idle,), {**used, "now": staticmethod(clock(options)), "inside": 0.0})()
    kinds: tuple[list[Callback], ...] = ([], [idle()], [clocked])
    dispatcher = importlib.import_module(Trainer.__module__.rpartition(".")[0] + ".call")
    dispatch, seconds = dispatcher._call_callback_hooks, list[float]()

    def watched(trainer: Trainer, name: str, *args: object, **named: object) -> None:
        if name == "on_train_batch_start":
            trainer.callbacks = kinds[len(seconds) % 3]
            seconds.append(0.0)
        since = time.perf_counter()
        dispatch(trainer, name, *args, **named)
        if seconds:
            seconds[-1] += time.perf_counter() - since

    dispatcher._call_callback_hooks = watched
    start = time.perf_counter()
    try:
        run(steps, options, None, data(batch))
    finally:
        dispatcher._call_callback_hooks = dispatch
    step, few = (time.perf_counter() - start) / steps, steps // 60  # of each third of the steps, the extremes left out
    without, with_it = (statistics.fmean(sorted(seconds[i::3])[few:-few]) for i in range(2))
    return 100 * (with_it - without) / step, 100 * clocked.inside / (steps / 3) / step


def go(own: int, steps: int, batch: int, options: argparse.Namespace, baton: Baton, answer: Connection) -> None:
    """Train in a process of its own, and answer with what it took."""
    torch.set_num_threads(options.threads)
    if options.threads == 1 and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # all runs on one core: two may differ in pace
    callback, loader = RUNS[own](baton.now), data(batch)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            # All kinds in each: where a process has had large blocks of memory, the allocator serves later ones faster.
            for kind in RUNS:
                run(20, options, kind(baton.now), data(batch))
            loader.baton, loader.own = baton, own
            baton.take(own)
            run(steps, options, callback, loader)
    finally:
        baton.hand_over(own, for_good=True)
    answer.send((baton.seconds, getattr(callback, "inside", 0.0), getattr(callback, "result", None)))


def side_by_side(steps: int, batch: int, options: argparse.Namespace, first: int) -> list[Answer]:
    """Return the seconds of each of `RUNS`, those inside its hooks where they are timed, and its diagnosis."""
    baton, answers = Baton(clock(options), first), []
    for own in range(len(RUNS)):
        ours, theirs = FORKS.Pipe(duplex=False)
        FORKS.Process(target=go, args=(own, steps, batch, options, baton, theirs), daemon=True).start()
        theirs.close()  # so that a run that fails ends the wait for its answer
        answers.append(ours)
    return [answer.recv() for answer in answers]


def clock(options: argparse.Namespace) -> Callable[[], float]:
    """Return what tells the seconds."""
    return time.process_time if options.clock == "cpu" else time.perf_counter


def measure(steps: int, batch: int, options: argparse.Namespace) -> dict:
    """Return the line of a case."""
    plains: list[float] = []
    added: list[float] = []
    inside: list[float] = []
    own: list[float] = []
    for turn in range(options.repeats):
        (plain, *_), (diagnosed, _, result), (whole, within, _) = side_by_side(steps, batch, options, turn % len(RUNS))
        plains.append(plain)
        added.append(100 * (diagnosed / plain - 1))
        inside.append(100 * within / (whole - within))
        own.append(100 * result.seconds / diagnosed)
    share, (dispatch, clocks) = statistics.median(inside), calls(CALLED, batch, options)
    row = {"case": "share", "steps": steps, "batch": batch, "plain_s": round(statistics.median(plains), 3)}
    row |= {"share": round(share, 3), "calls": round(dispatch, 3), "clocks": round(clocks, 3)}
    row |= {"cost": round(share + dispatch - clocks, 3)}
    row |= spread(added, ("added", "low", "high"))
    row |= {"measured": round(statistics.median(own), 3)}
    row |= {"samples": result.samples, "evaluations": result.num_evaluations}
    return row | {"found": [finding.problem for finding in result.findings], "turns": options.repeats}


def exceeded(row: dict, bound: float, from_steps: int) -> str | None:
    """Return what to say about a line that is over its bound."""
    if row["case"] != "share" or row["steps"] < from_steps or max(row["cost"], row["added"]) <= bound:
        return None
    found = f"{row['cost']} % for the hooks and their calls, {row['added']} % more time ({row['low']} to {row['high']})"
    return f"{row['steps']} steps at batch {row['batch']}: {found}, over the bound of {bound} %"


def rows(options: argparse.Namespace) -> Iterator[dict]:
    """Measure all cases."""
    for steps in options.steps:
        for batch in options.batch:
            yield measure(steps, batch, options)
    yield environment(options)


def parsed() -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, nargs="+", default=[300, 1000, 3000, 10_000], help="of a run")
    parser.add_argument("--batch", type=int, nargs="+", default=[64], help="samples of a batch")
    parser.add_argument("--repeats", type=int, default=3, help="turns, of three runs each")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads of torch")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--clock", default="wall", choices=("wall", "cpu"), help="cpu: the process' processor time")
    parser.add_argument("--bound", type=float, default=2.0, help="largest cost and added time, percent")
    parser.add_argument("--bound-from", type=int, default=3000, help="fewest steps of a run that the bound holds for")
    return parser.parse_args()


def main() -> None:
    options = parsed()
    prepare(options)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    complaints = []
    for row in rows(options):
        print(json.dumps(row), flush=True)
        complaints.append(exceeded(row, options.bound, options.bound_from))
    if any(complaints):
        sys.exit("\n".join(complaint for complaint in complaints if complaint))


if __name__ == "__main__":
    main()
