"""What `Sharpness` found: one entry per measure, by name."""

from dataclasses import dataclass

from lbtrain.functional.results import SharpnessValue
from lbtrain.functional.sharpness_results import (
    AverageSharpness,
    KeskarSharpness,
    RelativeFlatness,
    ScaledSharpness,
)

Found = SharpnessValue | AverageSharpness | RelativeFlatness | ScaledSharpness


@dataclass(frozen=True)
class Measured:
    """One measure of sharpness, with its error and its cost."""

    name: str
    """As the measure is called in `measures` and, behind `sharpness/`, in the metrics."""
    value: float
    """Percent of 1 + loss for Keskar's measures, units of loss for the others."""
    stderr: float
    """Standard error, same unit: over batches; over draws for the averages; over probes for relative flatness."""
    num_gradients: int
    """Gradients over the data that it took."""
    num_values: int
    """Values of the loss over the data that it took without a gradient."""
    num_matvecs: int
    """Hessian products over the data that it took."""
    seconds: float
    """Duration."""
    detail: Found
    """What the function of `lbtrain.functional.sharpness` returned."""

    def metrics(self) -> dict[str, float]:
        """Return the numbers under their metric keys.

        Returns:
            The value and all that the measure says about its errors.
        """
        key = f"sharpness/{self.name}"
        found, more = self.detail, {}
        if isinstance(found, KeskarSharpness):
            more = {f"{key}_corner": found.corner}
        elif isinstance(found, AverageSharpness):
            more = {f"{key}_batch_stderr": found.batch_stderr}
        elif isinstance(found, ScaledSharpness):
            more = {f"{key}_residual": found.residual}
        return {key: self.value, f"{key}_stderr": self.stderr, **more}


@dataclass(frozen=True)
class SharpnessResult:
    """The measures that were asked for; after an interruption those that were done."""

    loss: float
    """The mean training loss at the weights, on the samples that were measured on; with normalized logits if asked."""
    measured: tuple[Measured, ...]
    """In the order of `measures`; `result["sam"]` finds one by its name."""
    interrupted: bool
    """Whether the user stopped the measurement before all measures were done."""
    seconds: float
    """Duration of the measurement."""

    def __getitem__(self, name: str) -> Measured:
        """Return the measure of that name.

        Raises:
            KeyError: If it was not measured.
        """
        for entry in self.measured:
            if entry.name == name:
                return entry
        raise KeyError(f"{name!r} was not measured; there are {', '.join(m.name for m in self.measured) or 'none'}")

    @property
    def cost(self) -> float:
        """What all measures took together, in gradients over the data.

        A value counts as a third of a gradient, a Hessian product as 2: the matrix multiplications of a dense layer.
        """
        counts = [(m.num_gradients, m.num_values, m.num_matvecs) for m in self.measured]
        gradients, values, matvecs = (sum(column) for column in zip(*counts, strict=True)) if counts else (0, 0, 0)
        return gradients + (values + 1) / 3 + 2 * matvecs

    def metrics(self) -> dict[str, float]:
        """Return the numbers under their metric keys.

        Returns:
            Values by key, in the units of the key table in the README.
        """
        keys = {key: value for entry in self.measured for key, value in entry.metrics().items()}
        return {**keys, **({"sharpness/interrupted": 1.0} if self.interrupted else {})}


def measured(name: str, found: Found, seconds: float) -> Measured:
    """Bring what a measure returned into the form of all.

    Args:
        name: Of the measure.
        found: What its function returned.
        seconds: How long it took.

    Returns:
        The entry of the result.
    """
    counts = (getattr(found, attribute, 0) for attribute in ("num_gradients", "num_values", "num_matvecs"))
    return Measured(name, found.value, found.stderr, *counts, seconds, found)
