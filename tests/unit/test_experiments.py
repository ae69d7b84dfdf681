"""The experiments that are shipped: each composes as the sweep that it says it is, and has a page."""

import itertools
import re
import shlex
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from lbtrain.app.commands import COMMANDS
from lbtrain.app.instantiate import instantiate, validate
from lbtrain.functional.diagnosis import PROBLEMS
from tests.sick_runs import GALLERY, SICK

ROOT = Path(__file__).parents[2]
CONF, PAGES = ROOT / "conf", ROOT / "docs" / "experiments"
# Those that are a study of their own; tune shows the search for settings, in docs/clusters.md.
EXPERIMENTS = ("keskar2017", "loss_reduction", "lr_batch_grid", "sick_runs", "steps_to_target", "surlemont2022")
RUNS = {"keskar2017": 20, "loss_reduction": 12, "lr_batch_grid": 180, "steps_to_target": 40, "surlemont2022": 32}
RUNS |= {"sick_runs": 28}


def composed(*overrides):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", list(overrides))


def text_of(name):
    return (CONF / "experiment" / f"{name}.yaml").read_text()


def axes_of(words):
    """Return the values of each axis on a command line."""
    parsed = OverridesParser.create().parse_overrides(words)
    return [
        [f"{o.get_key_element()}={value}" for value in o.sweep_string_iterator()]
        if o.is_sweep_override()
        else [o.input_line]
        for o in parsed
    ]


def jobs_of(name):
    """Return the overrides of each run."""
    params = OmegaConf.load(CONF / "experiment" / f"{name}.yaml").hydra.sweeper.params
    return list(itertools.product(*axes_of([f"{key}={value}" for key, value in params.items()])))


def config_of(name, *overrides):
    return composed(f"experiment={name}", *overrides)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_first_line_is_the_command_and_the_runs_are_as_many_as_it_says(name):
    text = text_of(name)
    assert text.splitlines()[:2] == ["# @package _global_", f"# python train.py -m experiment={name}"]
    jobs = jobs_of(name)
    assert len(jobs) == len(set(jobs)) == RUNS[name]
    assert re.search(rf"\b{len(jobs)}\s", text.partition("\n\n")[0])


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_its_first_and_its_last_run_are_valid_resumable_and_named_in_wandb(name):
    jobs = jobs_of(name)
    for job in (jobs[0], jobs[-1]):
        cfg = config_of(name, *job)
        validate(cfg)
        assert "checkpoint" in cfg.callbacks
        assert cfg.trainer.max_epochs % cfg.callbacks.checkpoint.every_n_epochs == 0
        assert cfg.tags[0] == name


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_its_page_has_its_command_and_is_listed(name):
    page = (PAGES / f"{name}.md").read_text()
    assert f"python train.py -m experiment={name}\n" in page
    listed = (PAGES / "README.md").read_text()
    assert f"({name}.md)" in listed
    assert f"`python train.py -m experiment={name}`" in listed


COMMAND_LINES = [
    pytest.param(page.stem, line, id=f"{page.stem}: {line}")
    for page in sorted(PAGES.glob("*.md"))
    for block in re.findall(r"```bash\n(.*?)```", page.read_text(), re.DOTALL)
    for line in block.splitlines()
]


@pytest.mark.parametrize(("page", "line"), COMMAND_LINES)
def test_the_command_lines_of_the_pages_compose(page, line):
    program, first, *words = shlex.split(line)
    if program == "lbtrain":
        assert first in COMMANDS
        return
    assert (program, first) == ("python", "train.py")
    sweep = words[0] == "-m"
    axes = axes_of(words[sweep:])
    assert sweep == any(len(values) > 1 for values in axes) or "experiment=" in line
    validate(composed(*(values[-1] for values in axes)))


@pytest.mark.parametrize("page", sorted(PAGES.glob("*.md")), ids=lambda page: page.stem)
def test_the_links_of_a_page_resolve(page):
    targets = [t for t in re.findall(r"\]\(([^)]+)\)", page.read_text()) if not t.startswith("https://")]
    missing = [t for t in targets if not t.endswith(".png") and not (PAGES / t.partition("#")[0]).exists()]
    assert targets
    assert not missing


def test_keskar_measures_both_boxes_in_all_dimensions_and_in_a_hundred():
    sharpness = instantiate(config_of("keskar2017").callbacks.sharpness)
    told = [(wanted.definition, dict(wanted.arguments)) for wanted in sharpness._wanted]
    assert told == [
        ("keskar", {"eps": 1e-3}),
        ("keskar", {"eps": 5e-4}),
        ("keskar_subspace", {"eps": 1e-3, "dim": 100}),
        ("keskar_subspace", {"eps": 5e-4, "dim": 100}),
    ]
    assert {config_of("keskar2017", *job).optimizer.lr for job in jobs_of("keskar2017")} == {0.001}


def test_the_reductions_start_from_the_same_update_at_the_base_batch():
    rates = {r: config_of("loss_reduction", f"model.reduction={r}").optimizer.lr for r in ("mean", "sum")}
    # Exactly: 16 is a power of two.
    assert rates["mean"] == 16 * rates["sum"]
    assert config_of("loss_reduction").callbacks.lr_scaling.base_batch_size == 16


@pytest.mark.parametrize(
    ("axis", "key", "values"),
    [
        ("warmup.scaled=0,10", "callbacks.lr_scaling.warmup_epochs", [0, 10]),
        ("callbacks.sam.rho=0,0.05", "callbacks.sam.rho", [0, 0.05]),
        ("callbacks.sam.scope=rank,micro_batch", "callbacks.sam.scope", ["rank", "micro_batch"]),
    ],
)
def test_the_axes_of_the_page_of_the_study_reach_what_they_are_about(axis, key, values):
    page = (PAGES / "surlemont2022.md").read_text()
    assert axis.partition("=")[0] in page
    words = ["scaling=scaled", "callbacks=[lr_scaling,sam]"]
    found = [config_of("surlemont2022", *words, value) for (value,) in itertools.product(*axes_of([axis]))]
    assert [OmegaConf.select(cfg, key) for cfg in found] == values


def test_the_grid_holds_every_rate_for_every_batch_and_method_and_measures_nothing():
    jobs = jobs_of("lr_batch_grid")
    rates = sorted({float(word.partition("=")[2]) for job in jobs for word in job if word.startswith("optimizer.lr=")})
    assert [b / a for a, b in itertools.pairwise(rates)] == [2] * 8
    assert all(
        set(config_of("lr_batch_grid", *job).callbacks) <= {"checkpoint", "random_state", "sam"} for job in jobs[::60]
    )


def test_the_rates_of_the_target_move_with_the_batch_and_the_noise_is_measured():
    cfg = config_of("steps_to_target")
    assert {"target", "noise", "lr_scaling"} <= set(cfg.callbacks)
    assert cfg.callbacks.lr_scaling.rule == "sqrt"
    # At the largest batch an epoch has two batches, of which half is one: Lightning refuses less.
    batches = len(instantiate(config_of("steps_to_target", "data.batch_size=1024").data).train_dataloader())
    assert batches * cfg.trainer.val_check_interval >= 1


def test_the_gallery_holds_every_sick_run_once_and_each_begins_with_its_command():
    runs = [word.partition("=")[2] for job in jobs_of("sick_runs") for word in job]
    assert sorted(runs) == sorted(path.stem for path in (CONF / "sick").glob("*.yaml")) == sorted(GALLERY)
    listed = (PAGES / "sick_runs.md").read_text()
    for name in runs:
        text = (CONF / "sick" / f"{name}.yaml").read_text()
        assert text.splitlines()[:2] == ["# @package _global_", f"# python train.py sick={name}"]
        assert f"`{name}`" in listed
        assert (name in SICK) == (f"| `{name}` |" in listed)


@pytest.mark.parametrize("name", GALLERY)
def test_a_run_of_the_gallery_is_valid_named_and_diagnosed(name):
    cfg = composed(f"sick={name}")
    validate(cfg)
    assert (cfg.sick, list(cfg.tags)) == (name, ["sick_runs", name])
    assert "diagnostics" in cfg.callbacks


@pytest.mark.parametrize("name", SICK)
def test_the_page_tells_the_problem_of_each_sick_run(name):
    row = next(line for line in (PAGES / "sick_runs.md").read_text().splitlines() if line.startswith(f"| `{name}` |"))
    assert row.split("|")[3].strip() == GALLERY[name].problem
    assert GALLERY[name].problem in PROBLEMS
