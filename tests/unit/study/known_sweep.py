"""A sweep whose every number is known: the table of a plain loop on the digits, as records."""

from dataclasses import replace

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
