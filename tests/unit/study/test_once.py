import gc

import pandas as pd

from lbtrain.study.once import once


def test_a_table_is_read_once_until_it_grows_or_goes() -> None:
    asked = []

    @once
    def size(table: pd.DataFrame) -> int:
        """Count the cells."""
        asked.append(None)
        return table.size

    table, other = pd.DataFrame({"a": [1, 2]}), pd.DataFrame({"a": [1, 2]})
    assert [size(table), size(table), size(other)] == [2, 2, 2]
    assert len(asked) == 2
    table["b"] = 0
    assert [size(table), len(asked)] == [4, 3]
    del table
    gc.collect()
    # Tables that get the place of one that is gone are read again.
    assert [size(pd.DataFrame({"a": range(n)})) for n in range(50)] == list(range(50))
