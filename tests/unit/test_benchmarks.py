"""The benchmark of SAM: it runs, its lines have the documented keys, and its exact figures are right."""

import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch
from torch import nn

FOLDER = Path(__file__).parents[2] / "benchmarks"
BOUNDS = {"sam": 2.03, "sam_every_10": 1.13, "momentum_sam": 1.05, "memory": 1.0}
TIME = ["network", "batch", "method", "precision", "accumulate", "steps", "turns"]
TIME += ["plain_ms", "step_ms", "ratio", "low", "high"]
RIVAL = ["ours_ms", "ours_over_rival", "ours_low", "ours_high"]
KERNELS = ["method", "foreach_calls", "foreach_calls_of_42_tensors", "calls_per_tensor"]


@pytest.fixture(scope="module")
def bench():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FOLDER)
        yield import_module("bench_sam_step")
        for name in ("bench_sam_step", "resnet"):
            sys.modules.pop(name)


@pytest.fixture(scope="module")
def printed():
    tiny = ["--network", "convnet", "--batch", "16", "--repeats", "1", "--seconds", "0.01", "--threads", "1"]
    command = [sys.executable, FOLDER / "bench_sam_step.py", *tiny, "--method", "sam", "two_step"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_each_case_is_a_json_line_with_the_documented_keys(printed, bench):
    kinds = [(row["case"], row.get("method")) for row in printed]
    methods = ("sam", "two_step")
    assert sorted(kinds[:-1]) == sorted((case, m) for case in ("time", "memory", "kernels") for m in methods)
    expected = {"time": TIME, "memory": ["method", "extra"], "kernels": KERNELS}
    for row in printed[:-1]:
        more = RIVAL if row["case"] == "time" and row["method"] == "two_step" else []
        assert list(row) == ["case", *expected[row["case"]], *more]
        assert all(key in bench.__doc__ for key in row)
    assert kinds[-1] == ("environment", None)


def test_a_time_is_its_ratio_times_the_plain_one(printed):
    for row in printed[:2]:
        assert row["step_ms"] / row["plain_ms"] == pytest.approx(row["ratio"], abs=0.01)
        assert row["turns"] == 1
        assert row["low"] == row["ratio"] == row["high"]


def test_a_sam_step_takes_one_copy_of_the_weights_and_as_many_calls_for_many_tensors_as_for_few(printed):
    (memory,) = (row for row in printed if row["case"] == "memory" and row["method"] == "sam")
    (kernels,) = (row for row in printed if row["case"] == "kernels" and row["method"] == "sam")
    assert memory["extra"] == 1.0
    # The norm, the scaling, the copy, the step, and the copy back.
    assert kernels["foreach_calls"] == kernels["foreach_calls_of_42_tensors"] == 5
    assert kernels["calls_per_tensor"] == 0


def test_a_loop_over_tensors_counts_its_operations_per_tensor(printed):
    (kernels,) = (row for row in printed if row["case"] == "kernels" and row["method"] == "two_step")
    assert kernels["foreach_calls"] == 0
    assert kernels["calls_per_tensor"] == 5  # norm, clone, product, sum, copy


def test_the_peak_of_memory_counts_what_is_alive_together(bench):
    def run():
        first = torch.empty(1000, dtype=torch.float64)
        second = torch.empty(500, dtype=torch.float64)
        del first
        return second, torch.empty(900, dtype=torch.float64)

    assert bench.peak_memory(run, "cpu") == 12_000


def test_operations_leave_views_out_and_see_lists(bench):
    tensors = [torch.ones(3), torch.ones(2)]
    with bench.Operations() as seen:
        torch._foreach_add_([t.detach().view(-1) for t in tensors], 1.0)
        tensors[0].mul_(2)
    assert seen.counts == {"aten::_foreach_add_": 1, "aten::mul_": 1}


@pytest.mark.parametrize(
    ("row", "over"),
    [
        ({"case": "time", "network": "convnet", "batch": 512, "method": "sam", "ratio": 2.03}, False),
        ({"case": "time", "network": "convnet", "batch": 512, "method": "sam", "ratio": 2.04}, True),
        ({"case": "time", "network": "resnet18", "batch": 512, "method": "momentum_sam", "ratio": 1.06}, True),
        ({"case": "time", "network": "convnet", "batch": 16, "method": "sam", "ratio": 2.5}, False),
        ({"case": "time", "network": "convnet", "batch": 512, "method": "sam_every_10", "ratio": 1.14}, True),
        ({"case": "time", "network": "convnet", "batch": 512, "method": "gsam", "ratio": 2.5}, False),
        ({"case": "memory", "method": "sam", "extra": 1.01}, True),
        ({"case": "memory", "method": "sam", "extra": 1.0}, False),
        ({"case": "memory", "method": "gsam", "extra": 3.0}, False),
        ({"case": "kernels", "method": "sam", "foreach_calls": 5}, False),
        ({"case": "environment"}, False),
    ],
)
def test_what_is_over_its_bound_is_named(bench, row, over):
    complaint = bench.exceeded(row, BOUNDS)
    assert (complaint is not None) == over
    if over:
        assert row["method"] in complaint


def test_a_bound_that_is_exceeded_fails_the_script(bench, monkeypatch):
    monkeypatch.setattr(bench, "rows", lambda _: iter([{"case": "memory", "method": "sam", "extra": 1.5}]))
    monkeypatch.setattr(bench, "prepare", lambda _: None)
    monkeypatch.setattr(sys, "argv", ["bench_sam_step.py"])
    with pytest.raises(SystemExit, match="sam takes 1.5 parameter sizes of extra memory, more than 1.0"):
        bench.main()


def test_the_lists_name_cases_that_can_be_chosen_each_once(bench):
    for network, batch, method in (*bench.SHORT, *bench.ALL):
        assert batch in bench.NETWORKS[network][2]
        assert method in (*bench.METHODS, *bench.RIVALS)
    assert len(set(bench.ALL)) == len(bench.ALL)


def test_resnet_18_has_the_parameters_and_the_shapes_of_its_table(bench):
    network = import_module("resnet").ResNet18()
    assert sum(p.numel() for p in network.parameters()) == 11_173_962
    shapes = []
    for layer in network:
        layer.register_forward_hook(lambda layer, inputs, output: shapes.append(tuple(output.shape[1:])))
    assert network(torch.randn(2, 3, 32, 32)).shape == (2, 10)
    stages = [(64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4)]
    assert shapes == [*2 * [stages[0]], *(s for s in stages for _ in range(2)), (512, 1, 1), (512,), (10,)]
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    assert len(convolutions) == 17 + 3  # and one dense layer; three shortcuts project
