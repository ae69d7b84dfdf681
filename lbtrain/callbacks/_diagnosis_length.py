"""How long a run must be for its progress to be judged."""

from lbtrain.callbacks._diagnosis_ledger import LeftOut
from lbtrain.functional.training_curve import Curve

# Optimizer steps below which progress, plateaus, saddles and conditioning are not judged. A choice: at a usual rate a
# healthy network has hardly moved before.
MIN_STEPS = 50


def long_enough(curve: Curve) -> Curve:
    """Return the curves of a run whose progress can be judged.

    Args:
        curve: Of any run.

    Returns:
        The same.

    Raises:
        LeftOut: If it was too short.
    """
    if curve.length < MIN_STEPS:
        raise LeftOut(f"progress is judged from {MIN_STEPS} steps on, and the run had {curve.length}")
    return curve
