"""Random-number streams in the checkpoint."""

from typing import Any

import torch

from lbtrain._lightning import Callback, LightningModule, Trainer
from lbtrain.callbacks._traceless import random_streams, set_random_streams


class RandomState(Callback):
    """Keep the random-number streams in checkpoints, so that a resumed run draws what the uninterrupted one draws.

    Lightning restores weights, optimizers and loops, but not the streams: dropout masks differ after a resume. Together
    with a data order that depends on seed and epoch only (as `lbtrain.app.data.EpochSampler` gives), and a loader with
    a `generator` of its own, since each pass over one without draws a seed from the global stream, a resumed run
    repeats the uninterrupted one bit for bit. With several ranks the stream of rank zero is kept for all.
    """

    def __init__(self) -> None:
        self._streams: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return the streams as plain Python and tensors, which `torch.load(weights_only=True)` takes."""
        device = (
            torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_initialized() else torch.device("cpu")
        )
        streams = random_streams(device)
        kind, keys, position, has_gauss, gauss = streams["numpy"]
        streams["numpy"] = [kind, keys.tolist(), int(position), int(has_gauss), float(gauss)]
        return streams

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Hold the streams until training starts: setting up draws numbers too."""
        kind, keys, position, has_gauss, gauss = state_dict["numpy"]
        version, internal, gauss_next = state_dict["python"]
        self._streams = {
            **state_dict,
            "numpy": (kind, keys, position, has_gauss, gauss),
            "python": (version, tuple(internal), gauss_next),
        }

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on with the streams of the checkpoint."""
        if self._streams is not None:
            set_random_streams(
                {k: v.cpu() if isinstance(v, torch.Tensor) else v for k, v in self._streams.items()}, pl_module.device
            )
            self._streams = None
