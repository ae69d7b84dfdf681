"""The same verdict on two ranks under every strategy, and the partial window of sharded gradients."""

import pytest
import torch

from tests.distributed.checks import STRATEGIES
from tests.distributed.start import ranks_of

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    return ranks_of("checks", tmp_path_factory.mktemp("checks"))


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("kind", ["mean", "sum", "units"])
def test_every_rank_has_the_verdict_of_the_first(ranks, strategy, kind):
    first, second = (rank[strategy, kind] for rank in ranks)
    expected = {"units": "mean over other units"}.get(kind, kind)
    assert first["verdict"]["kind"] == second["verdict"]["kind"] == expected
    assert first["verdict"]["losses"] == second["verdict"]["losses"]
    assert first["evaluated"] == (6 if kind == "units" else 4)
    # Where the forward pass waits for the other rank, that rank evaluates as often, though its batch has one sample.
    assert second["evaluated"] == (0 if strategy == "ddp" else first["evaluated"])


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_gradient_of_a_partial_window_is_that_of_its_twin(ranks, strategy):
    for rank in ranks:
        fixed, twin, plain = (rank[strategy, kind]["weights"] for kind in ("fixed", "mean", "plain"))
        assert all(torch.equal(a, b) for a, b in zip(fixed, twin, strict=True))
        assert not all(torch.equal(a, b) for a, b in zip(plain, twin, strict=True))
