"""A diagnosis on the screen and in the file: readable at any width, and plain enough for any reader."""

import io
import json
import math

import pytest
import torch
from rich.console import Console

from lbtrain import OptimizationDiagnostics
from lbtrain._lightning import CSVLogger, DummyLogger
from lbtrain.callbacks import _diagnosis_output
from lbtrain.callbacks._diagnosis_file import COLUMNS, as_json
from lbtrain.callbacks._diagnosis_ledger import Ledger, LeftOut, _merged
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
    assert "optimizer.lr=0.019" in remedies
    assert "warmup_steps" not in remedies  # no key of this run: its words have to do
    assert "model.network.bias=0.0" in remedies.replace(" ", "")
    assert "another activation" not in remedies
    assert "left out: flow: no layers" in text


def test_a_healthy_run_has_one_line_whatever_the_width():
    healthy = Diagnosis((), ("units",) * 14, steps=100, samples=20, share=0.012)
    for width in (40, 160):
        text = printed(healthy, Names(), width)
        assert text == "diagnosis: no problem found in 14 checks (20 samples, 1.2 % of the time)\n"


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
