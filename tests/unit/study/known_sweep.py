"""A sweep whose every number is known: the table of a plain loop on the digits, as records."""

import json
import math
from dataclasses import replace
from pathlib import Path

from lbtrain.records import RunRecord, Scalar

NASTY = "<script>alert(1)</script> | [bold] `x` & more"  # an error that no page may take for markup
BATCHES = (16, 64, 256, 1024)
# (optimizer, rate) -> per batch size: train loss, test accuracy, lambda_max without and with SAM.
KNOWN = {
    ("SGD", "none"): [
        (0.0017, 0.989, 0.69, 0.12),
        (0.011, 0.983, 2.1, 1.4),
        (0.092, 0.972, 8.7, 8.5),
        (0.51, 0.9, 16.2, 15.3),
    ],
    ("SGD", "linear"): [
        (0.0017, 0.989, 0.69, 0.12),
        (0.0007, 0.986, 0.18, 0.10),
        (0.0005, 0.983, 0.11, 0.14),
        (2.302, 0.10, 0.001, 0.001),
    ],
    ("Adam", "none"): [
        (0.0026, 0.983, 0.78, 0.35),
        (0.011, 0.981, 2.0, 1.7),
        (0.056, 0.975, 6.3, 6.2),
        (0.24, 0.936, 14.3, 14.1),
    ],
    ("Adam", "sqrt"): [
        (0.0026, 0.983, 0.78, 0.35),
        (0.003, 0.981, 0.81, 0.51),
        (0.0034, 0.983, 0.84, 0.80),
        (0.0072, 0.983, 1.27, 1.42),
    ],
}
# Method -> key of the callback, class, its radius and arguments, what it multiplies lambda_max and the time by.
METHODS = {
    "SAM": ("sam", "sam.SAM", {"rho": 0.05, "adaptive": False, "p": 2.0}, 0.5, 2.0),
    "ASAM": ("asam", "sam.SAM", {"rho": 0.5, "adaptive": True, "p": 2.0}, 0.4, 2.1),
    "SAM p=inf": ("sam_inf", "sam.SAM", {"rho": 0.001, "adaptive": False, "p": float("inf")}, 0.3, 2.0),
    "GSAM": ("gsam", "gsam.GSAM", {"rho": 0.05, "alpha": 0.4, "adaptive": False, "p": 2.0}, 0.25, 2.2),
    "LookSAM": ("looksam", "looksam.LookSAM", {"rho": 0.1, "alpha": 0.7, "every_n_steps": 10}, 0.6, 1.1),
    "FriendlySAM": ("friendly_sam", "friendly_sam.FriendlySAM", {"rho": 0.05, "sigma": 1.0}, 0.7, 2.1),
    "WSAM": ("wsam", "wsam.WSAM", {"rho": 0.05, "gamma": 0.9, "decoupled": True}, 0.2, 2.3),
    "MomentumSAM": ("momentum_sam", "momentum_sam.MomentumSAM", {"rho": 0.3, "start": 0}, 0.9, 1.0),
}


def make_record(optimizer: str, rule: str, batch: int, sam: bool, seed: int = 0, spread: float = 1.0) -> RunRecord:
    """One record of the known table; `spread` multiplies lambda_max."""
    train, acc, plain, with_sam = KNOWN[optimizer, rule][BATCHES.index(batch)]
    lam = (with_sam if sam else plain) * spread
    base = 0.01 if optimizer == "SGD" else 0.001
    factor = {"none": 1.0, "linear": batch / 16, "sqrt": (batch / 16) ** 0.5}[rule]
    config = {
        "seed": seed,
        "objective": "test/acc",
        "scaling": "fixed" if rule == "none" else "scaled",
        "data.batch_size": batch,
        "data.seed": seed,
        "model.num_classes": 10,
        "optimizer._target_": f"torch.optim.{optimizer}",
        "optimizer.lr": base,
        "model.optimizer.lr": base,
        "callbacks.lr_scaling.rule": rule,
        "callbacks.lr_scaling.base_batch_size": 16,
        "callbacks.lr_scaling.warmup_epochs": 0.0 if rule == "none" else 5.0,
        "callbacks.checkpoint.dirpath": f"/somewhere/{optimizer}{rule}{batch}{sam}{seed}",
    }
    config |= {"optimizer.momentum": 0.9, "optimizer.nesterov": False} if optimizer == "SGD" else {}
    config |= {"callbacks.sam.rho": 0.05, "callbacks.sam.adaptive": False} if sam else {}
    metrics = {
        "batch/global": float(batch),
        "lr/base": base,
        "lr/scaled": base * factor,
        "loss/reduction": "mean",
        "train/loss": train,
        "test/loss": 2 * train,
        "test/acc": acc,
        "hessian/lambda_max": lam,
        "hessian/lambda_max_residual": lam / 1000,
        "hessian/stability": lam / 20,
        "sharpness/keskar": lam / 10,
        "sharpness/sam": lam / 100,
        "time/step_ms": 20.0 if sam else 10.0,
        "time/fit_s": 6.0 if sam else 3.0,
    }
    return RunRecord(
        name=f"{optimizer} {rule} {batch} {sam} {seed}",
        status="finished",
        error=None,
        overrides=(f"data.batch_size={batch}", f"seed={seed}", "callbacks=[sam]" if sam else "callbacks=[]"),
        config=config,
        metrics=metrics,
        versions={"torch": "2.13.0", "lbtrain": "0.1.0"},
        git_commit="0123456789abcdef",
        started=f"2026-01-0{seed + 1}T00:00:00+00:00",
        duration_s=3.5,
    )


def with_method(plain: RunRecord, method: str, key: str | None = None, **arguments: Scalar) -> RunRecord:
    """The same run with a callback of SAM's family, under a key of its own or its usual one."""
    usual, target, given, factor, time = METHODS[method]
    node = f"callbacks.{key or usual}"
    config = {f"{node}.{name}": value for name, value in {**given, **arguments}.items()}
    metrics = dict(plain.metrics)
    metrics |= {name: metrics[name] * factor for name in metrics if name.startswith(("hessian/", "sharpness/"))}
    metrics |= {name: metrics[name] * time for name in metrics if name.startswith("time/")}
    return replace(
        plain,
        name=f"{plain.name} {method}",
        overrides=(*plain.overrides, f"callbacks=[{usual}]"),
        config=plain.config | {f"{node}._target_": f"lbtrain.callbacks.{target}", **config},
        metrics=metrics,
    )


def family_records(
    methods: tuple[str, ...] = tuple(METHODS),
    settings: tuple[tuple[str, str], ...] = (("Adam", "none"),),
    batches: tuple[int, ...] = BATCHES,
) -> list[RunRecord]:
    """The plain runs of some settings, and each of them with each method."""
    plain = [make_record(optimizer, rule, batch, sam=False) for optimizer, rule in settings for batch in batches]
    return [*plain, *(with_method(record, method) for method in methods for record in plain)]


def known_records(seeds: tuple[int, ...] = (0,)) -> list[RunRecord]:
    """The 32 runs of the study, once for each seed."""
    return [
        make_record(optimizer, rule, batch, sam, seed, spread=1.0 + 0.1 * seed)
        for seed in seeds
        for optimizer, rule in KNOWN
        for batch in BATCHES
        for sam in (False, True)
    ]


def failed(record: RunRecord, error: str) -> RunRecord:
    """The same run, had it failed before it measured anything."""
    return replace(record, status="failed", error=error, metrics={})


def grid_records(
    powers: dict[str, float], seeds: tuple[int, ...] = (0, 1, 2), batches: tuple[int, ...] = (16, 64, 256, 1024)
) -> list[RunRecord]:
    """Runs at several rates: the best rate of each optimizer grows with a known power of the batch.

    The training loss is a parabola in ln(rate) with its lowest value, 0.01, at base * (batch / 16)^power, plus a little
    noise that depends on seed and rate; rates of 8 times the best or more diverge.
    """
    found = []
    for optimizer, power in powers.items():
        base = 0.1 if optimizer == "SGD" else 0.004
        for batch in batches:
            for k in range(-3, 10):
                for seed in seeds:
                    rate = base * 2.0**k
                    away = math.log(rate / (base * (batch / 16) ** power))
                    noise = 0.1 * math.sin(12.9 * seed + 7.1 * k + 3.3 * math.log2(batch))
                    loss = 2.303 if away > math.log(7.9) else min(2.0, 0.01 * math.exp(0.3 * away**2 + noise))
                    run = make_record(optimizer, "none", batch, sam=False, seed=seed)
                    config = run.config | {"optimizer.lr": rate, "model.optimizer.lr": rate}
                    metrics = run.metrics | {"lr/base": rate, "lr/scaled": rate, "train/loss": loss}
                    metrics |= {"test/loss": 2 * loss, "test/acc": 1 - 0.01 * loss}
                    name = f"{optimizer} {rate:g} {batch} {seed}"
                    found.append(replace(run, name=name, config=config, metrics=metrics))
    return found


def target_records(
    critical: float = 100.0, seeds: tuple[int, ...] = (0, 1, 2), batches: tuple[int, ...] = (8, 32, 128, 512, 2048)
) -> list[RunRecord]:
    """Runs to a target: at their best rate they need 50 (1 + critical / batch) steps of 10 ms.

    A rate twice as high needs 1.5 times as many steps, half of it twice as many; four times the best never arrives.
    """
    found = []
    for batch in batches:
        best = 0.01 * (batch / 8) ** 0.5
        for factor, more in ((0.5, 2.0), (1.0, 1.0), (2.0, 1.5), (4.0, None)):
            for seed in seeds:
                run = make_record("SGD", "none", 16, sam=False, seed=seed)
                rate = best * factor
                config = run.config | {"optimizer.lr": rate, "model.optimizer.lr": rate, "data.batch_size": batch}
                metrics = run.metrics | {"lr/base": rate, "lr/scaled": rate, "batch/global": float(batch)}
                metrics |= {"target/value": 0.97, "target/reached": 0.0, "noise/b_simple": 80.0 + 10 * seed}
                if more is not None:
                    steps = 50 * (1 + critical / batch) * more * (1 + 0.01 * seed)
                    metrics |= {"target/reached": 1.0, "target/steps": steps, "target/s": steps / 100}
                found.append(replace(run, name=f"{batch} {rate:g} {seed}", config=config, metrics=metrics))
    return found


def write_between(
    folder: Path, network: str = "convnet", seeds: tuple[int, ...] = (0, 1, 2), sharper: float = 9.0
) -> None:
    """The loss between a wide minimum at 0 and one `sharper` times as sharp at 1: parabolas, the lower of the two."""
    alpha = [i / 10 - 1 for i in range(31)]
    (folder / "between").mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        bend = 0.5 * (1 + 0.2 * seed)
        loss = [0.01 + min(bend * a**2, sharper * bend * (a - 1) ** 2) for a in alpha]
        data = {
            "title": "small to large",
            "network": network,
            "seed": seed,
            "from": {"run": "0", "label": "batch 16", "batch": 16},
            "to": {"run": "1", "label": "batch 1024", "batch": 1024},
            "alpha": alpha,
            "train_loss": loss,
            "test_loss": [value + 0.1 for value in loss],
            "train_acc": [1 / (1 + value) for value in loss],
            "test_acc": [0.95 / (1 + value) for value in loss],
        }
        (folder / "between" / f"{network}-{seed}.json").write_text(json.dumps(data))


def write_spectrum(run: Path, lambda_max: float) -> None:
    """A density of a bulk at 0 and a bump at lambda_max, as a run leaves it."""
    grid = [lambda_max * i / 100 for i in range(-10, 121)]
    width = lambda_max / 40
    density = [
        math.exp(-((x / width) ** 2) / 2) + 1e-3 * math.exp(-(((x - lambda_max) / width) ** 2) / 2) for x in grid
    ]
    parts = {"eigenvalues": [lambda_max, lambda_max / 2], "residuals": [0.0, "nan"], "lambda_min": "-inf"}
    parts |= {"grid": grid, "density": density, "density_stderr": [0.0] * len(grid), "sigma": width}
    (run / "spectrum.json").write_text(json.dumps({"hessian": parts}))


def write_history(run: Path, values: list[float], metric: str = "val/loss") -> None:
    """The log of a run: lines of training between lines of validation."""
    lines = [f"epoch,step,train/loss,{metric}"]
    for epoch, value in enumerate(values):
        lines += [f"{epoch},{10 * epoch + 4},1.0,", f"{epoch},{10 * epoch + 9},,{value!r}"]
    (run / "metrics.csv").write_text("\n".join(lines) + "\n")
