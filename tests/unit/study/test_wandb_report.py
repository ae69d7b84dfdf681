"""The W&B report: its specification, field by field, and what is said where it cannot be made or published."""

import json
import socket
import sys
import warnings
from types import SimpleNamespace

import pytest

from lbtrain.app import loggers
from lbtrain.study import wandb_report
from lbtrain.study.__main__ import main
from lbtrain.study.findings import Finding
from lbtrain.study.load import load_sweep
from lbtrain.study.wandb_report import PublishError, build, publish, spec, write_spec
from tests.unit.study.known_sweep import make_record

with warnings.catch_warnings():
    warnings.simplefilter(
        "ignore", DeprecationWarning
    )  # wandb-workspaces 0.4 has validators in the style of pydantic 1
    pytest.importorskip("wandb_workspaces.reports.v2")

FINDINGS = (Finding("Batch size", "Larger is worse."), Finding("SAM", "It helps."), Finding("Batch size", "By 0.1."))


@pytest.fixture(autouse=True)
def _no_network(monkeypatch, tmp_path):
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    real = socket.socket.connect

    def connect(self, address):
        if self.family == socket.AF_UNIX:  # wandb's own service on this machine
            return real(self, address)
        raise AssertionError(f"asked the network: {address}")

    monkeypatch.setattr(socket.socket, "connect", connect)


@pytest.fixture
def made(write_sweep):
    """Return what makes a report of four runs, with their groups in wandb."""

    def report(groups=("a/sweep",) * 4, **page):
        records = [make_record("SGD", "linear", batch, sam) for batch in (16, 64) for sam in (False, True)]
        folder = write_sweep(records)
        for number, group in enumerate(groups):
            note = {"id": f"id{number}", "group": group, "project": "p", "entity": None}
            (folder / str(number) / wandb_report.RUN_NAME).write_text(json.dumps(note))
        content = {"title": "Comparison of sweep", "overview": "4 runs.", "findings": FINDINGS, "notes": ("A note.",)}
        table = load_sweep(folder)
        return SimpleNamespace(html=folder / "report.html", table=table, page=SimpleNamespace(**content | page)), folder

    return report


def specified(made, **options):
    report, folder = made(**options)
    return spec(build(report, [folder], "team", "project"))


def grid(found):
    (block,) = [block for block in found["spec"]["blocks"] if block["type"] == "panel-grid"]
    return block["metadata"]


def panels(found, kind):
    return [panel for panel in grid(found)["panelBankSectionConfig"]["panels"] if panel["viewType"] == kind]


def test_it_belongs_to_the_entity_and_project_and_is_named_as_the_local_one(made):
    found = specified(made)
    assert (found["entity"], found["project"], found["title"]) == ("team", "project", "Comparison of sweep")
    assert found["spec"]["width"] == "fluid"


def test_its_runs_are_those_of_the_sweep_s_group(made):
    (runs,) = grid(specified(made))["runSets"]
    (only,) = runs["filters"]["filters"]
    assert (only["key"], only["op"], only["value"]) == ({"section": "run", "name": "group"}, "IN", ["a/sweep"])
    assert runs["enabled"]
    # Without a project of its own: it is that of the report.
    assert "project" not in runs


def test_several_sweeps_are_several_groups(made):
    (runs,) = grid(specified(made, groups=("b/2", "a/1", "a/1", "b/2")))["runSets"]
    assert runs["filters"]["filters"][0]["value"] == ["a/1", "b/2"]


def test_runs_without_a_group_are_told_by_their_identities(made):
    (runs,) = grid(specified(made, groups=("a/1", None)))["runSets"]
    (only,) = runs["filters"]["filters"]
    # wandb calls the identity of a run its name.
    assert (only["key"], only["op"], only["value"]) == ({"section": "run", "name": "name"}, "IN", ["id0", "id1"])


def test_a_name_with_quotes_is_one_name(made):
    (runs,) = grid(specified(made, groups=('it\'s/"x"',) * 4))["runSets"]
    assert runs["filters"]["filters"][0]["value"] == ['it\'s/"x"']


def test_settings_and_results_stand_first_in_the_table_of_runs(made):
    (runs,) = grid(specified(made))["runSets"]
    expected = ["run:displayName", "config:global_batch.value", "config:lr_scaled.value", "config:lr_rule.value"]
    expected += ["config:method.value", "config:rho.value", "config:seed.value", "summary:test/acc"]
    assert runs["runFeed"]["columnOrder"][: len(expected)] == expected
    assert "summary:hessian/lambda_max" in runs["runFeed"]["columnOrder"]
    assert all(runs["runFeed"]["columnPinned"].values())


def test_lambda_max_is_plotted_against_test_accuracy(made):
    first = panels(specified(made), "Scatter Plot")[0]["config"]
    assert first["xAxis"] == "summary:hessian/lambda_max"
    assert first["yAxis"] == "summary:test/acc"
    assert first["xAxisLogScale"] is True
    assert "yAxisLogScale" not in first


def test_loss_and_sharpness_are_plotted_against_the_batch_size(made):
    scatters = [panel["config"] for panel in panels(specified(made), "Scatter Plot")[1:]]
    assert {config["xAxis"] for config in scatters} == {"config:global_batch.value"}
    assert all(config["xAxisLogScale"] for config in scatters)
    by_axis = {config["yAxis"]: config for config in scatters}
    assert {"summary:test/loss", "summary:hessian/lambda_max", "summary:sharpness/keskar"} <= set(by_axis)
    assert by_axis["summary:sharpness/keskar"]["yAxisLogScale"] is True
    assert "yAxisLogScale" not in by_axis["summary:test/loss"]


def test_parallel_coordinates_go_from_the_settings_to_the_results(made):
    report, folder = made()
    report.table["gap/acc"] = 0.1
    (panel,) = panels(spec(build(report, [folder], "team", "project")), "Parallel Coordinates Plot")
    columns = {column["accessor"]: column for column in panel["config"]["columns"]}
    settings = [f"config:{key}.value" for key in ("global_batch", "lr_scaled", "rho", "method")]
    assert list(columns) == [*settings, *(f"summary:{key}" for key in ("test/acc", "hessian/lambda_max", "gap/acc"))]
    assert columns["config:global_batch.value"]["log"] is True
    assert "log" not in columns["config:rho.value"]
    assert columns["summary:test/acc"]["displayName"] == "test/acc"


def test_no_two_panels_share_a_place(made):
    places = [panel["layout"] for panel in grid(specified(made))["panelBankSectionConfig"]["panels"]]
    cells = [
        (x, y)
        for place in places
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24


def test_what_was_not_measured_has_no_panel_and_no_column(made):
    report, folder = made()
    gone = [key for key in report.table if key.startswith(("hessian/", "sharpness/"))]
    report.table = report.table.drop(columns=gone)
    text = json.dumps(spec(build(report, [folder], "team", "project")))
    assert "hessian/" not in text
    assert "sharpness/" not in text
    assert "summary:test/loss" in text


def test_a_curvature_that_is_negative_has_no_logarithmic_axis(made):
    report, folder = made()
    report.table.loc[0, "hessian/lambda_max"] = -1.0
    first = panels(spec(build(report, [folder], "team", "project")), "Scatter Plot")[0]["config"]
    assert "xAxisLogScale" not in first


def test_validation_curves_are_drawn_over_optimizer_steps(made):
    report, folder = made()
    report.table["val/loss"] = 1.0
    (curve,) = panels(spec(build(report, [folder], "team", "project")), "Run History Line Plot")
    assert (curve["config"]["xAxis"], curve["config"]["metrics"]) == ("trainer/global_step", ["val/loss"])


def plain(block):
    return block["text"] if "text" in block else "".join(plain(child) for child in block.get("children", ()))


def test_the_findings_stand_below_under_their_topics(made):
    blocks = [block for block in specified(made)["spec"]["blocks"] if plain(block)]
    assert [plain(block) for block in blocks if block["type"] == "paragraph"][:2] == [
        "4 runs.",
        "4 of the 4 runs were logged to wandb, and are shown here once uploaded.",
    ]
    headings = [plain(block) for block in blocks if block["type"] == "heading"]
    assert headings == ["Batch size", "SAM", "How to read this"]
    lists = [[plain(item) for item in block["children"]] for block in blocks if block["type"] == "list"]
    assert lists == [["Larger is worse.", "By 0.1."], ["It helps."], ["A note."]]


def test_a_long_title_is_cut_to_what_wandb_takes(made):
    assert len(specified(made, title="x" * 300)["title"]) == 128


def test_runs_that_wandb_does_not_know_are_counted(made):
    found = specified(made, groups=("a/1", "a/1"))
    assert "2 of the 4 runs were logged to wandb" in json.dumps(found)


def test_a_sweep_without_wandb_is_refused_with_the_way_out(made):
    report, folder = made(groups=())
    with pytest.raises(PublishError, match=r"no run in .* was logged to wandb: repeat the sweep with logger=\[csv,wa"):
        build(report, [folder], "team", "project")


@pytest.mark.parametrize("text", ["{", "{}", "[]"])
def test_a_damaged_note_is_named(text, made):
    report, folder = made()
    (folder / "2" / wandb_report.RUN_NAME).write_text(text)
    with pytest.raises(PublishError, match=r"2.wandb_run\.json cannot be read"):
        build(report, [folder], "team", "project")


def test_without_the_package_its_name_is_said(made, monkeypatch):
    report, folder = made()
    monkeypatch.setitem(sys.modules, "wandb_workspaces.reports.v2", None)
    with pytest.raises(PublishError, match=r"pip install 'lbtrain\[wandb-report\]'"):
        build(report, [folder], "team", "project")


def test_the_specification_can_be_written_to_a_file(made, tmp_path):
    report, folder = made()
    write_spec(report, [folder], "team", "project", tmp_path / "spec.json")
    found = json.loads((tmp_path / "spec.json").read_text())
    assert [block["type"] for block in found["spec"]["blocks"]].count("panel-grid") == 1
    assert found["entity"] == "team"


class Server:
    """Stands for the report of wandb-workspaces and the server behind it."""

    url = "https://wandb.ai/team/project/reports/x--1"

    def __init__(self, error=None):
        self.error, self.saved = error, 0

    def save(self):
        self.saved += 1
        if self.error:
            raise self.error


def test_publishing_saves_once_and_says_where(made, monkeypatch):
    report, folder = made()
    server = Server()
    monkeypatch.setattr(wandb_report, "build", lambda *given: server)
    assert publish(report, [folder], "team", "project") == Server.url
    assert server.saved == 1


@pytest.mark.parametrize("error", [ValueError("no such\nproject"), ConnectionError(), Exception("not logged in")])
def test_a_server_that_cannot_be_reached_is_one_sentence_and_the_local_report_stands(error, made, monkeypatch):
    report, folder = made()
    monkeypatch.setattr(wandb_report, "build", lambda *given: Server(error))
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.firm.org")
    with pytest.raises(PublishError) as raised:
        publish(report, [folder], "team", "project")
    said = str(raised.value)
    assert said.startswith("the W&B report could not be published to team/project on https://wandb.firm.org: ")
    assert (" ".join(str(error).split()) or "ConnectionError") in said
    assert said.endswith(f"the local report is complete: {report.html}")
    assert "\n" not in said


def test_the_note_that_the_logger_leaves_is_the_one_that_is_read():
    assert wandb_report.RUN_NAME == loggers.RUN_NAME


@pytest.fixture
def sweep(write_sweep):
    return write_sweep([make_record("SGD", "linear", batch, sam=False) for batch in (16, 64)])


def test_the_command_writes_the_local_report_and_the_specification(sweep, tmp_path, capsys):
    for number in (0, 1):
        note = {"id": f"id{number}", "group": "a/sweep", "project": "p", "entity": None}
        (sweep / str(number) / wandb_report.RUN_NAME).write_text(json.dumps(note))
    file = tmp_path / "spec.json"
    assert main([str(sweep), "--wandb", "team/project", "--wandb-dry-run", str(file)]) == 0
    assert f"W&B report, not published: {file}" in capsys.readouterr().out
    found = json.loads(file.read_text())
    assert (found["entity"], found["project"]) == ("team", "project")
    assert plain(found["spec"]["blocks"][1]) in " ".join((sweep / "report.md").read_text().split())


def test_where_it_cannot_be_made_the_local_report_stands_and_the_exit_code_says_so(sweep, capsys):
    assert main([str(sweep), "--wandb", "team/project"]) == 1
    assert "was logged to wandb: repeat the sweep with logger=[csv,wandb]" in capsys.readouterr().err
    assert (sweep / "report.html").is_file()


def test_a_dry_run_without_a_place_is_refused(sweep, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main([str(sweep), "--wandb-dry-run", str(tmp_path / "spec.json")])
    assert stop.value.code == 2
    assert "--wandb-dry-run needs --wandb ENTITY/PROJECT" in capsys.readouterr().err
