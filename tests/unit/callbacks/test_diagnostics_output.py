"""A diagnosis on the screen and in the file: readable at any width, and plain enough for any reader."""

import io
import json
import math
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console

from lbtrain import OptimizationDiagnostics
from lbtrain._lightning import CSVLogger, DummyLogger
from lbtrain.callbacks import _diagnosis_output
from lbtrain.callbacks._diagnosis_file import COLUMNS, as_json
from lbtrain.callbacks._diagnosis_ledger import Ledger, LeftOut, _merged
from lbtrain.callbacks._diagnosis_output import names_of
from lbtrain.callbacks._diagnosis_result import Diagnosis, Names
from lbtrain.callbacks._diagnosis_table import show
from lbtrain.functional.diagnosis import Finding, Remedy
from tests.modules import fit
from tests.unit.callbacks.diagnosed import Classifier, clusters

LOWER = Remedy("lower the rate below 0.2 or warm up", {"lr": 0.019, "warmup_steps": 100.0})
DEAD = Finding(
    "dead units", "layer conv2: 61 of 64 relu units are dead on 256 samples since step 40", {"dead": 61.0}, 1.2,
    since=40, remedies=(LOWER, Remedy("bias 0", {"bias": 0.0}), Remedy("another activation")),
)  # fmt: skip
RISE = Finding("instability", "the loss rose 9x at step 38", {"high": math.inf, "low": math.nan}, math.inf, since=38)
KEYS = {"lr": "optimizer.lr", "bias": "model.network.bias"}


def printed(diagnosis, names, width):
    out = io.StringIO()
    show(diagnosis, names, Console(file=out, width=width))
    return out.getvalue()


def words_of(text):
    """Return the cells' words in reading order, column by column, without the lines of the table."""
    rows = [line.split("│")[1:-1] for line in text.splitlines() if "│" in line]
    return ["".join(cell.strip() + " " for cell in column) for column in zip(*rows, strict=True)]


@pytest.mark.parametrize("width", [80, 100, 160])
def test_the_table_says_everything_at_any_width(width):
    text = printed(Diagnosis((RISE, DEAD), ("units",), {"flow": "no layers"}), Names(KEYS), width)
    assert all(len(line) <= width for line in text.splitlines()[1:])
    problems, evidence, since, remedies = words_of(text)
    assert problems.index("instability") < problems.index("dead units")
    assert "61 of 64 relu units are dead on 256 samples since step 40" in " ".join(evidence.split())
    assert "step 38" in since
    assert "lower the rate below 0.2 or warm up [1] or: bias 0 [2]" in " ".join(remedies.split())
    assert "warmup_steps" not in text  # no key of this run: its words have to do
    assert "another activation" not in remedies
    assert "left out: flow: no layers" in text


@pytest.mark.parametrize("width", [40, 80, 160])
def test_overrides_stand_below_the_table_unbroken_and_together_where_they_belong_together(width):
    long = {"lr": "trainer.a_long_name.of_a_group.learning_rate", "warmup_steps": "callbacks.lr_scaling.warmup_steps"}
    again = Finding("slow progress", "it is", {}, 1.0, remedies=(LOWER,))  # the same remedy is told once
    lines = printed(Diagnosis((DEAD, again), ("units",)), Names({**long, "bias": "model.bias"}), width).splitlines()
    assert lines[lines.index("remedies as overrides:") + 1 :] == [
        f"  [1] {long['lr']}=0.019 {long['warmup_steps']}=100",
        "  [2] model.bias=0.0",
    ]


def test_without_keys_no_overrides_are_announced():
    assert "override" not in printed(Diagnosis((DEAD,), ("units",)), Names(), 80)


def test_a_healthy_run_has_one_line_whatever_the_width():
    healthy = Diagnosis((), ("units",) * 14, steps=100, samples=20, share=0.012)
    for width in (40, 160):
        text = printed(healthy, Names(), width)
        assert text == "diagnosis: no problem found in 14 checks (20 samples, 1.2 % of the time)\n"


def test_what_was_left_out_is_told_with_the_reason_of_most():
    left = {"gradients": "optimization is manual", "labels": "r" * 300, "units": "optimization is manual"}
    assert Diagnosis((), ("flow",) * 3, left, samples=2).sentence() == (
        "diagnosis: no problem found in 3 of 6 checks (2 samples, 0 % of the time); left out: gradients, units "
        "(optimization is manual); labels"
    )
    few = Diagnosis((), ("flow",) * 3, dict.fromkeys("abcdefghijklm", "why"))
    assert "no problem found, but only 3 of 16 checks were made (0 samples" in few.sentence()
    text = printed(Diagnosis((DEAD,), ("units",), left), Names(), 80)
    assert text.count("left out: gradients, units: optimization is manual") == 1
    assert text.splitlines()[0].endswith("found in 1 of 4 checks (0 samples, 0 % of the time)")


def test_a_larger_batch_is_no_override_where_the_rate_would_follow():
    larger = Remedy("a batch of 64", {"batch_size": 64})
    names = Names({"batch_size": "data.batch_size"}, 1.0, rate_follows=True)
    assert names.overrides(larger) == []
    assert names.words(larger) == "a batch of 64; hold the rate, which LearningRateScaling would raise with it"
    assert names.words(LOWER) == LOWER.words
    assert Names({"batch_size": "data.batch_size"}).overrides(larger) == ["data.batch_size=64"]


def test_the_rate_follows_the_batch_where_it_is_scaled():
    plain = SimpleNamespace(callback_metrics={})
    scaled = SimpleNamespace(callback_metrics={"lr/factor": torch.tensor(1.0)})  # at the batch that it was tuned for
    assert not names_of(plain, KEYS).rate_follows
    assert names_of(scaled, KEYS).rate_follows
    assert names_of(scaled, None) == Names({}, 1.0, rate_follows=True)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"lr": 0.123}, ["optimizer.lr=0.031"]),  # halved twice, to two digits
        ({"lr": 4e-5}, ["optimizer.lr=1e-05"]),
        ({"batch_size": 64.0}, ["data.batch_size=64"]),
        ({"batch_size": 64}, ["data.batch_size=64"]),
        ({"normalize": True}, ["data.normalize=true"]),
        ({"reduction": "mean"}, ["model.reduction=mean"]),
        ({"decay_epoch": 6.0}, ["scheduler.milestones=[6]"]),
        ({"averaging": True}, ["callbacks=[weight_averaging,lr_scaling]"]),
        ({"momentum": 0.9}, []),
    ],
)
def test_a_remedy_becomes_overrides_of_the_config(changes, expected):
    keys = {
        "lr": "optimizer.lr",
        "batch_size": "data.batch_size",
        "normalize": "data.normalize",
        "reduction": "model.reduction",
        "decay_epoch": "scheduler.milestones=[{}]",
        "averaging": "callbacks=[weight_averaging,lr_scaling]",
    }
    assert Names(keys, rate_factor=4.0).overrides(Remedy("do", changes)) == expected


def test_the_file_is_strict_json_with_words_for_numbers_that_have_none():
    found = as_json(Diagnosis((RISE, DEAD), ("units",), {"flow": "no layers"}, steps=9, samples=2), Names(KEYS))
    again = json.loads(json.dumps(found, allow_nan=False))
    assert again["findings"][0]["numbers"] == {"high": "inf", "low": "nan"}
    assert again["findings"][0]["severity"] == "inf"
    assert again["findings"][1]["remedies"][0]["overrides"] == ["optimizer.lr=0.019"]
    assert {"format", "status", "error", "findings", "checked", "left_out", "steps", "samples", "seconds"} == {*again}


class Tabular(DummyLogger):
    """Keeps the tables that it is given."""

    def __init__(self):
        super().__init__()
        self.tables = {}

    def log_table(self, key, columns, data, step):
        self.tables[key] = (columns, data)


def test_loggers_get_numbers_figures_and_a_table(tmp_path):
    tables, csv = Tabular(), CSVLogger(tmp_path)
    trainer = fit(Classifier(bias=-10.0), clusters(), [OptimizationDiagnostics()], max_epochs=4, logger=[csv, tables])
    columns, rows = tables.tables["diagnosis"]
    assert columns == list(COLUMNS)
    assert rows[0][0] == "dead units"
    assert all(len(row) == len(columns) for row in rows)
    assert float(trainer.callback_metrics["diagnosis/problems"]) == len(rows)
    folder = tmp_path / "lightning_logs" / "version_0"
    assert (folder / "diagnosis.json").exists()
    assert (folder / "figures" / "diagnosis_units.png").exists()


def test_what_cannot_be_written_becomes_a_warning(tmp_path, monkeypatch):
    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr(_diagnosis_output, "write_diagnosis", full)
    doctor = OptimizationDiagnostics(figures=False)
    with pytest.warns(UserWarning, match="diagnosis.json could not be put out .OSError: no space left"):
        fit(Classifier(), clusters(), [doctor], max_epochs=2, default_root_dir=tmp_path)
    assert doctor.result is not None


class TestLedger:
    def test_comes_back_from_a_checkpoint(self):
        ledger = Ledger({"units": (DEAD,), "flow": ()}, {"labels": "none"})
        again = Ledger.from_state(torch.load(saved(ledger.state_dict()), weights_only=True))
        assert again == ledger

    def test_of_several_ranks_has_what_any_of_them_found(self):
        first, second = Ledger(), Ledger()
        first.judge("units", lambda: None)
        second.judge("units", lambda: DEAD)
        first.judge("labels", left_out)
        second.judge("labels", lambda: None)
        first.judge("flow", left_out)
        second.judge("flow", left_out)
        merged = _merged([first, second])
        assert merged.found == {"units": (DEAD,), "labels": ()}
        assert merged.left_out == {"flow": "nothing there"}

    def test_lets_an_interruption_pass(self):
        def interrupted():
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            Ledger().judge("units", interrupted)


def left_out():
    raise LeftOut("nothing there")


def saved(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return file
