import math

import pytest

from lbtrain.study.histories import by_epoch, history
from tests.unit.study.known_sweep import write_history


def test_the_last_value_of_each_epoch_counts(tmp_path) -> None:
    (tmp_path / "metrics.csv").write_text(
        "epoch,step,val/loss,note\n0,1,,x\n0,2,2.0,\n0,3,1.5,\n1,4,,\n2,5,inf,\n,6,9.0,\n2,7,,\n"
    )
    log = history(tmp_path)
    assert by_epoch(log, "val/loss") == {1: 1.5, 3: math.inf}
    assert by_epoch(log, "note") == {}
    assert by_epoch(log, "val/acc") == {}


def test_what_a_run_writes_is_read(tmp_path) -> None:
    write_history(tmp_path, [3.0, 2.0, 1.0])
    assert by_epoch(history(tmp_path), "val/loss") == {1: 3.0, 2: 2.0, 3: 1.0}
    assert len(history(str(tmp_path))) == 6


@pytest.mark.parametrize("data", [None, b"", b"epoch,step\n", b"\xff\xfe\x00"])
def test_no_history_is_none(tmp_path, data) -> None:
    if data is not None:
        (tmp_path / "metrics.csv").write_bytes(data)
    assert history(tmp_path) is None


def test_a_line_that_was_cut_off_does_not_hide_the_others(tmp_path) -> None:
    (tmp_path / "metrics.csv").write_text("epoch,step,val/loss\n0,1,2.0\n1,2,1.0\n2,3,0.5,7,7\n2,")
    assert by_epoch(history(tmp_path), "val/loss") == {1: 2.0, 2: 1.0}
