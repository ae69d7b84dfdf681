"""Ranks as threads of one process: an all-reduce and a gather that wait for all of them."""

import threading
from concurrent.futures import ThreadPoolExecutor


class Group:
    """`all_reduce` sums the tensors of all threads, `gather` returns their texts; who waits for one that left fails."""

    def __init__(self, size):
        self.size, self._barrier, self._slots = size, threading.Barrier(size, timeout=10), [None] * size
        self.num_sums = 0

    def exchange(self, rank, value):
        self._slots[rank] = value
        self._barrier.wait()
        values = list(self._slots)
        self._barrier.wait()
        return values

    def all_reduce(self, rank):
        def reduce(tensor):
            self.num_sums += rank == 0
            return sum(self.exchange(rank, tensor.clone()))

        return reduce

    def gather(self, rank):
        return lambda text: self.exchange(rank, text)


def in_threads(size, work):
    """Return what `work(rank, group)` returns or raises on each rank."""
    group = Group(size)

    def caught(rank):
        try:
            return work(rank, group)
        except Exception as error:
            return error

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(caught, range(size)))
