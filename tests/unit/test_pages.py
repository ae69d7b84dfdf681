"""What the pages of the callbacks that do not climb say is so: arguments, defaults, code, command lines, keys."""

import ast
import inspect
import re
import shlex

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

import lbtrain
from lbtrain.app.instantiate import validate
from lbtrain.app.signatures import locate
from tests.modules import Plain, digits_like, fit
from tests.unit.test_docs import CONF, EVERY_PAGE, FAMILY, ROOT, _blocks, _table

# A page without a config of its own, such as one on functions, is tested where those are.
CONFIGS = {path.stem for path in (CONF / "callbacks").glob("*.yaml")}
PAGES = {name: text for name, text in EVERY_PAGE.items() if name in CONFIGS - set(FAMILY)}
KINDS = {name: locate(OmegaConf.load(CONF / "callbacks" / f"{name}.yaml")[name]["_target_"]) for name in PAGES}


def test_scaling_the_reduction_the_noise_and_the_sharpness_have_a_page():
    assert {"lr_scaling", "loss_reduction", "noise", "sharpness"} <= set(PAGES)


@pytest.mark.parametrize("page", PAGES)
def test_the_table_of_arguments_is_the_signature(page):
    parameters = inspect.signature(KINDS[page]).parameters
    rows = {cells[0].strip("`"): cells[1].strip("`") for cells in _table(PAGES[page], "argument")}
    assert list(rows) == list(parameters)
    for name, p in parameters.items():
        shown = p.empty if rows[name] == "required" else ast.literal_eval(rows[name])
        assert (shown, type(shown)) == (p.default, type(p.default))


@pytest.mark.parametrize(("page", "block"), [(page, b) for page in PAGES for b in _blocks(PAGES[page], "python")])
def test_the_python_of_a_page_trains(page, block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where callbacks leave their files
    names = {"Trainer": lambda callbacks, **options: fit(Plain(), digits_like(), callbacks, **options), "torch": torch}
    exec(block, names)
    assert names["trainer"].global_step > 0
    assert any(isinstance(callback, KINDS[page]) for callback in names["trainer"].callbacks)


COMMANDS = [
    pytest.param(page, line, id=f"{page}: {line}")
    for page in PAGES
    for block in _blocks(PAGES[page], "bash")
    for line in block.splitlines()
]


@pytest.mark.parametrize(("page", "line"), COMMANDS)
def test_a_command_line_composes_with_the_callback_of_its_page_and_is_valid(page, line):
    program, *words = shlex.split(line)
    if (program, *words[:1]) == ("lbtrain", "scale"):
        from lbtrain.app.scale import main

        assert main(words[1:]) == 0
        return
    if words[0].startswith("benchmarks/"):
        assert (ROOT / words[0]).is_file()
        return
    assert (program, words[0]) == ("python", "train.py")
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", [word for word in words[1:] if word != "-m"])
        assert page in cfg.callbacks
        validate(cfg)


@pytest.mark.parametrize("page", PAGES)
def test_a_page_has_code_and_a_command_line_and_is_linked(page):
    assert _blocks(PAGES[page], "python")
    assert page in {param.values[0] for param in COMMANDS}
    assert f"(docs/{page}.md)" in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("page", PAGES)
def test_calls_in_the_text_fit_the_signatures(page):
    for span in re.findall(r"`([A-Z]\w+\([^`]*\))`", PAGES[page]):
        call = ast.parse(span).body[0].value
        if call.func.id in lbtrain.__all__:
            keywords = {keyword.arg: None for keyword in call.keywords}
            inspect.signature(getattr(lbtrain, call.func.id)).bind_partial(*call.args, **keywords)


def test_the_examples_without_lightning_run_in_order_and_name_all_there_is(capsys):
    from lbtrain import curvature

    page, names = EVERY_PAGE["curvature"], {}
    for block in _blocks(page, "python"):
        exec(block, names)
    printed = capsys.readouterr().out
    assert "eigenvalues below zero" in printed
    assert "of the edge" in printed
    assert "nan" not in printed
    assert all(f"{name}" in page for name in curvature.__all__)
