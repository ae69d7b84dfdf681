"""lbtrain sync: what it would upload, when it does, and that it believes only wandb's marks."""

import os
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace

import pytest

from lbtrain.app import sync
from lbtrain.app.wandb_files import offline_runs
from lbtrain.app.wandb_server import unreachable
from tests.cli.wandb_file import offline_run, read

HOUR = 3600


@pytest.fixture(autouse=True)
def _no_key(monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


@pytest.fixture
def sweep(tmp_path):
    """Two runs, the second one resumed, and a third that was killed an hour ago."""
    offline_run(tmp_path / "sweep" / "0", "aaaa0000")
    offline_run(tmp_path / "sweep" / "1", "bbbb1111", name="batch_size=64", code=1, session="20260101_000001")
    offline_run(tmp_path / "sweep" / "1", "bbbb1111", name="batch_size=64", session="20260102_000000")
    killed = offline_run(tmp_path / "sweep" / "2", "cccc2222", code=None)
    age(killed, HOUR)
    return tmp_path / "sweep"


def age(folder, seconds):
    for file in folder.glob("*.wandb"):
        os.utime(file, (time.time() - seconds,) * 2)


@pytest.fixture
def wandb_command(monkeypatch):
    """Stands for wandb's own command: notes how it was called, and marks what it has uploaded."""
    calls = SimpleNamespace(words=[], variables={}, refuses=(), code=0)

    def run(command, env, check):
        calls.words, calls.variables = command, env
        for folder in (word for word in command if "offline-run-" in word):
            if not any(part in folder for part in calls.refuses):
                run_id = folder.rpartition("-")[2]
                (sync.Path(folder) / f"run-{run_id}.wandb.synced").touch()
        return SimpleNamespace(returncode=calls.code)

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(sync, "unreachable", lambda url: None)
    return calls


@pytest.fixture
def key(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    return "k" * 40


@pytest.mark.parametrize("padding", [0, 32768 - 150, 32768, 100_000])
def test_a_run_is_told_from_its_file_across_the_blocks_of_the_format(padding, tmp_path):
    folder = offline_run(tmp_path, "aaaa0000", padding=padding, code=3)
    (found,) = offline_runs(tmp_path)
    told = (found.id, found.name, found.group, found.project, found.entity, found.exit_code)
    assert told == ("aaaa0000", "batch_size=16", "a/sweep", "lbtrain", None, 3)
    assert found.size == sum(file.stat().st_size for file in folder.iterdir())
    assert read(folder / "run-aaaa0000.wandb")["history"] == [{"val/loss": 1.5}]


@pytest.mark.parametrize("cut", [1, 20, 60])
def test_a_file_that_was_cut_off_is_a_run_without_an_end(cut, tmp_path):
    folder = offline_run(tmp_path, "aaaa0000", padding=50)
    file = folder / "run-aaaa0000.wandb"
    file.write_bytes(file.read_bytes()[:-cut])
    (found,) = offline_runs(tmp_path)
    assert (found.id, found.name, found.exit_code) == ("aaaa0000", "batch_size=16", None)


@pytest.mark.parametrize("data", [b"", b":W&B", b"something else"])
def test_a_file_that_says_nothing_is_still_a_run(data, tmp_path):
    folder = offline_run(tmp_path, "aaaa0000")
    (folder / "run-aaaa0000.wandb").write_bytes(data)
    (found,) = offline_runs(tmp_path)
    assert (found.id, found.name, found.exit_code, found.is_empty) == ("aaaa0000", None, None, True)


def test_a_run_that_was_killed_before_anything_was_written_is_left_out(sweep, wandb_command, key, capsys):
    folder = offline_run(sweep / "3", "dddd3333")
    (folder / "run-dddd3333.wandb").write_bytes(b":W&B\xe1\xbe\x00")
    age(folder, HOUR)
    assert sync.main([str(sweep), "--yes"]) == 0
    assert f"{folder}: its job was killed before wandb wrote anything: left out" in capsys.readouterr().out
    assert str(folder) not in wandb_command.words


def test_a_dry_run_says_what_where_and_how_much_and_calls_nobody(sweep, wandb_command, capsys):
    assert sync.main([str(sweep), "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("3 runs in 4 sessions to upload, ")
    assert "to https://api.wandb.ai\n" in out
    assert "  project lbtrain, entity the default one of the key, group a/sweep\n" in out
    assert f"  {sweep / '0'}: batch_size=16 (id aaaa0000, " in out
    assert out.count("batch_size=64 (id bbbb1111, ") == 2
    assert "failed)" in out
    assert "no end: killed)" in out
    assert out.endswith("nothing was uploaded: --dry-run\n")
    assert wandb_command.words == []


def test_wandb_s_own_command_uploads_the_sessions_in_the_order_of_their_times(sweep, wandb_command, key, capsys):
    words = ["--yes", "--project", "p", "--entity", "e", "--base-url", "https://wandb.firm.org/"]
    assert sync.main([str(sweep), *words]) == 0
    program, folders = wandb_command.words[:8], wandb_command.words[8:]
    assert program == [sys.executable, "-m", "wandb", "sync", "--project", "p", "--entity", "e"]
    names = [os.path.basename(folder) for folder in folders]
    assert names == sorted(names)
    assert len(names) == 4
    assert "latest-run" not in " ".join(folders)
    assert all(os.path.isabs(folder) for folder in folders)
    assert wandb_command.variables["WANDB_BASE_URL"] == "https://wandb.firm.org"
    assert "WANDB_MODE" not in wandb_command.variables  # the tests' own is offline
    printed = "".join(capsys.readouterr())
    assert "project p, entity e, group a/sweep" in printed
    assert "uploaded 3 runs to https://wandb.firm.org; the files stay here" in printed
    assert key not in printed
    assert key not in " ".join(wandb_command.words)


def test_what_is_uploaded_is_not_uploaded_again(sweep, wandb_command, key, capsys):
    assert sync.main([str(sweep), "--yes"]) == 0
    wandb_command.words = []
    assert sync.main([str(sweep), "--yes"]) == 0
    assert capsys.readouterr().out.endswith("4 runs uploaded already: left out\nnothing is left to upload\n")
    assert wandb_command.words == []


@pytest.mark.parametrize("code", [0, 1])
def test_a_run_that_wandb_did_not_upload_makes_the_command_fail(code, sweep, wandb_command, key, capsys):
    # wandb ends with 0 also where the server has refused a run.
    wandb_command.refuses, wandb_command.code = ("cccc2222",), code
    assert sync.main([str(sweep), "--yes"]) == 1
    error = capsys.readouterr().err
    assert "1 of 4 were not uploaded" in error
    assert ("wandb sync has ended with code 1; " in error) == bool(code)
    assert str(sweep / "2" / "wandb") in error
    wandb_command.refuses, wandb_command.code = (), 0
    assert sync.main([str(sweep), "--yes"]) == 0
    assert len([word for word in wandb_command.words if "offline-run-" in word]) == 1


def test_an_error_of_the_command_alone_is_a_failure(sweep, wandb_command, key):
    wandb_command.code = 2
    assert sync.main([str(sweep), "--yes"]) == 1


def test_without_a_key_nothing_is_called_and_the_way_to_one_is_said(sweep, wandb_command, capsys):
    assert sync.main([str(sweep), "--yes", "--base-url", "https://wandb.firm.org"]) == 1
    error = capsys.readouterr().err
    assert "no key for https://wandb.firm.org: set WANDB_API_KEY, or run wandb login --host https://wandb.fi" in error
    assert wandb_command.words == []


def test_a_server_that_is_not_there_is_said_before_wandb_would_ask_it_for_days(sweep, key, monkeypatch, capsys):
    monkeypatch.setattr(subprocess, "run", lambda *given, **named: pytest.fail("called"))
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
    assert sync.main([str(sweep), "--yes", "--base-url", url]) == 1
    error = capsys.readouterr().err
    assert f"{url} cannot be reached (" in error
    assert error.endswith("); the runs stay here for later\n")
    assert key not in error


@pytest.mark.parametrize("status", [200, 404, 500])
def test_a_server_that_answers_anything_is_there_and_is_sent_no_key(status, key):
    seen = []

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self):
            seen.append(dict(self.headers))
            self.send_response(status)
            self.end_headers()

        def log_message(self, *given):
            """Say nothing."""

    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        assert unreachable(f"http://127.0.0.1:{server.server_port}") is None
        thread.join()
    assert len(seen) == 1
    assert key not in str(seen)


@pytest.mark.parametrize(("answer", "code"), [("y", 0), ("YES", 0), ("", 1), ("n", 1)])
def test_on_a_terminal_it_asks(answer, code, sweep, wandb_command, key, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda: True))
    monkeypatch.setattr("builtins.input", lambda question: answer)
    assert sync.main([str(sweep)]) == code
    assert bool(wandb_command.words) == (code == 0)


def test_where_nobody_can_be_asked_it_needs_a_word(sweep, wandb_command, key, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda: False))
    assert sync.main([str(sweep)]) == 2
    assert "add --yes" in capsys.readouterr().err
    assert wandb_command.words == []


def test_a_run_that_a_job_still_writes_is_left_for_later(sweep, capsys):
    age(sweep / "2" / "wandb" / "offline-run-20260101_000000-cccc2222", 1)
    assert sync.main([str(sweep), "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "cccc2222: a job seems to write to it still: left out; repeat this command when it has ended" in out
    assert "2 runs in 3 sessions to upload" in out


def test_the_sessions_of_a_run_that_goes_on_wait_for_the_last_one_and_go_in_order(sweep, wandb_command, key, capsys):
    # Killed, and gone on with at once: only the last session is still being written.
    first = offline_run(sweep / "2", "cccc2222", code=None, session="20260102_000000")
    last = offline_run(sweep / "2", "cccc2222", code=None, session="20260102_000100")
    assert sync.main([str(sweep), "--yes"]) == 0
    assert "cccc2222" not in " ".join(wandb_command.words)
    out = capsys.readouterr().out
    assert f"{last}: a job seems to write" in out
    assert out.count("a job seems to write") == 1
    assert sync.main([str(sweep), "--yes"]) == 1
    out = capsys.readouterr().out
    assert "nothing can be uploaded yet: 1 run is still being written" in out
    assert "nothing is left" not in out
    age(last, HOUR)  # the first one may be as fresh as it likes: nobody writes to it any more
    assert sync.main([str(sweep), "--yes"]) == 0
    sessions = [word for word in wandb_command.words if "offline-run-" in word]
    assert [os.path.basename(word)[12:27] for word in sessions] == [
        "20260101_000000",
        "20260102_000000",
        "20260102_000100",
    ]
    assert sessions[1] == str(first)


def test_runs_that_were_online_are_said_to_be_left_out(sweep, capsys):
    online = sweep / "3" / "wandb" / "run-20260101_000000-dddd3333"
    online.mkdir(parents=True)
    (online / "run-dddd3333.wandb").write_bytes(b"")
    assert sync.main([str(sweep), "--dry-run"]) == 0
    assert "1 run uploaded while it ran: left out" in capsys.readouterr().out


def test_a_folder_given_twice_is_uploaded_once(sweep, capsys):
    assert sync.main([str(sweep), str(sweep / "0"), "--dry-run"]) == 0
    assert "3 runs in 4 sessions to upload" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["absent"], "absent is not a folder"),
        (["empty"], "empty holds no run of wandb; runs have one with logger=[csv,wandb]"),
        (["empty", "--base-url", "wandb.firm.org"], "base_url must be an address such as https://wandb.example.org"),
    ],
)
def test_what_cannot_be_followed_is_said_in_one_line(words, said, tmp_path, monkeypatch, capsys):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    assert sync.main(words) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_a_long_list_is_cut(tmp_path, capsys):
    for number in range(33):
        offline_run(tmp_path / str(number), f"{number:08x}", session=f"20260101_0000{number:02d}")
    assert sync.main([str(tmp_path), "--dry-run"]) == 0
    assert "  and 3 more\n" in capsys.readouterr().out
