from dataclasses import replace

import pytest

from lbtrain.records import RunRecord
from lbtrain.study.conditions import cells, failures, label
from lbtrain.study.load import load_sweep
from lbtrain.study.settings import other_keys, short_names, varying
from tests.unit.study.known_sweep import known_records, make_record

WARMUP = "callbacks.lr_scaling.warmup_epochs"


def with_config(record: RunRecord, **config: object) -> RunRecord:
    return replace(record, config=record.config | {key.replace("__", "."): value for key, value in config.items()})


def test_what_varies(write_sweep) -> None:
    table = load_sweep(write_sweep(known_records()))
    assert varying(table) == [
        "callbacks.lr_scaling.rule",
        "callbacks.lr_scaling.warmup_epochs",
        "callbacks.sam.adaptive",
        "callbacks.sam.rho",
        "data.batch_size",
        "optimizer._target_",
        "scaling",
    ]  # and not what the optimizer's class settles, nor copies, nor the folder of the checkpoints
    assert other_keys(table) == []


def test_a_callback_that_comes_and_goes_is_one_setting(write_sweep) -> None:
    record = make_record("Adam", "none", 64, sam=False)
    noise = {"callbacks__noise___target_": "lbtrain.callbacks.noise.Noise", "callbacks__noise__every_n_steps": 10}
    table = load_sweep(write_sweep([record, with_config(record, **noise)]))
    assert other_keys(table) == ["callbacks.noise._target_"]
    assert [label(c, cells(table)) for c in cells(table)] == ["noise Noise", "noise not set"]


GALLERY = {"dead_relu": ("x.Net", -10), "zero_init": ("x.Net", 0), "slow": ("x.Other", 0)}


def gallery(names: list[str]) -> list[RunRecord]:
    """Return runs of which each has a name, and settings beside that differ between them."""
    record = make_record("Adam", "none", 64, sam=False)
    known = [(name, *GALLERY[kind]) for name, kind in zip(names, GALLERY, strict=True)]
    return [
        with_config(record, sick=name, model__network___target_=net, model__network__bias=bias, seed=seed)
        for name, net, bias in known
        for seed in (0, 1)
    ]


def test_a_name_of_its_own_stands_for_all_other_settings_of_a_run(write_sweep) -> None:
    table = load_sweep(write_sweep(gallery(list(GALLERY))))
    assert other_keys(table) == ["sick"]
    everything = cells(table)
    assert [label(c, everything) for c in everything] == [f"sick {name}" for name in sorted(GALLERY)]


def test_a_name_that_two_settings_share_stands_beside_them(write_sweep) -> None:
    table = load_sweep(write_sweep(gallery(["a", "a", "b"])))
    assert other_keys(table) == ["model.network._target_", "model.network.bias", "sick"]


def test_settings_that_are_no_axis(write_sweep) -> None:
    record = make_record("Adam", "none", 64, sam=False)
    runs = [
        with_config(record, optimizer__lr=lr, model__optimizer__lr=lr, model__depth=depth, seed=seed, data__seed=seed)
        for lr in (0.001, 0.01)
        for depth in (2, 3)
        for seed in (0, 1)
    ]
    table = load_sweep(write_sweep(runs))
    assert other_keys(table) == ["model.depth", "optimizer.lr"]
    everything = cells(table)
    assert [c.others for c in everything] == [
        (("depth", "2"), ("lr", "0.001")),
        (("depth", "2"), ("lr", "0.01")),
        (("depth", "3"), ("lr", "0.001")),
        (("depth", "3"), ("lr", "0.01")),
    ]
    assert all(len(cell.runs) == 2 for cell in everything.values())
    assert label(next(iter(everything)), everything) == "depth 2, lr 0.001"


def searched(seeds: tuple[int, ...] = (0,)) -> list[RunRecord]:
    """A random search as hydra's sweeper makes it: every rate and every radius is drawn once."""
    found = []
    for i, batch in enumerate((16, 64, 16, 64, 256, 256)):
        rate, rho = 0.001 * 1.7**i, 0.01 * 1.3 ** (5 - i)
        for seed in seeds:
            run = make_record("Adam", "none", batch, sam=True, seed=seed)
            overrides = (f"optimizer.lr={rate}", f"callbacks.sam.rho={rho}", f"data.batch_size={batch}", f"seed={seed}")
            config = {"optimizer__lr": rate, "model__optimizer__lr": rate, "callbacks__sam__rho": rho}
            found.append(replace(with_config(run, **config), overrides=overrides))
    return found


@pytest.mark.parametrize("seeds", [(0,), (0, 1)])
def test_a_random_search_varies_the_rate_beside_a_radius_that_never_repeats(write_sweep, seeds) -> None:
    assert other_keys(load_sweep(write_sweep(searched(seeds)))) == ["optimizer.lr"]


def test_what_no_command_line_gave_may_follow_from_a_radius_that_never_repeats(write_sweep) -> None:
    runs = [with_config(run, model__depth=i) for i, run in enumerate(searched())]
    assert other_keys(load_sweep(write_sweep(runs))) == ["optimizer.lr"]
    given = [replace(run, overrides=(*run.overrides, f"model.depth={i}")) for i, run in enumerate(runs)]
    assert other_keys(load_sweep(write_sweep(given, "given"))) == ["model.depth", "optimizer.lr"]


@pytest.mark.parametrize(("rates", "keys"), [((0.1, 0.4, 1.6), []), ((0.1, 0.3, 0.5), ["optimizer.lr"])])
def test_a_rate_that_follows_the_batch_is_told_by_its_multiple_or_by_several_seeds(write_sweep, rates, keys) -> None:
    def runs(seeds):
        for batch, rate in zip((16, 64, 256), rates, strict=True):
            for seed in seeds:
                run = make_record("SGD", "none", batch, sam=False, seed=seed)
                yield replace(with_config(run, optimizer__lr=rate), overrides=(f"optimizer.lr={rate}",))

    assert other_keys(load_sweep(write_sweep(list(runs((0,)))))) == keys
    assert other_keys(load_sweep(write_sweep(list(runs((0, 1))), "two"))) == []


def test_short_names_tell_apart() -> None:
    keys = ["model.lr", "data.batch_size", "callbacks.hessian.batch_size", "model.a.lr"]
    assert short_names(keys) == {
        "model.lr": "model.lr",
        "data.batch_size": "data.batch_size",
        "callbacks.hessian.batch_size": "hessian.batch_size",
        "model.a.lr": "a.lr",
    }


def test_seeds_are_averaged_and_diverged_ones_are_not(write_sweep) -> None:
    runs = [make_record("Adam", "sqrt", 64, sam=False, seed=seed, spread=1 + seed) for seed in (0, 1, 2)]
    runs[2] = replace(runs[2], metrics=runs[2].metrics | {"train/loss": float("inf")})
    (cell,) = cells(load_sweep(write_sweep(runs))).values()
    assert cell.num_diverged == 1
    assert cell.values("hessian/lambda_max") == {0: 0.81, 1: 1.62}
    assert cell.estimate("hessian/lambda_max").mean == pytest.approx(1.215)
    assert cell.estimate("absent") is None


def test_the_newer_of_two_equal_runs_counts(write_sweep) -> None:
    old = make_record("Adam", "sqrt", 64, sam=False)
    new = replace(old, started="2026-02-01T00:00:00+00:00", metrics=old.metrics | {"hessian/lambda_max": 5.0})
    for i, runs in enumerate([[old, new], [new, old]]):
        (cell,) = cells(load_sweep(write_sweep(runs, f"sweep{i}"))).values()
        assert cell.values("hessian/lambda_max") == {0: 5.0}


def test_runs_without_a_seed_are_draws_of_their_own(write_sweep) -> None:
    seeded = make_record("Adam", "sqrt", 64, sam=False)
    free = with_config(seeded, seed=None)
    runs = [replace(free, metrics=free.metrics | {"test/acc": value}) for value in (0.5, 0.7, 0.9)]
    other = replace(free, config=free.config | {"data.batch_size": 16}, metrics=free.metrics | {"batch/global": 16.0})
    table = load_sweep(write_sweep([*runs, replace(runs[0], status="failed", error="ValueError: x"), other]))
    small, large = cells(table).values()
    assert len(large.runs) == 3
    assert large.estimate("test/acc").mean == pytest.approx(0.7)
    assert list(large.values("test/acc")) == ["draw 1", "draw 2", "draw 3"]
    # They can be compared all the same: a draw of the one with a draw of the other.
    assert list(small.values("test/acc")) == ["draw 1"]
    assert failures(table) == {large.condition: 1}  # another draw does not make up for it


def test_of_two_copies_the_argument_of_a_class_is_kept_and_the_seed_before_all(write_sweep) -> None:
    record = make_record("Adam", "none", 16, sam=False)
    looked_up = {"callbacks.lr_scaling._target_": "lbtrain.LearningRateScaling"}
    records = [
        replace(record, config=record.config | looked_up | {key: value for key in ("warmup.x", WARMUP)}, started=str(i))
        for i, value in enumerate((0, 10))
    ]
    assert varying(load_sweep(write_sweep(records))) == [WARMUP]
    seeds = [with_config(record, seed=seed, data__seed=seed) for seed in (0, 1)]
    assert varying(load_sweep(write_sweep(seeds))) == ["seed"]
