"""The shape of the study on real data: cut down in the quick suite, whole in the slow one."""

import csv

import pytest

from tests.cli.commands import ROOT, run

MEASURED = "[lr_scaling,loss_reduction,hessian]"


def sweep(folder, *overrides, timeout):
    """Run a part of the study and return its rows and what it printed."""
    words = ["-m", "experiment=surlemont2022", f"hydra.sweep.dir={folder}", *overrides]
    # The launcher shares the cores out among its jobs.
    done = run(words, ROOT, timeout=timeout, OMP_NUM_THREADS=None, COLUMNS="120")
    said = done.out + done.err
    assert done.code == 0, said[-3000:]
    with open(folder / "results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    return rows, said


def value(rows, key, **wanted):
    """Return a number of the one run with these settings."""
    found = [row for row in rows if all(same(row[name], v) for name, v in wanted.items())]
    assert len(found) == 1, (wanted, len(found))
    return float(found[0][key])


def same(cell, wanted):
    """Whether a cell of the table holds this word or number."""
    return cell == wanted if isinstance(wanted, str) else float(cell) == wanted


def check_shape(rows, optimizers=("SGD", "Adam")):
    """What large batches do at a fixed rate, and what scaling does about it."""
    for optimizer in optimizers:
        at = [value(rows, "hessian/lambda_max", rate="fixed", batch=b, **pick(rows, optimizer)) for b in (16, 1024)]
        assert at[1] >= 8 * at[0], (optimizer, at)
    scaled = [value(rows, "hessian/lambda_max", rate="sqrt", batch=b, **pick(rows, "Adam")) for b in (16, 1024)]
    assert scaled[1] <= 3 * scaled[0], scaled


def pick(rows, optimizer):
    """Return the label under which the table has this optimizer."""
    labels = {row["optimizer"] for row in rows if row["optimizer"].startswith(optimizer)}
    assert len(labels) == 1
    return {"optimizer": labels.pop()}


@pytest.mark.distributed
@pytest.mark.parametrize("optimizers", [("adam",), pytest.param(("momentum", "adam"), marks=pytest.mark.slow)])
def test_the_cut_down_study(tmp_path, optimizers):
    rows, said = sweep(
        tmp_path / "study",
        f"callbacks={MEASURED}",
        f"optimizer={','.join(optimizers)}",
        "scaling=fixed,scaled",
        "data.batch_size=16,1024",
        "~callbacks.sharpness",
        "callbacks.hessian.top_k=1",
        timeout=220,
    )
    assert len(rows) == 4 * len(optimizers)
    check_shape(rows, [{"momentum": "SGD", "adam": "Adam"}[name] for name in optimizers])
    assert max(float(row["test/acc"]) for row in rows) >= 0.97
    assert f"run {len(rows)} of {len(rows)}" in said
    assert (tmp_path / "study" / "report.html").exists()


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.timeout(900)
def test_the_whole_study(tmp_path):
    folder = tmp_path / "study"
    rows, said = sweep(folder, timeout=850)
    assert len(rows) == 32
    assert {row["status"] for row in rows} == {"finished"}
    check_shape([row for row in rows if not float(row["rho"] or 0)])
    best = max(float(row["test/acc"]) for row in rows)
    assert best >= 0.97
    for name in ("report.html", "report.md", "results.csv"):
        assert (folder / name).stat().st_size > 1000
    assert {"lambda_max.png", "time_ratio.png"} <= {p.name for p in (folder / "figures").iterdir()}
    for sentence in ("At the fixed rate, lambda_max grows", "SAM (rho 0.05) multiplies lambda_max", "SAM costs"):
        assert sentence in " ".join(said.split()), sentence
    assert str(folder / "report.html") in said.replace("\n", "")
