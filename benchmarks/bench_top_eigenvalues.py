"""Cost of the top eigenvalues of a trained network, in full gradients, beside curvlinops with ARPACK and PyHessian.

    python benchmarks/bench_top_eigenvalues.py --repeats 5 --threads 2

The network is a small convolutional classifier of scikit-learn's digits (1294 training samples, one batch) after a
short training. One JSON line per case: how many Hessian products, the median time in units of one full gradient, and
the largest error of the k eigenvalues relative to the largest one, against ARPACK at 1e-10 on a float64 copy. The last
line describes the environment. A rival that cannot be imported is skipped with a line that says so.
"""

import argparse
import importlib
import json
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from functools import partial

import numpy as np
import scipy.sparse.linalg
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from lbtrain.functional.hvp import MeanLoss
from lbtrain.functional.lanczos import lanczos_spectrum

Outcome = tuple[list[float], int]  # eigenvalues, descending, and the products spent
Data = tuple[Tensor, Tensor]
Matvec = Callable[[np.ndarray], np.ndarray]
Task = Callable[[], Outcome]


def make_network() -> nn.Sequential:
    """Return two convolutions, dropout and one dense layer."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(256, 10),
    )


def trained(epochs: int = 10) -> tuple[nn.Sequential, Data]:
    """Return the network after SGD with momentum, in eval mode, and its training data in one batch."""
    torch.manual_seed(0)
    digits = load_digits()
    keep = np.random.default_rng(0).permutation(len(digits.target))[:1294]
    images, y = torch.tensor(digits.images[keep], dtype=torch.float32).unsqueeze(1), torch.tensor(digits.target[keep])
    x = (images - images.mean()) / images.std()
    network = make_network()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(x[rows]), y[rows]).backward()
            optimizer.step()
    return network.eval(), (x, y)


def mean_loss(network: nn.Sequential, data: Data) -> MeanLoss:
    """Return the training loss as a function of the weights."""
    x, y = data
    return MeanLoss(list(network.parameters()), [lambda: nn.functional.cross_entropy(network(x), y)], [1.0])


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
    return sorted(values.tolist(), reverse=True), count


def reference(network: nn.Sequential, data: Data, k: int, tol: float, which: str) -> list[float]:
    """Return the k eigenvalues at one end of a float64 copy."""
    copy = make_network().double().eval()
    copy.load_state_dict(network.state_dict())
    loss = mean_loss(copy, (data[0].double(), data[1]))
    return arpack(lambda v: loss(torch.from_numpy(v)).numpy(), loss.dim, k, tol, np.float64, which)[0]


def run_lbtrain(network: nn.Sequential, data: Data, k: int, tol: float, smallest: bool) -> Outcome:
    loss = mean_loss(network, data)  # graph and all, as a callback would build it
    source = torch.Generator().manual_seed(0)
    found = lanczos_spectrum(loss, loss.dim, top_k=k, tol=tol, generator=source, smallest=smallest)
    return list(found.eigenvalues), found.num_matvecs


def run_curvlinops(
    network: nn.Sequential, data: Data, k: int, tol: float, ncv: int | None = None, low_tol: float | None = None
) -> Outcome:
    """Return the k largest eigenvalues; with ``low_tol`` the smallest one is computed too, in a run of its own."""
    from curvlinops import HessianLinearOperator

    operator = HessianLinearOperator(
        network, nn.CrossEntropyLoss(), list(network.parameters()), [data], check_deterministic=False
    )

    def matvec(v: np.ndarray) -> np.ndarray:
        return (operator @ torch.from_numpy(v.astype(np.float32))).numpy()

    values, count = arpack(matvec, operator.shape[0], k, tol, np.float32, ncv=ncv)
    if low_tol is not None:
        count += arpack(matvec, operator.shape[0], 1, low_tol, np.float32, which="SA")[1]
    return values, count


def run_pyhessian(network: nn.Sequential, data: Data, k: int, tol: float) -> Outcome:
    module = importlib.import_module("pyhessian.hessian")

    count, plain = 0, module.hessian_vector_product

    def counted(*arguments: object) -> object:
        nonlocal count
        count += 1
        return plain(*arguments)

    module.hessian_vector_product = counted
    try:
        torch.manual_seed(0)
        values, _ = module.hessian(network, nn.CrossEntropyLoss(), data=data, cuda=False).eigenvalues(
            maxIter=1000, tol=tol, top_n=k
        )
    finally:
        module.hessian_vector_product = plain
        network.zero_grad()
    return sorted(values, reverse=True), count


def seconds(task: Callable[[], object]) -> float:
    """Return the time of one call, seconds."""
    begin = time.perf_counter()
    task()
    return time.perf_counter() - begin


def in_gradients(task: Task, gradient: Callable[[], Tensor], repeats: int) -> float:
    """Return the median time in units of one gradient, timed around each call: other work slows both alike."""
    ratios = []
    for _ in range(repeats):
        before = [seconds(gradient) for _ in range(4)]
        time_of_task = seconds(task)
        after = [seconds(gradient) for _ in range(4)]
        ratios.append(time_of_task / statistics.median(before + after))
    return statistics.median(ratios)


def measure(name: str, run: Task, tol: float, truth: list[float], gradient: Callable[[], Tensor], repeats: int) -> dict:
    """Return the line of one case; the run that gives its error is the warm-up."""
    try:
        values, products = run()
    except ImportError as error:
        return {"case": name, "top_k": len(truth), "skipped": f"cannot import {error.name}"}
    errors = [abs(v - t) / truth[0] for v, t in zip(values, truth, strict=True)]
    return {
        "case": name,
        "top_k": len(truth),
        "tol": tol,
        "products": products,
        "gradients": round(in_gradients(run, gradient, repeats), 1),
        "max_error": float(f"{max(errors):.1e}"),
    }


def cases_of(network: nn.Sequential, data: Data, k: int, low_tol: float) -> list[tuple[str, float, Task]]:
    """Return name, tolerance and run of each case."""
    ours, theirs = partial(run_lbtrain, network, data, k), partial(run_curvlinops, network, data, k)
    ncv = 2 * k + 6  # near the best for ARPACK here: its default builds 20 vectors before the first look
    return [
        ("lbtrain, top and smallest", 1e-3, partial(ours, 1e-3, smallest=True)),
        ("curvlinops + eigsh, top and smallest", 1e-3, partial(theirs, 1e-3, low_tol=low_tol)),
        ("lbtrain, top", 1e-3, partial(ours, 1e-3, smallest=False)),
        ("curvlinops + eigsh, top", 1e-3, partial(theirs, 1e-3)),
        (f"curvlinops + eigsh, top, ncv={ncv}", 1e-3, partial(theirs, 1e-3, ncv=ncv)),
        *(("pyhessian, top", tol, partial(run_pyhessian, network, data, k, tol)) for tol in (1e-3, 1e-5)),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="timed runs per case, after one warm-up")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads of torch")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")  # of the rivals
    network, data = trained()
    loss = mean_loss(network, data)
    top, low = reference(network, data, 5, 1e-10, "LA"), reference(network, data, 1, 1e-3, "SA")[0]
    # ARPACK's tolerance is relative to each eigenvalue, ours to the largest: ask both for the same digits.
    low_tol = 1e-3 * top[0] / abs(low)
    for k in (1, 5):
        for name, tol, run in cases_of(network, data, k, low_tol):
            print(json.dumps(measure(name, run, tol, top[:k], loss.gradient, options.repeats)), flush=True)
    versions = {"torch": torch.__version__, "python": platform.python_version(), "device": "cpu"}
    shape = {"parameters": loss.dim, "samples": len(data[0]), "threads": options.threads, "repeats": options.repeats}
    unit = 1e3 * statistics.median(seconds(loss.gradient) for _ in range(9))
    print(json.dumps({"environment": versions | shape | {"gradient_ms": round(unit, 1)}}))


if __name__ == "__main__":
    main()
