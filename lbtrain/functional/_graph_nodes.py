"""What autograd's graphs tell: operations that cannot be differentiated twice, and those that are not torch's own."""

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor
from torch.autograd.function import BackwardCFunction

from lbtrain.functional._double_backward import NoSecondDerivativeError

Node = Any  # torch types its nodes differently from release to release


def nodes(outputs: Sequence[Tensor], stop: frozenset[Node] = frozenset()) -> Iterator[Node]:
    """Walk the graph behind some tensors.

    Args:
        outputs: Where to begin.
        stop: Nodes to leave out, with what lies behind them alone.

    Yields:
        Each node once.
    """
    seen: set[Node] = set(stop)
    stack: list[Node] = [t.grad_fn for t in outputs]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node
        stack.extend(after for after, _ in node.next_functions)


def custom_functions(loss: Tensor) -> list[str]:
    """Name the operations in the graph of a loss whose backward is not torch's own formula.

    Args:
        loss: With its graph.

    Returns:
        The class of each ``torch.autograd.Function`` and the name of each C++ one, sorted, each once.
    """
    found = set()
    for node in nodes([loss]):
        if isinstance(node, BackwardCFunction):
            if not _class_of(node).__module__.startswith("lbtrain."):
                found.add(_class_of(node).__name__)
        elif "CppNode" in node.name():
            found.add(node.name())
    return sorted(found)


def refuse_undifferentiable(gradient: Sequence[Tensor], loss: Tensor) -> None:
    """Refuse the graph of a gradient that torch would differentiate to a silent zero.

    ``@once_differentiable`` ends the graph in a node that raises when it is run, but autograd runs only what leads to
    the parameters, and that node leads nowhere.

    Args:
        gradient: With its graph.
        loss: What it is the gradient of.

    Raises:
        NoSecondDerivativeError: If the graph has such a node.
    """
    if any(node.name() == "torch::autograd::Error" for node in nodes(gradient)):
        once = sorted({_class_of(n).__name__ for n in nodes([loss]) if _once_differentiable(n)})
        what = f"the backward of {', '.join(once)}" if once else "a backward"
        raise NoSecondDerivativeError(f"{what} is marked @once_differentiable")


def _class_of(node: Node) -> type:
    """Return the ``torch.autograd.Function`` that made a node."""
    return getattr(node, "_forward_cls", type(node))


def _once_differentiable(node: Node) -> bool:
    """Tell whether a node's backward wraps another function, as the mark does.

    Returns:
        Whether it does.
    """
    return isinstance(node, BackwardCFunction) and hasattr(getattr(_class_of(node), "backward", None), "__wrapped__")
