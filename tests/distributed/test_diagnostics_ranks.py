"""Two gloo ranks come to the diagnosis of one process, both to the same, and one of them prints it."""

import pytest

from tests.distributed.diagnosis import CASES, FAULTS, diagnosis
from tests.distributed.start import ranks_of
from tests.unit.callbacks.diagnosed import clusters

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What each of two ranks saw."""
    return ranks_of("diagnosis", tmp_path_factory.mktemp("diagnosis"))


@pytest.mark.parametrize("case", CASES)
def test_both_ranks_find_what_one_process_finds(ranks, case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, one, _ = diagnosis(case, clusters())
    for rank in ranks:
        assert rank[case]["problems"][:1] == [f.problem for f in one.findings][:1]
        assert rank[case]["left_out"] == {}
        assert rank[case]["checked"] == list(one.checked)
    assert ranks[0][case]["evidence"] == ranks[1][case]["evidence"]


@pytest.mark.parametrize("case", CASES)
def test_one_rank_prints(ranks, case):
    assert "diagnosis:" in ranks[0][case]["printed"]
    assert ranks[1][case]["printed"] == ""


def test_the_training_is_the_same_bit_for_bit(ranks):
    assert all(rank["same"] for rank in ranks)


@pytest.mark.parametrize("fault", FAULTS)
def test_what_fails_on_one_rank_ends_on_both_and_the_training_goes_on(ranks, fault):
    what = FAULTS[fault][2]
    first, second = (rank["faults"][fault] for rank in ranks)
    assert first["steps"] == second["steps"] == 12
    assert first["seen"] == second["seen"]
    assert first["left_out"].keys() == second["left_out"].keys()
    assert what in {*first["left_out"], ""}
    assert "secret" not in str((first, second))
