import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from matplotlib.colors import to_rgba
from matplotlib.patches import Rectangle

from lbtrain.functional import diagnosis
from lbtrain.study.correlation import correlations
from lbtrain.study.diagnoses import PROBLEMS, diagnoses, in_order, read_diagnosis
from lbtrain.study.diagnosis_sheets import MAX_OPEN, by_setting, diagnosis_notes, diagnosis_sheets
from lbtrain.study.diagnosis_words import diagnosis_sentences
from lbtrain.study.draw_diagnoses import MAX_ROWS, diagnoses_alt, draw_diagnoses
from lbtrain.study.figures import sketches
from lbtrain.study.load import load_sweep
from lbtrain.study.report import write_report
from tests.unit.study.diagnosed import finding, write_diagnosis, write_losses
from tests.unit.study.known_sweep import NASTY, failed, make_record

DEAD = finding("dead units", "layer conv2: 61 of 64 relu units are dead", 40, "lower the rate", "optimizer.lr=0.02")
SLOW = finding("slow progress", "the loss fell by 2 %", None, "raise the rate 10x")


@pytest.fixture
def sweep(write_sweep) -> Path:
    """Runs 0 to 2 at batch 16, 3 to 5 at batch 256, of three seeds; two of the latter have dead units."""
    runs = [make_record("Adam", "none", batch, sam=False, seed=seed) for batch in (16, 256) for seed in (0, 1, 2)]
    folder = write_sweep(runs)
    for run in range(6):
        write_diagnosis(folder / str(run), *{4: [DEAD, SLOW], 5: [DEAD]}.get(run, []))
    return folder


def test_the_problems_are_those_that_the_doctor_knows_in_its_order() -> None:
    assert PROBLEMS == diagnosis.PROBLEMS
    assert in_order({"slow progress", "zeal", "dead units", "awe"}) == ["dead units", "slow progress", "awe", "zeal"]


def test_problems_are_counted_by_setting_sick_settings_first(sweep: Path) -> None:
    counts, _ = diagnosis_sheets(load_sweep(sweep))
    assert counts.title == "Diagnosis"
    assert counts.header == ("setting", "runs diagnosed", "without a problem", "dead units", "slow progress")
    assert counts.texts == (
        ("batch 256", "3", "1", "2 of 3", "1 of 3"),
        ("batch 16", "3", "3", "-", "-"),
    )
    assert counts.body[0][3].key == pytest.approx(2 / 3)  # sorted by share, whatever the number of seeds


def test_each_sick_run_is_listed_with_its_first_problem(sweep: Path) -> None:
    _, runs = diagnosis_sheets(load_sweep(sweep))
    assert runs.header == ("run", "setting", "seed", "problem", "evidence", "since (step)", "remedy", "also")
    words = ("dead units", "layer conv2: 61 of 64 relu units are dead", "40", "optimizer.lr=0.02: lower the rate")
    assert runs.texts == (
        ("4", "batch 256", "1", *words, "slow progress"),
        ("5", "batch 256", "2", *words, "-"),
    )
    assert not runs.folded


def test_the_sentences_say_how_many_are_healthy_what_most_others_have_and_what_helps(sweep: Path) -> None:
    table = load_sweep(sweep)
    assert diagnosis_sentences(table) == [
        "4 of 6 diagnosed runs have no problem; first problem of the other 2: dead units (2 runs).",
        "2 of 6 runs have dead units, all at batch 256; first remedy: optimizer.lr=0.02.",
    ]
    assert len(diagnosis_notes(table)) == 1


def test_what_the_sick_settings_share_is_named_and_the_remedy_of_most(write_sweep) -> None:
    runs = [make_record(o, "none", b, sam=False) for o in ("SGD", "Adam") for b in (16, 64, 256)]
    sweep = write_sweep(runs)
    for run, lr in {0: "0.1", 1: "0.02", 2: "0.02"}.items():
        write_diagnosis(sweep / str(run), finding("instability", "", 3, "lower the rate", f"optimizer.lr={lr}"))
    write_diagnosis(sweep / "3", finding("label imbalance"))
    for run in (4, 5):
        write_diagnosis(sweep / str(run))
    overall, top, next_one = diagnosis_sentences(load_sweep(sweep))
    assert overall == (
        "2 of 6 diagnosed runs have no problem; first problem of the other 4: instability (3 runs) and label "
        "imbalance (1 run)."
    )
    assert next_one.startswith("1 of 6 runs has label imbalance")
    assert top == (
        "3 of 6 runs have instability, all with SGD momentum 0.9; first remedy: optimizer.lr=0.02 (in 2 of them)."
    )


def test_of_equally_frequent_problems_the_cause_comes_first(write_sweep) -> None:
    sweep = write_sweep([make_record("Adam", "none", b, sam=False) for b in (16, 64)])
    write_diagnosis(sweep / "0", finding("slow progress"))
    write_diagnosis(sweep / "1", finding("invalid data"))
    overall, top, next_one = diagnosis_sentences(load_sweep(sweep))
    assert overall == (
        "Each of 2 diagnosed runs has a problem; the first problem of each: invalid data (1 run) and slow progress "
        "(1 run)."
    )
    assert top == "1 of 2 runs has invalid data, at batch 64."
    assert next_one == "1 of 2 runs has slow progress, at batch 16."


def test_a_healthy_sweep_is_told_in_one_sentence_without_tables_and_figure(sweep: Path) -> None:
    for run in range(6):
        write_diagnosis(sweep / str(run))
    table = load_sweep(sweep)
    assert diagnosis_sentences(table) == ["No problem was found in 6 diagnosed runs."]
    assert diagnosis_sheets(table) == diagnosis_notes(table) == []
    assert "diagnoses" not in {sketch.name for sketch in sketches(table)}


@pytest.mark.usefixtures("undrawn")
def test_on_a_narrow_page_each_sick_run_is_a_card_whose_cells_have_their_names(sweep: Path) -> None:
    page = write_report(sweep).html.read_text()
    assert page.count('class="sortable cards"') == 1
    for name in ("run", "evidence", "remedy"):
        assert page.count(f'data-label="{name}"') == 2  # sick runs
    narrow = page.partition("@media (max-width: 40rem)")[2]
    assert "attr(data-label)" in narrow


@pytest.mark.usefixtures("undrawn")
def test_without_diagnoses_there_is_no_section(sweep: Path) -> None:
    for run in range(6):
        (sweep / str(run) / "diagnosis.json").unlink()
    report = write_report(sweep)
    assert diagnosis_sentences(load_sweep(sweep)) == []
    assert "diagnos" not in (report.html.read_text() + report.markdown.read_text()).lower()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "it is not JSON (Expecting"),
        ("\udcff", "it is not JSON ('utf-8' codec"),
        ("[1]", "it must be a JSON object of format 1, got 'a list'"),
        ('{"patient": "me"}', "it must be a JSON object of format 1, got None"),
        ('{"format": 2, "findings": [], "checked": []}', "format 1, got 2"),
        ('{"format": 1, "findings": []}', "it lacks 'checked'"),
        ('{"format": 1, "checked": []}', "it lacks 'findings'"),
        ('{"format": 1, "findings": [3], "checked": []}', "it does not hold what a diagnosis holds ("),
        (json.dumps({"format": 1, "findings": [finding(7)], "checked": []}), "words are expected, got 7"),
        (json.dumps({"format": 1, "findings": [finding("x", "y", "z")], "checked": []}), "since must be a number"),
        (json.dumps({"format": 1, "findings": [{"problem": "x", "evidence": "y"}], "checked": []}), "lacks 'remedies'"),
        (
            json.dumps({"format": 1, "findings": [finding("x") | {"remedies": ["rest"]}], "checked": []}),
            "it does not hold what",
        ),
    ],
)
def test_a_file_that_is_no_diagnosis_is_named_and_passed_over(sweep: Path, text: str, reason: str) -> None:
    (sweep / "4" / "diagnosis.json").write_bytes(text.encode(errors="surrogateescape"))
    table = load_sweep(sweep)
    overall, _, broken = diagnosis_sentences(table)
    assert overall.startswith("4 of 5 diagnosed runs have no problem")
    assert broken.startswith("The diagnosis.json of 1 run is left out: 4 (it ")
    assert reason in broken


def test_of_many_broken_files_a_few_are_named(sweep: Path) -> None:
    for run in range(6):
        (sweep / str(run) / "diagnosis.json").write_text("{")
    (sentence,) = diagnosis_sentences(load_sweep(sweep))
    assert sentence.startswith("The diagnosis.json of 6 runs is left out: 0 (it is not JSON")
    assert sentence.endswith("; 1 more.")


def test_a_run_that_ended_before_any_check_is_not_called_healthy(sweep: Path) -> None:
    write_diagnosis(sweep / "0", checked=[], status="failed")
    assert read_diagnosis(sweep / "0") is None
    assert read_diagnosis(sweep / "1") == ()
    assert diagnosis_sentences(load_sweep(sweep))[0].startswith("3 of 5 diagnosed runs")


def test_failed_runs_count_until_a_run_of_the_same_seed_has_finished(write_sweep) -> None:
    good, other = (make_record("Adam", "none", 16, sam=False, seed=seed) for seed in (0, 1))
    late = replace(failed(good, "killed"), started="2026-02-01")  # again, and in vain
    sweep = write_sweep([good, failed(other, "nan loss"), late])
    for run in (1, 2):
        write_diagnosis(sweep / str(run), DEAD, status="failed")
    write_diagnosis(sweep / "0")
    assert [(run.run["run"], len(run.problems)) for run in diagnoses(load_sweep(sweep)).runs] == [("0", 0), ("1", 1)]


def test_many_sick_runs_are_folded_and_nothing_of_them_is_markup(write_sweep, undrawn) -> None:
    runs = [make_record("Adam", "none", 16, sam=False, seed=seed) for seed in range(MAX_OPEN + 1)]
    sweep = write_sweep(runs)
    for run in range(len(runs)):
        write_diagnosis(sweep / str(run), finding("dead units", NASTY, 1, NASTY, "optimizer.lr=<b>"))
    report = write_report(sweep)
    page, text = report.html.read_text(), report.markdown.read_text()
    assert page.count("<details>") == page.count("</details>") == 1
    assert "<summary>Show the 13 rows</summary>" in page
    assert "<script>alert" not in page
    assert "<b>" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt; | [bold]" in page
    assert "## First problem of each run" in text
    assert r"\<script\>alert(1)\</script\> \| \[bold\]" in text


def test_a_word_among_the_metrics_stands_in_the_results_and_disturbs_nothing(write_sweep, undrawn) -> None:
    runs = [make_record("Adam", "none", b, sam=False, seed=s) for b in (16, 64, 256) for s in (0, 1)]
    words = [{"diagnosis/first": w, "diagnosis/problems": n} for w, n in (("dead units", 2.0), ("none", 0.0))]
    told = [replace(run, metrics=run.metrics | words[i % 2]) for i, run in enumerate(runs)]
    bare, report = write_report(write_sweep(runs, "bare")), write_report(write_sweep(told, "told"))
    assert report.page == replace(bare.page, title=report.page.title)
    rows = pd.read_csv(report.csv)
    assert list(rows["diagnosis/first"]) == ["dead units", "none"] * 3
    assert list(rows["diagnosis/problems"]) == [2.0, 0.0] * 3
    settings = pd.read_csv(report.settings_csv)
    assert list(settings["diagnosis/problems"]) == [1.0] * 3
    assert "diagnosis/first" not in settings
    assert correlations(report.table) == correlations(bare.table)


def test_the_figure_shows_the_counts_and_says_them(sweep: Path) -> None:
    (sketch,) = (s for s in sketches(load_sweep(sweep)) if s.name == "diagnoses")
    assert sketch.section == "Diagnosis"
    assert sketch.alt == (
        "Runs with each problem, by setting. batch 256: dead units in 2 of 3 runs, slow progress in 1 of 3 runs; "
        "1 setting without a problem."
    )
    (axes,) = sketch.draw().axes
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["dead units", "slow progress"]
    shades = [tuple(p.get_facecolor()) for p in axes.patches if isinstance(p, Rectangle)]
    assert len(shades) == 4
    assert shades[:2] == [to_rgba("#eeeeee")] * 2  # batch 16
    assert len(set(shades[1:])) == 3
    texts = [text.get_text() for text in axes.texts]
    assert sorted(texts) == ["1 of 3", "2 of 3", "batch 16", "batch 256"]


def test_of_many_settings_the_figure_shows_the_sickest(write_sweep) -> None:
    run = make_record("Adam", "none", 16, sam=False)
    runs = [replace(run, config=run.config | {"model.depth": depth}) for depth in range(MAX_ROWS + 4)]
    sweep = write_sweep(runs)
    for place in range(len(runs)):
        write_diagnosis(sweep / str(place), *([DEAD] if place else []), *([SLOW] if place > 3 else []))
    settings = by_setting(load_sweep(sweep))
    alt = diagnoses_alt("T", settings)
    assert "depth 4: dead units in 1 of 1 run, slow progress in 1 of 1 run" in alt
    assert "depth 1:" not in alt
    assert alt.endswith("1 setting without a problem; 3 more settings with problems in the table.")
    names = [text.get_text() for text in draw_diagnoses("T", settings).axes[0].texts if "depth" in text.get_text()]
    assert names == [f"depth {depth}" for depth in range(4, MAX_ROWS + 4)]


def test_a_long_name_keeps_both_ends_and_many_columns_the_bare_count(write_sweep) -> None:
    runs = [make_record("SGD", "linear", 1024, sam=True) for _ in range(2)]
    runs = [replace(run, config=run.config | {"model.depth": i}) for i, run in enumerate(runs)]
    sweep = write_sweep([*runs, make_record("Adam", "none", 16, sam=False)])
    write_diagnosis(sweep / "1", *map(finding, PROBLEMS[:7]))
    write_diagnosis(sweep / "2")
    texts = {text.get_text() for text in draw_diagnoses("T", by_setting(load_sweep(sweep))).axes[0].texts}
    assert "SGD momentum 0.9, ..., batch 1024, SAM rho 0.05" in texts
    assert "1" in texts


def test_local_optima_are_counted_beside_what_the_runs_show(sweep: Path) -> None:
    for run in range(6):
        stuck = run == 0
        write_losses(sweep / str(run), [2.3, *([1.0 if stuck else 0.01 + run * 1e-5] * 19)])
        summary = json.loads((sweep / str(run) / "summary.json").read_text())
        summary["metrics"]["train/loss"] = 1.0 if stuck else 0.01
        (sweep / str(run) / "summary.json").write_text(json.dumps(summary))
    counts, _ = diagnosis_sheets(load_sweep(sweep))
    row = dict(zip(counts.header, counts.texts[0], strict=True))
    assert (row["setting"], row["local optima"]) == ("batch 16", "1 of 3")
