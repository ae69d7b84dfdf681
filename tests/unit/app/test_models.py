import math
import warnings
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.optim.lr_scheduler import ReduceLROnPlateau, StepLR
from torch.utils.data import DataLoader, TensorDataset

from lbtrain._lightning import Trainer
from lbtrain.app.models import MLP, Classifier, ConvNet, Linear

SGD = partial(torch.optim.SGD, lr=0.1)


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


@pytest.fixture
def loader(generator):
    # 10 samples in batches of 4, 4 and 2: a plain mean over batches would be wrong.
    images = torch.randn(10, 1, 8, 8, generator=generator)
    return DataLoader(TensorDataset(images, torch.arange(10) % 3), batch_size=4)


def _fit(model, loader, epochs=1):
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning advises more workers
        trainer.fit(model, loader, loader)
        fitted = dict(trainer.callback_metrics)
        trainer.test(model, loader, verbose=False)
    return fitted | trainer.callback_metrics, trainer


def test_convnet_is_the_network_of_the_study(generator):
    network = ConvNet()
    kinds = [type(layer).__name__ for layer in network.layers]
    assert kinds == ["Conv2d", "ReLU", "MaxPool2d"] * 2 + ["Flatten", "Dropout", "Linear"]
    shapes = [tuple(p.shape) for p in network.parameters()]
    assert shapes == [(32, 1, 3, 3), (32,), (64, 32, 3, 3), (64,), (10, 256), (10,)]
    assert network(torch.randn(5, 1, 8, 8, generator=generator)).shape == (5, 10)


@pytest.mark.parametrize(
    ("network", "images"),
    [
        (ConvNet(in_channels=3, image_size=13, num_classes=7, channels=(4, 4, 4)), (2, 3, 13, 13)),
        (MLP(hidden=()), (2, 1, 8, 8)),
        (MLP(hidden=(5, 6), num_classes=3, dropout=0.1), (2, 64)),
        (Linear(num_classes=4), (2, 1, 8, 8)),
    ],
)
def test_networks_take_images_and_return_one_score_per_class(network, images):
    assert network(torch.zeros(images)).shape == (2, [*network.parameters()][-1].numel())


def test_no_dropout_draws_no_random_number():
    network, before = ConvNet(dropout=0.0).train(), torch.get_rng_state()
    network(torch.zeros(1, 1, 8, 8))
    assert torch.equal(torch.get_rng_state(), before)


def test_linear_spectrum_at_zero_is_its_closed_form(generator):
    classes, features = 3, 4
    x = torch.randn(20, features, generator=generator, dtype=torch.float64)
    y = torch.randint(0, classes, (20,), generator=generator)
    network = Linear(features, classes).double()
    assert torch.equal(network(x), torch.zeros(20, classes, dtype=torch.float64))

    def loss(flat):
        weight, bias = flat[: classes * features].view(classes, features), flat[-classes:]
        return functional.cross_entropy(x @ weight.T + bias, y)

    start = nn.utils.parameters_to_vector(network.parameters()).detach()
    hessian = torch.autograd.functional.hessian(loss, start)
    extended = torch.cat([x, torch.ones(20, 1, dtype=torch.float64)], dim=1)
    second_moment = torch.linalg.eigvalsh(extended.T @ extended / 20) / classes
    expected = torch.cat([second_moment.repeat(classes - 1), torch.zeros(features + 1, dtype=torch.float64)])
    assert torch.allclose(torch.linalg.eigvalsh(hessian), expected.sort().values, atol=1e-12)


def test_linear_can_start_at_random():
    assert Linear(zero_init=False).dense.weight.abs().sum() > 0


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_logged_losses_are_per_sample_whatever_the_reduction(loader, reduction):
    frozen = partial(torch.optim.SGD, lr=0.0)
    model = Classifier(MLP(), frozen, reduction=reduction)
    images, labels = loader.dataset.tensors
    loss = functional.cross_entropy(model(images), labels).item()
    accuracy = (model(images).argmax(1) == labels).double().mean().item()
    metrics, _ = _fit(model, loader)
    assert set(metrics) == {f"{stage}/{name}" for stage in ("train", "val", "test") for name in ("loss", "acc")}
    for stage in ("train", "val", "test"):
        assert metrics[f"{stage}/loss"].item() == pytest.approx(loss, rel=1e-6)
        assert metrics[f"{stage}/acc"].item() == pytest.approx(accuracy, rel=1e-6)


def test_reduction_is_that_of_the_training_loss(loader):
    batch = next(iter(loader))
    mean, total = (Classifier(Linear(), SGD, reduction=r) for r in ("mean", "sum"))
    for model in (mean, total):
        model.log = lambda *args, **kwargs: None
    assert mean.training_step(batch, 0).item() == pytest.approx(math.log(10), rel=1e-6)
    assert total.training_step(batch, 0).item() == pytest.approx(4 * math.log(10), rel=1e-6)


def test_a_diverged_run_reports_nan(loader):
    model = Classifier(Linear(), SGD)
    nn.init.constant_(model.network.dense.bias, float("nan"))
    metrics, _ = _fit(model, loader)
    assert math.isnan(metrics["train/loss"])
    assert math.isnan(metrics["test/loss"])


def test_training_learns(loader):
    metrics, _ = _fit(Classifier(Linear(), SGD), loader, epochs=60)
    assert metrics["test/acc"] == 1.0


@pytest.mark.parametrize(("interval", "falls"), [("epoch", 2), ("step", 6)])
def test_scheduler_steps_at_its_interval(loader, interval, falls):
    model = Classifier(Linear(), SGD, partial(StepLR, step_size=1, gamma=0.5), scheduler_interval=interval)
    _, trainer = _fit(model, loader, epochs=2)
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.1 * 0.5**falls)


def test_plateau_scheduler_follows_the_monitored_metric(loader):
    patient = partial(ReduceLROnPlateau, patience=0, factor=0.5, threshold=1e9, threshold_mode="abs")
    _, trainer = _fit(Classifier(Linear(), SGD, patient, monitor="val/acc"), loader, epochs=3)
    assert trainer.lr_scheduler_configs[0].monitor == "val/acc"
    assert trainer.optimizers[0].param_groups[0]["lr"] < 0.1


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: ConvNet(channels=(1, 2, 3, 4)), ValueError, "4 poolings halve image_size=8 to nothing"),
        (lambda: ConvNet(channels=(0,)), ValueError, "channels must be an integer of at least 1, got 0"),
        (lambda: ConvNet(dropout=1.0), ValueError, "dropout must be at least 0 and below 1, got 1.0"),
        (lambda: MLP(hidden=(2.5,)), ValueError, "hidden must be an integer of at least 1, got 2.5"),
        (lambda: Linear(num_classes=-1), ValueError, "num_classes must be"),
        (lambda: Classifier(Linear(), SGD, reduction="avg"), ValueError, "reduction must be one of .* got 'avg'"),
        (lambda: Classifier(Linear(), SGD, scheduler_interval="day"), ValueError, "scheduler_interval must be"),
        (lambda: Classifier(Linear(), None), TypeError, "optimizer must be a function .* got None"),
        (lambda: Classifier(Linear(), SGD, scheduler=3), TypeError, "scheduler must be a function .* got 3"),
    ],
)
def test_arguments_are_checked_when_built(build, error, message):
    with pytest.raises(error, match=message):
        build()
