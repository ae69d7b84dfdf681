import subprocess

import pytest
from omegaconf import OmegaConf

from lbtrain.app.config import flat, git_commit, redacted, versions, without_secrets


def _flat(text):
    return flat(OmegaConf.create(text))


def test_keys_are_dotted_and_values_resolved():
    rows = _flat("a: {b: 1, c: [x, 0.5]}\nd: ${a.b}\ne: null\nf: true\ng: []\nh: {torch.SGD: 1}")
    assert rows == {"a.b": 1, "a.c.0": "x", "a.c.1": 0.5, "d": 1, "e": None, "f": True, "h.torch.SGD": 1}


def test_a_list_that_a_resolver_makes_is_a_list():
    assert _flat("a: '${oc.create:[x,{y: 1}]}'") == {"a.0": "x", "a.1.y": 1}


def test_copies_of_nodes_and_machine_paths_are_left_out():
    rows = _flat(
        "hydra: {x: 1}\npaths: {root: /r}\noptimizer: {lr: 1}\nmodel: {optimizer: '${optimizer}'}\n"
        "dir: ${hydra:runtime.output_dir}/a\nbelow: ${dir}/b\nfrom_paths: ${paths.root}/c\nname: ${hydra:job.name}"
    )
    assert rows == {"optimizer.lr": 1, "name": "${hydra:job.name}"}


@pytest.mark.parametrize(
    "key",
    [
        *("api_key", "apiKey", "token", "client_secret", "password", "hub-token", "WANDB_API_KEY", "secrets", "apikey"),
        *("HF_AUTH", "authToken", "db_pwd", "credential", "session-cookie", "authorization"),
    ],
)
def test_secrets_are_dropped(key):
    assert _flat({key: "hidden", "kept": 1}) == {"kept": 1}
    assert _flat({"a": {key: {"deep": "hidden"}}}) == {}


@pytest.mark.parametrize(
    "key", ["keep_graphs", "tokenizer", "max_tokens", "monkey", "keyboard", "author", "cookiecutter"]
)
def test_harmless_names_are_kept(key):
    assert _flat({key: "x"}) == {key: "x"}


def test_a_rate_named_like_a_secret_is_kept():
    assert _flat({"token_dropout": 0.1, "use_token": True, "key": None}) == {
        "token_dropout": 0.1,
        "use_token": True,
        "key": None,
    }


def test_environment_stays_unresolved_also_through_other_values(monkeypatch):
    monkeypatch.setenv("LBTRAIN_TEST_VALUE", "hunter2")
    rows = _flat(
        "a: ${oc.env:LBTRAIN_TEST_VALUE}\nb: x-${a}\nc: {d: '${..b}'}\ne: ${oc.decode:${oc.env:LBTRAIN_TEST_VALUE}}"
    )
    assert rows["a"] == "${oc.env:LBTRAIN_TEST_VALUE}"
    assert rows["b"] == rows["c.d"] == "x-${oc.env:LBTRAIN_TEST_VALUE}"
    assert not any("hunter2" in str(value) for value in rows.values())


def test_what_does_not_resolve_stays_as_written():
    assert _flat("a: ${nowhere}\nb: ???") == {"a": "${nowhere}", "b": "???"}


def test_the_config_is_not_changed():
    cfg = OmegaConf.create("a: ${oc.env:HOME}\nb: {token: t}")
    before = OmegaConf.to_yaml(cfg)
    flat(cfg)
    assert OmegaConf.to_yaml(cfg) == before


def test_overrides_that_set_secrets_are_dropped():
    given = ["data.batch_size=16", "+logger.wandb.api_key=abc", "hub_token=1", "~callbacks.sam", "tokenizer=x"]
    assert without_secrets(given) == ("data.batch_size=16", "~callbacks.sam", "tokenizer=x")


def test_overrides_that_hold_a_secret_inside_are_dropped():
    given = ["+logger.wandb={project: p, api_key: sk-1}", "+a=[{x: 1}, {'hub-token': hf}]", "+hydra.job.env_set.HF=hf"]
    assert without_secrets(given) == ()
    kept = ("+a={x: 1, tokenizer: y}", "tags=[${oc.env:HF_TOKEN}]", "data.batch_size=16")
    assert without_secrets(kept) == kept


ADDRESSES = {
    "https://me:hunter2@host/x": "https://me:***@host/x",
    "mysql://me:p@ss@host:3306/db": "mysql://me:***@host:3306/db",
    "postgresql+psycopg://:hunter2@host": "postgresql+psycopg://:***@host",
    "[https://a:b1@x,https://c:d1@y]": "[https://a:***@x,https://c:***@y]",
    "https://ghp_1234@github.com/a/b": "https://***@github.com/a/b",
    "https://host/x?size=3&access_token=abc&X-Amz-Signature=f0f0": (
        "https://host/x?size=3&access_token=***&X-Amz-Signature=***"
    ),
    "ssh://git@host:22/a": "ssh://git@host:22/a",
    "https://host:8080/mail@home": "https://host:8080/mail@home",
    "https://host/?monkey=1": "https://host/?monkey=1",
}


@pytest.mark.parametrize("written", ADDRESSES)
def test_passwords_in_addresses_are_blanked_out_wherever_a_config_is_written_down(written):
    shown = ADDRESSES[written]
    assert _flat({"a": written, "b": [written]}) == {"a": shown, "b.0": shown}
    assert _flat({"a": f"${{oc.create:['{written}']}}"}) == {"a.0": shown}
    assert without_secrets([f"server={written}"]) == (f"server={shown}",)
    assert redacted(f"no answer from '{written}'", OmegaConf.create()) == f"no answer from '{shown}'"


def test_secrets_in_the_overrides_of_a_job_are_found_behind_hydras_backslashes(monkeypatch):
    monkeypatch.setenv("SOME_SERVICE_TOKEN", "tok=4711:abc")
    given = [r"+a=https\://me\:hunter2@host/x?size\=3&token\=abc", r"b=https\://ghp_1@host", r"c=x-tok\=4711\:abc"]
    shown = (r"+a=https\://me\:***@host/x?size\=3&token\=***", r"b=https\://***@host", "c=x-***")
    assert without_secrets(given) == shown


def test_a_variable_named_like_a_secret_is_blanked_out_however_its_value_came_here(monkeypatch):
    monkeypatch.setenv("SOME_SERVICE_TOKEN", "tok-4711-abc")
    monkeypatch.setenv("OTHER_KEY", "short")
    rows = _flat({"a": "with tok-4711-abc", "b": "short"})
    assert rows == {"a": "with ***", "b": "short"}
    assert without_secrets(["notes=tok-4711-abc"]) == ("notes=***",)
    assert redacted("refused: tok-4711-abc, short", OmegaConf.create()) == "refused: ***, short"


def test_a_message_has_the_names_of_other_variables_that_the_config_reads(monkeypatch, tmp_path):
    monkeypatch.setenv("LBTRAIN_TEST_HUB", "hf-4711-abc")
    monkeypatch.setenv("LBTRAIN_TEST_ROOT", str(tmp_path))
    monkeypatch.setenv("LBTRAIN_TEST_NOT_READ", "not-read-by-anyone")
    cfg = OmegaConf.create({"hub": "${oc.env:LBTRAIN_TEST_HUB}", "root": "${oc.env:LBTRAIN_TEST_ROOT}/x"})
    assert redacted(f"hf-4711-abc, {tmp_path}/x", cfg) == f"${{oc.env:LBTRAIN_TEST_HUB}}, {tmp_path}/x"
    assert redacted("not-read-by-anyone", cfg) == "not-read-by-anyone"


def test_a_message_hides_a_secret_in_every_form_that_it_takes():
    secret = "line 1 of a key\n'line/2' of it\nx"
    cfg = OmegaConf.create({"private_key": secret, "pin_key": "123", "copy": "${private_key}"})
    assert redacted(f"got {secret}!", cfg) == "got ***!"
    assert redacted(f"got {secret!r}", cfg).count("***") == 1
    assert redacted("?key=line%201%20of%20a%20key%0A%27line%2F2%27%20of%20it%0Ax&x=1", cfg) == "?key=***&x=1"
    assert redacted("stopped at: 'line/2' of it", cfg) == "stopped at: ***"
    assert redacted("123 is too short to be hidden", cfg) == "123 is too short to be hidden"


def test_versions_name_what_shapes_the_numbers():
    found = versions()
    assert {"python", "lbtrain", "torch", "hydra-core", "numpy"} <= set(found)
    assert all(found.values())


def _git(folder, *arguments):
    identity = ["-c", "user.name=n", "-c", "user.email=e@example.org", "-c", "commit.gpgsign=false"]
    return subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout


def test_git_commit_and_dirty_mark(tmp_path):
    (tmp_path / "file").write_text("1")
    _git(tmp_path, "init", "-q")
    assert git_commit(tmp_path) is None
    _git(tmp_path, "add", "file")
    _git(tmp_path, "commit", "-q", "-m", "first")
    _git(tmp_path, "tag", "v1")
    commit = _git(tmp_path, "rev-parse", "HEAD").strip()
    assert git_commit(tmp_path) == commit
    (tmp_path / "file").write_text("2")
    assert git_commit(tmp_path) == f"{commit}-dirty"


def test_no_commit_without_a_repository(tmp_path):
    assert git_commit(tmp_path) is None
    assert git_commit(tmp_path / "absent") is None
