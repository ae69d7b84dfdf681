"""Every kind of schedule, built for a rate of 0.1 times a factor."""

from torch.optim import lr_scheduler as ls

SCHEDULERS = {
    "none": lambda o, k: None,
    "step": lambda o, k: ls.StepLR(o, 5, 0.5),
    "multistep": lambda o, k: ls.MultiStepLR(o, [4, 9], 0.5),
    "multiplicative": lambda o, k: ls.MultiplicativeLR(o, lambda _: 0.95),
    "constant": lambda o, k: ls.ConstantLR(o, 0.5, 6),
    "linear": lambda o, k: ls.LinearLR(o, 0.3, 1.0, 7),
    "exponential": lambda o, k: ls.ExponentialLR(o, 0.9),
    "polynomial": lambda o, k: ls.PolynomialLR(o, 12, 2.0),
    "lambda": lambda o, k: ls.LambdaLR(o, lambda e: 0.9**e),
    "cosine": lambda o, k: ls.CosineAnnealingLR(o, 10),
    "cosine with floor": lambda o, k: ls.CosineAnnealingLR(o, 10, eta_min=0.01 * k),
    "warm restarts": lambda o, k: ls.CosineAnnealingWarmRestarts(o, 5),
    "warm restarts with floor": lambda o, k: ls.CosineAnnealingWarmRestarts(o, 5, eta_min=0.01 * k),
    "sequential": lambda o, k: ls.SequentialLR(o, [ls.LinearLR(o, 0.1, 1, 5), ls.CosineAnnealingLR(o, 13)], [5]),
    "chained": lambda o, k: ls.ChainedScheduler([ls.LinearLR(o, 0.1, 1, 5), ls.ExponentialLR(o, 0.9)]),
    "one cycle": lambda o, k: ls.OneCycleLR(o, max_lr=0.1 * k, total_steps=18),
    "cyclic": lambda o, k: ls.CyclicLR(o, base_lr=0.02 * k, max_lr=0.1 * k, step_size_up=4),
    "plateau with floor": lambda o, k: ls.ReduceLROnPlateau(o, factor=0.2, patience=1, min_lr=0.005 * k),
}
