"""A mesh of two dimensions, on four ranks: the norm counts each part of the gradient once."""

import pytest
import torch

from tests.distributed.climbers import CLIMBERS, trained
from tests.distributed.start import ranks_of

pytestmark = [pytest.mark.distributed, pytest.mark.slow]


def test_shards_of_split_layers_are_one_process(tmp_path):
    ranks = ranks_of("grid", tmp_path, count=4)
    for name, build in CLIMBERS.items():
        expected = trained([build(scope="global")], "alone")[0]
        for rank in ranks:
            for a, b in zip(rank[name], expected, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
