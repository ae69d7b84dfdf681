"""The running mean of recent weights, in one copy beside them."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from lbtrain._lightning import LightningModule

# Weights after k steps count as k^6 (Shamir and Zhang 2013, arXiv 1212.1824, section 4: averages that forget at the
# rate at which the run goes on). Their mean is as old as that over the last quarter of the steps: k / (6 + 2).
_POWER = 6


class WeightMean:
    """Average the weights over the steps, the later ones more: m <- m + (1 - (s/k)^7) (w - m) after step k, s before.

    The trainable parameters and the floating-point buffers of the module, such as the running statistics of batch
    normalization. In float32 where the weights are in half precision.
    """

    def __init__(self) -> None:
        self._mean: dict[str, Tensor] = {}
        self._step = 0

    @property
    def is_empty(self) -> bool:
        """Whether no weights have been seen."""
        return not self._mean

    @torch.no_grad()
    def add(self, pl_module: LightningModule, step: int) -> None:
        """Take in the weights.

        Args:
            pl_module: Whose.
            step: Optimizer steps done, 1 or more; the weights of a step that was seen are left out.
        """
        if step <= self._step:
            return
        tensors = _averaged(pl_module)
        if {name: t.shape for name, t in tensors.items()} != {name: m.shape for name, m in self._mean.items()}:
            self._mean, self._step = {name: _wide(t).clone() for name, t in tensors.items()}, step
            return
        share = 1.0 - (self._step / step) ** (_POWER + 1)
        self._step = step
        for name, t in tensors.items():
            mean, new = self._mean[name].to(t.device), t.to(self._mean[name].dtype)
            # Between two equal infinities, as in a causal mask, there is no number.
            self._mean[name] = (
                mean.lerp_(new, share) if t.requires_grad else mean.lerp(new, share).where(mean != new, new)
            )

    @contextmanager
    def placed(self, pl_module: LightningModule) -> Iterator[None]:
        """Let the module have the mean for its weights, and put them back bit for bit.

        Args:
            pl_module: The module.

        Yields:
            Nothing.
        """
        pairs = [(t, self._mean[name]) for name, t in _averaged(pl_module).items() if name in self._mean]
        before = [t.detach().clone() for t, _ in pairs]
        try:
            _write(pairs)
            yield
        finally:
            _write([(t, value) for (t, _), value in zip(pairs, before, strict=True)])

    def state_dict(self) -> dict[str, Any]:
        """Return the mean on the host, and its step."""
        return {"mean": {name: m.cpu().clone() for name, m in self._mean.items()}, "step": self._step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint.

        Args:
            state: From `state_dict`.
        """
        self._mean, self._step = dict(state["mean"]), state["step"]


def _averaged(module: LightningModule) -> dict[str, Tensor]:
    """Return what training changes and a mean can be taken of, by name."""
    named = {name: p for name, p in module.named_parameters() if p.requires_grad}
    return named | {name: b for name, b in module.named_buffers() if b.is_floating_point()}


@torch.no_grad()
def _write(pairs: list[tuple[Tensor, Tensor]]) -> None:
    for t, value in pairs:
        t.copy_(value)


def _wide(t: Tensor) -> Tensor:
    return t.float() if t.itemsize < 4 else t.detach()
