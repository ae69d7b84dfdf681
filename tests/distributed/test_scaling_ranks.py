"""Scaled rates under every strategy: what a checkpoint of it keeps, on as many devices and on fewer."""

import pytest

from tests.distributed.climbers import STRATEGIES
from tests.distributed.scaling import trained
from tests.distributed.start import ranks_of

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("scaling")


@pytest.fixture(scope="module")
def ranks(folder):
    return ranks_of("scaling", folder)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_rate_counts_the_devices_that_see_different_data(ranks, strategy):
    for rank in ranks:
        devices = rank[strategy, "whole"]["devices"]
        assert devices == (1 if strategy == "tensor" else 2)
        assert rank[strategy, "whole"]["rates"][0] == pytest.approx(0.1 * 2 * devices)


@pytest.mark.parametrize("strategy", [strategy for strategy in STRATEGIES if strategy != "fsdp"])
def test_a_resumed_run_has_the_rates_of_the_uninterrupted_one(ranks, strategy):
    for rank in ranks:
        first, resumed = (rank[strategy, part]["rates"] for part in ("first", "resumed"))
        assert first + resumed == rank[strategy, "whole"]["rates"]


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`|You're resuming from a checkpoint")
def test_a_run_resumed_on_one_device_of_two_halves_the_rates_and_says_so(ranks, folder):
    whole = ranks[0]["ddp", "whole"]["rates"]
    first = ranks[0]["ddp", "first"]["rates"]
    with pytest.warns(UserWarning, match="the factor 4: they are multiplied by 0.5, so that the factor is 2"):
        alone = trained("alone", 3, start=folder / "ddp" / "last.ckpt")
    assert alone["rates"] == pytest.approx([rate / 2 for rate in whole[len(first) :] for _ in range(2)])
