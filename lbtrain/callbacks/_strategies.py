"""Which strategies a second pass works with, and what the others are told."""

from lbtrain._lightning import MisconfigurationException, Trainer, strategies
from lbtrain.callbacks._shards import is_sharded
from lbtrain.callbacks._trainer import accumulation

SCOPES = ("rank", "global", "micro_batch")
_PLAIN = "strategy='ddp', 'fsdp' or a single device"


def refuse_strategy(trainer: Trainer, name: str, scope: str) -> None:
    """Refuse a strategy under which the ascent of this scope cannot be right.

    Args:
        trainer: The Trainer.
        name: Of the callback, for the message.
        scope: `rank`, `global` or `micro_batch`.

    Raises:
        MisconfigurationException: With the reason and the way out.
    """
    strategy = trainer.strategy
    kind = type(strategy).__name__
    if "DeepSpeed" in kind or strategy.handles_gradient_accumulation:
        raise MisconfigurationException(
            f"{name} takes a second gradient between backward and step, but {kind} runs backward, accumulation and "
            f"step in an engine of its own: use {_PLAIN}, or drop {name}"
        )
    if "XLA" in kind:
        raise MisconfigurationException(
            f"{name} was never tried with {kind}, whose gradients exist only when its graph is run: use {_PLAIN}, or "
            f"drop {name}"
        )
    if is_sharded(trainer):
        _refuse_shards(strategy, kind, name, scope)
    _refuse_static_graph(trainer, name, scope)


def _refuse_shards(strategy: strategies.Strategy, kind: str, name: str, scope: str) -> None:
    if scope == "rank":
        raise MisconfigurationException(
            f"scope='rank' climbs along each rank's own gradient, which never exists as a whole under {kind}: set "
            f"{name}(scope='global')"
        )
    if scope == "micro_batch" and isinstance(strategy, strategies.FSDPStrategy):
        raise MisconfigurationException(
            f"scope='micro_batch' needs the gradient of each batch of a window, which {kind} keeps unsharded and "
            f"unreduced until the window ends: set {name}(scope='global')"
        )
    if {"ignored_modules", "ignored_states", "ignored_parameters"} & set(getattr(strategy, "kwargs", {})):
        raise MisconfigurationException(
            f"{name} measures the gradient over all shards, and the parameters that {kind} is told to ignore are not "
            f"sharded: leave ignored_modules and ignored_states out, or drop {name}"
        )


def _refuse_static_graph(trainer: Trainer, name: str, scope: str) -> None:
    if not getattr(trainer.strategy, "_ddp_kwargs", {}).get("static_graph"):
        return
    if scope != "global":
        raise MisconfigurationException(
            f"scope={scope!r} keeps the first gradient of a step on its rank, which DDP's static_graph=True forbids "
            f"(pytorch/pytorch#187732): set static_graph=False, or {name}(scope='global')"
        )
    if accumulation(trainer) > 1:
        raise MisconfigurationException(
            "DDP's static_graph=True fails with accumulate_grad_batches above 1, with and without "
            f"{name}, since the first batches of a window are not reduced: set static_graph=False"
        )
