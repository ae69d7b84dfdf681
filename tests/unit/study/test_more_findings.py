from dataclasses import replace

import pytest

from lbtrain.study.between import between
from lbtrain.study.curves import Likeness
from lbtrain.study.estimates import Estimate
from lbtrain.study.exponents import BestRate, Exponent
from lbtrain.study.grid import Grid
from lbtrain.study.load import load_sweep
from lbtrain.study.more_findings import curve_sentences, exponent_sentence, line_sentence, more_findings
from tests.unit.study.known_sweep import grid_records, known_records, target_records, write_between

USED = tuple(BestRate(16.0 * 4**i, 0.1, 0.7) for i in range(4))


def test_a_grid_ends_in_its_exponents(write_sweep) -> None:
    adam, sgd = more_findings(load_sweep(write_sweep(grid_records({"SGD": 1.0, "Adam": 0.5}))))
    assert adam.topic == sgd.topic == "How the best rate follows the batch"
    assert adam.text.startswith("With Adam, the best rate (by train loss) grows as batch^0.5")
    assert adam.text.endswith("agrees with square root (0.5), not with linear (1) or no growth (0).")
    assert sgd.text.endswith("agrees with linear (1), not with square root (0.5) or no growth (0).")
    assert "4 batch sizes, 3 seeds" in sgd.text


@pytest.mark.parametrize(
    ("exponent", "end"),
    [
        (
            Exponent(Estimate(0.7, 3, None, 0.4, 1.1), 0.0, USED),
            "agrees with linear (1) and square root (0.5), not with no growth (0).",
        ),
        (
            Exponent(Estimate(0.7, 3, None, 0.6, 0.8), 0.0, USED),
            "not with linear (1), square root (0.5) or no growth (0).",
        ),
        (Exponent(Estimate(0.7, 1), 0.0, USED[:2]), "two or three batch sizes of one seed give no interval."),
        (
            Exponent(Estimate(0.7, 1), 0.0, USED[:2], (BestRate(1024, 0.5, 0.7, True, "highest"),)),
            "Left out, for the best rate is at the edge of those swept: batch 1024 (the highest).",
        ),
        (None, "no exponent. Sweep lower and higher rates."),
    ],
)
def test_an_exponent_is_told_with_what_limits_it(exponent, end) -> None:
    assert exponent_sentence(Grid("SGD", "train/loss", (), {}, exponent)).endswith(end)


def test_a_target_ends_in_the_critical_batch_size(write_sweep) -> None:
    table = load_sweep(write_sweep(target_records()))
    texts = {finding.topic: finding.text for finding in more_findings(table)}
    text = texts["Steps to the target"]
    assert text.startswith(
        "With SGD momentum 0.9, the target of 0.97 takes 682 steps at batch 8 (rate 0.01) and 53.0 at"
    )
    assert "critical batch size is 100 (95 % interval 100 to 100): nearly perfect scaling below 11, diminishing" in text
    assert text.endswith("no gain beyond; the gradient noise scale is 90.0.")


def test_a_best_rate_at_the_edge_and_a_target_out_of_reach_are_said(write_sweep) -> None:
    runs = [run for run in target_records() if run.config["data.batch_size"] != 8 or run.metrics["lr/base"] >= 0.01]
    runs = [
        replace(run, metrics=run.metrics | {"target/reached": 0.0}) if run.config["data.batch_size"] == 2048 else run
        for run in runs
    ]
    text = next(f.text for f in more_findings(load_sweep(write_sweep(runs))) if f.topic == "Steps to the target")
    assert "At batch 8 the best rate is at the edge of those swept: a better one may lie beyond." in text
    assert text.endswith("No rate reaches it with every seed at batch 2048.")


def test_curves_are_told_in_groups() -> None:
    pairs = [
        Likeness(64, ("a", "b"), 0.0, 0.0),
        Likeness(64, ("a", "c"), 0.5, 20.0),
        Likeness(64, ("b", "c"), 0.4, 16.0),
        Likeness(128, ("a", "b"), 0.002, None),
    ]
    assert list(curve_sentences(pairs)) == [
        'Validation curves at batch 64: "a" and "b" coincide (the same numbers); "a" differs from "c" (up to 0.400 '
        "of the value apart, 16 times the spread over seeds).",
        'Validation curves at batch 128: "a" and "b" coincide (up to 0.00200 of the value apart).',
    ]
    assert list(curve_sentences(pairs[1:3])) == []


def test_the_line_between_solutions_ends_in_a_ratio_of_curvatures(tmp_path, write_sweep) -> None:
    write_between(tmp_path)
    (tmp_path / "between" / "broken.json").write_text("{")
    table = load_sweep(write_sweep(known_records()))
    ratio, broken = (finding.text for finding in more_findings(table, [tmp_path]))
    assert ratio == (
        "With convnet, on the line from batch 16 to batch 1024 (train loss 0.0100 and 0.0100), the train loss bends "
        "9.00 times as much at batch 1024 as at batch 16 (1.19 to 10.7 per squared length of the line, 95 % interval "
        "9.00 to 9.00 over 3 seeds)."
    )
    assert broken.startswith("between/broken.json is left out: ")
    ((line,), _) = between([tmp_path])
    flat = replace(line, curvature=None)
    assert line_sentence(flat).endswith(
        "one of the ends is no minimum along the line: its second difference is not positive."
    )
    lost = replace(line, curves=line.curves | {"train_loss": (None,) * len(line.alpha)})
    assert line_sentence(lost).endswith("the train loss is not finite at both ends with every seed.")


def test_a_sweep_without_any_of_it_has_no_more_findings(write_sweep) -> None:
    assert more_findings(load_sweep(write_sweep(known_records()))) == []
