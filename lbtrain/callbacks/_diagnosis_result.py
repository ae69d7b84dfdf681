"""What a diagnosis has come to, and its remedies as overrides of the run's config."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from lbtrain.functional.diagnosis import Change, Finding, Remedy

HEALTHY = "none"
# Knobs that count something.
_COUNTS = ("batch_size", "warmup_steps", "decay_epoch")


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
            Problems, checks, samples and cost; what was left out, by name.
        """
        count = len(self.findings)
        found = "no problem" if count == 0 else f"{count} problem{'s' if count > 1 else ''}"
        cost = f"{self.samples} samples, {100 * self.share:.2g} % of the time"
        beside = f"; left out: {', '.join(self.left_out)}" if self.left_out else ""
        ended = f"; the run ended with {self.error}" if self.error else ""
        return f"diagnosis: {found} found in {len(self.checked)} checks ({cost}){beside}{ended}"


@dataclass(frozen=True)
class Names:
    """How this run's config calls what remedies change.

    Args:
        keys: Config key by knob; one with `{}` is a whole override around its value, and one with `=` alone a whole
            override as it stands. Of knobs that are not there the remedy's words have to tell.
        rate_factor: What the config's rate is multiplied by before the optimizer sees it.
    """

    keys: Mapping[str, str] = field(default_factory=dict)
    rate_factor: float = 1.0

    def overrides(self, remedy: Remedy) -> list[str]:
        """Return a remedy as overrides of the config, such as `optimizer.lr=0.02`.

        Args:
            remedy: What helps.

        Returns:
            One for each change that the config has a key for; perhaps none.
        """
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
