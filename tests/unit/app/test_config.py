import subprocess

import pytest
from omegaconf import OmegaConf

from lbtrain.app.config import flat, git_commit, versions, without_secrets


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
    ["api_key", "apiKey", "token", "client_secret", "password", "hub-token", "WANDB_API_KEY", "secrets", "apikey"],
)
def test_secrets_are_dropped(key):
    assert _flat({key: "hidden", "kept": 1}) == {"kept": 1}
    assert _flat({"a": {key: {"deep": "hidden"}}}) == {}


@pytest.mark.parametrize("key", ["keep_graphs", "tokenizer", "max_tokens", "monkey", "keyboard"])
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
