"""The loss and the rate of each optimizer step, kept on the device until somebody reads them."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lbtrain._lightning import Trainer
from lbtrain.callbacks._agreement import sum_over_ranks
from lbtrain.callbacks._evidence import Evidence

# Kept tensors of one entry are packed into one of this many, so that a long interval costs no memory to speak of.
_PACK = 256


class StepLosses:
    """Take in the losses of micro-batches, and give out those of optimizer steps: one for each, also where it has none.

    A step without a loss (`training_step` returned None, or a gradient scaler left the step out after an overflow)
    stands for no rise and no fall: it repeats the loss before it, the first ones the loss behind them.
    """

    def __init__(self) -> None:
        self._window: list[Tensor] = []
        self._loose: list[Tensor] = []
        self._packed: list[Tensor] = []
        self._rates: list[float | Tensor] = []
        self._is_missing: list[bool] = []
        self._ready: Tensor | None = None

    def __len__(self) -> int:
        return len(self._rates)

    def see(self, outputs: Any) -> None:
        """Take in what `on_train_batch_end` was given.

        Args:
            outputs: With the loss, which Lightning has divided by the accumulation; without, nothing is taken in.
        """
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if isinstance(loss, Tensor):
            # Nearly always it is one number without a graph already; each call here is made at every step.
            loss = loss.detach() if loss.requires_grad else loss
            self._window.append(loss.reshape(()) if loss.ndim else loss)

    def take(self, outputs: Any, rate: float | Tensor) -> bool:
        """Take in a step of one batch as it nearly always comes: what `see` and `close` do, in one call.

        Args:
            outputs: What `on_train_batch_end` was given.
            rate: Of the first parameter group in this step.

        Returns:
            Whether it was taken in; else that is for the others to do.
        """
        loss = outputs.get("loss") if type(outputs) is dict else None
        if not isinstance(loss, Tensor) or loss.ndim or loss.requires_grad or type(rate) is not float or self._window:
            return False
        if len(self._loose) + 1 >= _PACK:
            return False
        self._loose.append(loss)
        self._rates.append(rate)
        self._is_missing.append(False)
        return True

    def gradient_factor(self, accumulate: int) -> float:
        """Return what makes the gradient before a step that of the mean loss over the step's batches.

        Args:
            accumulate: What Lightning divided the losses by.

        Returns:
            1 unless an epoch ends within a window.
        """
        return accumulate / (len(self._window) + 1)  # the last batch is taken in behind the step

    def close(self, accumulate: int, rate: float | Tensor, *, skipped: bool) -> None:
        """End an optimizer step: its loss is the mean over its micro-batches.

        Args:
            accumulate: What Lightning divided the losses by.
            rate: Of the first parameter group in this step.
            skipped: Whether a gradient scaler left the step out.
        """
        window, self._window = self._window, []
        if not window or skipped:
            self.miss(1, rate)
            return
        total = window[0] if len(window) == 1 else torch.stack(window).sum()
        # An epoch may end within a window, which is then divided by more than it has.
        self._keep(total if len(window) == accumulate else total * (accumulate / len(window)))
        self._note(rate, missing=False)

    def miss(self, count: int, rate: float | Tensor) -> None:
        """Let steps pass that have no loss.

        Args:
            count: How many.
            rate: Of the first parameter group in them.
        """
        for _ in range(count):
            self._keep(torch.full((), torch.nan))
            self._note(rate, missing=True)

    def wait(self) -> None:
        """Wait for the device: what may fail on one rank alone, in front of the sum over ranks in `move`."""
        self._ready = self._values()

    def move(self, evidence: Evidence, trainer: Trainer | None) -> None:
        """Wait for the device, and append what was kept to the evidence.

        Args:
            evidence: Whose losses and rates grow.
            trainer: To average over the ranks, all of which must call; None for this rank's own losses.
        """
        values, self._ready = self._values() if self._ready is None else self._ready, None
        if all(self._is_missing) and not evidence.losses:
            return  # nothing yet that they could repeat
        if trainer is not None and trainer.world_size > 1:
            values = sum_over_ranks(trainer, values) / trainer.world_size
        found = values.tolist()
        first = next((v for v, missing in zip(found, self._is_missing, strict=True) if not missing), None)
        last = evidence.losses[-1] if evidence.losses else first
        for value, missing in zip(found, self._is_missing, strict=True):
            last = last if missing else value
            evidence.losses.append(last)  # type: ignore[arg-type] - the first one is known
        evidence.rates.extend(map(float, self._rates))
        self._loose, self._packed, self._rates, self._is_missing = [], [], [], []

    def state_dict(self) -> dict[str, Any]:
        """Return what waits, in plain Python; this rank's losses."""
        rates = [float(rate) for rate in self._rates]
        return {"values": self._values().tolist(), "rates": rates, "missing": list(self._is_missing)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint.

        Args:
            state: From `state_dict`.
        """
        self._window, self._loose = [], []
        self._packed = [torch.tensor(state["values"], dtype=torch.float64)] if state["values"] else []
        self._rates, self._is_missing = list(state["rates"]), list(state["missing"])

    def _keep(self, value: Tensor) -> None:
        self._loose.append(value)
        if len(self._loose) >= _PACK:
            self._packed.append(_joined(self._loose))
            self._loose = []

    def _note(self, rate: float | Tensor, *, missing: bool) -> None:
        # A rate that is a tensor is changed in place by its scheduler.
        self._rates.append(rate.detach().clone() if isinstance(rate, Tensor) else float(rate))
        self._is_missing.append(missing)

    def _values(self) -> Tensor:
        """Return all losses that wait, in double precision on the host."""
        parts = [p.cpu().double() for p in (*self._packed, _joined(self._loose))]
        return torch.cat(parts)


def _joined(values: list[Tensor]) -> Tensor:
    """Return numbers as one vector, in single precision at least, on the device that most of them lie on."""
    if not values:
        return torch.zeros(0)
    devices = {v.device for v in values}
    if len(devices) > 1:
        device = next(d for d in devices if d.type != "cpu")
        values = [v.to(device, non_blocking=True) for v in values]
    joined = torch.stack(values)
    return joined if joined.dtype == torch.float64 else joined.float()
