"""Small real runs, recorded as the doctor records them."""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache

import torch
from torch import Tensor, nn

from lbtrain.functional.averaging import AveragingGain, averaging_gain
from lbtrain.functional.training_curve import Curve

Loss = Callable[[Sequence[Tensor], Tensor], Tensor]
Schedule = Callable[[float], float]


@dataclass
class Problem:
    """Weights to start from, the loss of chosen samples, their number, and the loss as batches see it if it differs."""

    params: list[Tensor]
    loss: Loss
    total: int
    noisy: Loss | None = None
    top: float = math.nan


@dataclass(frozen=True)
class Recorded:
    """A run's curves and what an exam at its end finds."""

    curve: Curve
    averaging: AveragingGain
    lambda_min: float
    lambda_max: float
    weight_norm: float


def flat(tensors: Sequence[Tensor]) -> Tensor:
    """Return one vector."""
    return torch.cat([t.reshape(-1) for t in tensors])


def gradient(loss: Loss, params: Sequence[Tensor], which: Tensor, *, graph: bool = False) -> tuple[float, Tensor]:
    """Return the loss of some samples and its gradient."""
    value = loss(params, which)
    if not value.requires_grad:
        return float(value), torch.zeros_like(flat(params)).detach()
    found = torch.autograd.grad(value, params, create_graph=graph, allow_unused=True)
    return float(value.detach()), flat([
        torch.zeros_like(p) if g is None else g for g, p in zip(found, params, strict=True)
    ])


def ends(grads: Tensor, params: Sequence[Tensor], products: int) -> tuple[float, float, Tensor]:
    """Return both ends of the Hessian's spectrum by power iteration, and the top eigenvector."""

    def hvp(v: Tensor) -> Tensor:
        if not grads.requires_grad:
            return torch.zeros_like(v)
        found = torch.autograd.grad(grads, params, v, retain_graph=True, allow_unused=True)
        return flat([torch.zeros_like(p) if g is None else g for g, p in zip(found, params, strict=True)])

    def power(shift: float) -> tuple[float, Tensor]:
        w, value = torch.randn(len(grads), generator=torch.Generator().manual_seed(0)), 0.0
        v = w
        for _ in range(products):
            v = w / w.norm() if w.norm() > 0 else v
            w = hvp(v) - shift * v
            value = float(v @ w)
        return value + shift, v

    first, vector = power(0.0)
    other, opposite = power(first)
    return (other, first, vector) if first >= other else (first, other, opposite)


@dataclass
class Tape:
    """What is recorded of a run: levels and gradients on up to 256 samples, curvature at each fifth sample."""

    problem: Problem
    params: list[Tensor]
    edge: float
    lists: dict[str, list] = field(default_factory=lambda: {name: [] for name in Curve.__dataclass_fields__})
    late: list[Tensor] = field(default_factory=list)
    vector: Tensor | None = None

    def sample(self, step: int, rate: float, *, late: bool) -> None:
        """Record a sample."""
        subset, lists = torch.arange(min(self.problem.total, 256)), self.lists
        value, grads = gradient(self.problem.loss, self.params, subset)
        top, self.vector = None, None
        if len(lists["steps"]) % 5 == 0 and math.isfinite(value):
            graph = gradient(self.problem.loss, self.params, subset[:128], graph=True)[1]
            _, top, self.vector = ends(graph, self.params, 12)
        lists["steps"].append(step)
        lists["levels"].append(value)
        lists["gradient_norms"].append(float(grads.norm()))
        lists["curvatures"].append(top)
        lists["stabilities"].append(None if top is None or not self.edge else rate * top / self.edge)
        lists["projections"].append([])
        lists["noises"].append(None)
        if late:
            self.late.append(flat([p.detach() for p in self.params]))

    def batch(self, value: float, grads: Tensor, rate: float) -> None:
        """Record an optimizer step."""
        lists = self.lists
        if lists["steps"][-1] == len(lists["losses"]) and (square := float(grads @ grads)) > 0:
            lists["noises"][-1] = min(max(1 - lists["gradient_norms"][-1] ** 2 / square, 0.0), 1.0)
        if self.vector is not None and len(lists["projections"][-1]) < 8:
            lists["projections"][-1].append(float(grads @ self.vector))
        lists["losses"].append(value)
        lists["rates"].append(rate)

    def at_mean(self) -> float:
        """Return the loss at the mean of the late iterates."""
        sizes = [p.numel() for p in self.params]
        parts = torch.stack(self.late).mean(0).split(sizes)
        weights = [part.view_as(p) for part, p in zip(parts, self.params, strict=True)]
        return float(self.problem.loss(weights, torch.arange(min(self.problem.total, 256))))


def train(
    problem: Problem,
    *,
    rate: float,
    steps: int,
    batch: int,
    momentum: float = 0.0,
    schedule: Schedule = lambda done: 1.0,
    adam: bool = False,
    seed: int = 0,
    samples: int = 20,
) -> Recorded:
    """Train with SGD or Adam and record; the schedule is a factor by the share of the run that is done."""
    torch.manual_seed(seed)
    params = [p.detach().clone().requires_grad_() for p in problem.params]
    optimizer = torch.optim.Adam(params, lr=rate) if adam else torch.optim.SGD(params, lr=rate, momentum=momentum)
    tape, order = Tape(problem, params, 0.0 if adam else 2 + 2 * momentum), torch.randperm(problem.total)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = now = rate * schedule(step / steps)
        if step % max(1, steps // samples) == 0:
            tape.sample(step, now, late=step >= 0.75 * steps)
        if len(order) < batch:
            order = torch.randperm(problem.total)
        chosen, order = order[:batch], order[batch:]
        value, grads = gradient(problem.noisy or problem.loss, params, chosen)
        tape.batch(value, grads, now)
        for p, part in zip(params, grads.split([p.numel() for p in params]), strict=True):
            p.grad = part.view_as(p)
        optimizer.step()
    tape.sample(steps, now, late=True)
    lists, recent = tape.lists, len(tape.late)
    graph = gradient(problem.loss, params, torch.arange(min(problem.total, 256)), graph=True)[1]
    low, top, _ = ends(graph, params, 60)
    averaging = averaging_gain(tape.at_mean(), lists["levels"][-recent:])
    return Recorded(Curve(**lists), averaging, low, top, float(flat(params).detach().norm()))


@cache
def digits() -> tuple[Tensor, Tensor]:
    """Return 1,024 of the real digits, inputs from -1 to 1."""
    from sklearn.datasets import load_digits

    found = load_digits()
    order = torch.randperm(len(found.target), generator=torch.Generator().manual_seed(1))[:1024]
    return torch.tensor(found.data, dtype=torch.float32)[order] / 8 - 1, torch.tensor(found.target)[order]


def network(
    *widths: int,
    activation: Callable[[Tensor], Tensor] = torch.relu,
    scale: float = 1.0,
    seed: int = 0,
    frozen_output: bool = False,
    squared: bool = False,
) -> Problem:
    """Return a fully connected network on digits, with cross-entropy or half the squared error of one-hot targets."""
    torch.manual_seed(seed)
    layers = [nn.Linear(a, b) for a, b in itertools.pairwise(widths)]
    params = [scale * p.detach() for layer in layers for p in layer.parameters()]
    inputs, labels = digits()
    targets = nn.functional.one_hot(labels, 10).float()
    fixed = params[-2:] if frozen_output else []

    def loss(weights: Sequence[Tensor], which: Tensor) -> Tensor:
        h, weights = inputs[which], [*weights, *fixed]
        for i in range(0, len(weights), 2):
            h = nn.functional.linear(activation(h) if i else h, weights[i], weights[i + 1])
        if squared:
            return 0.5 * (h - targets[which]).square().sum(1).mean()
        return nn.functional.cross_entropy(h, labels[which])

    return Problem(params[: len(params) - len(fixed)], loss, len(labels))


def least_squares(
    *,
    floor: float = 0.0,
    noise: float = 0.0,
    width: int = 8,
    condition: float = 10.0,
    batch_total: int = 512,
    seed: int = 0,
) -> Problem:
    """Return a linear model from zero weights whose Hessian has lambda_max 1 on all samples.

    `floor` is the standard deviation of what the targets have beside the linear part, `noise` that of what each batch
    adds to them anew.
    """
    generator = torch.Generator().manual_seed(100 + seed)
    spectrum = condition ** -torch.linspace(0, 1, width)
    inputs = torch.randn(batch_total, width, generator=generator).sign() * spectrum.sqrt()
    top = float(torch.linalg.eigvalsh(inputs.T @ inputs / batch_total)[-1])
    inputs = inputs / top**0.5
    exact = inputs @ (torch.randn(width, generator=generator) / spectrum.sum().sqrt())
    targets = exact + floor * torch.randn(batch_total, generator=generator)

    def loss(weights: Sequence[Tensor], which: Tensor) -> Tensor:
        return 0.5 * (inputs[which] @ weights[0] - targets[which]).square().mean()

    def noisy(weights: Sequence[Tensor], which: Tensor) -> Tensor:
        return 0.5 * (inputs[which] @ weights[0] - targets[which] - noise * torch.randn(len(which))).square().mean()

    return Problem([torch.zeros(width)], loss, batch_total, noisy if noise else None, top=1.0)
