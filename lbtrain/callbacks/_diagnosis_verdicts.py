"""From what was recorded of a run to its findings: one small function for each check."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial

from lbtrain.callbacks._diagnosis_checks import Limits, given
from lbtrain.callbacks._diagnosis_consequences import to_do, without_consequences
from lbtrain.callbacks._diagnosis_end import EndPoint
from lbtrain.callbacks._diagnosis_ledger import Ledger, LeftOut, Verdict
from lbtrain.callbacks._diagnosis_length import long_enough
from lbtrain.callbacks._evidence import Evidence, Point, Units
from lbtrain.functional.activity import activity_findings
from lbtrain.functional.averaging import AveragingGain
from lbtrain.functional.conditioning import conditioning_finding
from lbtrain.functional.convexity import Convexity, convexity_evidence
from lbtrain.functional.decay import decay_findings
from lbtrain.functional.fluctuation import fluctuation_finding
from lbtrain.functional.gradient_flow import flow_findings
from lbtrain.functional.instability import instability_finding
from lbtrain.functional.oscillation import oscillation_finding
from lbtrain.functional.results import Spectrum
from lbtrain.functional.slow_progress import slow_finding
from lbtrain.functional.stuck import plateau_finding, saddle_finding
from lbtrain.functional.training_curve import Curve, share_left


@dataclass(frozen=True)
class Case:
    """What is known of a run when it has ended."""

    evidence: Evidence
    samples: int = 0
    """On which the units of the last weights were counted."""
    momentum: float = 0.0
    """Of the optimizer; of Adam its first beta."""
    rescales: bool = False
    """Whether the optimizer divides the gradient, as Adam does."""
    batch_size: int | None = None
    """Samples per optimizer step."""
    per_device: int | None = None
    """Samples of a batch on one device."""
    summed_over: float = 1.0
    """Samples over which the training loss is a sum; 1: it is a mean."""
    scales_rate: bool = False
    """Whether a callback scales the rate with the batch."""
    oscillates: bool = False
    """Whether the oscillations were found."""
    steps_per_epoch: int | None = None
    averaging: AveragingGain | None = None
    """What the mean of recent weights would gain; None where it was not measured."""
    end: EndPoint | None = None
    """The surroundings of the last weights; None where no symptom asked for them."""
    averages: bool = False
    """Whether a callback averages the weights of the run already."""
    is_linear: bool = False
    """Whether the outputs are linear in the parameters."""
    invalid_data: bool = False
    """Whether the data hold values that are not finite."""
    missing: Mapping[str, str] = field(default_factory=dict)
    """Why something was not seen, by what: `samples`, `end`."""

    @cached_property
    def curve(self) -> Curve:
        """The curves of the run, per sample: a sum over a batch has as many times the loss and the stability."""
        curve, n = Curve.of(self.evidence.losses, self.evidence.rates, self.evidence.points), self.summed_over
        if n == 1:
            return curve
        stabilities = tuple(s if s is None else n * s for s in curve.stabilities)
        return replace(curve, losses=tuple(loss / n for loss in curve.losses), stabilities=stabilities)

    @property
    def points(self) -> Sequence[Point]:
        """The samples.

        Raises:
            LeftOut: If there is none.
        """
        if not self.evidence.points:
            raise LeftOut(self.missing.get("samples", "the run ended before its first sample"))
        return self.evidence.points

    @property
    def sampled(self) -> Curve:
        """The curves of a run that was sampled.

        Raises:
            LeftOut: If it was not.
        """  # noqa: DOC502 - points raises it
        return self.curve if self.points else Curve()

    @cached_property
    def convexity(self) -> Convexity | None:
        """Whether the loss looks convex; None where the spectrum was not measured, or is all zero and says nothing."""
        spectrum = None if self.end is None else self.end.spectrum
        if spectrum is None or spectrum.lambda_max == spectrum.lambda_min == 0:
            return None
        ends = ([spectrum.lambda_min], [spectrum.lambda_min_residual], [spectrum.lambda_max])
        return convexity_evidence(*ends, linear=self.is_linear)


def judge(case: Case, checks: Sequence[str], limits: Mapping[str, Limits]) -> Ledger:
    """Make the checks of what was recorded.

    Args:
        case: What is known of the run.
        checks: Those asked for, of any kind.
        limits: Thresholds by check.

    Returns:
        The verdicts.
    """
    made = Ledger()
    for name in checks:
        if name in VERDICTS:
            # Asked for after each other, since fluctuations are what no oscillation explains.
            seen = replace(case, oscillates=bool(made.found.get("oscillations"))) if name == "fluctuations" else case
            made.judge(name, partial(VERDICTS[name], seen, limits[name]))
    left = without_consequences(made.found)
    made.found = {name: tuple(to_do(f, case.momentum, case.averages) for f in found) for name, found in left.items()}
    return made


def judge_units(case: Case, limits: Limits) -> Verdict:
    """Return the layers whose units are dead or saturated."""
    history: dict[str, list[tuple[int, Units]]] = {}
    for point in case.points:
        for layer, units in point.units.items():
            history.setdefault(layer, []).append((point.step, units))
    rate = max(case.evidence.rates, default=None)  # at the end a schedule may have brought it down to nothing
    return activity_findings(history, case.samples, rate=rate, **given(activity_findings, limits))


def judge_flow(case: Case, limits: Limits) -> Verdict:
    """Return where gradients vanish or explode through the layers."""
    curve = case.sampled
    history = [(point.step, point.flow) for point in case.points]
    return flow_findings(history, curve.levels, curve.gradient_norms, **given(flow_findings, limits))


def judge_instability(case: Case, limits: Limits) -> Verdict:
    """Return when the loss rose and stayed up."""
    facts = {"invalid_data": case.invalid_data, "momentum": case.momentum}
    return instability_finding(_lived(case), **facts, **given(instability_finding, limits))  # type: ignore[arg-type]


def judge_oscillations(case: Case, limits: Limits) -> Verdict:
    """Return whether steps leap over the minimum."""
    facts = {"averaging": case.averaging, "momentum": case.momentum}
    return oscillation_finding(case.sampled, **facts, **given(oscillation_finding, limits))  # type: ignore[arg-type]


def judge_fluctuations(case: Case, limits: Limits) -> Verdict:
    """Return whether gradient noise holds the loss up.

    Raises:
        LeftOut: If the weights are averaged, which is what helps: what is kept does not fluctuate.
    """
    if case.averages:
        raise LeftOut("a callback averages the weights, so those that are kept do not fluctuate as the iterates do")
    # A larger batch would come with a larger rate where that is scaled, and the noise would stay.
    size = None if case.scales_rate else case.per_device or case.batch_size
    facts = {"averaging": case.averaging, "batch_size": size, "oscillates": case.oscillates}
    return fluctuation_finding(case.sampled, **facts, **given(fluctuation_finding, limits))  # type: ignore[arg-type]


def judge_decay(case: Case, limits: Limits) -> Verdict:
    """Return whether the rate was cut at the wrong time."""
    return decay_findings(_lived(case), steps_per_epoch=case.steps_per_epoch, **given(decay_findings, limits))


def judge_progress(case: Case, limits: Limits) -> Verdict:
    """Return whether the rate is too small."""
    curve = long_enough(_lived(case))
    facts = {"momentum": case.momentum, "rescales": case.rescales, "convexity": case.convexity}
    return slow_finding(curve, **facts, **given(slow_finding, limits))  # type: ignore[arg-type]


def judge_plateau(case: Case, limits: Limits) -> Verdict:
    """Return whether nothing near changes the loss."""
    curve, end = long_enough(case.sampled), case.end
    facts = {} if end is None else {"lambda_min": end.spectrum.lambda_min, "lambda_max": end.spectrum.lambda_max}
    verdict = None if end is None else end.kind
    return plateau_finding(curve, verdict=verdict, convexity=case.convexity, **facts, **given(plateau_finding, limits))


def judge_saddle(case: Case, limits: Limits) -> Verdict:
    """Return whether the weights stand at a saddle."""
    curve, spectrum = long_enough(case.sampled), _spectrum(case)
    if spectrum is None:
        return None
    ends = {"lambda_min": spectrum.lambda_min, "lambda_max": spectrum.lambda_max}
    error = spectrum.lambda_min_residual
    return saddle_finding(curve, **ends, residual=error, convexity=case.convexity, **given(saddle_finding, limits))


def judge_conditioning(case: Case, limits: Limits) -> Verdict:
    """Return whether the spectrum explains slow progress."""
    curve, spectrum = long_enough(case.sampled), _spectrum(case)
    density = None if spectrum is None else spectrum.density
    if density is None or not len(density.nodes):
        return None
    facts = {"progress": share_left(curve), "weights": density.weights, "curve": curve}
    return conditioning_finding(density.nodes, **facts, **given(conditioning_finding, limits))  # type: ignore[arg-type]


VERDICTS: dict[str, Callable[[Case, Limits], Verdict]] = {
    "units": judge_units,
    "flow": judge_flow,
    "instability": judge_instability,
    "oscillations": judge_oscillations,
    "fluctuations": judge_fluctuations,
    "decay": judge_decay,
    "progress": judge_progress,
    "plateau": judge_plateau,
    "saddle": judge_saddle,
    "conditioning": judge_conditioning,
}


def _spectrum(case: Case) -> Spectrum | None:
    """Return the spectrum at the end; None where no symptom asked for it.

    Raises:
        LeftOut: If it was asked for and could not be measured.
    """
    if case.end is None and "end" in case.missing:
        raise LeftOut(case.missing["end"])
    return None if case.end is None else case.end.spectrum


def _lived(case: Case) -> Curve:
    """Return the curves of a run that had a step or a sample.

    Raises:
        LeftOut: If it had neither.
    """
    if not case.curve.losses and not case.curve.levels:
        raise LeftOut(case.missing.get("losses", "the run ended before its first step"))
    return case.curve
