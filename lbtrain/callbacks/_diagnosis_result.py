"""What a diagnosis has come to, and its remedies as overrides of the run's config."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from lbtrain.functional.diagnosis import Change, Finding, Remedy
from lbtrain.functional.summed_loss import at_its_rate

HEALTHY = "none"
# Knobs that count something.
_COUNTS = ("batch_size", "warmup_steps", "decay_epoch")
# What too high a rate leads to.
_UNSTEADY = frozenset({
    "instability",
    "oscillations",
    "fluctuations",
    "dead units",
    "saturated units",
    "exploding gradients",
    "plateau",
})
# Share of the checks below which a run without a problem is not called healthy: a choice, half of them.
_MOST = 0.5
# Letters that reasons may take up in the line: a choice, three lines of 80 columns.
_ROOM = 240


@dataclass(frozen=True)
class Diagnosis:
    """What is wrong with a run, and how that was found out."""

    findings: tuple[Finding, ...]
    """The problems, most important first; none for a healthy run."""
    checked: tuple[str, ...]
    """Names of the checks that came to a verdict."""
    left_out: Mapping[str, str] = field(default_factory=dict)
    """Why the others did not, by name."""
    steps: int = 0
    """Optimizer steps seen."""
    samples: int = 0
    """Sampled steps among them."""
    seconds: float = 0.0
    """Spent on the diagnosis, recording included."""
    share: float = 0.0
    """Of the time from the start of training on, without unit."""
    num_evaluations: int = 0
    """Values, gradients and Hessian products of losses that the examinations at the start and the end took."""
    status: str = "finished"
    """`finished`, or `failed` for a run that an error or the user ended."""
    error: str | None = None
    """What ended it."""

    @property
    def first(self) -> str:
        """The most important problem, or `none`."""
        return self.findings[0].problem if self.findings else HEALTHY

    def metrics(self) -> dict[str, float | str]:
        """Return the numbers by key.

        Returns:
            `diagnosis/problems` (how many) and `diagnosis/first` (a word).
        """
        return {"diagnosis/problems": float(len(self.findings)), "diagnosis/first": self.first}

    def sentence(self) -> str:
        """Return the line that stands for a healthy run, and above the table of another.

        Returns:
            Problems, checks, samples and cost; for a run without a problem also what was left out and why.
        """
        count, made, all_of_them = len(self.findings), len(self.checked), len(self.checked) + len(self.left_out)
        found = "no problem found" if count == 0 else f"{count} problem{'s' if count > 1 else ''} found"
        checks = (
            f" in {made} check{'s' if made != 1 else ''}"
            if made == all_of_them
            else f" in {made} of {all_of_them} checks"
        )
        if count == 0 and made < _MOST * all_of_them:  # then no problem found does not mean that there is none
            checks = f", but only {made} of {all_of_them} checks were made"
        cost = f"({self.samples} samples, {100 * self.share:.2g} % of the time)"
        beside = f"; left out: {self._left_out()}" if self.left_out and not count else ""
        ended = f"; the run ended with {self.error}" if self.error else ""
        return f"diagnosis: {found}{checks} {cost}{beside}{ended}"

    def reasons(self) -> list[tuple[str, str]]:
        """Return what was left out by reason.

        Returns:
            Names, joined, and their reason; the reason of most of them first.
        """
        by_reason: dict[str, list[str]] = {}
        for check, reason in self.left_out.items():
            by_reason.setdefault(reason, []).append(check)
        ordered = sorted(by_reason.items(), key=lambda pair: -len(pair[1]))
        return [(", ".join(names), reason) for reason, names in ordered]

    def _left_out(self) -> str:
        """Return the names of what was left out, with the reason of most of them and those that there is room for."""
        (first, why), *others = self.reasons()
        text = f"{first} ({why})"
        for names, reason in others:
            full = f"{text}; {names} ({reason})"
            text = full if len(full) <= _ROOM else f"{text}; {names}"
        return text


def reviewed(diagnosis: Diagnosis) -> Diagnosis:
    """Return a diagnosis whose findings at the start know how the run has gone.

    Args:
        diagnosis: Of the whole run.

    Returns:
        The same but for a summed loss in a run that was steady: its rate suits the sum already.
    """
    if diagnosis.status != "finished" or {f.problem for f in diagnosis.findings} & _UNSTEADY:
        return diagnosis
    found = tuple(at_its_rate(f) if f.problem == "summed loss" else f for f in diagnosis.findings)
    return replace(diagnosis, findings=found)


@dataclass(frozen=True)
class Names:
    """How this run's config calls what remedies change.

    Args:
        keys: Config key by knob; one with `{}` is a whole override around its value, and one with `=` alone a whole
            override as it stands. Of knobs that are not there the remedy's words have to tell.
        rate_factor: What the config's rate is multiplied by before the optimizer sees it.
        rate_follows: Whether that factor grows with the batch, so that a larger batch alone would raise the rate.
    """

    keys: Mapping[str, str] = field(default_factory=dict)
    rate_factor: float = 1.0
    rate_follows: bool = False

    def words(self, remedy: Remedy) -> str:
        """Return what a remedy says in this run.

        Args:
            remedy: What helps.

        Returns:
            Its words; of a larger batch also that the rate has to stay.
        """
        held = self.rate_follows and "batch_size" in remedy.changes and "lr" not in remedy.changes
        return f"{remedy.words}; hold the rate, which LearningRateScaling would raise with it" if held else remedy.words

    def overrides(self, remedy: Remedy) -> list[str]:
        """Return a remedy as overrides of the config, such as `optimizer.lr=0.02`.

        Args:
            remedy: What helps.

        Returns:
            One for each change that the config has a key for; perhaps none.
        """
        if self.rate_follows and "batch_size" in remedy.changes:
            return []  # the factor of another batch is not known here, and the rate would not be the one that is meant
        known = {knob: value for knob, value in remedy.changes.items() if knob in self.keys}
        return [self._override(self.keys[knob], knob, value) for knob, value in known.items()]

    def _override(self, key: str, knob: str, value: Change) -> str:
        # The optimizer should have this rate; where the config's is scaled on its way there, it has to be set lower.
        scaled = knob == "lr" and isinstance(value, int | float)
        text = _text(float(value) / self.rate_factor if scaled else value, whole=knob in _COUNTS)
        if "{}" in key:
            return key.replace("{}", text)
        return key if "=" in key else f"{key}={text}"


def _text(value: Change, *, whole: bool) -> str:
    """Return a value as Hydra's overrides write it, fractions to two digits."""
    if isinstance(value, bool):
        return str(value).lower()
    if whole and isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, float) and math.isfinite(value):
        return repr(float(f"{value:.2g}"))
    return str(value)
