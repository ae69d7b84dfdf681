"""What the command line says of names that Hydra does not know."""

import os
import re
import signal
import subprocess
import sys

import pytest
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from lbtrain.app import cli, commands
from lbtrain.app.instantiate import ConfigError


@pytest.fixture(autouse=True)
def _command_line(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py"])
    yield
    GlobalHydra.instance().clear()


def error_of(*overrides):
    with initialize_config_module("lbtrain.conf", version_base="1.3"):
        try:
            compose("train", overrides=list(overrides))
        except Exception as error:
            return error
    raise AssertionError("composed")


@pytest.mark.parametrize(
    ("override", "hint"),
    [
        ("data.batchsize=1", "Did you mean 'batch_size'?"),
        ("data=digit", "Did you mean 'digits'?"),
        ("callbacks=[samm]", "Did you mean 'sam'?"),
        ("callbacks.hesian.top_k=1", "Did you mean 'hessian'?"),
        ("callbacks.early_stoping.patience=1", "Did you mean 'early_stopping'?"),
        ("callbacks.sam.rho=1", "'sam' is not part of this run; add it: callbacks=[...,sam]"),
        ("logger.wandb.offline=true", "'wandb' is not part of this run; add it: logger=[...,wandb]"),
        ("data.xyzzy=1", "There is no 'xyzzy'; known are: _target_, batch_size, "),
        (
            "optimizer=xyzzy",
            "There is no 'xyzzy'; known are: adam, adamw, lamb, lars, momentum, nesterov, rmsprop, sgd",
        ),
    ],
)
def test_nearest_name_or_all_names(override, hint):
    assert cli.did_you_mean(error_of(override)).startswith(hint)


@pytest.mark.parametrize("error", [None, ValueError("x"), ConfigError("1 problem in the config")])
def test_other_errors_get_no_hint(error):
    assert cli.did_you_mean(error) is None


@pytest.mark.timeout(20)
def test_errors_in_a_circle_get_no_hint_and_an_end():
    first, second = ValueError("x"), KeyError("y")
    first.__cause__, second.__context__ = second, first
    assert cli.did_you_mean(first) is None


def test_members_of_the_user_s_own_directory_count(tmp_path, monkeypatch):
    (tmp_path / "callbacks").mkdir()
    (tmp_path / "callbacks" / "mine.yaml").touch()
    monkeypatch.setattr(sys, "argv", ["train.py", f"--config-dir={tmp_path}"])
    assert {"mine", "sam"} <= set(cli._members("callbacks"))
    assert cli._members("") == []


@pytest.mark.parametrize(
    ("word", "near"), [("mesure", "measure"), ("scales", "scale"), ("reprot", "report"), ("synch", "sync")]
)
def test_a_mistyped_command_is_answered_with_the_nearest(word, near, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["lbtrain", word, "ckpt_path=x"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2
    assert capsys.readouterr().err == f"lbtrain: there is no command {word!r}. Did you mean {near!r}?\n"


@pytest.mark.parametrize("word", ["foo", "trian", "help", ""])
def test_a_first_word_that_is_nothing_at_all_is_answered_with_what_there_is(word, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["lbtrain", word])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2
    said = f"lbtrain: {word!r} is no command and no key=value; commands are: measure, scale, report, between, sync; "
    assert capsys.readouterr().err == said + "lbtrain --help lists the settings\n"


OTHERS = (["scale=1"], ["--help"], ["-m", "xyzzy"], ["~callbacks.sam"], ["+callbacks@callbacks=sam"])


@pytest.mark.parametrize("words", [[], *OTHERS, *([word] for word in commands.COMMANDS)])
def test_other_first_words_are_left_to_what_reads_them(words):
    commands.refuse_unknown_word(words)


@pytest.mark.parametrize("word", commands.COMMANDS)
def test_every_command_is_there_and_explains_itself(word, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["lbtrain", word, "--help"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code in (0, None)
    assert capsys.readouterr().out.lower().startswith("usage")


def test_help_names_the_commands_before_the_config(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["lbtrain", "--help"])
    monkeypatch.setattr(cli, "run", lambda: print("== Configuration groups =="))
    cli.main()
    commands_shown, _, _ = capsys.readouterr().out.partition("== Configuration groups ==")
    for word, (_, text) in commands.COMMANDS.items():
        assert re.search(rf"lbtrain {word} +{re.escape(text)}", commands_shown)


PRINTING = """
import sys
from lbtrain.app.reader import may_stop_reading
with may_stop_reading():
    print("usage")
    {end}
"""


def with_output_to(output, end, flags=()):
    """Print and end in a process of its own; its exit code and errors."""
    program = [sys.executable, *flags, "-c", PRINTING.format(end=end)]
    variables = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    done = subprocess.run(program, env=variables, stdout=output, stderr=subprocess.PIPE, text=True, timeout=60)
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("flags", "end", "expected"),
    [
        ([], "sys.exit(0)", (141, "")),
        (["-u"], "sys.exit(0)", (141, "")),
        ([], "sys.exit('no key')", (1, "no key\n")),
    ],
)
def test_output_that_nobody_reads_to_its_end_is_no_failure_and_hides_none(flags, end, expected):
    read, written = os.pipe()
    os.close(read)
    try:
        assert with_output_to(written, end, flags) == expected
    finally:
        os.close(written)


def test_a_pipe_to_another_process_that_broke_is_told():
    code, said = with_output_to(subprocess.DEVNULL, "raise BrokenPipeError('of a worker')")
    assert code == 1
    assert said.endswith("BrokenPipeError: of a worker\n")


@pytest.mark.parametrize("code", [0, 1, 2])
def test_a_command_gets_the_words_after_it_and_its_exit_code_is_that_of_the_program(code, monkeypatch):
    given = []
    monkeypatch.setattr(commands, "report", lambda words: given.extend(words) or code)
    monkeypatch.setattr(sys, "argv", ["lbtrain", "report", "a", "b", "--out", "c"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == code
    assert given == ["a", "b", "--out", "c"]


def test_ctrl_c_in_a_command_ends_with_the_code_of_a_shell(monkeypatch, capsys):
    def interrupted(words):
        raise KeyboardInterrupt

    monkeypatch.setattr(commands, "report", interrupted)
    monkeypatch.setattr(sys, "argv", ["lbtrain", "report", "a"])
    before = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(SystemExit) as stop:
            cli.main()
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN  # a second one disturbs nothing
    finally:
        signal.signal(signal.SIGINT, before)
    assert stop.value.code == 130
    assert capsys.readouterr().err == "interrupted\n"


def failure(error):
    try:
        raise error
    except Exception as raised:
        return raised


def test_config_error_is_described_without_a_traceback(monkeypatch):
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    assert cli._described(failure(ConfigError("1 problem")), OmegaConf.create({})) == "1 problem"
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    assert cli._described(failure(ConfigError("1 problem")), OmegaConf.create({})).startswith("Traceback")


def test_description_hides_secrets(monkeypatch):
    monkeypatch.setenv("MY_TOKEN", "from-outside")
    cfg = OmegaConf.create({"api_key": "sk-123456", "url": "https://${oc.env:MY_TOKEN}@x", "again": "${api_key}"})
    text = cli._described(failure(ValueError("sk-123456 at https://from-outside@x")), cfg)
    assert "sk-123456" not in text
    assert text.endswith("ValueError: *** at ***")
