"""Sums over ranks that carry who failed and who wants to stop, so that all ranks end together or none does."""

from collections.abc import Callable

import torch
from torch import Tensor

from lbtrain.functional._double_backward import NoSecondDerivativeError
from lbtrain.functional.interruption import Interrupted

AllReduce = Callable[[Tensor], Tensor]
Gather = Callable[[str], list[str]]

# Entries behind each sum: ranks that failed, that met an operation without a second derivative, that want to stop.
_WORDS = 3


class RankFailedError(RuntimeError):
    """Another rank failed: this one has nothing to say but which, and with what."""


class Ranks:
    """Sum over ranks, one all-reduce each, and raise together.

    Args:
        all_reduce: Sums a tensor over ranks and returns it; None for one process.
        gather: Returns the texts of all ranks, in their order; None leaves the cause out of the other ranks' message.
        should_stop: Says whether the user asked this rank to stop; None is never.
    """

    def __init__(
        self, all_reduce: AllReduce | None, gather: Gather | None, should_stop: Callable[[], bool] | None
    ) -> None:
        self.all_reduce, self.gather, self.should_stop = all_reduce, gather, should_stop
        self._pending: Exception | None = None

    def sum(self, work: Callable[[Tensor], object], like: Tensor, size: int, *, stoppable: bool = True) -> Tensor:
        """Let each rank add its part to a vector of zeros, and sum the vectors.

        Args:
            work: Adds the part of this rank in place, shape ``(size,)``.
            like: Gives type and device.
            size: Entries of the vector.
            stoppable: Whether the wish to stop ends it.

        Returns:
            The sum over ranks, shape ``(size,)``.

        Raises:
            Interrupted: On all ranks, if one of them wants to stop.
            RankFailedError: On the ranks that did not fail, if another did; that one raises its own error.
            NoSecondDerivativeError: On all ranks, if one of them met an operation without a second derivative.
        """  # noqa: DOC502 - _agree raises the last two
        stop = stoppable and self.should_stop is not None and self.should_stop()
        alone = self.all_reduce is None
        if alone and stop:
            raise Interrupted("stopped on request; what was measured before stands")
        vector = torch.zeros(size if alone else size + _WORDS, dtype=like.dtype, device=like.device)
        if self.all_reduce is None:
            work(vector)
            return vector
        error = self._pending
        self._pending = None
        # A rank that wants to stop need not work for a sum that no rank will see.
        if error is None and not stop:
            error = _error_of(work, vector[:size])
        lacks = isinstance(error, NoSecondDerivativeError)
        words = [float(error is not None and not lacks), float(lacks), float(stop)]
        vector[size:] = torch.tensor(words, dtype=vector.dtype)
        vector = self.all_reduce(vector)
        self._agree(vector[size:].tolist(), error)
        return vector[:size]

    def total(self, tensor: Tensor) -> Tensor:
        """Sum a tensor over ranks; not ended by the wish to stop.

        Args:
            tensor: Any shape, the same on every rank.

        Returns:
            The sum, same shape and unit; the tensor itself in a single process.

        Raises:
            RankFailedError: If another rank failed since the last sum; that one raises its own error.
        """  # noqa: DOC502 - sum raises it
        if self.all_reduce is None:
            return tensor

        def add(part: Tensor) -> None:
            part += tensor.detach().reshape(-1)

        return self.sum(add, tensor, tensor.numel(), stoppable=False).reshape(tensor.shape)

    def local(self, work: Callable[[], Tensor], like: Tensor, size: int) -> Tensor:
        """Evaluate what concerns this rank alone; an error on one rank of several waits for the next sum.

        Args:
            work: Returns a vector of shape ``(size,)``.
            like: Gives type and device.
            size: Entries of the vector.

        Returns:
            What ``work`` returns, or NaN where it failed.

        Raises:
            Interrupted: In a single process, if the user asked to stop; ranks agree on it in the next sum.
        """
        if self.all_reduce is None:
            if self.should_stop is not None and self.should_stop():
                raise Interrupted("stopped on request; what was measured before stands")
            return work()
        try:
            return work()
        except Exception as error:
            self._pending = self._pending or error
            return torch.full((size,), torch.nan, dtype=like.dtype, device=like.device)

    def _agree(self, words: list[float], error: Exception | None) -> None:
        """Raise what all ranks together have to raise.

        Raises:
            Interrupted: If a rank wants to stop.
        """
        failed, lacks, stop = words
        if failed or lacks:
            self._raise(error, lacks=not failed)
        if stop:
            raise Interrupted("stopped on request; what was measured before stands")

    def _raise(self, error: Exception | None, *, lacks: bool) -> None:
        """Raise the own error, or tell that of another rank.

        Raises:
            NoSecondDerivativeError: Another rank's, if that is all that went wrong.
            RankFailedError: Another rank's failure.
        """
        texts = self.gather("" if error is None else f"{type(error).__name__}: {error}") if self.gather else []
        if error is not None and isinstance(error, NoSecondDerivativeError) == lacks:
            raise error
        told = [f"rank {i}: {text}" for i, text in enumerate(texts) if text]
        if lacks:
            raise NoSecondDerivativeError("; ".join(told) or "an operation on another rank")
        raise RankFailedError("; ".join(told) or "another rank failed; its own output says why")


def _error_of(work: Callable[[Tensor], object], vector: Tensor) -> Exception | None:
    """Return what went wrong, or None."""
    try:
        work(vector)
    except Exception as error:
        return error
    return None
