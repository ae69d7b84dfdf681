"""The training loss in float64 on copies: a function of them, and nothing of the run is touched."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from lbtrain._lightning import Callback, MisconfigurationException
from lbtrain.callbacks._double_loss import double_loss
from lbtrain.functional.gradient_check import gradient_check, gradient_finding
from tests.modules import Everything, Plain, digits_like, fit, same
from tests.problems import generator


class Look(Callback):
    """Opens the double loss before the first batch and gives it to a function."""

    def __init__(self, look):
        self.look, self.done = look, False

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == 1 and not self.done:  # the second: momentum and running statistics are there
            self.done = True
            self.look(trainer, pl_module, batch)


def looked(module, look, **options):
    """Fit, looking once, and return the module's final state."""
    callback = Look(look)
    fit(module, options.pop("loader", None) or digits_like(), [callback], **options)
    assert callback.done
    return module


def seeded(make):
    torch.manual_seed(0)
    return make()


def check(trainer, module, batch):
    with double_loss(trainer, module, batch) as (loss, params, names, dtype):
        return gradient_check(loss, params, names, generator(), per_tensor=True), dtype


def failed(trainer, module, batch):
    with double_loss(trainer, module, batch) as (loss, *_):
        loss()
        raise KeyError


def everything(module):
    optimizer = module.trainer.optimizers[0]
    return {
        "objects": [(n, id(p), p.dtype, p.data_ptr(), p._version) for n, p in module.named_parameters()],
        "values": [p.tolist() for p in module.parameters()],
        "grads": [None if p.grad is None else p.grad.tolist() for p in module.parameters()],
        "buffers": [(n, id(b), b.dtype, b.tolist()) for n, b in module.named_buffers()],
        "optimizer": copy.deepcopy(str(optimizer.state_dict())),
        "groups": [id(p) for group in optimizer.param_groups for p in group["params"]],
        "plain": {k: (id(v), str(v)) for k, v in vars(module).items() if not k.startswith("_")},
        "modes": [m.training for m in module.modules()],
        "random": torch.get_rng_state().tolist(),
        "default": torch.get_default_dtype(),
        "dtype": module.dtype,
    }


def test_the_loss_is_that_of_training_in_float64():
    def look(trainer, module, batch):
        with double_loss(trainer, module, batch) as (loss, params, names, dtype):
            value = loss()
            twin = copy.deepcopy(module.net).double()
            expected = functional.cross_entropy(twin(batch[0].double()), batch[1])
            assert (dtype, value.dtype) == (torch.float64, torch.float64)
            assert value.item() == pytest.approx(expected.item(), rel=1e-14)
            assert names == [n for n, _ in module.named_parameters()]
            assert [p.dtype for p in params] == [torch.float64] * 4
            with torch.no_grad():
                params[0].add_(1)
            assert loss().item() != value.item()

    looked(Plain(), look)


def test_a_right_module_with_batch_norm_dropout_and_noise_passes():
    def look(trainer, module, batch):
        found, dtype = check(trainer, module, batch)
        assert (found.reason, dtype) == ("", torch.float64)
        assert found.passes
        assert {t.name: t.kind for t in found.tensors}["net.0.weight"] == "ok"
        assert max(t.error for t in found.tensors if abs(t.autograd) > 1e-6) < 1e-5
        assert {"unused", "net.1.weight"} < {t.name for t in found.tensors}
        assert "frozen" not in {t.name for t in found.tensors}

    looked(Everything(), look)


@pytest.mark.parametrize("raises", [False, True])
def test_nothing_is_touched_also_when_it_raises(raises):
    def look(trainer, module, batch):
        module.plain = torch.ones(3)
        before = everything(module)
        if raises:
            with pytest.raises(KeyError):
                failed(trainer, module, batch)
        else:
            check(trainer, module, batch)
        assert everything(module) == before

    module, twin = looked(seeded(Everything), look), seeded(Everything)
    fit(twin, digits_like())
    assert same(module.state_dict(), twin.state_dict())


def test_a_training_step_that_raises_in_any_type_leaves_no_trace():
    class Failing(Everything):
        fails = False

        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            if self.fails:
                raise KeyError("no loss")
            return loss

    def look(trainer, module, batch):
        module.fails = True
        before = everything(module)
        with double_loss(trainer, module, batch) as (loss, _, _, dtype):
            assert dtype == torch.float32
            with pytest.raises(KeyError, match="no loss"):
                loss()
        assert everything(module) == before
        module.fails = False

    looked(Failing(), look)


class WrongBackward(torch.autograd.Function):
    """The identity, with twice its gradient."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        return 2 * g


def test_a_wrong_backward_in_the_training_step_is_named():
    class Wrong(Plain):
        def training_step(self, batch, batch_idx):
            x, y = batch
            return functional.cross_entropy(self.net[2](WrongBackward.apply(self.net[:2](x))), y)

    def look(trainer, module, batch):
        found, _ = check(trainer, module, batch)
        assert {t.name for t in found.wrong} == {"net.0.weight", "net.0.bias"}
        assert "layer net.0." in gradient_finding(found).evidence

    looked(Wrong(), look)


def test_a_float32_matrix_inside_falls_back_to_the_type_of_the_module():
    class Single(Plain):
        def training_step(self, batch, batch_idx):
            x, y = batch
            return functional.cross_entropy(self.net(x @ torch.eye(6, dtype=torch.float32)), y)

    def look(trainer, module, batch):
        before = everything(module)
        found, dtype = check(trainer, module, batch)
        assert dtype == torch.float32
        assert found.passes
        assert found.tolerance == 0.05
        assert everything(module) == before

    looked(Single(), look)


def test_plain_tensors_and_tensors_made_on_the_way_become_float64():
    class Constants(Plain):
        def __init__(self):
            super().__init__()
            self.matrix = torch.eye(6)

        def training_step(self, batch, batch_idx):
            x, y = batch
            own = torch.eye(6) + torch.zeros(6, 6, dtype=self.dtype)
            return functional.cross_entropy(self.net(x @ self.matrix @ own), y)

    def look(trainer, module, batch):
        found, dtype = check(trainer, module, batch)
        assert (dtype, found.passes) == (torch.float64, True)
        assert module.matrix.dtype == torch.float32

    looked(Constants(), look)


def test_a_counter_that_the_loss_depends_on_starts_anew_each_time():
    class Annealed(Plain):
        def __init__(self):
            super().__init__()
            self.count, self.scale = 0, torch.ones(1)
            self.register_buffer("seen", torch.zeros(1))

        def training_step(self, batch, batch_idx):
            self.count += 1
            self.scale += 1
            self.seen += 1
            return super().training_step(batch, batch_idx) * self.count * (self.seen * self.scale).sum()

    def look(trainer, module, batch):
        found, dtype = check(trainer, module, batch)
        assert (found.reason, found.passes, dtype) == ("", True, torch.float64)

    assert looked(Annealed(), look).count == 6


def test_tied_weights_are_one_parameter():
    class Tied(Plain):
        def __init__(self):
            super().__init__(features=6)
            self.net = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3))
            self.net[2].weight = self.net[0].weight

    def look(trainer, module, batch):
        with double_loss(trainer, module, batch) as (loss, params, names, _):
            assert names.count("net.0.weight") == 1
            assert "net.2.weight" not in names
            assert module.net[0].weight is module.net[2].weight is params[0]
            assert gradient_check(loss, params, names, generator(), per_tensor=True).passes
        assert module.net[0].weight is module.net[2].weight

    looked(Tied(), look)


def test_recurrent_layers_use_the_copies():
    class Recurrent(Plain):
        def __init__(self):
            super().__init__()
            self.net = nn.ModuleList([nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 3)])

        def training_step(self, batch, batch_idx):
            x, y = batch
            return functional.cross_entropy(self.net[1](self.net[0](x.reshape(-1, 2, 3))[0][:, -1]), y)

    def look(trainer, module, batch):
        found, dtype = check(trainer, module, batch)
        assert (dtype, found.passes) == (torch.float64, True)
        assert next(t for t in found.tensors if t.name == "net.0.weight_ih_l0").autograd != 0

    module, twin = looked(seeded(Recurrent), look), seeded(Recurrent)
    fit(twin, digits_like())
    assert same(module.state_dict(), twin.state_dict())


def test_no_more_than_32_samples_are_taken():
    sizes = []

    class Counting(Plain):
        def training_step(self, batch, batch_idx):
            sizes.append(len(batch[0]))
            return super().training_step(batch, batch_idx)

    looked(Counting(), check, loader=digits_like(samples=96, batch_size=48))
    assert set(sizes) == {48, 32}


def test_autocast_is_off_inside():
    def look(trainer, module, batch):
        found, dtype = check(trainer, module, batch)
        assert (dtype, found.passes) == (torch.float64, True)
        assert max(t.error for t in found.tensors) < 1e-6

    looked(Plain(), look, precision="bf16-mixed")


def test_batches_are_cast_at_any_depth_and_labels_left_alone():
    class Nested(Plain):
        def training_step(self, batch, batch_idx):
            x, y = batch["pair"]
            assert y.dtype == torch.int64
            return functional.cross_entropy(self.net(x), y)

    def look(trainer, module, batch):
        assert check(trainer, module, batch)[1] == torch.float64

    rows = [{"pair": batch} for batch in digits_like()]
    looked(Nested(), look, loader=torch.utils.data.DataLoader(rows, batch_size=None))


def test_a_module_without_trained_parameters_or_with_manual_optimization_is_refused():
    def frozen(trainer, module, batch):
        module.requires_grad_(False)
        with (
            pytest.raises(MisconfigurationException, match="none of the module's requires a gradient"),
            double_loss(trainer, module, batch),
        ):
            pass
        module.requires_grad_(True)
        module.automatic_optimization = False
        with (
            pytest.raises(MisconfigurationException, match="manual|automatic_optimization"),
            double_loss(trainer, module, batch),
        ):
            pass
        module.automatic_optimization = True

    looked(Plain(), frozen)
