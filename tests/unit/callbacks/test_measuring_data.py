"""What measurements see: data read once, in order, by seed, without a trace; random data frozen and said."""

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset
from torch.utils.data.dataloader import default_collate

from lbtrain import HessianSpectrum, Sharpness
from lbtrain._lightning import Callback, LightningDataModule, MisconfigurationException
from lbtrain.callbacks._frozen_data import same_values
from lbtrain.callbacks._measure import mean_training_loss
from lbtrain.callbacks._measured_data import forget_batches, measured_batches
from tests.modules import Plain, digits_like, fit, same

ALL = {"num_samples": None, "batch_size": None, "seed": 0}


class Reading(Callback):
    """Reads what a measurement would, twice, and keeps whether anything else has noticed."""

    def __init__(self, **options):
        self.options = {**ALL, **options}

    def on_train_start(self, trainer, pl_module):
        before = (torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate())
        self.first = measured_batches(trainer, pl_module, **self.options)
        assert measured_batches(trainer, pl_module, **self.options) is self.first
        forget_batches(trainer)
        self.second = measured_batches(trainer, pl_module, **self.options)
        assert torch.equal(before[0], torch.get_rng_state())
        assert np.array_equal(before[1], np.random.get_state()[1])
        assert before[2] == random.getstate()


@pytest.fixture
def read(capsys, caplog):
    """Return the batches of a reading, and what was said about them."""
    caplog.set_level("INFO")

    def run(loader=None, *, datamodule=None, **options):
        caplog.clear()
        reading = Reading(**options)
        fit(Plain(), loader, [reading], datamodule=datamodule, max_steps=1)
        assert same_values(reading.first, reading.second)
        said = {r.getMessage() for r in caplog.records if "measure" in r.getMessage()}  # once for each reading
        return reading.first, said

    return run


class Jittered(Dataset):
    """Samples with noise from one of the sources of random numbers, as augmentation takes it."""

    def __init__(self, source, samples=48):
        self.data = digits_like(samples).dataset
        self.own = {
            "own torch": torch.Generator().manual_seed(5),
            "own numpy": np.random.default_rng(5),
            "own old numpy": np.random.RandomState(5),
            "own python": random.Random(5),
        }.get(source)
        self.draw = {
            "torch": lambda: torch.rand(()).item(),
            "numpy": np.random.rand,
            "python": random.random,
            "own torch": lambda: torch.rand((), generator=self.own).item(),
            "own numpy": lambda: self.own.random(),
            "own old numpy": lambda: self.own.rand(),
            "own python": lambda: self.own.random(),
            "none": lambda: 0.0,
        }[source]

    def __len__(self):
        return len(self.data)

    def __getitem__(self, i):
        x, y = self.data[i]
        return x + self.draw(), y


SOURCES = ["torch", "numpy", "python", "own torch", "own numpy", "own old numpy", "own python"]


@pytest.mark.parametrize("source", SOURCES)
def test_augmentation_is_frozen_by_the_seed_and_said_in_one_sentence(read, source):
    batches, said = read(DataLoader(Jittered(source), batch_size=8, shuffle=True))
    assert len(said) == 1
    assert "change from one reading to the next (augmentation)" in str(said)
    assert "measure_dataloader()" in str(said)
    x = torch.cat([batch[0] for batch in batches])
    noise = x - torch.stack([sample for sample, _ in digits_like().dataset])
    assert noise.std(0).max() > 0.1, "each sample has a draw of its own"
    other, _ = read(DataLoader(Jittered(source), batch_size=8), seed=1)
    assert not same_values(batches, other)
    # The draw of a sample depends on nothing but its index: not on the size of the batches.
    large, _ = read(DataLoader(Jittered(source), batch_size=8), batch_size=16)
    assert torch.equal(torch.cat([batch[0] for batch in large]), x)


@pytest.mark.parametrize("source", SOURCES[3:])
def test_generators_that_a_data_set_carries_are_put_back(source):
    def drawn(callbacks):
        data = Jittered(source)
        fit(Plain(), DataLoader(data, batch_size=8), callbacks)
        return data.draw()

    assert drawn([]) == drawn([Reading()])


def test_plain_data_are_read_in_order_and_nothing_is_said(read):
    batches, said = read(DataLoader(Jittered("none"), batch_size=9, shuffle=True))
    assert said == set()
    assert [len(batch[1]) for batch in batches] == [9, 9, 9, 9, 9, 3]
    assert torch.equal(torch.cat([batch[0] for batch in batches]), digits_like().dataset.tensors[0])


def test_randomness_of_the_collate_function_is_frozen_too(read):
    def masked(samples):
        x, y = default_collate(samples)
        return x * (torch.rand_like(x) > 0.2), y

    batches, said = read(DataLoader(digits_like().dataset, batch_size=8, collate_fn=masked))
    assert len(said) == 1
    assert not torch.equal(batches[0][0] == 0, batches[1][0] == 0)


def test_chosen_samples_are_the_same_each_time_and_others_for_another_seed(read):
    x = digits_like().dataset.tensors[0]
    batches, _ = read(digits_like(), num_samples=20)
    rows = torch.cat([batch[0] for batch in batches])
    places = [(x == row).all(1).nonzero().item() for row in rows]
    assert len(set(places)) == 20
    assert places == sorted(places)
    other, _ = read(digits_like(), num_samples=20, seed=1)
    assert not same_values(batches, other)
    assert len(read(digits_like(), num_samples=500)[0]) == 6


@pytest.mark.parametrize("shuffle", [False, True])
def test_a_measure_dataloader_that_shuffles_is_read_once_and_said(read, shuffle):
    class Data(LightningDataModule):
        def train_dataloader(self):
            return digits_like()

        def measure_dataloader(self):
            return digits_like(24, 6, shuffle=shuffle)

    batches, said = read(datamodule=Data())
    assert [len(batch[1]) for batch in batches] == [6, 6, 6, 6]
    assert len(said) == shuffle
    assert all("Data.measure_dataloader() returned other batches" in line for line in said)


class Augmenting(Plain):
    """Augments on the device, and draws in its step."""

    def __init__(self):
        super().__init__()
        self.seen = SimpleNamespace(batches={})  # in an object, which measuring does not put back as it does lists

    def on_after_batch_transfer(self, batch, dataloader_idx):
        return batch[0] + torch.rand_like(batch[0]), batch[1]

    def training_step(self, batch, batch_idx):
        self.seen.batches.setdefault(batch_idx, []).append(batch[0])
        return super().training_step(batch, batch_idx) + 0.01 * torch.rand(()) * self.net[0].weight.square().sum()


class Evaluating(Callback):
    """Takes what measurements take, after some random numbers of others."""

    def __init__(self, stirred=0):
        self.stirred, self.values = stirred, []

    def on_train_end(self, trainer, pl_module):
        torch.rand(self.stirred)
        with mean_training_loss(trainer, pl_module, **ALL) as loss:
            pl_module.seen.batches.clear()
            self.values = [loss.value(), loss.value_and_gradient()[0], loss.value()]
            loss.hvp(torch.ones(loss.dim))


def test_random_transfers_and_steps_are_the_same_in_each_evaluation():
    module, evaluating = Augmenting(), Evaluating()
    fit(module, digits_like(), [evaluating])
    assert len(module.seen.batches) == 6
    assert all(torch.equal(x, views[0]) for views in module.seen.batches.values() for x in views)
    assert len(set(evaluating.values)) == 1


def test_random_transfers_and_steps_are_fixed_by_the_seed_alone():
    values = []
    for stirred in (0, 3):
        torch.manual_seed(0)
        evaluating = Evaluating(stirred)
        fit(Augmenting(), digits_like(), [evaluating])
        values.append(evaluating.values)
    assert values[0] == values[1]


def test_a_measurement_draws_nothing_from_the_streams_of_training():
    def trained(**options):
        torch.manual_seed(0)
        module = Augmenting()
        fit(module, digits_like(), [HessianSpectrum(top_k=1, max_matvecs=3, figures=(), **options)])
        return module.state_dict()

    assert same(trained(), trained(every_n_steps=1))


class Choosing(Plain):
    """Chooses what to measure on."""

    def __init__(self, chosen, **options):
        super().__init__(**options)
        self.chosen = lambda: chosen  # in an object, which measuring does not search

    def measure_dataloader(self):
        return self.chosen()

    def on_train_batch_end(self, outputs, batch, batch_idx):
        raise AssertionError("trained")


@pytest.mark.parametrize("chosen", [[], DataLoader(TensorDataset(torch.ones(0, 6)))])
def test_no_batches_to_measure_on_are_refused_before_training(chosen):
    with pytest.raises(MisconfigurationException, match=r"Choosing.measure_dataloader\(\) returned no batches"):
        fit(Choosing(chosen), digits_like(), [HessianSpectrum(top_k=1)])


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        (iter(()), r"measure_dataloader\(\) returned no batches"),
        ([(torch.ones(0, 6), torch.ones(0).long())], r"has no samples: leave empty batches out of what measure_data"),
    ],
)
def test_batches_without_samples_are_refused(chosen, message):
    module = Choosing(chosen)
    module.on_train_batch_end = lambda *_: None
    with pytest.raises(MisconfigurationException, match=message):
        fit(module, digits_like(), [HessianSpectrum(top_k=1)])


class Noisy(Plain):
    """Has a loss with noise: from the global stream, a generator that it carries, or one that nothing shows."""

    def __init__(self, source, **options):
        super().__init__(**options)
        hidden = torch.Generator().manual_seed(3)
        self.own = torch.Generator().manual_seed(3) if source == "own" else None
        self.draw = {
            "none": lambda: torch.tensor(0.0),
            "global": lambda: torch.rand(()),
            "own": lambda: torch.rand((), generator=self.own),
            "hidden": lambda: torch.rand((), generator=hidden),
            "dropout": lambda: nn.functional.dropout(torch.ones(6), training=self.training).sum(),
            "own in training": lambda: torch.rand((), generator=hidden) if self.training else torch.tensor(0.5),
        }[source]

    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx) * (1 + self.draw())


@pytest.mark.parametrize(
    ("source", "told"), [("none", 0), ("global", 1), ("own", 1), ("dropout", 0), ("own in training", 0)]
)
def test_a_random_loss_is_told_once_and_training_goes_on_as_without_measuring(caplog, source, told):
    def trained(*callbacks):
        module = Noisy(source)
        fit(module, digits_like(), callbacks)
        return module

    torch.manual_seed(0)
    caplog.set_level("INFO")
    options = {"top_k": 1, "max_matvecs": 3, "figures": ()}
    states = []
    for callbacks in ([], [HessianSpectrum(every_n_steps=2, **options), Sharpness("sam_one_step")]):
        torch.manual_seed(0)
        module = trained(*callbacks)
        states.append(module.state_dict())
        if module.own is not None:
            states[-1]["own"] = module.own.get_state()
    assert same(*states)
    said = [r.getMessage() for r in caplog.records if "training loss is random in eval mode" in r.getMessage()]
    assert len(said) == told
    assert all("frozen by seed 0" in line for line in said)


def test_a_generator_that_the_module_carries_is_frozen_by_the_seed():
    values = []
    for seed in (0, 0, 1):
        torch.manual_seed(0)
        spectrum = HessianSpectrum(top_k=1, seed=seed, figures=())
        fit(Noisy("own", lr=0.0), digits_like(), [spectrum])
        values.append(spectrum.result.loss)
    assert values[0] == values[1] != values[2]


def test_a_generator_that_the_module_carries_draws_the_same_in_each_evaluation():
    module, evaluating = Noisy("own"), Evaluating()
    module.seen = SimpleNamespace(batches={})
    fit(module, digits_like(), [evaluating])
    assert len(set(evaluating.values)) == 1


def test_a_loss_that_no_seed_fixes_is_refused_before_the_first_step():
    module = Noisy("hidden")
    module.on_train_batch_end = None  # calling it fails
    with pytest.raises(MisconfigurationException, match="would not be functions of the weights"):
        fit(module, digits_like(), [HessianSpectrum(top_k=1)])


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (torch.tensor([1.0, float("nan")]), torch.tensor([1.0, float("nan")]), True),
        (torch.tensor([1.0]), torch.tensor([1.0 + 1e-6]), False),
        (torch.tensor([1.0]), torch.tensor([1.0, 1.0]), False),
        ({"a": [torch.ones(2)], "b": "x"}, {"a": [torch.ones(2)], "b": "x"}, True),
        ({"a": [torch.ones(2)], "b": "x"}, {"a": [torch.ones(2)], "b": "y"}, False),
        ({"a": 1}, {"b": 1}, False),
        ([1, 2], [1], False),
        ([1, 2], (1, 2), False),
        (np.array([np.nan]), np.array([np.nan]), True),
        (np.array([1]), np.array([2]), False),
        (object(), object(), True),
        (None, torch.ones(1), False),
    ],
)
def test_batches_are_compared_by_value(first, second, expected):
    assert same_values(first, second) is expected
