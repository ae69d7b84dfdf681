"""The examinations when training ends, which only symptoms ask for: both ends of the spectrum, and all of the data."""

import math
import time
from collections.abc import Iterator, Sized
from dataclasses import dataclass
from typing import Any

from torch.utils.data import DataLoader, IterableDataset

from lbtrain.callbacks._agreement import together
from lbtrain.callbacks._diagnosis_ledger import Ledger, LeftOut, over_ranks
from lbtrain.callbacks._diagnosis_scene import Scene
from lbtrain.callbacks._evidence import LEFT
from lbtrain.callbacks._frozen_data import seeded
from lbtrain.callbacks._recorder_run import evaluation_size
from lbtrain.callbacks._traceless import traceless
from lbtrain.functional.critical_point import critical_point
from lbtrain.functional.diagnosis import Finding
from lbtrain.functional.invalid_data import InvalidValues, named_tensors
from lbtrain.functional.lanczos import lanczos
from lbtrain.functional.results import Spectrum
from lbtrain.functional.training_curve import Curve, share_left
from lbtrain.functional.vectors import norm

# Share above which a run has diverged, and its surroundings say nothing of where it learned: a choice.
_GROWN = 2.0
# Relative residual of both ends, and products for them at the most: choices. Signs and orders of magnitude are asked
# for; a product costs about four gradients of the subset.
_TOL, _MOST_PRODUCTS = 0.01, 60
# Samples that are looked through for invalid values where the loss has become no number: a choice, all of MNIST.
_MOST_SCANNED = 65536
# Seconds for that on each rank: a choice, a minute's wait behind a run that has failed.
_MOST_SECONDS = 60.0
# Memory for Krylov vectors: a choice, all of them for a million parameters; of large models as few as still converge.
_MEMORY, _FEWEST_ROWS = 256 * 2**20, 10


@dataclass(frozen=True)
class EndPoint:
    """The loss on the fixed subset around the last weights."""

    loss: float
    gradient_norm: float
    spectrum: Spectrum
    kind: str
    """`minimum`, `saddle`, `plateau`, `not critical` or `unknown`."""


def is_asked_for(curve: Curve) -> bool:
    """Return whether a run ends so that it matters at what kind of point.

    Args:
        curve: Of the run.

    Returns:
        Whether much of the first loss is left, all losses being numbers and none far above it.
    """
    return bool(curve.levels) and curve.finite and LEFT <= share_left(curve) <= _GROWN


def look_around(scene: Scene) -> EndPoint:
    """Measure both ends of the spectrum at the current weights; every rank takes part.

    Args:
        scene: At the end of training.

    Returns:
        What was found.
    """
    trainer, module = scene.trainer, scene.pl_module
    scene.batch_size = together(trainer, lambda: evaluation_size(trainer, module, scene.num_samples, scene.seed))
    with scene.subset() as loss:
        value, gradient = loss.slope()
        memory = max(_MEMORY, _FEWEST_ROWS * loss.dim * loss.dtype.itemsize)
        spectrum = lanczos(
            loss.hvp, loss.dim, tol=_TOL, max_matvecs=_MOST_PRODUCTS, generator=scene.generator, dtype=loss.dtype,
            device=loss.device, repeated=False, memory_bytes=memory,
        )  # fmt: skip
        weights, slope = float(norm([p.detach() for p in loss.params])), float(norm([gradient]))
        scene.evaluations += loss.num_matvecs
    found = critical_point(spectrum, slope, value, weights)
    return EndPoint(value, slope, spectrum, found.kind)


def looked_through(scene: Scene, curve: Curve, first: Ledger) -> Ledger:
    """Judge the data again where a loss of the run was NaN or infinite and its first batch was fine; all ranks call.

    Args:
        scene: At the end of training.
        curve: Of the run.
        first: The verdicts of the first batch, with one on the data where that is asked for.

    Returns:
        They, with the verdict on the data renewed.
    """
    ledger, again = Ledger(), Ledger()
    ledger.take(first)
    is_asked = "data" in ledger.left_out or "data" in ledger.found
    wanted = is_asked and not all(map(math.isfinite, (*curve.losses, *curve.levels)))
    if scene.trainer.strategy.broadcast(wanted):
        again.judge("data", lambda: scan(scene))
        again = over_ranks(scene.trainer, again)
        if again.found.get("data") or not ledger.found.get("data"):  # else what the first batch had stands
            ledger.left_out.pop("data", None)
            ledger.take(again)
    return ledger


def scan(scene: Scene) -> Finding | None:
    """Look through the training data for values that are not finite; every rank reads its share.

    Args:
        scene: At the end of training.

    Returns:
        Which tensors hold such values, and how many; None if there is none.

    Raises:
        LeftOut: If they cannot be read, or if time ran out before one was found.
    """  # noqa: DOC502 - _read and _found_in_time raise it
    rank, ranks = scene.trainer.global_rank, scene.trainer.world_size
    seen = InvalidValues("the training data", rank, ranks)
    loader, end = scene.trainer.train_dataloader, time.monotonic() + _MOST_SECONDS
    with traceless(scene.trainer, scene.pl_module), seeded(loader, scene.seed):
        for batch in _read(loader, rank, ranks):
            seen.add(named_tensors(batch))
            if time.monotonic() > end:
                return _found_in_time(seen)
    return seen.finding()


def _found_in_time(seen: InvalidValues) -> Finding:
    """Return what was found before time ran out.

    Raises:
        LeftOut: If that is nothing.
    """
    found = seen.finding()
    if found is None:
        raise LeftOut(f"reading the training data took longer than {_MOST_SECONDS:.0f} s; what was read is finite")
    return found


def _read(loader: Any, rank: int, ranks: int) -> Iterator[Any]:
    """Yield batches of the training data in order, as the loader makes them.

    Raises:
        LeftOut: If they cannot be read in order.
    """
    data = getattr(loader, "dataset", None)
    if not isinstance(loader, DataLoader) or isinstance(data, IterableDataset) or not isinstance(data, Sized):
        raise LeftOut(f"the training data ({type(loader).__name__}) cannot be read in order to find invalid values")
    chosen = range(rank, min(len(data), _MOST_SCANNED), ranks)
    size = loader.batch_size or 64
    parts = [chosen[i : i + size] for i in range(0, len(chosen), size)]
    yield from DataLoader(data, batch_sampler=parts, collate_fn=loader.collate_fn)
