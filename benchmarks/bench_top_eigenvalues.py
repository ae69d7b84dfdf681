"""What Hessian eigenvalues, products and densities cost, in full gradients, beside other tools.

    python benchmarks/bench_top_eigenvalues.py --threads 1 --clock cpu                   # the network of the paper
    python benchmarks/bench_top_eigenvalues.py --network resnet --threads 1 --clock cpu  # batch normalization
    python benchmarks/bench_top_eigenvalues.py --case product density

Prints one JSON line per case; the last line is the environment. If a bound is exceeded, the script says which and
fails. `convnet` is the network of the paper on 1,437 digits of 28 x 28, `resnet` one of 7 layers with batch
normalization on 200 digits in CIFAR's shape; both in batches of 128, the last one shorter, after 10 and 6 epochs. The
unit of all times is one gradient of the mean loss over all samples, timed around each run, so that other work on the
machine slows both alike. On a machine with much other work, `--clock cpu --threads 1` counts processor time.

`case: product`, one Hessian product: kept graphs, graphs built anew, central differences, and curvlinops.
  gradients    median over the repeats
`case: top`, the k largest eigenvalues, from building the operator on. Reference: ARPACK at 1e-7 on a float64 copy.
  tool, top_k, tol, products
  gradients    median over the repeats
  max_error    largest error of the k eigenvalues, relative to the largest one
  certified    largest of the tool's own error bounds, relative to the largest eigenvalue; null if it gives none
  peak_mib     peak of the tensor memory allocated meanwhile, in MiB; the product's vectors and graphs included
`case: both_ends`, the same with the smallest eigenvalue to the same absolute tolerance.
`case: density`, 10 probes of 80 steps.
  ratio        its time over that of as many products
Rivals that cannot be imported are left out, with a line that says so: curvlinops with scipy's eigsh, PyHessian, and
hessian-eigenthings (`pip install --no-deps pyhessian hessian-eigenthings==1.0.0a5`).
"""

import argparse
import importlib
import json
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import scipy.sparse.linalg
import torch
from bench_sam_step import peak_memory
from curvature_problems import PROBLEMS, Problem
from torch import nn

from lbtrain.functional.density import density
from lbtrain.functional.lanczos import lanczos

CASES = ("product", "top", "both_ends", "density")
# Largest gradients per product and per run of lbtrain; largest ratio of a density.
BOUNDS = {
    ("product", "convnet", "kept graphs"): 1.35,
    ("product", "resnet", "kept graphs"): 2.6,
    ("product", "convnet", "differences"): 2.3,
    ("product", "resnet", "differences"): 2.3,
    ("top", "convnet", 1, "lbtrain, from the gradient"): 12.0,
    ("top", "convnet", 5, "lbtrain"): 32.0,
    ("density", "convnet"): 1.05,
}
Matvec = Callable[[np.ndarray], np.ndarray]


@dataclass
class Outcome:
    """Eigenvalues, descending; the products spent; the largest error bound, if the tool gives one."""

    values: list[float]
    products: int
    bound: float | None = None


Task = Callable[[], Outcome]


def arpack(
    matvec: Matvec, n: int, k: int, tol: float, dtype: type, which: str = "LA", ncv: int | None = None
) -> Outcome:
    """Return the k eigenvalues at one end by scipy's eigsh; ``ncv`` None is its default, at least 20 vectors."""
    count = 0

    def counted(v: np.ndarray) -> np.ndarray:
        nonlocal count
        count += 1
        return matvec(v)

    operator = scipy.sparse.linalg.LinearOperator((n, n), matvec=counted, dtype=dtype)
    start = np.random.default_rng(1).standard_normal(n).astype(dtype)
    values = scipy.sparse.linalg.eigsh(operator, k, which=which, tol=tol, v0=start, ncv=ncv, return_eigenvectors=False)
    return Outcome(sorted(values.tolist(), reverse=True), count)


def reference(problem: Problem, k: int, tol: float, which: str) -> list[float]:
    """Return the k eigenvalues at one end of a float64 copy, by ARPACK on plain double backward."""
    copy = problem.double()
    params = list(copy.network.parameters())
    total = sum(len(y) for _, y in copy.batches)

    def matvec(v: np.ndarray) -> np.ndarray:
        direction = torch.from_numpy(v)
        product = torch.zeros_like(direction)
        for batch in copy.batches:
            gradient = torch.autograd.grad(copy.loss(batch), params, create_graph=True)
            slope = torch.cat([g.reshape(-1) for g in gradient]) @ direction
            rows = torch.autograd.grad(slope, params)
            product += len(batch[1]) / total * torch.cat([row.reshape(-1) for row in rows])
        return product.numpy()

    return arpack(matvec, sum(p.numel() for p in params), k, tol, np.float64, which).values


def run_lbtrain(problem: Problem, k: int, tol: float, smallest: bool = False, from_gradient: bool = False) -> Outcome:
    operator = problem.operator()
    source = torch.Generator().manual_seed(0)
    start = operator.slope()[1] if from_gradient else None
    found = lanczos(operator, operator.dim, top_k=k, tol=tol, generator=source, start=start, smallest=smallest)
    operator.release()
    bound = max(*found.residuals, found.lambda_min_residual) if smallest else max(found.residuals)
    return Outcome(list(found.eigenvalues), found.num_matvecs, bound)


def curvlinops_matvec(problem: Problem) -> tuple[Matvec, int]:
    from curvlinops import HessianLinearOperator

    network = problem.network
    operator = HessianLinearOperator(
        network, nn.CrossEntropyLoss(), list(network.parameters()), problem.batches, check_deterministic=False
    )

    def matvec(v: np.ndarray) -> np.ndarray:
        return (operator @ torch.from_numpy(v.astype(np.float32))).numpy()

    return matvec, operator.shape[0]


def run_curvlinops(
    problem: Problem, k: int, tol: float, ncv: int | None = None, low_tol: float | None = None
) -> Outcome:
    """Return the k largest eigenvalues; with ``low_tol`` the smallest one is computed too, in a run of its own."""
    matvec, n = curvlinops_matvec(problem)
    found = arpack(matvec, n, k, tol, np.float32, ncv=ncv)
    if low_tol is not None:
        found.products += arpack(matvec, n, 1, low_tol, np.float32, which="SA").products
    return found


def run_pyhessian(problem: Problem, k: int, tol: float) -> Outcome:
    module = importlib.import_module("pyhessian.hessian")
    count = 0

    class Counting(module.hessian):  # type: ignore[misc, name-defined]
        def dataloader_hv_product(self, v: Any) -> Any:
            nonlocal count
            count += 1
            return super().dataloader_hv_product(v)

    torch.manual_seed(0)
    tool = Counting(problem.network, nn.CrossEntropyLoss(), dataloader=problem.batches, cuda=False)
    values, _ = tool.eigenvalues(maxIter=1000, tol=tol, top_n=k)
    problem.network.zero_grad()
    return Outcome(sorted(values, reverse=True), count)


def run_eigenthings(problem: Problem, k: int, steps: int) -> Outcome:
    from hessian_eigenthings import HessianOperator
    from hessian_eigenthings import lanczos as their_lanczos

    operator = HessianOperator(problem.network, problem.batches, lambda _, batch: problem.loss(batch))
    found = their_lanczos(operator, k=k, max_iter=steps, which="LA", seed=0)
    return Outcome(sorted(found.eigenvalues.tolist(), reverse=True), found.iterations, float(found.residuals.max()))


def top_cases(problem: Problem, k: int) -> list[tuple[str, float | None, Task]]:
    """Return tool, tolerance and run of each tool."""
    steps = 20 if k == 1 else 40
    ncv = 2 * k + 6  # near the best for ARPACK here: its default builds 20 vectors before the first look
    return [
        ("lbtrain", 1e-3, partial(run_lbtrain, problem, k, 1e-3)),
        ("lbtrain, from the gradient", 1e-3, partial(run_lbtrain, problem, k, 1e-3, from_gradient=True)),
        ("curvlinops + eigsh", 1e-3, partial(run_curvlinops, problem, k, 1e-3)),
        (f"curvlinops + eigsh, ncv={ncv}", 1e-3, partial(run_curvlinops, problem, k, 1e-3, ncv=ncv)),
        ("pyhessian", 1e-3, partial(run_pyhessian, problem, k, 1e-3)),
        (f"eigenthings, {steps} steps", None, partial(run_eigenthings, problem, k, steps)),
    ]


def both_cases(problem: Problem, k: int, low_tol: float) -> list[tuple[str, float | None, Task]]:
    return [
        ("lbtrain", 1e-3, partial(run_lbtrain, problem, k, 1e-3, smallest=True)),
        ("curvlinops + eigsh", 1e-3, partial(run_curvlinops, problem, k, 1e-3, low_tol=low_tol)),
    ]


class Bench:
    """Times runs in gradients of one problem.

    Args:
        problem: Network and data.
        repeats: Timed runs of each case.
        clock: ``wall`` or ``cpu``.
        memory: Whether to measure memory too.
    """

    def __init__(self, problem: Problem, repeats: int, clock: str, memory: bool) -> None:
        self.problem, self.repeats, self.memory = problem, repeats, memory
        self.now = time.process_time if clock == "cpu" else time.perf_counter
        self.gradient = problem.operator(engine="autograd").gradient
        self.missed: list[str] = []

    def seconds(self, task: Callable[[], object]) -> float:
        """Return the time of one call."""
        begin = self.now()
        task()
        return self.now() - begin

    def in_units(self, task: Callable[[], object], unit: Callable[[], object], around: int = 2) -> float:
        """Return the median time of a task in units of another, timed before and after it."""
        ratios = []
        for _ in range(self.repeats):
            before = [self.seconds(unit) for _ in range(around)]
            here = self.seconds(task)
            after = [self.seconds(unit) for _ in range(around)]
            ratios.append(here / statistics.median(before + after))
        return statistics.median(ratios)

    def check(self, key: tuple, value: float) -> None:
        """Note a bound that is exceeded."""
        if value > BOUNDS.get(key, float("inf")):
            self.missed.append(f"{key}: {value:.2f} is above {BOUNDS[key]}")

    def products(self) -> None:
        """Print the cost of one product, by each way of taking it."""
        ways: dict[str, Callable[[], Callable[[], object]]] = {
            "kept graphs": lambda: self._product("autograd", 2**32),
            "graphs built anew": lambda: self._product("autograd", 0),
            "differences": lambda: self._product("differences", 0),
            "curvlinops": self._curvlinops_product,
        }
        for tool, prepare in ways.items():
            task = prepare()
            task()
            cost = round(self.in_units(task, self.gradient, around=1), 2)
            self.check(("product", self.problem.name, tool), cost)
            print(json.dumps({"case": "product", "tool": tool, "gradients": cost}), flush=True)

    def _product(self, engine: str, memory: int) -> Callable[[], object]:
        operator = self.problem.operator(engine=engine, graph_memory_bytes=memory)
        v = torch.randn(operator.dim, generator=torch.Generator().manual_seed(0))
        return lambda: operator(v / v.norm())

    def _curvlinops_product(self) -> Callable[[], object]:
        matvec, n = curvlinops_matvec(self.problem)
        v = np.random.default_rng(0).standard_normal(n)
        return lambda: matvec(v)

    def run(self, case: str, tool: str, tol: float | None, task: Task, truth: list[float]) -> None:
        """Print the line of one tool."""
        line: dict[str, Any] = {"case": case, "tool": tool, "top_k": len(truth), "tol": tol}
        outcomes: list[Outcome] = []
        try:
            cost = round(self.in_units(lambda: outcomes.append(task()), self.gradient), 1)
        except ImportError as error:
            print(json.dumps(line | {"skipped": f"cannot import {error.name}"}), flush=True)
            return
        found = outcomes[-1]
        error = max(abs(v - t) for v, t in zip(found.values, truth, strict=True)) / truth[0]
        if tool.startswith("lbtrain"):
            self.check((case, self.problem.name, len(truth), tool), cost)
        print(
            json.dumps(
                line
                | {
                    "products": found.products,
                    "gradients": cost,
                    "max_error": float(f"{error:.1e}"),
                    "certified": None if found.bound is None else float(f"{found.bound / truth[0]:.1e}"),
                    "peak_mib": round(peak_memory(task, "cpu") / 2**20) if self.memory else None,
                }
            ),
            flush=True,
        )

    def density(self, probes: int = 10, steps: int = 80) -> None:
        """Print the time of a density over that of its products."""
        operator = self.problem.operator(engine="autograd")
        v = torch.randn(operator.dim, generator=torch.Generator().manual_seed(0))

        def estimate() -> None:
            source = torch.Generator().manual_seed(0)
            density(operator, operator.dim, num_probes=probes, num_steps=steps, generator=source)

        def products() -> None:
            for _ in range(probes * steps // 8):
                operator(v)

        operator(v)
        # An eighth of the products before and after: the machine changes its pace meanwhile.
        ratio = round(self.in_units(estimate, products) / 8, 3)
        self.check(("density", self.problem.name), ratio)
        print(json.dumps({"case": "density", "products": probes * steps, "ratio": ratio}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=PROBLEMS, default="convnet")
    parser.add_argument("--samples", type=int, help="samples, fewer for a quick look")
    parser.add_argument("--case", nargs="+", choices=CASES, default=CASES)
    parser.add_argument("--top", nargs="+", type=int, default=[1, 5], help="numbers of eigenvalues")
    parser.add_argument("--tool", default="", help="only tools whose name begins so, such as lbtrain")
    parser.add_argument("--repeats", type=int, default=5, help="timed runs per case")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads of torch")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--no-memory", dest="memory", action="store_false", help="leave out the peak of memory")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")  # of the rivals
    build = PROBLEMS[options.network]
    problem = build() if options.samples is None else build(options.samples)  # type: ignore[call-arg]
    bench = Bench(problem, options.repeats, options.clock, options.memory)
    if "product" in options.case:
        bench.products()
    if {"top", "both_ends"} & set(options.case):
        top = reference(problem, max(options.top), 1e-7, "LA")
        # ARPACK's tolerance is relative to each eigenvalue, ours to the largest: ask both for the same digits.
        low_tol = 1e-3 * top[0] / abs(reference(problem, 1, 1e-3, "SA")[0]) if "both_ends" in options.case else 0.0
        cases = {"top": top_cases, "both_ends": partial(both_cases, low_tol=low_tol)}
        for case in cases.keys() & set(options.case):
            for k in options.top:
                for tool, tol, task in cases[case](problem, k=k):
                    if tool.startswith(options.tool):
                        bench.run(case, tool, tol, task, top[:k])
    if "density" in options.case:
        bench.density()
    versions = {"torch": torch.__version__, "python": platform.python_version(), "device": "cpu"}
    operator = problem.operator(engine="autograd")
    shape = {"network": problem.name, "parameters": operator.dim, "samples": sum(len(y) for _, y in problem.batches)}
    how = {"threads": options.threads, "repeats": options.repeats, "clock": options.clock}
    unit = 1e3 * statistics.median(bench.seconds(bench.gradient) for _ in range(5))
    print(json.dumps({"environment": versions | shape | how | {"gradient_ms": round(unit, 1)}}))
    if bench.missed:
        sys.exit("bounds exceeded: " + "; ".join(bench.missed))


if __name__ == "__main__":
    main()
