"""What OptimizationDiagnostics adds to the time of a training, at its default sampling and at others.

    python benchmarks/bench_diagnostics.py
    python benchmarks/bench_diagnostics.py --steps 3000 --batch 64 256 --repeats 9
    python benchmarks/bench_diagnostics.py --threads 1 --clock cpu     # on a machine with other work

Prints one JSON line per case; the last line is the environment. If a bound is exceeded, the script says which and
fails.

The app's convolutional network on images of 8 x 8, through the Trainer, for so many optimizer steps. The runs of a case
take turns in one process, one without and one with the callback; each turn begins with the other one. A run is timed
from the start of `fit` to its end, with all that the callback does at the start and at the end: its examinations, the
table and its files.
  steps, batch         optimizer steps of a run, samples of a batch
  plain_s              seconds of a run without the callback, median over turns
  share                seconds inside the callback's hooks, in percent of the rest of the same run, median over turns;
                       what the callback slows down outside of them is not in it
  added, low, high     how much longer a run is than the plain one of its turn, in percent: median and quartiles; other
                       work on the machine moves it
  measured             what the callback says that it spent, in percent of its run, median
  samples, evaluations of a run: sampled steps; values, gradients and Hessian products on the samples' data
  found                problems that it found, which there should be none of
  turns                runs of each kind
"""

import argparse
import contextlib
import io
import json
import logging
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator

import torch
from bench_sam_step import environment, prepare, spread
from torch.utils.data import DataLoader, TensorDataset

from lbtrain import OptimizationDiagnostics
from lbtrain._lightning import Trainer, seed_everything
from lbtrain.app.models import Classifier
from lbtrain.app.networks import ConvNet

SAMPLES = 4096  # of the training data
CLASSES = 10


def data(batch: int) -> DataLoader:
    """Return images of 10 classes that can be told apart, so that a run looks like one."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, CLASSES, (SAMPLES,), generator=generator)
    centres = torch.randn(CLASSES, 1, 8, 8, generator=generator)
    images = centres[labels] + 0.5 * torch.randn(SAMPLES, 1, 8, 8, generator=generator)
    return DataLoader(TensorDataset(images, labels), batch_size=batch, shuffle=True, drop_last=True)


class Timed(OptimizationDiagnostics):
    """The callback, with the seconds that its hooks take."""

    def __init__(self, now: Callable[[], float]) -> None:
        super().__init__()
        self.now, self.inside = now, 0.0


def timed(name: str) -> Callable[..., None]:
    """Return a hook that does what the callback's own does, and times it."""

    def hook(self: Timed, *args: object, **options: object) -> None:
        since = self.now()
        getattr(OptimizationDiagnostics, name)(self, *args, **options)
        self.inside += self.now() - since

    return hook


for name in vars(OptimizationDiagnostics):
    if name.startswith("on_") or name in ("setup", "teardown"):
        setattr(Timed, name, timed(name))


def run(steps: int, batch: int, options: argparse.Namespace, callback: Timed | None) -> float:
    """Return the seconds of a run."""
    seed_everything(0, verbose=False)
    module = Classifier(ConvNet(), lambda params: torch.optim.SGD(params, lr=0.01, momentum=0.9))
    now = clock(options)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
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
        loader, since = data(batch), now()
        trainer.fit(module, loader)
        if options.device == "cuda":
            torch.cuda.synchronize()
        return now() - since


def clock(options: argparse.Namespace) -> Callable[[], float]:
    """Return what tells the seconds."""
    return time.process_time if options.clock == "cpu" else time.perf_counter


def measure(steps: int, batch: int, options: argparse.Namespace) -> dict:
    """Return the line of a case."""
    warm = 20
    for callback in (None, Timed(clock(options))):
        run(warm, batch, options, callback)
    times: dict[bool, list[float]] = {False: [], True: []}
    inside: list[float] = []
    own: list[float] = []
    for turn in range(options.repeats):
        for diagnosed in (False, True) if turn % 2 else (True, False):
            callback = Timed(clock(options)) if diagnosed else None
            seconds = run(steps, batch, options, callback)
            times[diagnosed].append(seconds)
            if callback is not None:
                inside.append(100 * callback.inside / (seconds - callback.inside))
                own.append(100 * callback.result.seconds / seconds)
                result = callback.result
    added = [100 * (b / a - 1) for a, b in zip(times[False], times[True], strict=True)]
    row = {"case": "share", "steps": steps, "batch": batch, "plain_s": round(statistics.median(times[False]), 3)}
    row |= {"share": round(statistics.median(inside), 3)} | spread(added, ("added", "low", "high"))
    row |= {"measured": round(statistics.median(own), 3)}
    row |= {"samples": result.samples, "evaluations": result.num_evaluations}
    return row | {"found": [finding.problem for finding in result.findings], "turns": options.repeats}


def exceeded(row: dict, bound: float, from_steps: int) -> str | None:
    """Return what to say about a line that is over its bound."""
    if row["case"] != "share" or row["steps"] < from_steps or max(row["share"], row["added"]) <= bound:
        return None
    found = f"{row['share']} % inside the hooks, {row['added']} % more time"
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
    parser.add_argument("--repeats", type=int, default=3, help="turns, that is runs of each kind")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads of torch")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--clock", default="wall", choices=("wall", "cpu"), help="cpu: the process' processor time")
    parser.add_argument("--bound", type=float, default=2.0, help="largest share and added time, percent")
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
