"""A recording that fails on one rank: it ends on all of them at the next sample, and no rank waits for another."""

from collections.abc import Callable
from typing import Any, TypeVar

from lbtrain._lightning import MisconfigurationException, Trainer, rank_zero_warn
from lbtrain.callbacks._agreement import agreed, gather_texts

_T = TypeVar("_T")


class Guard:
    """Keep failures of a recorder from the training, and from the other ranks until all can be told.

    What one rank does alone may fail on that rank alone, while the others go on to their next sum over ranks. So a
    failure is noted, the rank's own work is left out from there on, and before each sum all ranks ask `has_ended`.
    """

    def __init__(self) -> None:
        self.reason = ""
        """Why this rank's work failed, without the words of a foreign error; "" while it has not."""
        self._has_ended = False

    def tried(self, work: Callable[..., _T], *args: Any) -> _T | None:
        """Do work whose failure ends the recording and not the training.

        Args:
            work: What to do.
            args: For it.

        Returns:
            What it gives; None where it failed.
        """
        try:
            return work(*args)
        except MisconfigurationException as reason:
            self.reason = self.reason or str(reason)
        except Exception as error:  # an observer must not end what it observes, whatever it meets
            if not self.reason:
                rank_zero_warn(
                    f"OptimizationDiagnostics: recording failed ({type(error).__name__}: {error}); what needs it is "
                    "left out, and the training is not affected"
                )
            self.reason = self.reason or f"recording failed with {type(error).__name__}"
        return None

    def alone(self, work: Callable[..., _T], *args: Any) -> _T | None:
        """Do work of this rank alone, unless some failed before.

        Args:
            work: What to do; it must not wait for other ranks.
            args: For it.

        Returns:
            What it gives; None where it failed or was left out.
        """
        return None if self.reason else self.tried(work, *args)

    def has_ended(self, trainer: Trainer) -> bool:
        """Return whether some rank's work has failed; every rank must ask.

        Args:
            trainer: The Trainer.

        Returns:
            The same on every rank, and True from the first time on.
        """
        if self._has_ended or not agreed(trainer, bool(self.reason)):
            return self._has_ended
        self._has_ended = True
        if trainer.world_size > 1:
            texts = gather_texts(self.reason)
            self.reason = next(f"{text} on rank {i}" for i, text in enumerate(texts) if text)
        return True
