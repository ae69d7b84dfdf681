"""What docs/clusters.md tells people to type is accepted."""

import re
import shlex
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module
from hydra.core.override_parser.overrides_parser import OverridesParser

from lbtrain.app.instantiate import validate

PAGE = (Path(__file__).parents[2] / "docs" / "clusters.md").read_text()
BLOCKS = re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)
LINES = [line for block in BLOCKS for line in block.replace("\\\n", "").splitlines() if "train.py" in line]
INLINE = [span for span in re.findall(r"`(python train.py [^`]*)`", PAGE.replace("\n", " ")) if "..." not in span]


def _words(line):
    words = shlex.split(line)
    return words[words.index("train.py") + 1 :]


@pytest.mark.parametrize("line", [*LINES, *INLINE])
def test_a_command_line_composes_and_is_valid(line):
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="needs the extra sweep")
    words = [word for word in _words(line) if word not in ("-m", "--cfg", "hydra")]
    # The values of a sweep are checked when it runs.
    fixed = [
        word
        for word, o in zip(words, OverridesParser.create().parse_overrides(words), strict=True)
        if not o.is_sweep_override()
    ]
    with initialize_config_module("lbtrain.conf", version_base="1.3"):
        validate(compose("train", fixed))
        assert compose("train", fixed, return_hydra_config=True).hydra.sweeper


def test_every_launcher_and_sweeper_of_the_page_is_among_these_lines():
    told = " ".join([*LINES, *INLINE])
    for choice in ("hydra/launcher=submitit_slurm", "hydra/sweeper=optuna", "trainer.num_nodes=2", "experiment=tune"):
        assert choice in told


def test_the_options_of_the_launchers_that_the_page_names_exist():
    named = set(re.findall(r"hydra\.launcher\.(\w+)", PAGE))
    known = set()
    for launcher in ("submitit_slurm", "joblib"):
        with initialize_config_module("lbtrain.conf", version_base="1.3"):
            known |= set(compose("train", [f"hydra/launcher={launcher}"], return_hydra_config=True).hydra.launcher)
    assert named <= known
    assert len(named) >= 8


def test_links_of_the_page_lead_somewhere():
    headings = {
        re.sub(r"[^\w -]", "", h).strip().lower().replace(" ", "-")
        for h in re.findall(r"^#+ (.*)$", PAGE, re.MULTILINE)
    }
    for link in re.findall(r"\]\(([^)]*)\)", PAGE):
        file, _, anchor = link.partition("#")
        assert (Path(__file__).parents[2] / "docs" / (file or "clusters.md")).is_file()
        assert not anchor or anchor in headings
