"""Data without a length."""

from torch.utils.data import IterableDataset

from tests.modules import digits_like


class Stream(IterableDataset):
    """The samples of digits_like, one by one."""

    def __iter__(self):
        return iter(digits_like().dataset)
