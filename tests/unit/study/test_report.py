import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest

from lbtrain.records import write_record
from lbtrain.study.report import Report, write_report
from tests.unit.study.known_sweep import METHODS, NASTY, failed, family_records, known_records, make_record, with_method

pytestmark = pytest.mark.usefixtures("undrawn")


class Outline(HTMLParser):
    """Tags in order, whether they close, every address, every alt text, all text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.addresses: list[str] = []
        self.alts: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.seen.append(tag)
        self.addresses += [value for name, value in attrs if name in {"src", "href", "srcset", "data", "action"}]
        self.alts += [value for name, value in attrs if name == "alt"]
        if tag not in {"meta", "img", "link", "br"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_is_well_formed_and_loads_nothing(report: Report) -> None:
    text = report.html.read_text()
    outline = Outline(text)
    assert outline.open == []
    own = {"results.csv", "settings.csv"}
    assert all(
        address.startswith("data:image/png;base64,") or address in own or f'id="{address[1:]}"' in text
        for address in outline.addresses
    )
    assert outline.seen.count("script") == 1  # the one that sorts, without an address
    assert "<script src" not in text
    assert "link" not in outline.seen
    assert not re.search(r"https?://|@import|url\(", text)
    assert outline.seen.count("img") == len(report.figures) / 2 >= 6
    assert [tag for tag in outline.seen if tag in {"h1", "h2"}] == ["h1", *["h2"] * 6]


def test_the_page_is_made_for_every_reader(report: Report) -> None:
    outline = Outline(report.html.read_text())
    assert any("0.819 at 16, 2.10 at 64, 6.62 at 256, 15.0 at 1024" in alt for alt in outline.alts)
    assert 'name="viewport"' in report.html.read_text()
    assert "prefers-color-scheme: dark" in report.html.read_text()


def test_the_same_is_said_in_both_forms(report: Report) -> None:
    page, text = Outline(report.html.read_text()).text, report.markdown.read_text()
    for finding in report.page.findings:
        assert finding.text in page
        assert finding.text in text.replace("\\", "")
    assert "![lambda_max against batch size (lambda_max). Adam, fixed rate" in text
    assert "(figures/lambda_max.png)" in text
    assert sorted(path.name for path in report.figures) == sorted(
        path.name for path in (report.html.parent / "figures").iterdir()
    )


def test_an_error_is_text(report: Report) -> None:
    assert f"failed: {NASTY}" in Outline(report.html.read_text()).text
    assert r"failed: \<script\>alert(1)\</script\> \| \[bold\] \`x\` & more |" in report.markdown.read_text()


def test_the_rows_hold_the_numbers_of_the_records(report: Report) -> None:
    rows = pd.read_csv(report.csv, dtype={"run": str}).set_index("run")
    for i, record in enumerate(known_records((0, 1))):
        for key in ("train/loss", "test/acc", "hessian/lambda_max", "lr/scaled", "batch/global"):
            assert rows.loc[str(i), key] == record.metrics[key]
    assert rows.loc["14", "outcome"] == "diverged"
    assert rows.loc["64", "status"] == "failed"
    assert rows.loc["64", "error"] == NASTY


def test_a_diverged_setting_shows_its_loss_and_no_curvature(report: Report) -> None:
    sheet = report.page.settings
    ((place, row),) = [(i, row) for i, row in enumerate(sheet.texts) if row[-1] == "14, 46"]
    shown = dict(zip(sheet.header, row, strict=True))
    assert (shown["seeds"], shown["diverged"], shown["failed"]) == ("2", "2", "0")
    assert place in sheet.marked
    assert shown["train loss (per sample)"] == "2.30"
    assert shown["lambda_max (loss per squared parameter)"] == "-"


def test_seeds_share_a_row(write_sweep) -> None:
    runs = [make_record("Adam", "none", 16, sam=False, seed=seed, spread=1 + seed) for seed in (0, 1)]
    page = write_report(write_sweep(runs)).page
    (row,) = page.settings.texts
    shown = dict(zip(page.settings.header, row, strict=True))
    # 0.78 and 1.56: 1.17 -+ t(0.975, 1) = 12.706 times 0.39
    assert shown["lambda_max (loss per squared parameter)"] == "1.17 (-3.79 to 6.13)"
    assert shown["train loss (per sample)"] == "0.00260"  # of both: no interval
    assert shown["runs"] == "0, 1"
    assert page.overview == "2 runs: 2 finished. What varies: seed (0, 1)."


def test_a_report_can_be_rebuilt(write_sweep) -> None:
    sweep = write_sweep(known_records())
    first = write_report(sweep)
    old = {path: path.read_bytes() for path in sweep.rglob("*") if path.is_file()}
    assert write_report(sweep).page == first.page
    assert {path: path.read_bytes() for path in sweep.rglob("*") if path.is_file()} == old


def test_an_old_figure_does_not_stay(write_sweep, tmp_path: Path) -> None:
    records = known_records()
    write_report(write_sweep(records), tmp_path / "out")
    (tmp_path / "out" / "figures" / "mine.png").write_bytes(b"")  # of somebody else
    bare = [replace(record, metrics={"test/acc": 0.5, "test/loss": 1.0}) for record in records]
    report = write_report(write_sweep(bare, "bare"), tmp_path / "out")
    left = sorted(path.name for path in (tmp_path / "out" / "figures").iterdir())
    assert left == sorted(["mine.png", *(p.name for p in report.figures)])


def test_the_order_of_the_runs_changes_only_their_names(write_sweep) -> None:
    records = known_records()
    first, second = (write_report(write_sweep(runs, str(i))) for i, runs in enumerate((records, records[::-1])))
    assert [row[:-1] for row in first.page.settings.texts] == [row[:-1] for row in second.page.settings.texts]
    assert first.page.sheets == second.page.sheets
    assert first.page.findings == second.page.findings
    rows = [pd.read_csv(report.csv).drop(columns="run") for report in (first, second)]
    pd.testing.assert_frame_equal(*rows)


def test_the_title_names_the_day_of_a_sweep(tmp_path):
    dated = tmp_path / "2026-01-31" / "12-00-00"
    for number, record in enumerate(known_records()[:2]):
        write_record(dated / str(number), record)
    assert "Comparison of 2026-01-31/12-00-00" in write_report(dated).html.read_text()


def test_the_method_is_named_beside_its_radius(write_sweep) -> None:
    report = write_report(write_sweep(family_records(batches=(16, 64))))
    shown = [dict(zip(report.page.settings.header, row, strict=True)) for row in report.page.settings.texts]
    rhos = {method: f"{values[2]['rho']:g}" for method, values in METHODS.items()}
    assert [(row["batch size"], row["method"], row["SAM rho"]) for row in shown] == [
        (batch, *pair) for batch in ("16", "64") for pair in (("none", "-"), *rhos.items())
    ]
    rows = pd.read_csv(report.csv, keep_default_na=False)
    assert list(rows.columns[4:10]) == ["optimizer", "rate", "batch", "lr", "method", "rho"]
    assert list(rows["method"][:9]) == ["", *METHODS]
    assert report.page.overview == (
        "18 runs: 18 finished. What varies: batch size (16, 64); method (without SAM, "
        + ", ".join(f"{method} rho {rho}" for method, rho in rhos.items())
        + ")."
    )
    assert any(note.startswith("Rho has the unit of its method") for note in report.page.notes)


def test_an_argument_of_a_method_is_a_column_and_an_axis(write_sweep) -> None:
    plain = make_record("Adam", "none", 64, sam=False)
    gsam = [with_method(plain, "GSAM", alpha=alpha) for alpha in (0.2, 0.4)]
    report = write_report(write_sweep([plain, with_method(plain, "LookSAM"), *gsam]))
    column = report.page.settings.header.index("alpha")
    assert [row[column] for row in report.page.settings.texts] == ["-", "0.2", "0.4", "-"]
    assert "method (without SAM, GSAM rho 0.05, LookSAM rho 0.1); GSAM alpha (0.2, 0.4)." in report.page.overview
    rows = pd.read_csv(report.csv, keep_default_na=False)
    assert list(rows["alpha"]) == ["", "0.2", "0.4", "0.7"]


def test_one_method_is_an_axis_under_its_name(write_sweep) -> None:
    plain = make_record("Adam", "none", 64, sam=False)
    runs = [plain, *(with_method(plain, "GSAM", rho=rho) for rho in (0.05, 0.1))]
    page = write_report(write_sweep(runs)).page
    assert page.overview == "3 runs: 3 finished. What varies: GSAM (without, rho 0.05, rho 0.1)."
    assert not any(note.startswith("Rho has the unit") for note in page.notes)


def test_a_study_of_sam_alone_names_its_radius_only(report: Report) -> None:
    assert "SAM (without, rho 0.05)" in report.page.overview


def test_every_number_of_a_setting_stands_in_one_row(report: Report) -> None:
    found = pd.read_csv(report.settings_csv, keep_default_na=False)
    assert len(found) == len(report.page.settings.body) == 32
    at = (found["optimizer"] == "Adam") & (found["rate"] == "fixed") & (found["batch size"] == 16)
    row = found[at & (found["method"] == "none")].iloc[0]
    # lambda_max is 0.78 and 1.1 times that
    assert float(row["hessian/lambda_max"]) == pytest.approx(0.78 * 1.05)
    half = 12.706204736 * 0.78 * 0.1 / 2
    ends = [float(row[f"hessian/lambda_max_{end}"]) for end in ("low", "high")]
    assert ends == pytest.approx([0.78 * 1.05 - half, 0.78 * 1.05 + half])
    assert (row["hessian/lambda_max_n"], row["finished"], row["diverged"], row["failed"]) == (2, 2, 0, 0)
    lost = found[found["failed"] > 0].iloc[0]
    assert (lost["batch size"], lost["finished"], lost["test/acc_n"]) == (64, 2, 2)  # the third run, of another seed


def test_a_setting_whose_runs_all_failed_is_a_row(write_sweep) -> None:
    runs = [make_record("Adam", "none", 16, sam=False), failed(make_record("Adam", "none", 64, sam=False), "no memory")]
    sheet = write_report(write_sweep(runs)).page.settings
    shown = [dict(zip(sheet.header, row, strict=True)) for row in sheet.texts]
    assert [(row["batch size"], row["seeds"], row["failed"]) for row in shown] == [("16", "1", "0"), ("64", "0", "1")]
    assert sheet.marked == {1}


def test_a_metric_beside_the_usual_ones_is_shown_where_it_tells_settings_apart(write_sweep) -> None:
    runs = [make_record("Adam", "none", batch, sam=False) for batch in (16, 64)]
    for i, run in enumerate(runs):
        run.metrics.update({"hessian/trace": 1.0 + i, "hessian/lambda_min": -0.5, "hessian/layer/conv/trace": 1.0 + i})
    report = write_report(write_sweep(runs))
    assert "Hessian trace (loss per squared parameter)" in report.page.settings.header
    assert not any("lambda_min" in name or "layer" in name for name in report.page.settings.header)
    columns = pd.read_csv(report.settings_csv).columns
    assert {"hessian/lambda_min", "hessian/layer/conv/trace_high"} <= set(columns)


def test_a_table_is_the_same_in_both_forms(report: Report) -> None:
    text, page = report.markdown.read_text(), Outline(report.html.read_text()).text
    (differences,) = report.page.sheets
    assert f"## {differences.title}" in text
    assert all(said in text.replace("\\", "") and said in page for said in differences.about)
    starred = sum(entry.strong for row in differences.body for entry in row)
    assert starred == text.count(" \\* |") == report.html.read_text().count("<strong>")
