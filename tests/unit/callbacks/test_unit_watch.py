"""Which units are seen, under which names, and that seeing changes nothing."""

import math
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

from lbtrain.callbacks._unit_watch import UnitWatch
from tests.problems import generator


def data(*shape):
    return torch.randn(*shape, generator=generator())


def seen(module, *batches, **options):
    with (watch := UnitWatch(module)).during():
        for batch in batches:
            module(batch)
    return watch.units(**options)


def told(units):
    return {name: (u.kind, u.units, u.dead, u.saturated) for name, u in units.items()}


def linear(weight, bias=0.0):
    layer = nn.Linear(weight, weight)
    with torch.no_grad():
        layer.weight.copy_(torch.eye(weight))
        layer.bias.fill_(bias)
    return layer


class Own(nn.Module):
    """A module that computes what a function says."""

    def __init__(self, forward, **modules):
        super().__init__()
        for name, module in modules.items():
            setattr(self, name, module)
        self._call = forward

    def forward(self, x):
        return self._call(self, x)


def test_dead_units_are_those_that_never_speak():
    net = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 2))
    with torch.no_grad():
        net[0].bias[:3] = -1e3
    x = data(64, 5)
    silent = int((torch.relu(net[0](x)) == 0).all(0).sum())
    assert silent >= 3
    assert told(seen(net, x)) == {"0": ("relu", 8, silent, 0)}


CALLS = {
    "torch.relu": (torch.relu, "relu"),
    "F.relu": (functional.relu, "relu"),
    "Tensor.relu": (lambda x: x.relu(), "relu"),
    "in place": (lambda x: x.relu_(), "relu"),
    "F.relu in place": (partial(functional.relu, inplace=True), "relu"),
    "clamp": (lambda x: x.clamp(min=0), "relu"),
    "clamp_min": (lambda x: torch.clamp_min(x, 0.0), "relu"),
    "F.relu6": (functional.relu6, "relu6"),
    "nn.ReLU6": (nn.ReLU6(), "relu6"),
    "torch.sigmoid": (torch.sigmoid, "sigmoid"),
    "nn.Sigmoid": (nn.Sigmoid(), "sigmoid"),
    "expit": (torch.special.expit, "sigmoid"),
    "Tensor.tanh": (lambda x: x.tanh(), "tanh"),
    "nn.Tanh": (nn.Tanh(), "tanh"),
    "F.gelu": (functional.gelu, "gelu"),
    "nn.GELU": (nn.GELU(approximate="tanh"), "gelu"),
    "nn.SiLU": (nn.SiLU(), "silu"),
    "silu in place": (partial(functional.silu, inplace=True), "silu"),
    "nn.Mish": (nn.Mish(), "mish"),
    "nn.Softplus": (nn.Softplus(), "softplus"),
    "nn.Hardtanh": (nn.Hardtanh(), "hardtanh"),
    "nn.Hardsigmoid": (nn.Hardsigmoid(), "hardsigmoid"),
    "nn.Hardswish": (nn.Hardswish(), "hardswish"),
    "nn.ELU": (nn.ELU(), "elu"),
    "F.elu": (partial(functional.elu, alpha=0.5), "elu"),
    "nn.CELU": (nn.CELU(), "celu"),
    "nn.SELU": (nn.SELU(), "selu"),
}


@pytest.mark.parametrize("name", CALLS)
def test_each_activation_is_seen_as_a_module_and_as_a_function(name):
    call, kind = CALLS[name]
    first = linear(4)
    with torch.no_grad():
        first.bias.copy_(torch.tensor([-50.0, 50.0, 0.0, 0.0]))
    net = Own(lambda m, x: m.last(call(m.first(x))), first=first, last=linear(4))
    ((layer, (found, units, dead, saturated)),) = told(seen(net, data(64, 4))).items()
    assert (layer, found, units) == ("first", kind, 4)
    low_end = kind in {"relu", "relu6", "gelu", "silu", "mish", "softplus", "hardswish"}
    both_ends = kind in {"sigmoid", "tanh", "hardtanh", "hardsigmoid"}
    assert (dead, saturated) == (int(low_end), 2 if both_ends else int(kind in {"relu6", "elu", "celu", "selu"}))


@pytest.mark.parametrize("call", [nn.LeakyReLU(), nn.PReLU(), functional.softsign, nn.Softplus(beta=10)])
def test_what_has_no_flat_side_that_is_known_is_counted_but_never_dead(call):
    net = Own(lambda m, x: m.last(call(m.first(x))), first=linear(4, -50.0), last=linear(4))
    (units,) = seen(net, data(64, 4)).values()
    assert (units.units, units.dead, units.saturated, sum(units.counts)) == (4, 0, 0, 256)


@pytest.mark.parametrize("call", [lambda x: x.clamp(-1, 1), lambda x: x.clamp(min=0.1), torch.softmax, torch.exp])
def test_other_functions_are_no_activation(call):
    call = partial(call, dim=-1) if call is torch.softmax else call
    assert seen(Own(lambda m, x: m.b(call(m.a(x))), a=linear(4), b=linear(4)), data(8, 4)) == {}


def test_the_layer_is_the_one_with_weights_whatever_stands_between():
    net = nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.MaxPool2d(2), nn.Dropout(0.5), nn.ReLU(), nn.Flatten(),
        nn.Linear(54, 7), nn.LayerNorm(7), nn.Tanh(), nn.Linear(7, 2),
    )  # fmt: skip
    units = told(seen(net, data(16, 1, 8, 8)))
    assert {name: u[:2] for name, u in units.items()} == {"0": ("relu", 6), "6": ("tanh", 7)}


def test_units_are_channels_of_convolutions_and_features_of_dense_layers():
    conv = Own(lambda m, x: m.b(torch.relu(m.a(x))), a=nn.Conv1d(2, 5, 3, padding=1), b=nn.Conv1d(5, 2, 1))
    assert told(seen(conv, data(4, 2, 7)))["a"][1] == 5
    dense = Own(lambda m, x: m.b(torch.relu(m.a(x))), a=nn.Linear(7, 5), b=nn.Linear(5, 2))
    assert told(seen(dense, data(4, 2, 7)))["a"][1] == 5
    assert told(seen(dense, data(4, 5, 3, 7)))["a"][1] == 5
    up = Own(lambda m, x: m.b(torch.relu(m.a(x))), a=nn.ConvTranspose2d(2, 5, 3), b=nn.Conv2d(5, 2, 1))
    assert told(seen(up, data(4, 2, 6, 6)))["a"][1] == 5
    last = Own(lambda m, x: m.b(torch.relu(m.a(x).permute(0, 2, 3, 1))), a=nn.Conv2d(1, 5, 3), b=nn.Linear(5, 2))
    assert told(seen(last, data(4, 1, 6, 6)))["a"][1] == 5
    flat = Own(lambda m, x: m.b(torch.relu(m.a(x).flatten(1))), a=nn.Conv2d(1, 5, 3), b=nn.Linear(20, 2))
    assert told(seen(flat, data(4, 1, 4, 4)))["a"][1] == 20


def test_outputs_of_the_network_may_end_where_they_like():
    net = nn.Sequential(nn.Linear(4, 6), nn.Sigmoid(), linear(6, 50.0), nn.Sigmoid())
    assert list(told(seen(net, data(8, 4)))) == ["0"]


def test_outputs_of_one_head_are_none_of_the_next_ones_units():
    def forward(m, x):
        hidden = torch.relu(m.body(x))
        first = torch.sigmoid(m.one(hidden))
        return first, m.other(hidden)

    net = Own(forward, body=nn.Linear(4, 6), one=linear(6, 50.0), other=linear(6))
    assert list(seen(net, data(8, 4))) == ["body"]


def test_a_gate_is_a_unit_of_the_layer_that_opens_it():
    net = Own(lambda m, x: m.out(m.value(x) * torch.sigmoid(m.gate(x))), value=linear(4), gate=linear(4), out=linear(4))
    assert told(seen(net, data(8, 4))) == {"gate": ("sigmoid", 4, 0, 0)}


def test_an_activation_of_the_data_themselves_says_nothing_of_a_layer():
    assert seen(Own(lambda m, x: m.a(torch.relu(x)), a=linear(4)), data(8, 4)) == {}


def test_a_second_activation_of_a_layer_is_told_apart():
    def forward(m, x):
        z = m.a(x)
        return m.b(torch.cat([torch.relu(z), torch.tanh(z)], 1))

    assert list(seen(Own(forward, a=linear(4), b=nn.Linear(8, 2)), data(8, 4))) == ["a", "a (tanh)"]


def test_batches_count_together_and_so_does_a_module_that_runs_twice():
    net = Own(lambda m, x: m.last(torch.relu(m.twice(torch.relu(m.twice(x)) - 5))), twice=linear(3), last=linear(3))
    x = torch.tensor([[1.0, -1.0, 7.0]])
    assert told(seen(net, x)) == {"twice": ("relu", 3, 1, 0)}  # 7 speaks twice, 1 once
    net = nn.Sequential(linear(2), nn.ReLU(), linear(2))
    assert told(seen(net, torch.tensor([[-1.0, -1.0]]), torch.tensor([[-1.0, 1.0]])))["0"][2] == 1


def test_weights_of_the_root_and_of_one_module_are_told_apart():
    class Root(nn.Module):
        def __init__(self):
            super().__init__()
            self.w1, self.w2, self.w3 = (nn.Parameter(data(4, 4)) for _ in range(3))

        def forward(self, x):
            x = torch.relu(x @ self.w1.T)
            return torch.tanh(torch.einsum("ni,ji->nj", x, self.w2)) @ self.w3

    assert {n: u.kind for n, u in seen(Root(), data(8, 4)).items()} == {"w1": "relu", "w2": "tanh"}
    assert list(seen(nn.Sequential(Root(), linear(4)), data(8, 4))) == ["0.w1", "0.w2"]


@pytest.mark.parametrize(
    "wrap", [parametrizations.weight_norm, parametrizations.spectral_norm, parametrizations.orthogonal]
)
def test_parametrized_weights_belong_to_their_layer(wrap):
    net = nn.Sequential(wrap(nn.Linear(4, 4)), nn.ReLU(), nn.Linear(4, 2)).eval()
    assert list(seen(net, data(8, 4))) == ["0"]


class _Double(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return x @ weight.t()

    @staticmethod
    def backward(ctx, gradient):
        x, weight = ctx.saved_tensors
        return gradient @ weight, gradient.t() @ x


def test_a_layer_with_a_backward_of_its_own_is_a_layer():
    net = Own(lambda m, x: m.b(torch.relu(_Double.apply(x, m.a.weight))), a=nn.Linear(4, 5), b=nn.Linear(5, 2))
    assert told(seen(net, data(8, 4)))["a"][:2] == ("relu", 5)


def test_recurrent_attending_and_embedding_modules_are_followed():
    lstm = Own(lambda m, x: m.b(torch.relu(m.a(x)[0])), a=nn.LSTM(4, 5, num_layers=2), b=nn.Linear(5, 2))
    assert told(seen(lstm, data(3, 8, 4)))["a"][:2] == ("relu", 5)
    layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True).eval()
    assert told(seen(layer, data(3, 5, 8)))["linear1"][:2] == ("relu", 12)
    words = Own(lambda m, x: m.b(torch.tanh(m.a(x))), a=nn.Embedding(10, 6), b=nn.Linear(6, 2))
    assert told(seen(words, torch.arange(10)))["a"][:2] == ("tanh", 6)


def test_a_watched_pass_gives_the_same_values_and_gradients_bit_for_bit():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.SiLU(True), nn.Flatten(), nn.Linear(144, 3), nn.ReLU(True), nn.Linear(3, 2)
    )
    x = data(5, 1, 8, 8)
    plain = net(x).square().mean()
    expected = torch.autograd.grad(plain, list(net.parameters()))
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in net.modules()]
    with (watch := UnitWatch(net)).during():
        loss = net(x).square().mean()
        found = torch.autograd.grad(loss, list(net.parameters()))
    assert torch.equal(loss, plain)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert list(watch.units()) == ["0", "3"]
    assert [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in net.modules()] == hooks == [0] * 7


def test_it_works_without_gradients_in_lower_precision_and_under_checkpointing():
    net = nn.Sequential(linear(4, -50.0), nn.ReLU(), linear(4))
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert told(seen(net, data(8, 4))) == {"0": ("relu", 4, 4, 0)}
    assert told(seen(net.to(torch.bfloat16), data(8, 4).to(torch.bfloat16))) == {"0": ("relu", 4, 4, 0)}
    net = net.float()
    with (watch := UnitWatch(net)).during():
        checkpoint(net, data(8, 4), use_reentrant=False).sum().backward()
    assert told(watch.units()) == {"0": ("relu", 4, 4, 0)}


def test_under_vmap_there_is_nothing_to_count_and_nothing_fails():
    net = nn.Sequential(linear(4), nn.ReLU(), linear(4))
    with (watch := UnitWatch(net)).during():
        torch.func.vmap(net)(data(8, 3, 4))
    assert watch.units() == {}


@pytest.mark.filterwarnings("ignore")  # torch's own, at compilation
@pytest.mark.parametrize("how", ["wrapped", "in place", "forward"])
def test_compiled_modules_are_not_looked_into(how):
    torch._dynamo.reset()
    inner = nn.Sequential(linear(4), nn.ReLU(), linear(4))
    if how == "wrapped":
        inner = torch.compile(inner, backend="eager")
    elif how == "in place":
        inner.compile(backend="eager")
    else:
        inner.forward = torch.compile(inner.forward, backend="eager")
    net, x = nn.Sequential(inner, nn.ReLU(), linear(4)), data(8, 4)
    expected = net(x)
    with (watch := UnitWatch(net)).during():
        assert torch.equal(net(x), expected)
    assert watch.units() == {}


def test_an_error_in_the_network_comes_out_and_the_watch_is_gone():
    def fail(_m, _x):
        raise RuntimeError("in forward")

    net = Own(fail)
    with pytest.raises(RuntimeError, match="in forward"):
        seen(net, data(2, 4))
    watched = nn.Sequential(linear(4), nn.ReLU(), linear(4))
    with (watch := UnitWatch(watched)).during():
        pass
    watched(data(2, 4))
    assert watch.units() == {}


def test_ranks_count_together_also_those_that_saw_nothing():
    net = nn.Sequential(linear(3), nn.ReLU(), linear(3))
    watches = []
    for x in (torch.tensor([[1.0, -1.0, -1.0]]), torch.tensor([[-1.0, 1.0, -1.0]]), None):
        with (watch := UnitWatch(net)).during():
            if x is not None:
                net(x)
        watches.append(watch)
    assert [told(watch.units()) for watch in watches] == [{"0": ("relu", 3, 2, 0)}] * 2 + [{}]
    # What each rank says first, then the sum of what all give.
    texts, parts = [], []
    for watch in watches:
        watch.units(gather=lambda text: texts.append(text) or [text], all_reduce=lambda t: t)
    for watch in watches:
        watch.units(gather=lambda _: texts, all_reduce=lambda t: parts.append(t) or t)
    found = [told(watch.units(gather=lambda _: texts, all_reduce=lambda _: sum(parts))) for watch in watches]
    assert found == [{"0": ("relu", 3, 1, 0)}] * 3


def test_histograms_hold_the_outputs():
    net = nn.Sequential(linear(4), nn.Sigmoid(), linear(4))
    (units,) = seen(net, data(100, 4), data(28, 4)).values()
    assert (units.edges[0], units.edges[-1], len(units.counts), sum(units.counts)) == (0.0, 1.0, 40, 512)
    assert all(math.isfinite(edge) for edge in units.edges)


def test_each_of_two_towers_has_its_own_units():
    def forward(m, x):
        one, other = m.a(x), m.b(x)
        return m.c(torch.relu(one) + torch.tanh(other))

    net = Own(forward, a=linear(4), b=linear(4), c=linear(4))
    assert {name: u.kind for name, u in seen(net, data(8, 4)).items()} == {"a": "relu", "b": "tanh"}


def test_the_units_after_a_skip_connection_are_those_of_the_later_layer():
    def forward(m, x):
        skipped = m.a(x)
        return m.c(torch.relu(skipped + m.b(skipped)))

    assert list(seen(Own(forward, a=linear(4), b=linear(4), c=linear(4)), data(8, 4))) == ["b"]


def test_values_that_pass_outside_of_torch_count_as_read():
    net = Own(lambda m, x: m.b(torch.from_numpy(torch.relu(m.a(x)).detach().numpy())), a=linear(4), b=linear(4))
    assert told(seen(net, data(8, 4)))["a"][:2] == ("relu", 4)


@pytest.mark.filterwarnings("ignore")  # torch's own, at compilation
def test_a_compiled_function_is_compiled_once_more_and_no_further():
    torch._dynamo.reset()
    graphs = []

    def backend(graph, _inputs):
        graphs.append(graph)
        return graph.forward

    net = nn.Sequential(linear(4), nn.ReLU(), linear(4))
    call, x = torch.compile(lambda x: net(x).sum(), backend=backend), data(8, 4)
    expected = call(x)
    for _ in range(3):
        with UnitWatch(net).during():
            assert torch.equal(call(x), expected)
    assert len(graphs) <= 2
