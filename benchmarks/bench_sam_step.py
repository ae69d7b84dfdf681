"""What a step of SAM and of its relatives costs, beside a plain step and beside other implementations.

    python benchmarks/bench_sam_step.py                                   # a short list, 5 to 10 minutes on 2 cores
    python benchmarks/bench_sam_step.py --network resnet18 --batch 512 --repeats 5
    python benchmarks/bench_sam_step.py --network convnet --batch 64 --method sam two_step pytorch_optimizer
    python benchmarks/bench_sam_step.py --all                             # hours

Prints one JSON line per case; the last line is the environment. If a bound is exceeded, the script says which and
fails.

`case: time`. The loops of a case take turns in one process, an epoch of plain steps, an epoch of SAM steps, plain, SAM
and so on, so that other work on the machine slows them alike. An epoch is timed from the start of its second step to
its end, with hooks, data fetching and optimizer; the first step, on a few samples, lets all memory be allocated. On a
machine with much other work, `--clock cpu --threads 1` counts processor time and so leaves waiting for it out.
  network, batch, method, precision, accumulate
  steps, turns         timed optimizer steps per epoch, epochs of each loop; short epochs and many turns are less noisy
  plain_ms, step_ms    milliseconds of an optimizer step without and with the method, medians over epochs
  ratio, low, high     median and quartiles of the method's time over the plain time of the same turn
  If the method is a rival's, plain_ms is of its own plain loop, and there is more:
  ours_ms              milliseconds of a step of lbtrain's SAM through the Trainer, median over the same turns
  ours_over_rival, ours_low, ours_high    median and quartiles of ours over the rival's; below 1 ours is faster
lbtrain's methods train the app's Classifier, which logs a loss and an accuracy; beside a rival, all train the bare
network. Rivals: `two_step`, a plain loop that climbs and returns tensor by tensor with a fresh copy of the weights, as
optimizer wrappers usually do; `two_step_lightning`, the same in a module with manual optimization; `pytorch_optimizer`,
that package's SAM in a plain loop, skipped if it is not installed. They keep neither buffers nor dropout masks.

`case: memory`. A perceptron of 4 million weights in tensors of equal size, at a batch so small that they dominate.
  method, extra    peak of tensor memory with the method minus that without it, in units of the parameters' size
On the CPU the peak is the largest running sum of what torch's profiler sees the allocator give and take: exact and the
same in each run, unlike the resident size of the process, in which the allocator's leftovers count. On a GPU it is
torch.cuda.max_memory_allocated. SGD has a momentum only where the method needs one.

`case: kernels`. Operations that a step dispatches beyond those of a plain step and of a second forward and backward
pass, in perceptrons of 6 and of 42 tensors; views do not count. For methods whose every step is alike, in float32.
  method, foreach_calls, foreach_calls_of_42_tensors    operations on lists of tensors
  calls_per_tensor                                      operations more for each tensor more
"""

import argparse
import gc
import importlib.util
import itertools
import json
import logging
import math
import os
import platform
import statistics
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from resnet import ResNet18
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader

from lbtrain import GSAM, SAM, WSAM, FriendlySAM, LookSAM, MomentumSAM
from lbtrain._lightning import Callback, LightningModule, Trainer, pl, seed_everything
from lbtrain.app.models import Classifier
from lbtrain.app.networks import MLP, ConvNet

Batch = tuple[Tensor, Tensor]
Loop = Callable[[int], float]  # from the number of steps to the milliseconds of one

RHO = 0.05
WARM_UP_SAMPLES = 8
MOST_STEPS = 100  # of an epoch
FEWEST_TURNS = 7


@dataclass(frozen=True)
class Method:
    """Callbacks, and the Trainer's settings with and without them."""

    callback: Callable[[], Callback]
    accumulate: int = 1
    precision: str = "32-true"
    period: int = 1  # optimizer steps from one ascent to the next
    passes: int = 1  # forward and backward passes more than a plain step

    @property
    def same_in_each_step(self) -> bool:
        """Whether a step is one batch in single precision, and the next does the same."""
        return self.accumulate == self.period == 1 and self.precision == "32-true"


METHODS = {
    "sam": Method(SAM),
    "sam_global": Method(partial(SAM, scope="global")),
    "sam_accumulate_4": Method(SAM, accumulate=4),
    "sam_micro_batch": Method(partial(SAM, scope="micro_batch"), accumulate=4),
    "sam_bf16": Method(SAM, precision="bf16-mixed"),
    "sam_every_10": Method(partial(SAM, every_n_steps=10), period=10),
    "momentum_sam": Method(MomentumSAM, passes=0),
    "asam": Method(partial(SAM, adaptive=True)),
    "gsam": Method(GSAM),
    "looksam": Method(LookSAM, period=10),
    "friendly_sam": Method(FriendlySAM),
    "wsam": Method(WSAM),
}
RIVALS = ("two_step", "two_step_lightning", "pytorch_optimizer")
# Constructor, shape of an image, and batch sizes, the usual one first.
NETWORKS = {
    "convnet": (ConvNet, (1, 8, 8), (512, 16, 64, 256, 1024)),
    "resnet18": (ResNet18, (3, 32, 32), (64, 512)),
    "mlp": (partial(MLP, 64, (2048, 2048), 10), (1, 8, 8), (256,)),
}
SHORT = [
    *(("convnet", batch, "sam") for batch in NETWORKS["convnet"][2]),
    *(("convnet", 512, method) for method in (*METHODS, *RIVALS) if method != "sam"),
    ("mlp", 256, "sam"),
    ("resnet18", 64, "sam"),
    ("resnet18", 64, "momentum_sam"),
]
ALL = [
    *(("convnet", batch, method) for batch in NETWORKS["convnet"][2] for method in (*METHODS, *RIVALS)),
    *((network, NETWORKS[network][2][0], method) for network in ("mlp", "resnet18") for method in (*METHODS, *RIVALS)),
    *(("resnet18", 512, method) for method in ("sam", "momentum_sam", "two_step")),
]
# Where the bounds of time are held: elsewhere a step is so short that the Trainer's own work is a large part of it.
BOUND_CASES = (("convnet", 512), ("resnet18", 512))


class Bare(LightningModule):
    """A network and its loss, nothing logged."""

    def __init__(self, network: nn.Module, momentum: float) -> None:
        super().__init__()
        self.network, self.momentum = network, momentum

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the mean loss of a batch."""
        return cross_entropy(self.network(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return SGD."""
        return sgd(self.network, self.momentum)


class BareTwoStep(Bare):
    """The same, with `two_step` in `training_step`, as projects write it."""

    automatic_optimization = False

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Train on a batch."""
        two_step(self.network, self.optimizers(), batch, self.manual_backward)


class Clock(Callback):
    """Time from the start of the first step after the warm-up to the end of the epoch."""

    def __init__(self, warm_up_batches: int, now: Callable[[], float]) -> None:
        self.warm_up_batches, self.now = warm_up_batches, now

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        """Note the start."""
        if batch_idx == self.warm_up_batches:
            self.since = self.now()

    def on_train_epoch_end(self, trainer, pl_module):
        """Note what has passed."""
        self.seconds = self.now() - self.since


class Operations(TorchDispatchMode):
    """Count what is dispatched, without views."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if not any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns):
            self.counts[func._schema.name] += 1
        return func(*args, **(kwargs or {}))


@dataclass(frozen=True)
class Bench:
    """A network at a batch size on a device, and the loops that train it."""

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    batch: int
    device: str
    momentum: float = 0.9
    logging: bool = True  # lbtrain's methods train the app's classifier
    clock: str = "wall"

    def loops(self, method: str) -> dict[str, Loop]:
        """Return the loops that take turns: what `method` is compared with, and it."""
        if method in METHODS:
            chosen = METHODS[method]
            run = partial(self.by_trainer, self.classifier if self.logging else self._bare)
            options = {"accumulate": chosen.accumulate, "precision": chosen.precision}
            return {
                "plain": partial(run, list, **options),
                "method": partial(run, lambda: [chosen.callback()], **options),
            }
        plain = partial(self.by_trainer, self._bare, list)
        ours = partial(self.by_trainer, self._bare, lambda: [SAM()])
        if method == "two_step_lightning":
            manual = partial(self.by_trainer, lambda network: BareTwoStep(network, self.momentum), list)
            return {"plain": plain, "ours": ours, "method": manual}
        theirs = partial(self.by_hand, start_two_step if method == "two_step" else start_pytorch_optimizer)
        return {"plain": partial(self.by_hand, start_plain), "ours": ours, "method": theirs}

    def by_trainer(
        self,
        wrap: Callable[[nn.Module], LightningModule],
        callbacks: Callable[[], list[Callback]],
        steps: int,
        accumulate: int = 1,
        precision: str = "32-true",
    ) -> float:
        """Return the milliseconds of a step through the Trainer."""
        clock = Clock(accumulate, self.now)
        trainer = Trainer(
            accelerator=self.device,
            devices=1,
            max_epochs=1,
            accumulate_grad_batches=accumulate,
            precision=precision,
            callbacks=[clock, *callbacks()],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        batches = [batch for batch in self._batches(steps) for _ in range(accumulate)]
        module = wrap(self._network())
        gc.collect()  # of earlier Trainers, here rather than inside the epoch
        trainer.fit(module, DataLoader(batches, batch_size=None))
        return 1000 * clock.seconds / steps

    def by_hand(self, start: Callable[[nn.Module, float], Callable[[Batch], object]], steps: int) -> float:
        """Return the milliseconds of a step without Lightning."""
        warm_up, *batches = self._batches(steps)
        step = start(self._network().to(self.device), self.momentum)
        gc.collect()
        step(warm_up)
        since = self.now()
        for batch in batches:
            step(batch)
        return 1000 * (self.now() - since) / steps

    def now(self) -> float:
        """Return the seconds of the clock, when the device has done its work."""
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.process_time() if self.clock == "cpu" else time.perf_counter()

    def _network(self) -> nn.Module:
        seed_everything(0, verbose=False)
        return self.build()

    def classifier(self, network: nn.Module) -> LightningModule:
        """Return the app's module."""
        return Classifier(network, lambda params: torch.optim.SGD(params, lr=0.01, momentum=self.momentum))

    def _bare(self, network: nn.Module) -> LightningModule:
        return Bare(network, self.momentum)

    def _batches(self, steps: int) -> list[Batch]:
        """Return a small batch for the warm-up, and then the same batch for each step."""
        return [self._random(min(WARM_UP_SAMPLES, self.batch)), *(steps * [self._random(self.batch)])]

    def _random(self, samples: int) -> Batch:
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(samples, *self.shape, generator=generator)
        return images.to(self.device), torch.randint(0, 10, (samples,), generator=generator).to(self.device)


def sgd(network: nn.Module, momentum: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(network.parameters(), lr=0.01, momentum=momentum)


def start_plain(network: nn.Module, momentum: float) -> Callable[[Batch], object]:
    """Return a function that trains the network on a batch."""
    optimizer = sgd(network, momentum)

    def step(batch: Batch) -> None:
        optimizer.zero_grad()
        cross_entropy(network(batch[0]), batch[1]).backward()
        optimizer.step()

    return step


def start_gradient(network: nn.Module, momentum: float) -> Callable[[Batch], object]:
    """Return a function that computes a gradient and leaves it unused."""

    def step(batch: Batch) -> None:
        network.zero_grad()
        cross_entropy(network(batch[0]), batch[1]).backward()

    return step


def start_two_step(network: nn.Module, momentum: float) -> Callable[[Batch], object]:
    return partial(two_step, network, sgd(network, momentum))


def start_pytorch_optimizer(network: nn.Module, momentum: float) -> Callable[[Batch], object]:
    from pytorch_optimizer import SAM as Theirs  # noqa: N811

    optimizer = Theirs(network.parameters(), torch.optim.SGD, rho=RHO, lr=0.01, momentum=momentum)

    def step(batch: Batch) -> None:
        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = cross_entropy(network(batch[0]), batch[1])
            loss.backward()
            return loss

        closure()
        optimizer.step(closure)

    return step


def two_step(network, optimizer, batch: Batch, backward: Callable[[Tensor], object] = Tensor.backward) -> None:
    """Climb and return tensor by tensor, with a fresh copy of the weights in each step."""
    optimizer.zero_grad()
    backward(cross_entropy(network(batch[0]), batch[1]))
    params = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    copies = []
    with torch.no_grad():
        scale = RHO / (torch.stack([p.grad.norm() for p in params]).norm() + 1e-12)
        for p in params:
            copies.append(p.clone())
            p.add_(p.grad * scale)
    optimizer.zero_grad()
    backward(cross_entropy(network(batch[0]), batch[1]))
    with torch.no_grad():
        for p, copy in zip(params, copies, strict=True):
            p.copy_(copy)
    optimizer.step()


def spread(values: list[float], names: tuple[str, str, str]) -> dict[str, float]:
    """Return median, lower and upper quartile under these names."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else 3 * values
    return {name: round(value, 3) for name, value in zip(names, (middle, low, high), strict=True)}


def measure_time(network: str, batch: int, method: str, options: argparse.Namespace) -> dict:
    """Return the line of a case; the first epochs, which are not kept, also find out how many steps fill one."""
    build, shape, _ = NETWORKS[network]
    loops = Bench(build, shape, batch, options.device, clock=options.clock).loops(method)
    chosen = METHODS.get(method, METHODS["sam"])
    first = {name: run(1) for name, run in loops.items()}
    wanted = min(MOST_STEPS, max(1.0, 1000 * options.seconds / min(first["plain"], loops["plain"](1))))
    steps = chosen.period * math.ceil(wanted / chosen.period)
    times: dict[str, list[float]] = {name: [] for name in loops}
    begin = time.monotonic()
    for turn in range(options.repeats):
        if turn >= FEWEST_TURNS and time.monotonic() - begin > options.budget:
            break
        for name, run in loops.items():
            times[name].append(run(steps))
    row = {
        "case": "time",
        "network": network,
        "batch": batch,
        "method": method,
        "precision": chosen.precision,
        "accumulate": chosen.accumulate,
        "steps": steps,
        "turns": len(times["plain"]),
        "plain_ms": round(statistics.median(times["plain"]), 3),
        "step_ms": round(statistics.median(times["method"]), 3),
    }
    row |= spread([b / a for a, b in zip(times["plain"], times["method"], strict=True)], ("ratio", "low", "high"))
    if "ours" in times:
        row["ours_ms"] = round(statistics.median(times["ours"]), 3)
        ratios = [a / b for a, b in zip(times["ours"], times["method"], strict=True)]
        row |= spread(ratios, ("ours_over_rival", "ours_low", "ours_high"))
    return row


def peak_memory(run: Callable[[], object], device: str) -> int:
    """Return the peak of the tensor memory that a call allocates, bytes."""
    gc.collect()  # what the call frees, it must have allocated
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    return max(itertools.accumulate(e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())))


def measure_memory(method: str, device: str) -> dict:
    """Return the line of a method's extra memory."""
    build = partial(MLP, 64, 16 * (512,), 10)
    momentum = 0.9 if method == "momentum_sam" else 0.0
    loops = Bench(build, (1, 8, 8), WARM_UP_SAMPLES, device, momentum, logging=False).loops(method)
    steps = max(2, METHODS[method].period) if method in METHODS else 2  # after the warm-up: up to the second ascent
    plain, peak = (peak_memory(partial(loops[name], steps), device) for name in ("plain", "method"))
    size = sum(p.numel() * p.element_size() for p in build().parameters())
    return {"case": "memory", "method": method, "extra": round((peak - plain) / size, 2)}


def operations(run: Loop) -> Counter[str]:
    """Return the operations of one optimizer step."""
    totals = []
    for steps in (2, 3):
        with Operations() as seen:
            run(steps)
        totals.append(seen.counts)
    totals[1].subtract(totals[0])
    return totals[1]


def measure_kernels(method: str, device: str) -> dict:
    """Return the line of a method's operations."""
    foreach, others = [], []
    depths = (2, 20)
    for depth in depths:
        bench = Bench(partial(MLP, 64, depth * (16,), 10), (1, 8, 8), WARM_UP_SAMPLES, device, logging=False)
        loops = bench.loops(method)
        extra = operations(loops["method"])
        extra.subtract(operations(loops["plain"]))
        if method not in METHODS or METHODS[method].passes:
            extra.subtract(operations(partial(bench.by_hand, start_gradient)))
        foreach.append(sum(n for name, n in extra.items() if "_foreach_" in name))
        others.append(sum(extra.values()))
    tensors = 2 * (depths[1] - depths[0])
    return {
        "case": "kernels",
        "method": method,
        "foreach_calls": foreach[0],
        "foreach_calls_of_42_tensors": foreach[1],
        "calls_per_tensor": round((others[1] - others[0]) / tensors, 2),
    }


def exceeded(row: dict, bounds: dict[str, float]) -> str | None:
    """Return what to say about a line that is over its bound."""
    if row["case"] == "memory" and row["method"] == "sam" and row["extra"] > bounds["memory"]:
        return f"sam takes {row['extra']} parameter sizes of extra memory, more than {bounds['memory']}"
    if row["case"] != "time" or (row["network"], row["batch"]) not in BOUND_CASES:
        return None
    method, ratio = row["method"], row["ratio"]
    if ratio <= bounds.get(method, math.inf):
        return None
    return f"{method} on {row['network']} takes {ratio} plain steps, more than {bounds[method]}"


def cases_of(options: argparse.Namespace) -> list[tuple[str, int, str]]:
    """Return network, batch size and method of each timed case."""
    if options.all:
        return ALL
    if not (options.network or options.batch or options.method):
        return SHORT
    return [
        (network, batch, method)
        for network in options.network or ["convnet"]
        for batch in options.batch or NETWORKS[network][2][:1]
        for method in options.method or ["sam"]
    ]


def rows(options: argparse.Namespace) -> Iterator[dict]:
    """Measure all cases."""
    cases = cases_of(options)
    if importlib.util.find_spec("pytorch_optimizer") is None:
        cases = [case for case in cases if case[2] != "pytorch_optimizer"]
    for network, batch, method in cases:
        yield measure_time(network, batch, method, options)
    for method in dict.fromkeys(method for _, _, method in cases):
        yield measure_memory(method, options.device)
        if method not in METHODS or METHODS[method].same_in_each_step:
            yield measure_kernels(method, options.device)
    yield environment(options)


def environment(options: argparse.Namespace) -> dict:
    """Return the line that says where the others come from."""
    return {
        "case": "environment",
        "torch": torch.__version__,
        "lightning": pl.__version__,
        "device": torch.cuda.get_device_name() if options.device == "cuda" else platform.machine(),
        "threads": torch.get_num_threads(),
        "clock": options.clock,
        "load": round(os.getloadavg()[0], 2),
    }


def parsed() -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", nargs="+", choices=NETWORKS, help="default: convnet")
    parser.add_argument("--batch", nargs="+", type=int, help="batch sizes; default: 512, resnet18 64, mlp 256")
    parser.add_argument("--method", nargs="+", choices=[*METHODS, *RIVALS], help="default: sam")
    parser.add_argument("--all", action="store_true", help="all cases, whatever is chosen above")
    parser.add_argument("--repeats", type=int, default=40, help="turns, that is epochs of each loop of a case")
    parser.add_argument("--budget", type=float, default=20.0, help=f"seconds; then no turns beyond {FEWEST_TURNS}")
    parser.add_argument("--seconds", type=float, default=0.1, help="aimed length of a plain epoch")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads of torch")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--clock", default="wall", choices=("wall", "cpu"), help="cpu: the process' processor time")
    where = "convnet and resnet18 at batch 512"
    parser.add_argument("--sam-bound", type=float, default=2.03, help=f"largest ratio of sam, {where}")
    parser.add_argument("--every-bound", type=float, default=1.13, help=f"largest ratio of sam_every_10, {where}")
    parser.add_argument("--momentum-bound", type=float, default=1.05, help=f"largest ratio of momentum_sam, {where}")
    parser.add_argument("--memory-bound", type=float, default=1.0, help="largest extra memory of sam")
    return parser.parse_args()


def prepare(options: argparse.Namespace) -> None:
    """Make the process quiet and its times comparable."""
    torch.set_num_threads(options.threads)
    logging.getLogger(f"{pl.__name__}.utilities.rank_zero").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    gc.freeze()  # leaves the imported modules out of every collection, which then takes no time


def main() -> None:
    options = parsed()
    prepare(options)
    bounds = {
        "sam": options.sam_bound,
        "sam_every_10": options.every_bound,
        "momentum_sam": options.momentum_bound,
        "memory": options.memory_bound,
    }
    complaints = []
    for row in rows(options):
        print(json.dumps(row), flush=True)
        complaints.append(exceeded(row, bounds))
    if any(complaints):
        sys.exit("\n".join(complaint for complaint in complaints if complaint))


if __name__ == "__main__":
    main()
