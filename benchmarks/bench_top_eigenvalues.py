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


def arpack(matvec: Callable[[np.ndarray], np.ndarray], n: int, k: int, tol: float, dtype: type) -> Outcome:
    """Return the k largest eigenvalues by scipy's eigsh."""
    count = 0

    def counted(v: np.ndarray) -> np.ndarray:
        nonlocal count
        count += 1
        return matvec(v)

    operator = scipy.sparse.linalg.LinearOperator((n, n), matvec=counted, dtype=dtype)
    start = np.random.default_rng(1).standard_normal(n).astype(dtype)
    values = scipy.sparse.linalg.eigsh(operator, k=k, which="LA", tol=tol, v0=start, return_eigenvectors=False)
    return sorted(values.tolist(), reverse=True), count


def reference(network: nn.Sequential, data: Data, k: int) -> list[float]:
    """Return the k largest eigenvalues of a float64 copy, converged to 1e-10."""
    copy = make_network().double().eval()
    copy.load_state_dict(network.state_dict())
    loss = mean_loss(copy, (data[0].double(), data[1]))
    return arpack(lambda v: loss(torch.from_numpy(v)).numpy(), loss.dim, k, 1e-10, np.float64)[0]


def run_lbtrain(network: nn.Sequential, data: Data, k: int, tol: float, smallest: bool) -> Outcome:
    loss = mean_loss(network, data)  # graph and all, as a callback would build it
    source = torch.Generator().manual_seed(0)
    found = lanczos_spectrum(loss, loss.dim, top_k=k, tol=tol, generator=source, smallest=smallest)
    return list(found.eigenvalues), found.num_matvecs


def run_curvlinops(network: nn.Sequential, data: Data, k: int, tol: float) -> Outcome:
    from curvlinops import HessianLinearOperator

    operator = HessianLinearOperator(
        network, nn.CrossEntropyLoss(), list(network.parameters()), [data], check_deterministic=False
    )
    return arpack(
        lambda v: (operator @ torch.from_numpy(v.astype(np.float32))).numpy(), operator.shape[0], k, tol, np.float32
    )


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


def median_seconds(task: Callable[[], object], repeats: int) -> float:
    """Return the median time after one warm-up, seconds."""
    task()
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        task()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def measure(name: str, run: Callable[[], Outcome], tol: float, truth: list[float], unit: float, repeats: int) -> dict:
    """Return the line of one case."""
    try:
        values, products = run()
    except ImportError as error:
        return {"case": name, "top_k": len(truth), "skipped": f"cannot import: {error.name}"}
    errors = [abs(v - t) / truth[0] for v, t in zip(values, truth, strict=True)]
    return {
        "case": name,
        "top_k": len(truth),
        "tol": tol,
        "products": products,
        "gradients": round(median_seconds(run, repeats) / unit, 1),
        "max_error": float(f"{max(errors):.1e}"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="timed runs per case, after one warm-up")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads of torch")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")  # of the rivals
    network, data = trained()
    loss = mean_loss(network, data)
    unit = median_seconds(loss.gradient, 5 * options.repeats)
    for k in (1, 5):
        truth = reference(network, data, k)
        cases = [
            ("lbtrain, both ends", 1e-3, lambda tol, k=k: run_lbtrain(network, data, k, tol, True)),
            ("lbtrain, top only", 1e-3, lambda tol, k=k: run_lbtrain(network, data, k, tol, False)),
            ("lbtrain, both ends", 1e-2, lambda tol, k=k: run_lbtrain(network, data, k, tol, True)),
            *(
                ("curvlinops + eigsh", tol, lambda tol, k=k: run_curvlinops(network, data, k, tol))
                for tol in (1e-1, 1e-2, 1e-3)
            ),
            *(
                ("pyhessian power iteration", tol, lambda tol, k=k: run_pyhessian(network, data, k, tol))
                for tol in (1e-2, 1e-3, 1e-5)
            ),
        ]
        for name, tol, run in cases:
            print(json.dumps(measure(name, partial(run, tol), tol, truth, unit, options.repeats)), flush=True)
    environment = {"torch": torch.__version__, "threads": options.threads, "repeats": options.repeats, "device": "cpu"}
    shape = {"parameters": loss.dim, "samples": len(data[0]), "gradient_ms": round(1e3 * unit, 1)}
    print(json.dumps({"environment": environment | shape | {"python": platform.python_version()}}))


if __name__ == "__main__":
    main()
