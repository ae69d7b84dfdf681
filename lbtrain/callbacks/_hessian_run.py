"""One measurement of the Hessian, stage by stage; what is done stands when the user interrupts it."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lbtrain.callbacks._hessian_arguments import Questions
from lbtrain.callbacks._hessian_split import split_estimate
from lbtrain.callbacks._sharded_loss import ShardedLoss
from lbtrain.callbacks._sharded_measure import optimizer_of, shares_by_layer
from lbtrain.functional.critical_point import critical_point
from lbtrain.functional.density import density
from lbtrain.functional.interruption import Interrupted
from lbtrain.functional.lanczos import lanczos
from lbtrain.functional.landscape import line_distances, loss_along, loss_on_plane
from lbtrain.functional.layers import layers
from lbtrain.functional.operator import HessianOperator
from lbtrain.functional.progress import Watch
from lbtrain.functional.results import Spectrum
from lbtrain.functional.space import WHOLE, Space
from lbtrain.functional.stability import stability

_LINE_POINTS = 21  # values of the loss along the top eigenvector; three cost about a gradient
_PLANE_POINTS = 11  # each way


class HessianRun:
    """Measure at the current weights.

    Args:
        loss: The mean training loss, with products by the matrix asked for.
        named: Names and parameters of the trainable parameters, in the order of the loss.
        optimizer: Whose stability is asked for; None if there is none.
        asked: What to measure.
        watch: To be told of each product, or None.
        precision: Of the Trainer, in which products are rounded.
    """

    def __init__(
        self,
        loss: HessianOperator,
        named: Sequence[tuple[str, Tensor]],
        optimizer: torch.optim.Optimizer | None,
        asked: Questions,
        watch: Watch | None,
        precision: str,
    ) -> None:
        self._precision = precision
        self._loss, self._named, self._optimizer, self._asked, self._watch = loss, named, optimizer, asked, watch
        # One seed on all ranks, so that all multiply the same vectors; where parameters are sharded, one per shard.
        sharded = isinstance(loss, ShardedLoss)
        self._generator = loss.generator(asked.seed) if sharded else torch.Generator().manual_seed(asked.seed)
        self._space: Space = loss.space if sharded else WHOLE
        self.found: dict[str, Any] = {"matrix": asked.matrix, "stability": None}
        self.spectrum: Spectrum  # with its vectors
        self.edge_vector: Tensor | None = None  # of the stability, where each entry has a step of its own
        self._beside = 0.0  # products of the parts of the data and of the parameters

    def whole(self) -> dict[str, Any]:
        """Measure all that is asked for.

        Returns:
            The fields of a HessianResult, but for its duration.

        Raises:
            Interrupted: If the user stopped it before there was an eigenvalue.
        """  # noqa: DOC502 - _stages raises it
        self._stages(
            self._slope, self._ends, self._edge, self._verdict, self._over_batches, self._split, self._density,
            self._layers, self._line, self._plane,
        )  # fmt: skip
        if not self._asked.keep_vectors:
            self.found["spectrum"] = replace(self.spectrum, vectors=None, min_vector=None)
        engine = {"engine": self._loss.engine, "reason": self._loss.reason, "engine_error": self._loss.error}
        engine["unconverged"] = self._unconverged()
        return {**self.found, **engine, "num_matvecs": self._loss.num_matvecs + self._beside}

    def tops(self, start: Tensor | None, edge_start: Tensor | None = None) -> dict[str, Any]:
        """Measure the largest eigenvalues and the stability only.

        Args:
            start: Eigenvectors of nearby weights as columns, shape `(n, j)`, or None.
            edge_start: The vector of the stability there, shape `(n,)`, or None.

        Returns:
            The fields of a TrackedCurvature, but for its duration.

        Raises:
            Interrupted: If the user stopped it before there was an eigenvalue.
        """  # noqa: DOC502
        self._stages(
            self._slope,
            lambda: self._ends(start=start, smallest=False, repeated=False, trace_probes=0),
            lambda: self._edge(edge_start),
        )
        self.found.pop("weight_norm")
        return {**self.found, "spectrum": replace(self.spectrum, vectors=None, min_vector=None)}

    def _stages(self, *stages: Callable[[], None]) -> None:
        try:
            for stage in stages:
                stage()
        except Interrupted:
            if "spectrum" not in self.found:
                raise
            self.found["interrupted"] = True

    def _slope(self) -> None:
        loss, gradient = self._loss.slope()
        self._gradient = gradient
        weights = self._space.norm([p.detach() for p in self._loss.params])
        slope = self._space.norm_of(gradient)
        self.found |= {"loss": loss, "gradient_norm": float(slope), "weight_norm": float(weights)}

    def _ends(self, **options: Any) -> None:
        asked = self._asked
        self.spectrum = lanczos(
            self._loss.hvp, self._loss.dim,
            **{
                "top_k": asked.top_k, "tol": asked.tol, "max_matvecs": asked.max_matvecs, "keep_vectors": True,
                "trace_probes": asked.trace_probes, "generator": self._generator, "dtype": self._loss.dtype,
                "device": self._loss.device, "memory_bytes": self._memory, "space": self._space,
                "watch": self._watch, **options,
            },
        )  # fmt: skip
        self.found["spectrum"] = self.spectrum
        if self.spectrum.interrupted:
            raise Interrupted
        self._is_finite = math.isfinite(self.spectrum.lambda_max)

    def _unconverged(self) -> str:
        """Return why the eigenvalues have not converged, "" where they have or nobody let them."""
        found, asked = self.spectrum, self._asked
        if found.converged or found.interrupted or not self._is_finite:
            return ""
        spent = found.num_matvecs - (found.trace.num_matvecs if found.trace is not None else 0)
        if spent >= asked.max_matvecs:
            return f"not converged within max_matvecs={asked.max_matvecs} products: raise it, or tol={asked.tol:g}"
        return (
            f"residual above tol={asked.tol:g}: products are rounded in precision {self._precision}, raise tol or "
            "measure in a higher one"
        )

    @property
    def _memory(self) -> int | None:
        limit = self._asked.basis_memory_mb
        return None if limit is None else int(limit * 2**20)

    def _edge(self, start: Tensor | None = None) -> None:
        if self._optimizer is not None:
            limits = {"tol": self._asked.tol, "max_matvecs": self._asked.max_matvecs, "generator": self._generator}
            limits |= {"watch": self._watch, "start": start}
            optimizer = optimizer_of(self._loss, self._optimizer)
            found = stability(optimizer, self._loss.params, self._loss.hvp, self.spectrum, space=self._space, **limits)
            self.edge_vector = found.vector if math.isfinite(found.value) else None
            self.found["stability"] = replace(found, vector=None)

    def _verdict(self) -> None:
        if self._asked.matrix != "hessian":
            return
        found = self.found
        point = critical_point(self.spectrum, found["gradient_norm"], found["loss"], found["weight_norm"])
        self.found["critical_point"] = point
        if point.kind == "saddle" and self.spectrum.min_vector is not None:
            found["saddle_layers"] = shares_by_layer(self._loss, self.spectrum.min_vector, self._named)

    def _over_batches(self) -> None:
        if self._is_finite:
            self.found["over_batches"] = self._loss.curvature(self._top)

    @property
    def _top(self) -> Tensor:
        return self.spectrum.vectors[:, 0].contiguous()  # type: ignore[index] - always asked for

    def _split(self) -> None:
        if self._asked.split_check and self._is_finite:
            value, products = split_estimate(self._loss, self._top, self._generator, self._space)
            self._beside += products
            self.found["split"] = value

    def _density(self) -> None:
        asked, loss = self._asked, self._loss
        self.found["density"] = self.spectrum.density
        if asked.density_probes and self._is_finite:
            num_steps = max(2, min(asked.density_steps, self._space.dimension(loss.dim)))
            self.found["density"] = density(
                loss.hvp, loss.dim, num_probes=asked.density_probes, num_steps=num_steps, space=self._space,
                generator=self._generator, dtype=loss.dtype, device=loss.device, watch=self._watch,
            )  # fmt: skip

    def _layers(self) -> None:
        if not (self._asked.by_layer and self._is_finite):
            return
        self.found["layers"] = blocks = {}
        for name, params in layers(self._named):
            block = self._loss.block(params)
            found = lanczos(
                block.hvp, block.dim, tol=self._asked.tol, max_matvecs=self._asked.max_matvecs, dtype=block.dtype,
                trace_probes=self._asked.trace_probes, generator=self._generator, device=block.device,
                watch=self._watch, space=block.space if isinstance(block, ShardedLoss) else WHOLE,
            )  # fmt: skip
            block.release()
            self._beside += block.num_matvecs
            if found.interrupted:
                raise Interrupted
            blocks[name] = found

    def _line(self) -> None:
        if "line" in self._asked.figures and self._is_finite and self._space is WHOLE:
            self.found["line"] = loss_along(self._loss, self._top, self._distances(0, _LINE_POINTS))
            self.found["slope"] = float(self._gradient @ self._top)

    def _plane(self) -> None:
        vectors = self.spectrum.vectors
        asked = "plane" in self._asked.figures and self._is_finite and self._space is WHOLE
        if asked and vectors is not None and vectors.shape[1] > 1:
            ways = [self._distances(i, _PLANE_POINTS) for i in (0, 1)]
            second = vectors[:, 1].contiguous()
            self.found["plane"] = loss_on_plane(self._loss, self._top, second, ways[0], second_distances=ways[1])

    def _distances(self, i: int, num_points: int) -> tuple[float, ...]:
        """Return how far to go along the i-th eigenvector: where its curvature adds the loss once more."""
        rise, limit = abs(self.found["loss"]) or 1.0, self.found["weight_norm"] or 1.0
        return line_distances(self.spectrum.eigenvalues[i], rise, limit=limit, num_points=num_points)
