import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from rich.text import Text

from lbtrain.study.__main__ import main, show
from lbtrain.study.lines import by_run, by_setting
from lbtrain.study.load import load_sweep
from lbtrain.study.report import Report
from lbtrain.study.terminal import WIDTH, print_report
from tests.unit.study.known_sweep import KNOWN, NASTY, failed, family_records, known_records, make_record, with_method

pytestmark = pytest.mark.usefixtures("undrawn")


def test_the_whole_study_in_the_terminal(report: Report) -> None:
    stream = io.StringIO()
    print_report(report, Console(file=stream))
    lines = stream.getvalue().splitlines()
    assert max(map(len, lines[:-1])) <= WIDTH
    assert "\x1b" not in stream.getvalue()
    assert "\N{HORIZONTAL ELLIPSIS}" not in stream.getvalue()
    text = " ".join(" ".join(lines).split())
    assert "66 runs: 64 finished (4 of them diverged), 1 failed and 1 unfinished." in text
    # 1.27 and 1.1 times that: 1.33 -+ 12.706 * 0.0635
    assert "Adam sqrt 1024 0 2 0.983 \N{PLUS-MINUS SIGN}0 1.33 \N{PLUS-MINUS SIGN}0.81" in text
    outcomes = [" ".join(line.split()[-2:]) for line in lines if line.split()[-1:]]
    assert (outcomes.count("1 failed"), outcomes.count("2 diverged")) == (1, 2)
    # 0.78 * 1.1 ** 0.5, the geometric mean of the seeds, and so on
    assert "lambda_max grows 18.3x from batch 16 to 1024 with Adam (0.818 to 15.0; 95 % interval 18.3 to 18.3" in text
    assert f"64 (Adam, sqrt rate, batch 64, SAM rho 0.05, seed 5): failed: {NASTY}" in text
    assert "70 (unknown): unfinished: no summary.json: still running, or killed" in text
    assert lines[-1] == f"Report: {report.html}"


def test_a_long_table_is_cut_and_says_so(report: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lbtrain.study.terminal.MAX_ROWS", 10)
    stream = io.StringIO()
    print_report(report, Console(file=stream))
    assert f"22 more in {report.settings_csv}" in "".join(stream.getvalue().split("\n"))


def test_a_wide_terminal_gets_colours_and_the_same_width(report: Report) -> None:
    stream = io.StringIO()
    print_report(report, Console(file=stream, width=300, force_terminal=True, color_system="standard"))
    assert "\x1b" in stream.getvalue()
    assert all(len(Text.from_ansi(line)) <= WIDTH for line in stream.getvalue().splitlines()[:-1])


@pytest.mark.parametrize("width", [60, 80, 100])
def test_the_table_fits_the_terminal_and_leaves_out_whole_columns(report: Report, width: int) -> None:
    stream = io.StringIO()
    print_report(report, Console(file=stream, width=width, force_terminal=True))
    lines = [Text.from_ansi(line).plain for line in stream.getvalue().splitlines()[:-1]]
    assert max(map(len, lines)) <= width
    assert "\N{HORIZONTAL ELLIPSIS}" not in "".join(lines)
    heads = " ".join(" ".join(lines[:8]).split())
    assert ("keskar" in heads, "train" in heads, "acc" in heads) == {
        60: (False, False, True),
        80: (False, False, True),
        100: (False, True, True),
    }[width]


def test_show_builds_and_prints(write_sweep, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = write_sweep(known_records()[:1])
    show(sweep)
    assert (sweep / "report.html").is_file()
    assert "Report:" in capsys.readouterr().out


def test_several_sweeps_and_another_place(write_sweep, tmp_path: Path) -> None:
    one, two = write_sweep(known_records((0,))[:1], "one"), write_sweep(known_records((1,))[:1], "two")
    assert main([str(one), str(two), "--out", str(tmp_path / "both")]) == 0
    text = (tmp_path / "both" / "report.md").read_text()
    assert "2 runs: 2 finished." in text
    assert "seed (0, 1)" in text
    assert not (one / "report.html").exists()


def test_nothing_to_report_is_one_line_and_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "absent")]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert len(printed.err.splitlines()) == 1
    assert "absent is not a folder" in printed.err


def test_errors_of_the_command_line_name_the_command_as_it_was_called(capsys: pytest.CaptureFixture[str]) -> None:
    for words, prog in (({}, "python -m lbtrain.study"), ({"prog": "lbtrain report"}, "lbtrain report")):
        with pytest.raises(SystemExit):
            main([], **words)
        said = capsys.readouterr().err
        assert said.startswith(f"usage: {prog} [-h]")
        assert f"{prog}: error: the following arguments are required: SWEEP_DIR" in said


def test_the_study_knows_neither_torch_nor_lightning() -> None:
    import subprocess
    import sys

    code = (
        "import lbtrain.study.__main__, sys; assert not {'torch', 'pytorch_lightning', 'lightning'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_other_settings_have_a_column_each(write_sweep, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_record("Adam", "none", 64, sam=False)
    noise = {
        "callbacks.noise._target_": "lbtrain.callbacks.noise.Noise",
        "optimizer.lr": 0.003,
        "model.optimizer.lr": 0.003,
    }
    show(write_sweep([run, replace(run, config=run.config | noise)]))
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert any(line.startswith("run noise optimizer.lr") for line in lines)
    assert any(line.startswith("0 - 0.001 0.981 2.00") for line in lines)
    assert any(line.startswith("1 Noise 0.003 0.981 2.00") for line in lines)


def test_several_methods_have_a_column(write_sweep, capsys: pytest.CaptureFixture[str]) -> None:
    runs = family_records(settings=tuple(KNOWN), batches=(16, 64))
    show(write_sweep([*runs, failed(with_method(runs[0], "GSAM", rho=0.2), "out of memory")]))
    printed = capsys.readouterr().out.splitlines()
    assert max(map(len, printed[:-1])) <= WIDTH
    assert "\N{HORIZONTAL ELLIPSIS}" not in "".join(printed)
    lines = [" ".join(line.split()) for line in printed]
    assert any(line.startswith("run optimizer rate batch method rho acc max") for line in lines)
    assert "4 Adam fixed 16 - 0 0.983 0.780" in "\n".join(lines)
    assert "52 Adam fixed 16 FriendlySAM 0.05 0.983 0.546" in "\n".join(lines)  # 0.7 of 0.780
    assert "28 Adam fixed 16 SAM p=inf 0.001 0.983 0.234" in "\n".join(lines)
    assert any(line.startswith("72 SGD mom. 0.9 fixed 16 GSAM 0.2 -") and line.endswith("failed") for line in lines)
    assert "- 72 (SGD momentum 0.9, fixed rate, batch 16, GSAM rho 0.2): failed: out of memory" in "\n".join(lines)


@pytest.mark.parametrize(
    ("zero", "head"), [(False, ["GSAM", "run rho acc max"]), (True, ["run method rho acc max"])], ids=["clear", "not"]
)
def test_the_radius_alone_tells_one_method_where_it_is_clear(write_sweep, capsys, zero: bool, head: list) -> None:
    plain = make_record("Adam", "none", 64, sam=False)
    show(write_sweep([plain, with_method(plain, "GSAM"), *([with_method(plain, "GSAM", rho=0.0)] if zero else [])]))
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    for start in head:
        assert any(line.startswith(start) for line in lines), start


def test_an_argument_of_a_method_has_a_column(write_sweep, capsys: pytest.CaptureFixture[str]) -> None:
    plain = make_record("Adam", "none", 64, sam=False)
    show(write_sweep([plain, *(with_method(plain, "GSAM", alpha=alpha) for alpha in (0.2, 0.4))]))
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert any(line.startswith("run rho alpha acc max") for line in lines)
    assert [line[:11] for line in lines if line[:2] in {"0 ", "1 ", "2 "}] == [
        "0 0 - 0.981",
        "1 0.05 0.2 ",
        "2 0.05 0.4 ",
    ]


def test_what_was_left_out_is_said_in_the_terminal(write_sweep, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = write_sweep(known_records()[:2])
    for i in range(8):
        (sweep / f"notes{i}").mkdir()
    show(sweep)
    text = " ".join(capsys.readouterr().out.split())
    assert (
        "Left out - notes0, notes1, notes2, notes3, notes4, notes5 and 2 more: no summary.json and no .hydra/: no run"
        in text
    )


def test_the_baseline_is_chosen_on_the_command_line(write_sweep, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = str(write_sweep(known_records()))
    assert main([sweep, "--baseline", "optimizer=SGD momentum 0.9 batch=64 rate=fixed method=none"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "The baseline is SGD momentum 0.9, fixed rate, batch 64, without SAM, as asked for." in said
    assert "One pair of seeds each: no difference has an interval." in said
    assert main([sweep, "--baseline", "batch=48"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.splitlines() == [
        "--baseline: no setting has batch=48 beside what is named before; batch is 16, 64, 256, 1024"
    ]


def test_a_place_at_wandb_has_two_parts(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["somewhere", "--wandb", "team"])
    assert "must be ENTITY/PROJECT, got 'team'" in capsys.readouterr().err


def test_the_report_is_published_after_it_is_written(write_sweep, monkeypatch, capsys) -> None:
    from lbtrain.study import wandb_report

    sweep, asked = write_sweep(known_records()[:1]), []

    def publish(report, folders, entity, project):
        asked.append((report.html.is_file(), list(folders), entity, project))
        if project == "closed":
            raise wandb_report.PublishError("no such project")
        return "the address"

    monkeypatch.setattr(wandb_report, "publish", publish)
    assert main([str(sweep), "--wandb", "team/project"]) == 0
    assert asked == [(True, [sweep], "team", "project")]
    assert "W&B report: the address" in capsys.readouterr().out
    assert main([str(sweep), "--wandb", "team/closed"]) == 1
    assert capsys.readouterr().err == "no such project\n"


def test_a_dry_run_that_cannot_be_written_is_one_sentence(write_sweep, undrawn, monkeypatch, capsys) -> None:
    from lbtrain.study import wandb_report

    monkeypatch.setattr(wandb_report, "build", lambda *_: None)
    monkeypatch.setattr(wandb_report, "spec", lambda _: {})
    sweep = write_sweep(known_records()[:1])
    file = sweep / "absent" / "f.json"
    assert main([str(sweep), "--wandb", "team/project", "--wandb-dry-run", str(file)]) == 1
    said = f"--wandb-dry-run: {file} cannot be written: No such file or directory\n"
    assert capsys.readouterr().err == said


@pytest.mark.parametrize("seeds", [(0,), (0, 1)])
def test_the_objective_is_the_first_metric_whatever_it_is(write_sweep, seeds: tuple[int, ...]) -> None:
    records = [
        replace(
            record,
            config=record.config | {"objective": "target/steps"},
            metrics=record.metrics | {"target/steps": 100.0 + record.metrics["batch/global"]},
        )
        for record in known_records(seeds)
    ]
    table = load_sweep(write_sweep(records))
    found = by_run(table) if len(seeds) == 1 else by_setting(table)
    titles = [column.title for column in found.columns if column.title.startswith(("target\nsteps", "test\nacc"))]
    assert [title[:6] for title in titles] == ["target", "test\na"]
    place = next(i for i, column in enumerate(found.columns) if column.title.startswith("target\nsteps"))
    # A setting whose runs have all diverged has no mean.
    assert {texts[place].split()[0] for texts, _ in found.body} - {"-"} == {"116", "164", "356", "1124"}
