"""All judges of training curves on real little runs: healthy ones are silent, sick ones found by the right judge."""

import math

import pytest
import torch
from torch import nn

from lbtrain.functional.conditioning import conditioning_finding
from lbtrain.functional.critical_point import critical_point
from lbtrain.functional.decay import decay_findings
from lbtrain.functional.diagnosis import Finding, ranked
from lbtrain.functional.fluctuation import fluctuation_finding
from lbtrain.functional.instability import instability_finding
from lbtrain.functional.oscillation import oscillation_finding
from lbtrain.functional.results import Spectrum
from lbtrain.functional.slow_progress import slow_finding
from lbtrain.functional.stuck import plateau_finding, saddle_finding
from lbtrain.functional.training_curve import share_left
from tests.curves import Problem, Recorded, digits, least_squares, network, train

# Real runs, some tenths of a second each; each function has quick tests of its own.
pytestmark = pytest.mark.slow


def findings(run: Recorded, momentum: float) -> tuple[Finding, ...]:
    curve, ends = run.curve, {"lambda_min": run.lambda_min, "lambda_max": run.lambda_max}
    spectrum = Spectrum((run.lambda_max,), (0.0,), run.lambda_min, 0.0, True, 1)
    verdict = critical_point(spectrum, curve.gradient_norms[-1], curve.levels[-1], run.weight_norm).kind
    # Networks have wide spectra all the time; the curve decides whether that is to blame.
    wide, left = [1e4, 1.0, 1.0, 1.0], share_left(curve) if curve.finite else math.nan
    found = [
        instability_finding(curve),
        oscillation_finding(curve, averaging=run.averaging),
        fluctuation_finding(curve, averaging=run.averaging),
        slow_finding(curve, momentum=momentum),
        *decay_findings(curve),
        plateau_finding(curve, verdict=verdict, **ends),
        saddle_finding(curve, **ends),
        conditioning_finding(wide, left, curve=curve),
    ]
    return ranked(f for f in found if f is not None)


def cosine(done: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * done))


def warmed(done: float) -> float:
    return 10 * done + 0.001 if done < 0.1 else cosine((done - 0.1) / 0.9)


def mlp(seed: int) -> Problem:
    return network(64, 32, 10, seed=seed)


def softmax(seed: int) -> Problem:
    return network(64, 10, scale=0.0, seed=seed)


def regression(seed: int) -> Problem:
    return least_squares(floor=0.5, seed=seed)


def noisy_labels(seed: int) -> Problem:
    """Return a network on digits of which 40 % have a label by chance, so that much of the loss stays."""
    torch.manual_seed(seed)
    inputs, labels = digits()
    wrong = torch.rand(len(labels)) < 0.4
    labels = torch.where(wrong, torch.randint(0, 10, (len(labels),)), labels)
    start = network(64, 32, 10, seed=seed)

    def loss(w, which):
        hidden = torch.relu(nn.functional.linear(inputs[which], w[0], w[1]))
        return nn.functional.cross_entropy(nn.functional.linear(hidden, w[2], w[3]), labels[which])

    return Problem(start.params, loss, len(labels))


def entropy_floor(seed: int) -> Problem:
    """Return logistic regression of coins that the inputs load a little: most of the loss is entropy."""
    torch.manual_seed(seed)
    inputs = torch.randn(2048, 10)
    labels = (torch.rand(2048) < torch.sigmoid(0.25 * inputs.sum(1))).float()

    def loss(w, which):
        return nn.functional.binary_cross_entropy_with_logits(inputs[which] @ w[0], labels[which])

    return Problem([torch.zeros(10)], loss, 2048)


def autoencoder(seed: int) -> Problem:
    """Return a variational autoencoder of digits: the entropy of the pixels and of the code is a floor."""
    torch.manual_seed(seed)
    images = (digits()[0] + 1) / 2
    params = [p.detach() for layer in (nn.Linear(64, 16), nn.Linear(8, 64)) for p in layer.parameters()]

    def loss(w, which):
        x = images[which]
        mean, spread = nn.functional.linear(x, w[0], w[1]).chunk(2, 1)
        code = mean + torch.randn_like(mean) * (0.5 * spread).exp()
        seen = nn.functional.binary_cross_entropy_with_logits(
            nn.functional.linear(code, w[2], w[3]), x, reduction="none"
        )
        return seen.sum(1).mean() - 0.5 * (1 + spread - mean**2 - spread.exp()).sum(1).mean()

    return Problem(params, loss, len(images))


def trained(seed: int) -> Problem:
    """Return a network that has been trained, as one that is tuned further."""
    problem = mlp(seed)
    params = [p.clone().requires_grad_() for p in problem.params]
    optimizer = torch.optim.Adam(params, lr=3e-3)
    for _ in range(100):
        optimizer.zero_grad()
        problem.loss(params, torch.arange(problem.total)).backward()
        optimizer.step()
    return Problem([p.detach() for p in params], problem.loss, problem.total)


def normalized(seed: int) -> Problem:
    """Return a network with batch normalization, which is sampled with running statistics that lag."""
    problem, (inputs, labels) = network(64, 32, 10, seed=seed), digits()
    running = {"mean": torch.zeros(32), "var": torch.ones(32)}

    def logits(w, which, training):
        hidden = nn.functional.linear(inputs[which], w[0], w[1])
        hidden = nn.functional.batch_norm(hidden, running["mean"], running["var"], training=training)
        return nn.functional.linear(torch.relu(hidden), w[2], w[3])

    def loss(w, which):
        return nn.functional.cross_entropy(logits(w, which, False), labels[which])

    def batches(w, which):
        return nn.functional.cross_entropy(logits(w, which, True), labels[which])

    return Problem(problem.params, loss, len(labels), batches)


ADAM = {"rate": 1e-3, "steps": 320, "batch": 32, "adam": True}
SGD = {"rate": 0.1, "steps": 200, "batch": 32}
MOMENTUM = {"rate": 0.02, "steps": 200, "batch": 32, "momentum": 0.9}
FULL = {"steps": 150, "batch": 1024}
HEALTHY = {
    "network": (mlp, SGD),
    "network, momentum": (mlp, MOMENTUM),
    "network, high rate": (mlp, {**MOMENTUM, "rate": 0.05}),
    "network, cosine": (mlp, {**MOMENTUM, "rate": 0.05, "schedule": cosine}),
    "network, step decay": (mlp, {**MOMENTUM, "rate": 0.05, "schedule": lambda x: 1.0 if x < 0.5 else 0.1}),
    "network, Adam": (mlp, {"rate": 1e-3, "steps": 300, "batch": 32, "adam": True}),
    "network, Adam at a high rate": (mlp, {"rate": 1e-2, "steps": 200, "batch": 32, "adam": True}),
    "network, batch 16": (mlp, {**MOMENTUM, "rate": 0.01, "steps": 300, "batch": 16}),
    "network, batch 4": (mlp, {"rate": 0.01, "steps": 600, "batch": 4}),
    "network, batch 256 warmed up": (
        mlp,
        {"rate": 0.3, "steps": 150, "batch": 256, "momentum": 0.9, "schedule": warmed},
    ),
    "network, full batch warmed up": (
        mlp,
        {**FULL, "rate": 0.2, "momentum": 0.9, "schedule": lambda x: min(1, 10 * x + 0.01)},
    ),
    "network, near the edge of stability": (mlp, {**FULL, "rate": 0.5}),
    "network, at the edge of stability": (mlp, {**FULL, "rate": 1.0}),
    "network, 40 steps": (mlp, {**MOMENTUM, "rate": 0.05, "steps": 40}),
    "noisy labels, Adam": (noisy_labels, ADAM),
    "noisy labels": (noisy_labels, {**MOMENTUM, "steps": 320}),
    "an entropy floor": (entropy_floor, {**SGD, "steps": 320}),
    "an entropy floor, Adam": (entropy_floor, ADAM),
    "an entropy floor, momentum": (entropy_floor, {**MOMENTUM, "rate": 0.05}),
    "variational autoencoder": (autoencoder, {**ADAM, "rate": 3e-3}),
    "a trained start": (trained, ADAM),
    "a trained start, SGD": (trained, {**SGD, "rate": 0.02}),
    "batch normalization": (normalized, {**MOMENTUM, "rate": 0.05}),
    "batch normalization at a high rate": (normalized, {**MOMENTUM, "rate": 0.3}),
    "tanh": (lambda seed: network(64, 32, 10, activation=torch.tanh, seed=seed), SGD),
    "deep": (lambda seed: network(64, 32, 32, 32, 10, seed=seed), MOMENTUM),
    "softmax": (softmax, {**SGD, "rate": 0.05}),
    "softmax, cosine": (softmax, {**SGD, "rate": 0.2, "schedule": cosine}),
    "softmax, full batch": (softmax, {**FULL, "rate": 0.3}),
    "regression": (regression, {**SGD, "rate": 0.5}),
    "regression, lr*lambda_max = 1": (regression, {**FULL, "batch": 512, "rate": 1.0}),
    "regression, lr*lambda_max = 1.4 without noise": (regression, {**FULL, "batch": 512, "rate": 1.4}),
    "regression, a floor of nine tenths": (lambda seed: least_squares(floor=3.0, seed=seed), SGD),
    "regression, step decay": (regression, {**SGD, "rate": 0.5, "schedule": lambda x: 1.0 if x < 0.5 else 0.1}),
    "regression, momentum": (regression, {**MOMENTUM, "rate": 0.2, "schedule": cosine}),
}
SICK = {
    "instability": [
        (lambda seed: least_squares(noise=0.5, seed=seed), {"rate": 2.2, "steps": 60, "batch": 16}),
        (lambda seed: least_squares(seed=seed), {"rate": 2.2, "steps": 60, "batch": 512}),
        (lambda seed: network(64, 10, squared=True, seed=seed), {"rate": 0.15, "steps": 60, "batch": 64}),
        (mlp, {"rate": 4.0, "steps": 60, "batch": 512, "momentum": 0.9}),
    ],
    "oscillations": [
        (lambda seed: least_squares(noise=0.5, seed=seed), {"rate": 1.5, "steps": 250, "batch": 16}),
        (lambda seed: least_squares(noise=0.3, seed=seed), {"rate": 2.25, "steps": 250, "batch": 16, "momentum": 0.5}),
    ],
    "fluctuations": [
        (lambda seed: least_squares(noise=0.5, seed=seed), {"rate": 0.5, "steps": 400, "batch": 2}),
        (softmax, {"rate": 1.0, "steps": 800, "batch": 2}),
    ],
    "slow progress": [
        (mlp, {"rate": 5e-4, "steps": 100, "batch": 32}),
        (mlp, {"rate": 1e-4, "steps": 100, "batch": 32, "momentum": 0.9}),
        (regression, {"rate": 0.005, "steps": 60, "batch": 32}),
    ],
    "decay too early": [
        (mlp, {"rate": 0.05, "steps": 240, "batch": 64, "schedule": lambda x: 1.0 if x < 1 / 12 else 0.01}),
        (
            mlp,
            {
                "rate": 0.01,
                "steps": 240,
                "batch": 64,
                "momentum": 0.9,
                "schedule": lambda x: 1.0 if x < 1 / 12 else 0.01,
            },
        ),
    ],
    "decay too late": [
        (
            lambda seed: least_squares(noise=1.2, seed=seed),
            {"rate": 0.7, "steps": 400, "batch": 8, "schedule": lambda x: 1.0 if x < 0.9 else 0.1},
        ),
    ],
    "plateau": [
        (
            lambda seed: network(64, 32, 10, activation=torch.sign, frozen_output=True, seed=seed),
            {"rate": 0.1, "steps": 60, "batch": 32},
        ),
    ],
    "saddle": [
        (
            lambda seed: network(64, 32, 10, activation=lambda x: x, scale=1e-4, squared=True, seed=seed),
            {"rate": 0.02, "steps": 160, "batch": 64},
        ),
    ],
}
CASES = [(name, place) for name, runs in SICK.items() for place in range(len(runs))]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_run_gets_no_finding(name: str, seed: int) -> None:
    problem, given = HEALTHY[name]
    assert findings(train(problem(seed), seed=seed, **given), given.get("momentum", 0.0)) == ()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("name", "place"), CASES)
def test_a_sick_run_gets_its_own_finding_first(name: str, place: int, seed: int) -> None:
    problem, given = SICK[name][place]
    found = findings(train(problem(seed), seed=seed, **given), given.get("momentum", 0.0))
    assert [f.problem for f in found][:1] == [name], [f.evidence for f in found]
