"""Composing many jobs from files that are read once."""

from types import SimpleNamespace

from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra

from lbtrain.app.sweep.read_once import read_once

OVERRIDES = ["experiment=lr_batch_grid", "optimizer=momentum", "data.batch_size=16"]


def test_jobs_are_composed_as_before_and_share_nothing_but_files():
    with initialize_config_module("lbtrain.conf", version_base="1.3"):
        plain = [compose("train", [*OVERRIDES, f"seed={seed}"]) for seed in (0, 1)]
        loader = GlobalHydra.instance().config_loader()
        reads, load = [], loader.repository.load_config
        loader.repository.load_config = lambda config_path: (reads.append(config_path), load(config_path))[1]
        read_once(SimpleNamespace(config_loader=loader))
        first = compose("train", [*OVERRIDES, "seed=0"])
        first.trainer.max_epochs = 77  # stays with this job
        again = [compose("train", [*OVERRIDES, f"seed={seed}"]) for seed in (0, 1)]
    assert again == plain
    found = [path for path in reads if load(path) is not None]
    assert len(found) == len(set(found))
