"""torch.compile: one graph serves both passes."""

import pytest
import torch
from torch import nn

from lbtrain import GSAM, SAM, MomentumSAM
from tests.modules import Plain, digits_like, fit, same

CLIMBERS = {
    "none": lambda: [],
    "SAM": lambda: [SAM(0.1)],
    "each batch": lambda: [SAM(0.1, scope="micro_batch")],
    "periodic": lambda: [SAM(0.1, every_n_steps=2)],
    "GSAM": lambda: [GSAM(0.1)],
    "MomentumSAM": lambda: [MomentumSAM()],
}


class Noisy(Plain):
    """Batch normalization and dropout; dropout draws as eager code does with the backend below."""

    def __init__(self):
        super().__init__(optimizer=lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9))
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Tanh(), nn.Linear(8, 3))


class Counting:
    """Backend that runs the captured graph as it is, and counts the graphs."""

    def __init__(self):
        self.graphs = 0

    def __call__(self, graph, _inputs):
        self.graphs += 1
        return graph.forward


@pytest.mark.filterwarnings("ignore")  # torch's and Lightning's own, at compilation
@pytest.mark.parametrize("what", ["network", "module"])
@pytest.mark.parametrize("name", CLIMBERS)
def test_nothing_is_compiled_again_between_the_passes(name, what):
    torch._dynamo.reset()
    counting, module, eager = Counting(), Noisy(), Noisy()
    if what == "network":
        module.net.forward = torch.compile(module.net.forward, backend=counting)
    compiled = torch.compile(module, backend=counting) if what == "module" else module
    fit(compiled, digits_like(), CLIMBERS[name](), max_epochs=2, accumulate_grad_batches=2)
    assert counting.graphs == 1
    fit(eager, digits_like(), CLIMBERS[name](), max_epochs=2, accumulate_grad_batches=2)
    assert same(module.state_dict(), eager.state_dict())
