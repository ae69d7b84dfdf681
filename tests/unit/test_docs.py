"""What the pages of the SAM family say is so: arguments, defaults, code, command lines, keys and links."""

import ast
import importlib
import inspect
import itertools
import re
import shlex
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

import lbtrain
from lbtrain.app.instantiate import validate
from lbtrain.app.signatures import locate
from lbtrain.callbacks._climber import Climber
from tests.modules import Plain, digits_like, fit

ROOT = Path(__file__).parents[2]
CONF, DOCS = ROOT / "conf", ROOT / "docs"
SECTIONS = ["What it does", "When to use it", "Cost", "Arguments", "Caveats", "Switch it on", "Source"]
# Whatever may be called in the text of a page.
NAMES = {
    name: value
    for module in ("lbtrain", "lbtrain.functional.ascent", "lbtrain.functional.descent")
    for name, value in vars(importlib.import_module(module)).items()
    if callable(value)
} | {name: getattr(lbtrain, name) for name in lbtrain.__all__}


def _family():
    """Return the nodes of the YAMLs whose class climbs, by name."""
    nodes = {path.stem: OmegaConf.load(path).get(path.stem) for path in (CONF / "callbacks").glob("*.yaml")}
    found = {name: (locate(node["_target_"]), node) for name, node in nodes.items() if node is not None}
    return {name: (kind, node) for name, (kind, node) in sorted(found.items()) if issubclass(kind, Climber)}


FAMILY = _family()
EVERY_PAGE = {path.stem: path.read_text() for path in sorted(DOCS.glob("*.md"))}
PAGES = {name: text for name, text in EVERY_PAGE.items() if name in FAMILY}
CARDS = [name for name in FAMILY if name != "sam"]


def _blocks(text, language):
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def _without_blocks(text):
    return re.sub(r"```.*?```", "", text, flags=re.DOTALL)


def _table(text, first):
    """Return the rows of the table whose head starts with this word, each a list of cells."""
    lines = text.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"| {first} |"))
    rows = itertools.takewhile(lambda line: line.startswith("|"), lines[start + 2 :])
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in rows]


def _arguments(text):
    """Return the defaults of a page's table of arguments, by name."""
    rows = {name.strip("`"): cell.strip("`") for name, cell, *_ in _table(text, "argument")}
    return {name: eval(cell, {"float": float}) for name, cell in rows.items()}


def _defaults(target):
    return {name: p.default for name, p in inspect.signature(target).parameters.items()}


def test_every_config_that_climbs_has_a_card_and_every_card_a_config():
    assert len(FAMILY) >= 8
    assert set(FAMILY) <= set(PAGES)
    assert {page for page, text in PAGES.items() if "\n## Switch it on\n" in text} == set(CARDS)
    without_config = {page for page in EVERY_PAGE if not (CONF / "callbacks" / f"{page}.yaml").is_file()}
    assert without_config == {"curvature", "clusters", "report", "sweeps", "wandb"}


def test_the_table_of_arguments_is_the_signature_of_sam():
    documented, defaults = _arguments(PAGES["sam"]), _defaults(lbtrain.SAM)
    assert list(documented) == list(defaults)
    assert documented == defaults
    assert {name: type(value) for name, value in documented.items()} == {n: type(v) for n, v in defaults.items()}


@pytest.mark.parametrize("name", CARDS)
def test_a_card_has_the_defaults_of_its_config_and_shows_all_that_differ_from_sam(name):
    kind, node = FAMILY[name]
    documented, defaults = _arguments(PAGES[name]), _defaults(kind)
    in_config = {key: tuple(v) if OmegaConf.is_list(v) else v for key, v in node.items() if key != "_target_"}
    assert documented == {key: in_config[key] for key in documented}
    # asam and sam_inf are settings of SAM; the others are classes with these defaults.
    if kind is not lbtrain.SAM:
        assert documented == {key: defaults[key] for key in documented}
    of_sam = _defaults(lbtrain.SAM) if issubclass(kind, lbtrain.SAM) else {}
    assert {key for key, value in in_config.items() if key not in of_sam or value != of_sam[key]} <= set(documented)


@pytest.mark.parametrize("name", CARDS)
def test_a_card_names_its_class_and_has_all_sections(name):
    kind, _ = FAMILY[name]
    assert re.findall(r"^## (.*)$", PAGES[name], re.MULTILINE) == SECTIONS
    assert f"from lbtrain import {kind.__name__}\n" in PAGES[name]
    assert f"(../lbtrain/{'/'.join(kind.__module__.split('.')[1:])}.py)" in PAGES[name]


def test_the_family_table_lists_every_config_with_its_class():
    rows = {cells[1].strip("`"): cells for cells in _table(PAGES["sam"], "callback")}
    assert set(rows) == set(FAMILY)
    for name, (kind, _) in FAMILY.items():
        assert re.match(rf"`{kind.__name__}[`(]", rows[name][0]), name
        assert name == "sam" or f"({name}.md)" in rows[name][4]


PYTHON = [(page, i, block) for page, text in PAGES.items() for i, block in enumerate(_blocks(text, "python"))]


def _kind_of(block):
    kinds = [word for word in ("Trainer(", "def configure_optimizers(", "shifted(") if word in block]
    return kinds[0] if len(kinds) == 1 else None


def _blocks_of(kind):
    return [pytest.param(page, block, id=f"{page}-{i}") for page, i, block in PYTHON if _kind_of(block) == kind]


def test_every_python_block_parses_and_is_of_a_kind_that_is_run():
    for page, i, block in PYTHON:
        ast.parse(block)
        assert _kind_of(block), f"{page}, Python block {i}: no test runs it"
    assert {page for page, _, block in PYTHON if _kind_of(block) == "Trainer("} == set(FAMILY)


@pytest.mark.parametrize(("page", "block"), _blocks_of("Trainer("))
def test_the_python_of_a_page_trains_with_its_class(page, block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where callbacks leave their files
    module = Plain(optimizer=lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9))
    names = {"Trainer": lambda callbacks: fit(module, digits_like(), callbacks)}
    exec(block, names)
    assert names["trainer"].global_step == 6
    assert [type(callback) for callback in names["trainer"].callbacks if isinstance(callback, Climber)] == [
        FAMILY[page][0]
    ]


@pytest.mark.parametrize(("page", "block"), _blocks_of("def configure_optimizers("))
def test_parameter_groups_with_a_radius_of_their_own_train(page, block):
    names = {"torch": torch}
    exec(block, names)

    class Grouped(Plain):
        configure_optimizers = names["configure_optimizers"]

        def __init__(self):
            super().__init__()
            self.body, self.head = self.net[0], self.net[2]

    trainer = fit(Grouped(), digits_like(), [lbtrain.SAM()])
    assert [group.get("sam_rho") for group in trainer.optimizers[0].param_groups] == [None, 0.01]


def test_the_loop_of_the_page_is_the_one_that_the_example_runs():
    (block,) = [block for _, _, block in PYTHON if _kind_of(block) == "shifted("]
    imported, core = block.strip().split("\n\n")
    source = (ROOT / "examples" / "own_loop.py").read_text()
    assert block.count("\n") <= 10
    assert f"\n{imported}\n" in source
    assert f"\n{textwrap.indent(core, '    ')}\n\n" in source


def test_the_example_lowers_the_loss():
    command = [sys.executable, "examples/own_loop.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=True)
    losses = [float(value) for value in re.findall(r"loss (\d+\.\d+)", done.stdout)]
    assert len(losses) == 5
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.1


COMMANDS = [
    pytest.param(page, line, id=f"{page}: {line}")
    for page, text in PAGES.items()
    for block in _blocks(text, "bash")
    for line in block.splitlines()
]


@pytest.mark.parametrize(("page", "line"), COMMANDS)
def test_a_command_line_composes_with_the_callback_of_its_page_and_is_valid(page, line):
    python, script, *words = shlex.split(line)
    assert (python, script) == ("python", "train.py")
    sweep = words[0] == "-m"
    parsed = OverridesParser.create().parse_overrides(words[sweep:])
    assert any(override.is_sweep_override() for override in parsed) == sweep
    axes = [
        [f"{o.get_key_element()}={value}" for value in o.sweep_string_iterator()]
        if o.is_sweep_override()
        else [o.input_line]
        for o in parsed
    ]
    jobs = list(itertools.product(*axes))
    with initialize_config_dir(str(CONF), version_base="1.3"):
        for job in (jobs[0], jobs[-1]):
            cfg = compose("train", list(job))
            assert page in cfg.callbacks
            validate(cfg)


def test_every_page_has_a_command_line():
    assert {param.values[0] for param in COMMANDS} == set(FAMILY)


@pytest.mark.parametrize("page", FAMILY)
def test_calls_in_the_text_fit_the_signatures(page):
    spans = re.findall(r"`([a-zA-Z_]+\([^`]+\))`", _without_blocks(PAGES[page]))
    calls = [node for span in spans for node in ast.walk(ast.parse(span)) if isinstance(node, ast.Call)]
    known = [call for call in calls if isinstance(call.func, ast.Name) and call.func.id in NAMES]
    for call in known:
        arguments = {keyword.arg: None for keyword in call.keywords}
        inspect.signature(NAMES[call.func.id]).bind(*call.args, **arguments)
    assert known


def test_the_keys_of_the_page_are_those_that_are_logged():
    documented = {key.strip("`") for key, _ in _table(PAGES["sam"], "key")}
    momentum = lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9)
    logged = fit(Plain(), digits_like(), [lbtrain.SAM()], log_every_n_steps=1).callback_metrics
    assert documented == set(logged)
    fewer = fit(Plain(optimizer=momentum), digits_like(), [lbtrain.MomentumSAM()], log_every_n_steps=1).callback_metrics
    assert set(re.findall(r"`(sam/\w+)`", PAGES["momentum_sam"])) == set(fewer)


def _anchors(text):
    """Return what links to the headings of a page end in, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", _without_blocks(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", EVERY_PAGE)
def test_links_resolve(page):
    targets = re.findall(r"\]\(([^)]+)\)", _without_blocks(EVERY_PAGE[page]))
    assert targets
    for target in targets:
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        there = (DOCS / path).resolve() if path else DOCS / f"{page}.md"
        assert there.is_file(), target
        assert not anchor or anchor in _anchors(there.read_text()), target
