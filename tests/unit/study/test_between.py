import json

import pytest

from lbtrain.study.between import between, between_alt
from lbtrain.study.draw_between import draw_between
from tests.unit.study.known_sweep import write_between


def test_the_curves_are_averaged_over_the_seeds_of_each_network(tmp_path) -> None:
    write_between(tmp_path, "mlp", sharper=2.0)
    write_between(tmp_path, "convnet")
    found, broken = between([tmp_path])
    assert broken == []
    assert [(line.network, line.ends, line.num_seeds) for line in found] == [
        ("convnet", ("batch 16", "batch 1024"), 3),
        ("mlp", ("batch 16", "batch 1024"), 3),
    ]
    left = found[0].at("train_loss", -1.0)
    assert left.mean == pytest.approx(0.01 + 0.5 * 1.2)
    assert left.low < left.mean < left.high
    assert found[0].curvature.ratio.mean == pytest.approx(9.0)
    assert found[1].curvature.ratio.mean == pytest.approx(2.0)
    assert found[0].curvature.before == pytest.approx(2 * 0.5 * (1.0 * 1.2 * 1.4) ** (1 / 3))  # second derivative
    assert "convnet, from batch 16 (0) to batch 1024 (1): train loss 0.0100 and 0.0100" in between_alt("T", found)
    assert "highest train loss between them 0.304 at 0.70" in between_alt("T", found)


def test_a_band_of_two_seeds_leaves_the_curves_legible_and_is_said_to_be_cut(tmp_path) -> None:
    write_between(tmp_path, seeds=(0, 4))
    found, _ = between([tmp_path])
    axes = draw_between("Title", found).axes
    top = max(e.high for key in ("train_loss", "test_loss") for e in found[0].curves[key])
    assert axes[0].get_ylim()[1] < 0.5 * top
    assert axes[1].get_ylim()[0] > -0.1
    assert axes[1].get_ylim()[1] < 1.1
    assert between_alt("T", found).endswith(" Bands that end outside of the figure are cut off at its edge.")


def test_the_same_folder_given_twice_counts_once(tmp_path) -> None:
    write_between(tmp_path)
    assert between([tmp_path, tmp_path / "."])[0][0].num_seeds == 3
    assert between([]) == ([], [])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda data: "{", "Expecting"),
        (lambda data: json.dumps({k: v for k, v in data.items() if k != "alpha"}), "it lacks 'alpha'"),
        (lambda data: json.dumps(data | {"test_acc": [0.5]}), "test_acc has 1 values for 31 places"),
        (lambda data: json.dumps(data | {"alpha": data["alpha"][::-1]}), "growing"),
        (lambda data: json.dumps(data | {"train_loss": None}), "not iterable"),
        (lambda data: "[1]", "list indices"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_and_left_out(tmp_path, change, reason) -> None:
    write_between(tmp_path)
    path = tmp_path / "between" / "convnet-1.json"
    path.write_text(change(json.loads(path.read_text())))
    found, (sentence,) = between([tmp_path])
    assert found[0].num_seeds == 2
    assert sentence.startswith("between/convnet-1.json is left out: ")
    assert reason in sentence


def test_a_loss_that_is_not_finite_leaves_a_gap(tmp_path) -> None:
    write_between(tmp_path, seeds=(0,))
    path = tmp_path / "between" / "convnet-0.json"
    data = json.loads(path.read_text())
    data["train_loss"][-1], data["test_loss"][-1] = "nan", "inf"
    path.write_text(json.dumps(data))
    ((line,), _) = between([tmp_path])
    assert line.at("train_loss", 2.0) is None
    assert line.at("train_loss", 1.9) is not None
    drawn = draw_between("Title", [line]).axes[0].get_lines()[2]
    assert len(drawn.get_xdata()) == 30


def test_an_end_that_is_no_minimum_gives_no_ratio(tmp_path) -> None:
    write_between(tmp_path, seeds=(0,))
    path = tmp_path / "between" / "convnet-0.json"
    data = json.loads(path.read_text())
    data["train_loss"] = [3 - a * a / 10 for a in data["alpha"]]
    path.write_text(json.dumps(data))
    assert between([tmp_path])[0][0].curvature is None


def test_seeds_measured_at_other_places_are_read_off_between(tmp_path) -> None:
    write_between(tmp_path, seeds=(0, 1))
    path = tmp_path / "between" / "convnet-1.json"
    data = json.loads(path.read_text())
    for key in ("alpha", "train_loss", "test_loss", "train_acc", "test_acc"):
        data[key] = data[key][2:-2:2]  # from -0.8 to 1.8
    path.write_text(json.dumps(data))
    ((line,), _) = between([tmp_path])
    assert (line.alpha[0], line.alpha[-1]) == pytest.approx((-0.8, 1.8))
    assert line.num_seeds == 2
