"""`lbtrain scale` prints what LearningRateScaling does, and answers a wrong word with the right one."""

import math

import pytest
import torch
from hydra import compose, initialize_config_module

from lbtrain.app import scale
from lbtrain.app.instantiate import ConfigError, instantiate, validate
from lbtrain.app.scale_notes import notes, overrides
from lbtrain.app.scale_table import scaled
from lbtrain.callbacks.lr_scaling import LearningRateScaling
from tests.modules import Plain, digits_like, fit


def settings_of(words):
    return scale.read(words.split())


def report(words, capsys):
    assert scale.main(words.split()) == 0
    return capsys.readouterr().out


def row(text, label):
    """Return the values of a row, its label and law left out."""
    line = next(line for line in text.splitlines() if line.startswith(label))
    return line.removeprefix(label).split()


def test_square_root_law_by_hand(capsys):
    text = report("batch=4096 base_batch=256 lr=0.1 optimizer=adamw", capsys)
    assert row(text, "global batch")[:2] == ["256", "4096"]
    assert row(text, "learning rate") == ["0.1", "0.4", "x", "4", "=", "16^0.5", "(sqrt)"]
    assert row(text, "weight decay") == ["0.01", "0.01", "kept"]
    assert "arXiv 2205.10287" in text
    assert "rule=auto takes for AdamW" in text
    command = (
        "  python train.py optimizer=adamw optimizer.lr=0.1 data.batch_size=4096 "
        "callbacks.lr_scaling.base_batch_size=256 callbacks.lr_scaling.rule=sqrt"
    )
    assert command in text.splitlines()


def test_linear_law_by_hand(capsys):
    text = report("batch=8192 base_batch=256 lr=0.1", capsys)
    assert row(text, "learning rate") == ["0.1", "3.2", "x", "32", "(linear)"]
    assert row(text, "terminal step")[:2] == ["1", "32"]
    assert "arXiv 1706.02677, section 2.1" in text
    assert "warmup_epochs=5" in text


def test_moments_by_hand(capsys):
    text = report("batch=64 base_batch=16 optimizer=adam adam_moments=true", capsys)
    assert row(text, "betas")[:4] == ["0.9,", "0.999", "0.6,", "0.996"]
    assert row(text, "eps")[:2] == ["1e-08", "5e-09"]
    text = report("batch=64 base_batch=16 optimizer=rmsprop adam_moments=true", capsys)
    assert row(text, "alpha")[:2] == ["0.99", "0.96"]


def test_sum_counts_batches_and_not_samples(capsys):
    words = "per_device=64 devices=8 accumulate=2 base_batch=64 base_batches=2 lr=0.01 reduction=sum optimizer="
    text = report(words + "sgd", capsys)
    assert row(text, "batches per step")[:2] == ["2", "16"]
    assert row(text, "learning rate")[:2] == ["0.01", "0.08"]
    assert "k counts batches per step (8)" in " ".join(text.split())
    text = report(words + "adam", capsys)
    assert row(text, "learning rate")[:2] == ["0.01", "0.04"]
    assert "Adam divides by the size of its gradients" in " ".join(text.split())


def test_steps_and_decay_of_an_epoch_by_hand(capsys):
    words = "per_device=64 devices=3 accumulate=2 base_batch=64 samples=50000 epochs=9 weight_decay=1e-3 lr=0.1"
    text = report(words, capsys)
    # 50000 / 3 -> 16667 samples per device, 261 batches, 131 steps, the last of a single batch.
    assert row(text, "steps per epoch")[:2] == ["782", "131"]
    assert row(text, "steps  ")[:2] == [str(782 * 9), str(131 * 9)]
    shares = [1 - (1 - lr / (1 - 0.9) * 1e-3) ** steps for lr, steps in ((0.1, 782), (0.6, 131))]
    assert row(text, "decay per epoch")[:2] == [f"{share:.4g}" for share in shares]
    assert "stretch_schedule=true" in text


@pytest.mark.parametrize("words", ["optimizer=adamw weight_decay=scale", "optimizer=adamw decay=scale"])
def test_scaled_decay_keeps_the_share_of_an_epoch(words, capsys):
    text = report(f"batch=64 base_batch=16 samples=1600 {words}", capsys)
    before, after, *_ = row(text, "decay per epoch")
    assert before == after == f"{1 - (1 - 1e-5) ** 100:.4g}"
    assert "the same share of each weight over as many samples" in " ".join(text.split())
    assert "callbacks.lr_scaling.weight_decay=scale" in text


# The words of a command and the arguments of the callback that mean the same.
SAME = {
    "adamw, decay": ("optimizer=adamw decay=scale", {"weight_decay": "scale"}),
    "adam, moments": ("optimizer=adam adam_moments=true betas=[0.8,0.95]", {"adam_moments": True}),
    "sgd, sum": ("optimizer=nesterov reduction=sum base_batches=3", {"reduction": "sum", "base_batches": 3}),
    "adam, sum": ("optimizer=adam reduction=sum", {"reduction": "sum"}),
    "exponent": ("optimizer=momentum rule=0.7 weight_decay=0.1", {"rule": 0.7}),
    "none": ("optimizer=rmsprop rule=none adam_moments=false", {"rule": "none"}),
    "lamb": ("optimizer=lamb weight_decay=0.1 decay=scale", {"weight_decay": "scale"}),
    "lars": ("optimizer=lars", {}),
}


@pytest.mark.parametrize("case", SAME)
def test_report_and_callback_never_differ(case):
    words, given = SAME[case]
    settings = settings_of(f"per_device=4 accumulate=2 base_batch=2 {words}")
    result = scaled(settings)
    partial = instantiate({**settings["node"]})
    given = {"reduction": "mean", **given}
    callback = LearningRateScaling(base_batch_size=2, **given)
    trainer = fit(Plain(optimizer=partial), digits_like(8, 4), [callback], accumulate_grad_batches=2)
    (used,) = trainer.optimizers[0].param_groups
    told = {key: value for key, value in result.after.items() if key not in {"params", "step"}}
    assert {key: used[key] for key in told} == told
    assert result.optimizer.param_groups[0]["lr"] == result.before["lr"]
    assert result.factors.lr == callback.state_dict()["groups"][0][0]["lr"]


@pytest.mark.parametrize("case", SAME)
def test_printed_overrides_are_a_run_with_these_values(case):
    settings = settings_of(f"per_device=4 devices=2 accumulate=2 base_batch=4 lr=0.25 {SAME[case][0]}")
    result = scaled(settings)
    with initialize_config_module("lbtrain.conf", version_base="1.3"):
        cfg = compose("train", overrides(settings, result))
    validate(cfg)
    assert (cfg.data.batch_size, cfg.trainer.devices, cfg.trainer.accumulate_grad_batches) == (4, 2, 2)
    built = instantiate(cfg.optimizer)([torch.nn.Parameter(torch.zeros(2, 2))]).param_groups[0]
    assert {key: built[key] for key in result.before} == dict(result.before)
    callback = instantiate(cfg.callbacks.lr_scaling)
    assert callback.base_batch_size == 4
    assert callback.rule == result.factors.rule
    for name, value in SAME[case][1].items():
        assert getattr(callback, name) == value


def test_class_without_a_yaml_takes_its_own_arguments(capsys):
    text = report("batch=64 base_batch=16 optimizer=torch.optim.NAdam momentum_decay=0.01 lr=0.2", capsys)
    assert row(text, "learning rate")[:2] == ["0.2", "0.4"]
    assert "optimizer=<your YAML>" in text


RANGES = {
    "optimizer=adam batch=128": "at k = 8 the law asks for betas 0.2, 0.992, too: adam_moments=true sets them",
    "optimizer=adam batch=256": "end at k = 10, and k is 16",
    "optimizer=sgd batch=528": "up to batch 8192 and k = 32; batch 528 and k = 33 are past it",
    "optimizer=adam batch=64 weight_decay=0.1": "Weight decay is part of the gradient that Adam normalizes",
    "optimizer=adamw batch=64": "takes 0.5 times the share of each weight over as many samples",
    "optimizer=adam batch=64 rule=0.7": "lr' = lr k^0.7, an exponent of your own",
    "optimizer=lars batch=64": "arXiv 1708.03888",
    "optimizer=lamb batch=64": "arXiv 1904.00962",
}


@pytest.mark.parametrize("words", RANGES)
def test_where_a_law_ends_is_said(words):
    settings = settings_of(f"base_batch=16 {words}")
    assert RANGES[words] in " ".join(notes(settings, scaled(settings)))


@pytest.mark.parametrize("words", ["optimizer=adam batch=112", "optimizer=sgd batch=16", "optimizer=sgd batch=8"])
def test_within_its_range_a_law_has_no_warning(words):
    settings = settings_of(f"base_batch=16 {words}")
    assert len(notes(settings, scaled(settings))) == 1


WRONG = {
    "batch=64": "base_batch is missing, the batch size that lr was tuned at: write base_batch=256",
    "base_batch=16": "batch is missing: write batch=4096 (global), or per_device=64 devices=8 accumulate=8",
    "batch=64 base_bach=16": "unknown key 'base_bach'; did you mean 'base_batch'?",
    "batch=64 base_batch=16 momentun=0.5": "unknown key 'momentun'; did you mean 'momentum'?",
    "batch=64 base_batch=16 optimizer=os.getcwd": "optimizer must be a class, got 'os.getcwd'",
    "batch=64 base_batch_size=16": "unknown key 'base_batch_size'; did you mean 'base_batch'?",
    "batch=64 base_batch=16 learning_rate=1": "unknown key 'learning_rate'; did you mean 'lr'?",
    "batch=64 base_batch=16 optimizer.lr=1": "unknown key 'optimizer.lr'; did you mean 'lr'?",
    "batch=x base_batch=16": "batch must be a whole number, at least 1, got 'x': write batch=4096",
    "batch=64 base_batch=0": "base_batch must be a whole number, at least 1, got 0: write base_batch=256",
    "batch=64 base_batch=true": "base_batch must be a whole number, at least 1, got True: write base_batch=256",
    "batch=64 base_batch=16 lr=abc": "lr must be a number above 0, got 'abc': write lr=0.1",
    "batch=64 base_batch=16 lr=0": "lr must be a number above 0, got 0: write lr=0.1",
    "batch=64 base_batch=16 lr=nan": "lr must be a number above 0, got nan: write lr=0.1",
    "batch=64 base_batch=16 lr=inf": "lr must be a number above 0, got inf: write lr=0.1",
    "batch=64 base_batch=16 rule=lin": "rule must be auto, linear, sqrt, none or an exponent, got 'lin'; did you mean",
    "batch=64 base_batch=16 rule=true": "rule must be auto, linear, sqrt, none or an exponent, got True; valid: auto",
    "batch=64 base_batch=16 rule=inf": "got inf",
    "batch=64 base_batch=16 decay=half": "decay must be keep or scale, got 'half': write decay=scale",
    "batch=64 base_batch=16 reduction=avg": "reduction must be mean or sum, got 'avg': write reduction=sum",
    "batch=64 base_batch=16 adam_moments=1": "adam_moments must be true or false, got 1: write adam_moments=true",
    "batch=64 base_batch=16 epochs=2": "epochs needs the size of the training set: add samples=50000",
    "batch=64 base_batch=16 optimizer=adanw": "got 'adanw'; did you mean 'adamw'?",
    "batch=64 base_batch=16 optimizer=torch.optim.Rprp": "torch.optim has no 'Rprp'; did you mean 'Rprop'?",
    "batch=64 base_batch=16 optimizer=torch.optim.Rprop": "rule='auto' knows no scaling law for the optimizer Rprop",
    "batch=64 base_batch=16 optimizer=torch.nn.ParameterList": "must be a torch optimizer, got torch.nn.ParameterList",
    "batch=64 base_batch=16 momentum=-1": "optimizer=momentum refuses its arguments: Invalid momentum value: -1",
    "batch=64 base_batch=16 momentum=abc": "momentum: must be float, got 'abc'",
    "batch=64 base_batch=16 adam_moments=true": "adam_moments=true scales betas and eps, which SGD does not have",
    "batch=256 base_batch=16 optimizer=adam adam_moments=true": "the law holds up to k = 10",
    "batch=64 base_batch=16 optimizer=adam weight_decay=0.1 decay=scale": "use AdamW, or weight_decay='keep'",
    "batch=64 base_batch=1 per_device=3": "per_device=3 x devices=1 x accumulate=1 = 3, got 64: leave one out",
    "batch=10 base_batch=1 devices=4": "must be a multiple of devices=4 x accumulate=1, got 10",
    "lr=1 lr=2": "lr is given twice: keep one",
    "lr=1,2": "lr must be one value, got 'lr=1,2'",
    "--lr 2": "cannot read '--lr': write key=value, such as base_batch=256",
    "betas=[0.9": "cannot read 'betas=[0.9': write betas=VALUE, with a list as betas=[0.9,0.95]",
}


@pytest.mark.parametrize("words", WRONG)
def test_wrong_word_is_answered_in_one_line(words, capsys):
    assert scale.main(words.split()) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("lbtrain scale: ")
    assert WRONG[words] in told.err
    assert told.err.count("\n") == 1


def test_every_key_is_explained(capsys):
    for argv in ([], ["--help"], ["batch=64", "-h"]):
        assert scale.main(argv) == 0
        assert capsys.readouterr().out == f"{scale.USAGE}\n"
    assert all(f"\n  {key} " in scale.USAGE for key in scale.KEYS)
    assert max(map(len, scale.USAGE.splitlines())) <= 100


@pytest.mark.parametrize("optimizer", ["momentum", "adamw", "lamb"])
def test_report_fits_80_columns_without_colour(optimizer, capsys, monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setenv("COLUMNS", "80")
    words = (
        f"batch=1048576 base_batch=256 optimizer={optimizer} weight_decay=0.1 samples=1281167 epochs=90 reduction=sum"
    )
    lines = report(words, capsys).splitlines()
    command = [line for line in lines if line.startswith("  python train.py")]
    assert len(command) == 1
    assert all(len(line) <= 80 for line in lines if line not in command)
    assert all(line.isascii() for line in lines)


def test_settings_hold_every_part_of_the_batch():
    settings = settings_of("batch=64 base_batch=16 devices=2")
    assert [settings[key] for key in ("batch", "per_device", "devices", "accumulate")] == [64, 32, 2, 1]
    assert settings_of("per_device=8 accumulate=3 base_batch=16")["batch"] == 24


def test_own_optimizer_that_is_none_is_refused():
    with pytest.raises(ConfigError, match="optimizer must be a class, got 'math.sqrt'"):
        scaled(settings_of("batch=64 base_batch=16 optimizer=math.sqrt"))
    assert math.isclose(scaled(settings_of("batch=64 base_batch=16")).k, 4.0)


def test_a_batch_larger_than_the_training_set_is_told(capsys):
    assert "larger than the training set of 50:" in " ".join(
        report("batch=64 base_batch=16 samples=50", capsys).split()
    )
    assert "larger than" not in report("batch=64 base_batch=16 samples=64", capsys)
