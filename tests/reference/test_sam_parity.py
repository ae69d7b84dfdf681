"""The SAM family against loops written from the papers, and against a rival library where that follows the papers.

pytorch-optimizer 4.1.0, by what it can be an oracle of:
- SAM, GSAM, WSAM and FriendlySAM take the papers' steps. Their |g| is a float32 number whatever the weights are, so
  agreement ends at 1e-7 per step. FriendlySAM fed its average with g - sigma m in earlier releases, and no longer does.
- its adaptive SAM has no eta and rescales biases too: a tensor of zeros never moves. Not ASAM as Kwon et al. have it.
- LookSAM projects and rescales every tensor by itself, where the paper has one vector: right for a single tensor only.
- it has no momentum-SAM and no p = inf.
The last three are shown below, so that a release that changes them is noticed.
"""

import math

import pytest
import torch
from torch import nn
from torch.nn.utils import vector_to_parameters

from lbtrain import GSAM, SAM, WSAM, FriendlySAM, LookSAM, MomentumSAM
from tests.modules import Plain, digits_like, fit

OPTIMIZERS = {
    "sgd": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}),
    "adamw": (torch.optim.AdamW, {"lr": 0.02, "weight_decay": 0.1}),
}
RHO = 0.2
STEPS = 20


def loader():
    return digits_like(8 * STEPS, 8, dtype=torch.float64)


def start(name="sgd", net=None):
    """The module that every run begins with."""
    kind, options = OPTIMIZERS[name]
    torch.manual_seed(3)
    module = Plain(dtype=torch.float64, optimizer=lambda p: kind(p, **options))
    module.net = module.net if net is None else net()
    return module


def flat(tensors):
    return torch.cat([t.detach().reshape(-1) for t in tensors])


def trained(callbacks, name="sgd", net=None, size=1):
    """The weights, one vector, after 20 batches by the Trainer."""
    module = start(name, net)
    trainer = fit(module, loader(), callbacks, accumulate_grad_batches=size)
    assert trainer.global_step == math.ceil(STEPS / size)
    return flat(module.parameters())


class Loop:
    """The same training by a plain loop over windows of batches.

    A rule below is a method as its paper states it. It is given this, asks for gradients, and returns the optimizer's
    gradient, and a step to take beside the optimizer's own. Gradients come in rows, one for each ascent of an optimizer
    step: a row is for all batches of the window, or with `each` for one of them. Their sum is the window's gradient.
    """

    def __init__(self, module, size=1, each=False):
        self.module, self.size, self.each = module, size, each
        self.optimizer, self.step, self.window = module.configure_optimizers(), 0, []
        self.params = list(module.parameters())
        self.sizes = [p.numel() for p in self.params]
        self.is_weight = torch.cat([
            torch.full((p.numel(),), n.endswith("weight")) for n, p in module.named_parameters()
        ])

    @property
    def rate(self):
        return self.optimizer.param_groups[0]["lr"]

    def momentum(self):
        """The optimizer's momentum, None before the first step."""
        states = [self.optimizer.state[p] for p in self.params]
        return flat([s.get("momentum_buffer", s.get("exp_avg")) for s in states]) if states[0] else None

    def gradients(self, e=0.0):
        """The gradient of each row at w + e."""
        groups = [[batch] for batch in self.window] if self.each else [self.window]
        e = torch.as_tensor(e, dtype=torch.float64).expand(len(groups), sum(self.sizes))
        return torch.stack([self._gradient(group, row) for group, row in zip(groups, e, strict=True)])

    def _gradient(self, group, e):
        vector_to_parameters(self.w + e, self.params)
        self.module.zero_grad()
        for batch in group:
            (self.module.training_step(batch, 0) / self.size).backward()
        return flat([p.grad for p in self.params])

    def run(self, rule):
        batches = list(loader())
        for first in range(0, STEPS, self.size):
            self.window, self.w = batches[first : first + self.size], flat(self.params)
            gradient, beside = rule(self)
            vector_to_parameters(self.w, self.params)
            for p, g in zip(self.params, gradient.split(self.sizes), strict=True):
                p.grad = g.view_as(p).clone()
            self.optimizer.step()
            vector_to_parameters(flat(self.params) + beside, self.params)
            self.step += 1
        return flat(self.params)


def by_hand(rule, name="sgd", net=None, **options):
    return Loop(start(name, net), **options).run(rule)


def unit(rows):
    return rows / rows.norm(dim=-1, keepdim=True)


def sam(loop):
    """Foret et al., eq. 2 and algorithm 1."""
    return loop.gradients(RHO * unit(loop.gradients())).sum(0), 0.0


def sam_inf(loop):
    """Foret et al., eq. 2 with p = inf: every weight moves by rho."""
    return loop.gradients(0.01 * loop.gradients().sign()).sum(0), 0.0


def asam(loop):
    """Kwon et al., eq. 3 and section 5: T = |w| + 0.01 for weights, 1 for biases."""
    t = torch.where(loop.is_weight, loop.w.abs() + 0.01, 1.0)
    return loop.gradients(RHO * t * unit(t * loop.gradients())).sum(0), 0.0


def gsam(loop, alpha=0.4):
    """Zhuang et al., algorithm 1: down along g_s, up along the part of g that is orthogonal to g_s."""
    g = loop.gradients()
    g_s = loop.gradients(RHO * unit(g))
    parallel = (g * unit(g_s)).sum(-1, keepdim=True) * unit(g_s)
    return (g_s - alpha * (g - parallel)).sum(0), 0.0


def looksam(alpha=0.7, every=4, per_tensor=False):
    """Liu et al., algorithm 1, whose vectors hold all tensors; `per_tensor` is the rival's, with its 1e-8."""
    kept = []

    def rule(loop):
        sizes = loop.sizes if per_tensor else sum(loop.sizes)
        rows = loop.gradients()
        g = rows.sum(0)
        if loop.step % every:
            pairs = zip(g.split(sizes), kept[0].split(sizes), strict=True)
            return torch.cat([a + alpha * a.norm() / (v.norm() + 1e-8 * per_tensor) * v for a, v in pairs]), 0.0
        g_s = loop.gradients(RHO * unit(rows)).sum(0)
        pairs = zip(g.split(sizes), g_s.split(sizes), strict=True)
        kept[:] = [torch.cat([b - (b @ a) / (a @ a) * a for a, b in pairs])]
        return g_s, 0.0

    return rule


def friendly(sigma=1.0, decay=0.9):
    """Li et al., algorithm 1: the average is of unmodified gradients, and ends before this step."""
    average = []

    def rule(loop):
        rows = loop.gradients()
        # The gradient of one batch of a window is a `size`-th of a gradient; the average is of whole ones.
        own = rows * (loop.size if loop.each else 1) - sigma * average[0] if average else rows
        g = rows.sum(0)
        average[:] = [decay * average[0] + (1 - decay) * g if average else g]
        return loop.gradients(RHO * unit(own)).sum(0), 0.0

    return rule


def wsam(gamma=0.8, decoupled=True):
    """Yue et al., algorithm 2 (decoupled) and 3."""
    a = gamma / (1 - gamma)

    def rule(loop):
        rows = loop.gradients()
        g, g_s = rows.sum(0), loop.gradients(RHO * unit(rows)).sum(0)
        return (g, -loop.rate * a * (g_s - g)) if decoupled else ((1 - a) * g + a * g_s, 0.0)

    return rule


def momentum_sam(loop):
    """Becker et al., algorithm 1: the gradient at w - rho v / |v|."""
    v = loop.momentum()
    return loop.gradients(0.0 if v is None else -RHO * unit(v)).sum(0), 0.0


METHODS = {
    "sam": (lambda **o: SAM(RHO, **o), lambda: sam),
    "inf": (lambda **o: SAM(0.01, p=math.inf, **o), lambda: sam_inf),
    "asam": (lambda **o: SAM(RHO, adaptive=True, **o), lambda: asam),
    "gsam": (lambda **o: GSAM(RHO, alpha=0.4, **o), lambda: gsam),
    "looksam": (lambda **o: LookSAM(RHO, alpha=0.7, every_n_steps=4, **o), looksam),
    "friendly": (lambda **o: FriendlySAM(RHO, **o), friendly),
    "friendly_half": (lambda **o: FriendlySAM(RHO, sigma=0.5, decay=0.6, **o), lambda: friendly(0.5, 0.6)),
    "wsam": (lambda **o: WSAM(RHO, gamma=0.8, **o), wsam),
    "wsam_coupled": (lambda **o: WSAM(RHO, gamma=0.8, decoupled=False, **o), lambda: wsam(decoupled=False)),
    "momentum": (lambda **o: MomentumSAM(RHO, **o), lambda: momentum_sam),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("method", METHODS)
def test_twenty_steps_equal_the_loop_of_the_paper(method, optimizer):
    callback, rule = METHODS[method]
    ours = trained([callback()], optimizer)
    torch.testing.assert_close(ours, by_hand(rule(), optimizer), rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("scope", ["rank", "micro_batch"])
@pytest.mark.parametrize("method", METHODS)
def test_windows_equal_the_loop_of_the_paper(method, scope):
    # Seven windows of three batches, the last one of two.
    callback, rule = METHODS[method]
    ours = trained([callback(**({} if method == "momentum" else {"scope": scope}))], size=3)
    theirs = by_hand(rule(), size=3, each=scope == "micro_batch")
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-11)


def test_no_two_methods_and_no_plain_training_end_at_the_same_weights():
    # So an agreement above or below says which method it is an agreement of.
    ends = [trained([])] + [trained([callback()]) for callback, _ in METHODS.values()]
    distances = [(a - b).norm().item() for i, a in enumerate(ends) for b in ends[:i]]
    assert min(distances) > 1e-3


def by_rival(build, net=None, name="sgd"):
    """The weights after the same 20 steps with an optimizer of the rival, which wants a gradient and a closure."""
    rival = pytest.importorskip("pytorch_optimizer")
    module = start(name, net)
    kind, options = OPTIMIZERS[name]
    optimizer = build(rival, module, kind, options)
    for batch in loader():

        def closure(batch=batch):
            optimizer.zero_grad()
            loss = module.training_step(batch, 0)
            loss.backward()
            return loss

        if hasattr(optimizer, "set_closure"):  # GSAM
            optimizer.set_closure(nn.CrossEntropyLoss(), *batch)
            optimizer.step()
            continue
        if type(optimizer).__name__ != "WSAM":  # which calls the closure twice itself
            closure()
        optimizer.step(closure)
    return flat(module.parameters())


class Constant:
    """A schedule of rho, as the rival's GSAM wants one."""

    def step(self):
        return RHO


RIVALS = {
    "sam": lambda r, m, kind, o: r.SAM(m.parameters(), kind, rho=RHO, **o),
    "gsam": lambda r, m, kind, o: r.GSAM(m.parameters(), kind(m.parameters(), **o), m.net, Constant(), alpha=0.4),
    "wsam": lambda r, m, kind, o: r.WSAM(m, m.parameters(), kind, rho=RHO, gamma=0.8, **o),
    "wsam_coupled": lambda r, m, kind, o: r.WSAM(m, m.parameters(), kind, rho=RHO, gamma=0.8, decouple=False, **o),
    "friendly": lambda r, m, kind, o: r.FriendlySAM(m.parameters(), kind, rho=RHO, **o),
    "friendly_half": lambda r, m, kind, o: r.FriendlySAM(m.parameters(), kind, rho=RHO, sigma=0.5, lmbda=0.6, **o),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("method", RIVALS)
def test_twenty_steps_equal_the_rival_that_follows_the_paper(method, optimizer):
    ours = trained([METHODS[method][0]()], optimizer)
    torch.testing.assert_close(ours, by_rival(RIVALS[method], name=optimizer), rtol=1e-6, atol=1e-7)


def rival_looksam(rival, module, kind, options):
    return rival.LookSAM(module.parameters(), kind, rho=RHO, k=4, alpha=0.7, **options)


def one_tensor():
    return nn.Linear(6, 3, bias=False, dtype=torch.float64)


def test_looksam_equals_the_rival_where_the_model_is_one_tensor():
    ours = trained([LookSAM(RHO, alpha=0.7, every_n_steps=4)], net=one_tensor)
    torch.testing.assert_close(ours, by_rival(rival_looksam, one_tensor), rtol=0, atol=1e-6)


def test_the_rival_projects_tensor_by_tensor_and_so_leaves_the_paper():
    rival = by_rival(rival_looksam)
    torch.testing.assert_close(rival, by_hand(looksam(per_tensor=True)), rtol=1e-6, atol=1e-7)
    assert (rival - by_hand(looksam())).norm() > 1e-2


def test_the_rival_never_moves_a_tensor_of_zeros_in_adaptive_sam():
    rival = pytest.importorskip("pytorch_optimizer")
    for adaptive, moves in ((False, True), (True, False)):
        module = start()
        nn.init.zeros_(module.net[2].bias)
        optimizer = rival.SAM(module.parameters(), torch.optim.SGD, lr=0.1, rho=RHO, adaptive=adaptive)
        module.training_step(next(iter(loader())), 0).backward()
        optimizer.first_step()
        assert bool(module.net[2].bias.any()) is moves
