"""What a run shows of itself while it trains: the numbers from which a diagnosis is made."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

# Share of the first loss from which on much is left: a choice, below those of all checks that ask what kind of point a
# run has ended at. One that has learned more stands at no saddle and on no plateau, so that less is measured there.
LEFT = 0.25


@dataclass(frozen=True)
class Units:
    """The units of one layer on a fixed set of samples."""

    kind: str
    """The activation: relu, sigmoid, tanh, ..."""
    units: int
    """Units (channels of a convolution) of the layer."""
    dead: int
    """Units whose output never leaves zero, or whose derivative is zero on all samples."""
    saturated: int
    """Units at an end of their range on nearly all samples."""
    edges: tuple[float, ...] = ()
    """Of the histogram of the layer's outputs: its bins' edges, one more than the counts."""
    counts: tuple[int, ...] = ()


@dataclass(frozen=True)
class Flow:
    """Gradient, weights and update of one layer."""

    gradient: float
    """Root mean square of the gradient, loss per unit of parameter."""
    weight: float
    """Root mean square of the weights."""
    update: float | None = None
    """Norm of the last update over the norm of the weights, without unit; None where no step was seen."""


@dataclass(frozen=True)
class Point:
    """What was seen at one sampled step."""

    step: int
    """Optimizer steps done."""
    epoch: int
    loss: float
    """Mean loss on the fixed subset, as training goes: per sample."""
    gradient_norm: float
    """Of the loss on the fixed subset."""
    rate: float
    """Learning rate of the first parameter group at this step."""
    lambda_max: float | None = None
    """Largest Hessian eigenvalue on the fixed subset; None where it was not measured."""
    stability: float | None = None
    """1 at the edge of stability of this optimizer: rate * lambda_max / 2 for plain gradient descent."""
    projections: tuple[float, ...] = ()
    """Products of the batch gradients of successive steps from this one on with the unit top eigenvector."""
    noise: float | None = None
    """Share of the batch gradient's squared norm that is noise, 0 to 1."""
    product: float | None = None
    """Of the next batch's gradient with that on the fixed subset: on average the squared norm of the true gradient."""
    units: Mapping[str, Units] = field(default_factory=dict)
    flow: Mapping[str, Flow] = field(default_factory=dict)


@dataclass
class Evidence:
    """The record of a run, one entry of the lists per optimizer step."""

    losses: list[float] = field(default_factory=list)
    """Mean training loss of the step's batches, as `training_step` returned it."""
    rates: list[float] = field(default_factory=list)
    """Learning rate of the first parameter group."""
    points: list[Point] = field(default_factory=list)

    @property
    def recent(self) -> tuple[float, ...]:
        """Losses on the subset at the samples of the last quarter of the steps, over which the mean of weights is."""
        return tuple(p.loss for p in self.points if p.step > 0 and 4 * p.step >= 3 * self.points[-1].step)

    @property
    def has_learned(self) -> bool:
        """Whether little of the first sample's loss is left at the last one."""
        return bool(self.points) and self.points[0].loss > 0 and self.points[-1].loss < LEFT * self.points[0].loss

    def state_dict(self) -> dict[str, Any]:
        """Return all of it in plain Python."""
        return {"losses": list(self.losses), "rates": list(self.rates), "points": [asdict(p) for p in self.points]}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "Evidence":
        """Return what `state_dict` had.

        Args:
            state: From `state_dict`.

        Returns:
            The evidence.
        """
        points = []
        for kept in state["points"]:
            units = {name: Units(**value) for name, value in kept["units"].items()}
            flow = {name: Flow(**value) for name, value in kept["flow"].items()}
            points.append(Point(**{**kept, "units": units, "flow": flow, "projections": tuple(kept["projections"])}))
        return cls(list(state["losses"]), list(state["rates"]), points)
