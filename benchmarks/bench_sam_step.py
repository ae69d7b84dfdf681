"""A SAM step costs two plain steps: SAM step over plain step, both through the Trainer, in one process.

python benchmarks/bench_sam_step.py --repeats 20

Prints one JSON line per case and one for the environment. `ratio` is the median, over repeats, of an epoch's step time
with SAM over that of the plain epoch right before it; `low` and `high` are the quartiles. The script fails if a ratio
exceeds `--bound`.
"""

import argparse
import json
import logging
import platform
import statistics
import sys
import time
import warnings
from dataclasses import dataclass

import torch
from torch.utils.data import DataLoader, TensorDataset

from lbtrain import SAM
from lbtrain._lightning import Callback, Trainer, pl, seed_everything
from lbtrain.app.models import Classifier
from lbtrain.app.networks import MLP, ConvNet


class Clock(Callback):
    """Time spent in training batches, each from its start to its end."""

    def on_train_start(self, trainer, pl_module):
        """Forget the last fit."""
        self.seconds = 0.0

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        """Note the start."""
        self._since = time.perf_counter()

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        """Add what has passed."""
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize()
        self.seconds += time.perf_counter() - self._since


@dataclass(frozen=True)
class Case:
    """One network at one batch size."""

    name: str
    batch_size: int
    steps: int
    accumulate: int = 1
    precision: str = "32-true"


CASES = (
    Case("convnet", 16, 60),
    Case("convnet", 64, 40),
    Case("convnet", 256, 12),
    Case("convnet", 1024, 4),
    Case("convnet", 64, 40, accumulate=4),
    Case("convnet", 256, 12, precision="bf16-mixed"),
    Case("wide mlp", 256, 12),
)


def model_of(name):
    """Return a fresh classifier."""
    seed_everything(0, verbose=False)
    network = ConvNet() if name == "convnet" else MLP(64, (2048, 2048), 10)
    return Classifier(network, lambda params: torch.optim.SGD(params, lr=0.01, momentum=0.9))


def step_seconds(case, device, callbacks):
    """Return the mean seconds of an optimizer step over one epoch."""
    samples = case.batch_size * case.steps
    generator = torch.Generator().manual_seed(0)
    data = TensorDataset(
        torch.randn(samples, 1, 8, 8, generator=generator), torch.randint(0, 10, (samples,), generator=generator)
    )
    clock = Clock()
    trainer = Trainer(
        accelerator=device,
        devices=1,
        max_epochs=1,
        precision=case.precision,
        accumulate_grad_batches=case.accumulate,
        callbacks=[*callbacks, clock],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model_of(case.name), DataLoader(data, case.batch_size))
    return clock.seconds / trainer.global_step


def measure(case, device, repeats):
    """Return the case's figures."""
    step_seconds(case, device, [])
    step_seconds(case, device, [SAM()])
    plain, ratios = [], []
    for _ in range(repeats):
        plain.append(step_seconds(case, device, []))
        ratios.append(step_seconds(case, device, [SAM()]) / plain[-1])
    low, ratio, high = statistics.quantiles(ratios, n=4)
    return {
        "case": case.name,
        "batch_size": case.batch_size,
        "accumulate": case.accumulate,
        "precision": case.precision,
        "plain_step_ms": round(1000 * statistics.median(plain), 3),
        "ratio": round(ratio, 3),
        "low": round(low, 3),
        "high": round(high, 3),
    }


def main():
    """Measure all cases."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=20, help="pairs of epochs per case")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads of torch")
    parser.add_argument("--device", default="cpu", choices=("cpu", "gpu"))
    parser.add_argument("--bound", type=float, default=2.3, help="largest ratio that does not fail the script")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    logging.getLogger(f"{pl.__name__}.utilities.rank_zero").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    rows = []
    for case in CASES:
        rows.append(measure(case, options.device, options.repeats))
        print(json.dumps(rows[-1]), flush=True)
    device = torch.cuda.get_device_name() if options.device == "gpu" else platform.machine()
    print(
        json.dumps({
            "torch": torch.__version__,
            "lightning": pl.__version__,
            "device": device,
            "threads": options.threads,
        })
    )
    if any(row["ratio"] > options.bound for row in rows):
        sys.exit(f"a SAM step costs more than {options.bound} plain steps")


if __name__ == "__main__":
    main()
