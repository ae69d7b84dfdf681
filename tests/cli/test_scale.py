"""`scale` on the command line: a report and nothing on disk, whichever way lbtrain is started."""

import sys

import pytest

from tests.cli.commands import TRAIN, run

WAYS = {"train.py": TRAIN, "python -m": (sys.executable, "-m", "lbtrain.app.cli")}


@pytest.mark.parametrize("way", WAYS)
def test_report_trains_nothing_and_leaves_nothing(way, tmp_path):
    words = ["scale", "batch=4096", "base_batch=256", "lr=0.1", "optimizer=adamw"]
    done = run(words, tmp_path, program=WAYS[way], cold=True, TERM="dumb", COLUMNS=None)
    assert (done.code, done.err) == (0, "")
    assert "learning rate         0.1         0.4  x 4 = 16^0.5 (sqrt)" in done.out
    assert not list(tmp_path.iterdir())


def test_wrong_word_ends_with_code_2_and_one_line(tmp_path):
    done = run(["scale", "batch=64", "base_bach=16"], tmp_path)
    assert (done.code, done.out) == (2, "")
    assert done.err == "lbtrain scale: unknown key 'base_bach'; did you mean 'base_batch'?\n"
    assert not list(tmp_path.iterdir())


def test_optimizer_of_ones_own_is_found_where_the_user_is(tmp_path):
    (tmp_path / "mine.py").write_text("import torch\n\n\nclass Lion(torch.optim.SGD):\n    pass\n")
    done = run(["scale", "batch=64", "base_batch=16", "lr=0.5", "optimizer=mine.Lion"], tmp_path)
    assert done.code == 0, done.err
    assert "takes for Lion" in done.out


def test_help_says_what_to_write(tmp_path):
    done = run(["scale"], tmp_path)
    assert done.code == 0
    assert done.out.startswith("usage: lbtrain scale batch=4096 base_batch=256")
