"""One run under diagnosis: the examination of its first batch, the recording, and what all of it comes to."""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from lbtrain._lightning import LightningModule, MisconfigurationException, Trainer, rank_zero_warn
from lbtrain.callbacks._diagnosis_checks import Limits
from lbtrain.callbacks._diagnosis_end import EndPoint, is_asked_for, look_around, looked_through
from lbtrain.callbacks._diagnosis_exams import examine_start
from lbtrain.callbacks._diagnosis_facts import case_of, subset_size
from lbtrain.callbacks._diagnosis_ledger import Ledger
from lbtrain.callbacks._diagnosis_recount import count_again, is_suspect, recounted
from lbtrain.callbacks._diagnosis_result import Diagnosis
from lbtrain.callbacks._diagnosis_scene import Scene
from lbtrain.callbacks._diagnosis_verdicts import judge
from lbtrain.callbacks._evidence import Evidence
from lbtrain.callbacks._measurement import account
from lbtrain.callbacks._recorder import Recorder
from lbtrain.functional.averaging import AveragingGain, averaging_gain
from lbtrain.functional.diagnosis import ranked
from lbtrain.functional.training_curve import Curve

_T = TypeVar("_T")
_OF_SPECTRUM = frozenset({"plateau", "saddle", "conditioning"})


class DiagnosisRun:
    """Examine, record and conclude; all ranks call each method together, but for `give_up`.

    Args:
        recorder: What records; between the first batch and the end its hooks are called directly.
        checks: Those to make.
        limits: Thresholds by check.
        num_samples: Of the fixed subset.
        seed: Of its draw.
    """

    def __init__(
        self, recorder: Recorder, checks: Sequence[str], limits: Mapping[str, Limits], num_samples: int, seed: int
    ) -> None:
        self.recorder, self._checks, self._limits = recorder, checks, limits
        self._num_samples, self._seed = num_samples, seed
        self._ledger: Ledger | None = None  # of the first batch
        self._samples = 0  # on which units were counted last
        self._missing: dict[str, str] = {}
        self._seconds, self._evaluations = 0.0, 0
        self._clock: float | None = None
        self._elapsed = 0.0  # in the sessions before this one
        self.has_begun = False
        """Whether this fit has come to its first batch."""

    @property
    def evidence(self) -> Evidence:
        """What was recorded."""
        return self.recorder.evidence

    def begin(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Examine the first batch, once in a run, and record its first sample.

        Args:
            trainer: The Trainer, in `on_train_batch_start`.
            pl_module: Its module.
            batch: Which is about to be trained on.
            batch_idx: Its number.
        """
        self.has_begun, self._clock = True, time.perf_counter()
        if self._ledger is None:
            scene = Scene(trainer, pl_module, self._num_samples, self._seed, batch, batch_idx)
            self._ledger = examine_start(scene, self._checks, self._limits)
            self._ledger.tell()
            self._samples = subset_size(trainer, pl_module, self._num_samples, self._seed)
            self._spent(scene, self._clock)
        self.record(self.recorder.start, trainer, pl_module)

    def record(self, work: Callable[..., _T], *args: Any) -> _T | None:
        """Let the recorder work; a failure ends the recording and not the training.

        Args:
            work: One of its methods.
            args: For it.

        Returns:
            What it returns; None where it failed.
        """
        return self.recorder.guard.tried(work, *args)

    def conclude(self, trainer: Trainer, pl_module: LightningModule) -> Diagnosis:
        """Take the last sample, examine what the symptoms ask for, and judge.

        Args:
            trainer: The Trainer, in `on_train_end`.
            pl_module: Its module.

        Returns:
            The diagnosis, the same on every rank.
        """
        self.record(self.recorder.finish, trainer, pl_module)
        gain = self._gain(trainer, pl_module)
        began, scene = time.perf_counter(), Scene(trainer, pl_module, self._num_samples, self._seed)
        curve = self._curve()
        end, judged = self._look_around(scene, curve), Ledger()
        self._recount(scene)
        ledger = looked_through(scene, curve, self._ledger or Ledger())
        if trainer.is_global_zero:
            judged = self._judged(trainer, pl_module, ledger, end=end, averaging=gain)
        ledger.take(trainer.strategy.broadcast(judged))
        self._spent(scene, began)
        return self._diagnosis(ledger)

    def give_up(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> Diagnosis:
        """Judge by what was recorded until the run ended early; nothing is evaluated, and no rank is waited for.

        Args:
            trainer: The Trainer, in `on_exception`.
            pl_module: Its module.
            exception: What ended the run.

        Returns:
            The diagnosis of this rank.
        """
        kind = type(exception).__name__
        self._tried("last steps", "reading what was recorded", self.recorder.read)
        self._missing.setdefault("end", f"the run ended with {kind} before its last weights could be examined")
        ledger = Ledger()
        ledger.take(self._ledger or Ledger())
        ledger.take(self._judged(trainer, pl_module, ledger))
        rest = [name for name in self._checks if name not in ledger.left_out]
        ledger.leave_out(rest, f"the run ended with {kind} before it")
        return self._diagnosis(ledger, status="failed", error=kind)

    def state_dict(self) -> dict[str, Any]:
        """Return all that a resumed run needs, in plain Python and tensors on the host."""
        return {
            "recorder": self.recorder.state_dict(),
            "ledger": None if self._ledger is None else self._ledger.state_dict(),
            "missing": dict(self._missing),
            "samples": self._samples,
            "seconds": self._seconds,
            "evaluations": self._evaluations,
            "elapsed": self._elapsed_now(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint.

        Args:
            state: From `state_dict`.
        """
        self.recorder.load_state_dict(state["recorder"])
        self._ledger = None if state["ledger"] is None else Ledger.from_state(state["ledger"])
        self._missing, self._samples = dict(state["missing"]), state["samples"]
        self._seconds, self._evaluations, self._elapsed = state["seconds"], state["evaluations"], state["elapsed"]

    def _gain(self, trainer: Trainer, module: LightningModule) -> AveragingGain | None:
        at_mean = self.record(self.recorder.loss_at_mean, trainer, module)
        return None if at_mean is None or not self.evidence.recent else averaging_gain(at_mean, self.evidence.recent)

    def _look_around(self, scene: Scene, curve: Curve) -> EndPoint | None:
        """Return the surroundings of the last weights, if a symptom asks for them."""
        wanted = bool(_OF_SPECTRUM & {*self._checks}) and not self.recorder.guard.reason and is_asked_for(curve)
        if not scene.trainer.strategy.broadcast(wanted):
            return None
        return self._tried("end", "the spectrum at the end", look_around, scene)

    def _recount(self, scene: Scene) -> None:
        """Count units again, on more samples, if the last sample has many that are dead or saturated."""
        points, limits = self.evidence.points, self._limits["units"]
        suspect = "units" in self._checks and not self.recorder.guard.reason
        if scene.trainer.strategy.broadcast(suspect and is_suspect(points, scene.trainer.global_step, limits)):
            found = self._tried("units again", "counting units on more samples", count_again, scene)
            if found is not None:
                self._samples = found[1]
                recounted(points, found[0])

    def _curve(self) -> Curve:
        """Return the curves of the run, empty ones where they cannot be made."""
        evidence = self.evidence
        return self._tried(
            "curve", "reading the curves", Curve.of, evidence.losses, evidence.rates, evidence.points
        ) or (Curve())

    def _judged(self, trainer: Trainer, module: LightningModule, ledger: Ledger, **known: Any) -> Ledger:
        """Return the verdicts on what was recorded, after a warning of checks that failed."""
        judged = (
            self._tried("verdicts", "judging", partial(self._verdicts, trainer, module, ledger, **known)) or Ledger()
        )
        if reason := self._missing.get("verdicts"):
            judged.leave_out([name for name in self._checks if name not in {*ledger.found, *ledger.left_out}], reason)
        return judged

    def _verdicts(self, trainer: Trainer, module: LightningModule, ledger: Ledger, **known: Any) -> Ledger:
        known |= {"samples": self._samples, "invalid_data": bool(ledger.found.get("data"))}
        known["summed_over"] = next((f.numbers["batch"] for f in ledger.findings if f.problem == "summed loss"), 1.0)
        known["missing"] = {**self._reasons(trainer), **self.recorder.sampler.left_out, **self._missing}
        case = case_of(trainer, module, self.evidence, **known)
        judged = judge(case, self._checks, self._limits)
        judged.tell()
        return judged

    def _reasons(self, trainer: Trainer) -> dict[str, str]:
        """Return why there are no losses or no samples."""
        reasons = {}
        if trainer.global_step > 0 and not self.evidence.losses:
            reasons["losses"] = "training_step returned no loss"
        if reason := self.recorder.guard.reason:
            reasons |= {"samples": reason, "losses": reason}
        return reasons

    def _diagnosis(self, ledger: Ledger, **how: Any) -> Diagnosis:
        sampler, elapsed = self.recorder.sampler, self._elapsed_now()
        seconds = self._seconds + sampler.seconds
        return Diagnosis(
            ranked(ledger.findings),
            tuple(name for name in self._checks if name in ledger.found),
            {name: ledger.left_out[name] for name in self._checks if name in ledger.left_out},
            steps=len(self.evidence.losses),
            samples=len(self.evidence.points),
            seconds=seconds,
            share=min(seconds / elapsed, 1.0) if elapsed > 0 else 0.0,
            num_evaluations=self._evaluations + sampler.num_evaluations,
            **how,
        )

    def _tried(self, what: str, name: str, work: Callable[..., _T], *args: Any) -> _T | None:
        """Return what the work gives; where it fails, note why and warn."""
        try:
            return work(*args)
        except MisconfigurationException as reason:
            self._missing[what] = str(reason)
        except Exception as error:
            self._missing[what] = f"{name} failed with {type(error).__name__}"
            rank_zero_warn(
                f"OptimizationDiagnostics: {name} failed ({type(error).__name__}: {error}); what needs it is left out, "
                "and the training is not affected"
            )
        return None

    def _spent(self, scene: Scene, began: float) -> None:
        """Count what an examination took, and take its time off the run's."""
        seconds = time.perf_counter() - began
        self._seconds, self._evaluations = self._seconds + seconds, self._evaluations + int(scene.evaluations)
        account(scene.trainer, {}, seconds, scene.trainer.fit_loop.epoch_loop._batches_that_stepped)

    def _elapsed_now(self) -> float:
        return self._elapsed + (0.0 if self._clock is None else time.perf_counter() - self._clock)
