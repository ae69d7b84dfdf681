"""How the time of Hessian products and of the top eigenvalue grows with samples and parameters, and falls with ranks.

    python benchmarks/bench_curvature_scaling.py

Prints one JSON line per case; the last line is the environment. If a bound is exceeded, the script says which and
fails. The convolutional network of the paper on digits of 28 x 28; every process has one thread.

`case: samples`, `case: parameters`. One process, kept graphs: products should cost the same number of gradients.
  samples, parameters
  gradient_ms    one gradient of the mean loss
  product_ms     one Hessian product
  gradients      their ratio
  top_s          the largest eigenvalue to 1e-3, seconds, and its products
`case: ranks`. One process, then two on halves of the same data with gloo, one all-reduce per product. They take turns.
  speedup, low, high    time of one over the time of two, median and quartiles over turns; each rank needs a core
  difference            of lambda_max between the two, relative
"""

import argparse
import json
import os
import platform
import socket
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from curvature_problems import TRAIN_SAMPLES, Batch, Problem, convnet
from torch import Tensor

from lbtrain.functional.lanczos import lanczos
from lbtrain.functional.operator import HessianOperator

SAMPLES = (180, 359, 719, TRAIN_SAMPLES)
WIDTHS = (8, 16, 32, 64)
# Each rank on a core of its own.
SPEEDUP = 1.6
TIMEOUT_S = 600


def top(operator: HessianOperator) -> tuple[float, int]:
    """Return the largest eigenvalue and the products spent."""
    source = torch.Generator().manual_seed(0)
    found = lanczos(operator, operator.dim, top_k=1, generator=source, smallest=False)
    return found.lambda_max, found.num_matvecs


def seconds(task: Callable[[], object]) -> float:
    begin = time.perf_counter()
    task()
    return time.perf_counter() - begin


def timed_top(build: Callable[[], HessianOperator]) -> tuple[float, float, int]:
    """Return the seconds from building the operator on, the largest eigenvalue and the products."""
    begin = time.perf_counter()
    value, products = top(build())
    return time.perf_counter() - begin, value, products


def growth(case: str, problem: Problem, repeats: int) -> dict[str, Any]:
    """Return the line of one size."""
    operator = problem.operator(engine="autograd")
    v = torch.randn(operator.dim, generator=torch.Generator().manual_seed(0))
    operator(v)
    times = [(seconds(operator.gradient), seconds(partial(operator, v))) for _ in range(repeats)]
    gradient, product = (statistics.median(column) for column in zip(*times, strict=True))
    whole, _, products = timed_top(problem.operator)
    return {
        "case": case,
        "samples": sum(len(y) for _, y in problem.batches),
        "parameters": operator.dim,
        "gradient_ms": round(1e3 * gradient, 1),
        "product_ms": round(1e3 * product, 1),
        "gradients": round(product / gradient, 2),
        "top_s": round(whole, 2),
        "products": products,
    }


def summed(tensor: Tensor) -> Tensor:
    dist.all_reduce(tensor)
    return tensor


def work(rank: int, port: int, problem: Problem, turns: int, results: Any) -> None:
    """Time one rank: alone on all data, then together on halves, in turns."""
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=2)
    loss, params = problem.loss, list(problem.network.parameters())
    size = sum(len(y) for _, y in problem.batches)
    mine = [batch for x, y in problem.batches for batch in halves(x, y)][rank::2]
    for _ in range(turns + 1):  # the first turn warms up
        dist.barrier()
        if rank == 0:
            one, alone, _ = timed_top(partial(HessianOperator, loss, params, problem.batches))
        dist.barrier()
        two, both, _ = timed_top(partial(HessianOperator, loss, params, mine, all_reduce=summed))
        if rank == 0:
            results.put((one / two, abs(alone - both) / alone, size))
    dist.destroy_process_group()


def halves(x: Tensor, y: Tensor) -> list[Batch]:
    """Return the two halves of a batch."""
    return list(zip(x.chunk(2), y.chunk(2), strict=True))


def ranks(problem: Problem, turns: int) -> dict[str, Any]:
    """Return the line of two processes against one."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = mp.get_context("spawn")
    results = context.Queue()
    processes = [context.Process(target=work, args=(rank, port, problem, turns, results)) for rank in range(2)]
    try:
        for process in processes:
            process.start()
        rows = [results.get(timeout=TIMEOUT_S) for _ in range(turns + 1)][1:]
    finally:
        for process in processes:
            process.join(10)
            if process.is_alive():
                process.kill()
    low, middle, high = statistics.quantiles([row[0] for row in rows], n=4) if len(rows) > 1 else 3 * [rows[0][0]]
    return {
        "case": "ranks",
        "samples": rows[0][2],
        "speedup": round(middle, 2),
        "low": round(low, 2),
        "high": round(high, 2),
        "difference": float(f"{max(row[1] for row in rows):.1e}"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", nargs="+", choices=("samples", "parameters", "ranks"))
    parser.add_argument("--repeats", type=int, default=7, help="timed products per size, and turns of the ranks")
    parser.add_argument("--samples", nargs="+", type=int, default=SAMPLES)
    parser.add_argument("--widths", nargs="+", type=int, default=WIDTHS, help="channels of the first convolution")
    options = parser.parse_args()
    cases = options.case or ("samples", "parameters", "ranks")
    torch.set_num_threads(1)
    if "samples" in cases:
        for count in options.samples:
            print(json.dumps(growth("samples", convnet(count, epochs=2), options.repeats)), flush=True)
    if "parameters" in cases:
        for width in options.widths:
            problem = convnet(min(options.samples), width, epochs=2)
            print(json.dumps(growth("parameters", problem, options.repeats)), flush=True)
    missed = None
    if "ranks" in cases:
        line = ranks(convnet(max(options.samples), epochs=2), options.repeats)
        print(json.dumps(line), flush=True)
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        if line["speedup"] < SPEEDUP and cores > 1:
            missed = f"ranks: speedup {line['speedup']} is below {SPEEDUP}"
    versions = {"torch": torch.__version__, "python": platform.python_version(), "device": "cpu", "threads": 1}
    print(json.dumps({"environment": versions}))
    if missed:
        sys.exit(missed)


if __name__ == "__main__":
    main()
