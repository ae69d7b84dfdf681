"""Lanczos, density and trace of vectors cut over pretended processes, a thread each, against the same ones whole."""

import itertools
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from lbtrain.functional.density import density
from lbtrain.functional.lanczos import lanczos
from lbtrain.functional.space import WHOLE, ShardedSpace
from lbtrain.functional.trace import trace
from tests.problems import generator, matrix_with

VALUES = [5.0, 4.0, 4.0, 3.0, *torch.linspace(-0.5, 0.9, 60).tolist(), -2.0]
A = matrix_with(VALUES)
N = len(VALUES)


class Group:
    """Processes that sum over each other; a thread that is missing breaks the barrier for all."""

    def __init__(self, count):
        self.barrier, self.parts, self.num_sums = threading.Barrier(count, timeout=20), [None] * count, 0

    def gather(self, rank, tensor):
        self.parts[rank] = tensor
        self.barrier.wait()
        parts = list(self.parts)
        self.barrier.wait()
        return parts

    def sum(self, rank, tensor):
        self.num_sums += rank == 0
        return sum(t.clone() for t in self.gather(rank, tensor))


def on_each(cuts, run, copies=None, sizes=None):
    """Return ``run(matvec, length, space, rank, group)`` of every process; ``cuts`` are the rows that each holds."""
    group = Group(len(cuts))

    def process(rank):
        space = ShardedSpace(copies or [1], lambda t: group.sum(rank, t), sizes=sizes[rank] if sizes else None)

        def matvec(v):
            whole = torch.zeros(N, dtype=v.dtype)
            for rows, part in zip(cuts, group.gather(rank, v.clone()), strict=True):
                whole[rows] = part
            return (A.to(v.dtype) @ whole)[cuts[rank]]

        return run(matvec, len(cuts[rank]), space, rank, group)

    with ThreadPoolExecutor(len(cuts)) as pool:
        return [f.result(30) for f in [pool.submit(process, rank) for rank in range(len(cuts))]]


ROWS = torch.arange(N)
CUTS = {"two": [ROWS[:30], ROWS[30:]], "uneven": [ROWS[:5], ROWS[5:], ROWS[:0]]}
cuts = pytest.mark.parametrize("cuts", CUTS.values(), ids=CUTS)


@cuts
@pytest.mark.parametrize("rows", [None, 12])
def test_every_process_finds_the_spectrum_of_the_whole(cuts, rows):
    memory = None if rows is None else 8 * rows * max(len(c) for c in cuts) * 11 // 10

    def run(matvec, length, space, rank, group):
        options = {"generator": generator(rank), "dtype": torch.float64, "keep_vectors": True, "memory_bytes": memory}
        return lanczos(matvec, length, top_k=4, tol=1e-8, trace_probes=2, space=space, **options)

    found = on_each(cuts, run)
    assert found[0].eigenvalues == pytest.approx([5.0, 4.0, 4.0, 3.0], abs=1e-7)
    assert found[0].lambda_min == pytest.approx(-2.0, abs=1e-7)
    assert found[0].converged
    assert (found[0].num_restarts > 0) == (rows is not None)
    assert all(f == found[0] for f in found)
    X = torch.cat([f.vectors for f in found])
    torch.testing.assert_close(A @ X, X * torch.tensor(found[0].eigenvalues), rtol=0, atol=1e-6)


def test_whole_and_cut_give_the_same_from_the_same_start():
    start = torch.randn(N, 2, generator=generator(9), dtype=torch.float64)
    options = {"generator": generator(), "dtype": torch.float64, "repeated": False, "top_k": 2}
    whole = lanczos(lambda v: A @ v, N, start=start, **options)
    halves = CUTS["two"]
    # Columns are normalized as wholes, not part by part.
    cut = on_each(halves, lambda m, n, s, rank, g: lanczos(m, n, start=start[halves[rank]], space=s, **options))
    for found in cut:
        assert found.eigenvalues == pytest.approx(whole.eigenvalues, rel=1e-12)
        assert found.residuals == pytest.approx(whole.residuals, rel=1e-6, abs=1e-11)
        assert found.num_matvecs == whole.num_matvecs


def test_what_all_hold_counts_once():
    # 10 entries held by both, then 20 of the first and the rest of the second.
    held = [torch.cat([ROWS[:10], ROWS[10:30]]), torch.cat([ROWS[:10], ROWS[30:]])]
    sizes = [[10, 20], [10, N - 30]]
    start = torch.randn(N, generator=generator(9), dtype=torch.float64)

    def run(matvec, length, space, rank, group):
        assert space.dimension(length) == N
        assert space.largest(length) in {len(held[1]), len(held[1]) + 1}
        options = {"generator": generator(), "dtype": torch.float64, "start": start[held[rank]]}
        return lanczos(matvec, length, repeated=False, space=space, **options)

    found = on_each(held, run, copies=[2, 1], sizes=sizes)
    whole = lanczos(lambda v: A @ v, N, start=start, repeated=False, generator=generator(), dtype=torch.float64)
    assert found[0].eigenvalues == pytest.approx(whole.eigenvalues, rel=1e-12)
    assert found[0].num_matvecs == whole.num_matvecs


def test_a_step_costs_one_sum_for_each_pass_of_gram_schmidt_and_one_for_the_norms():
    counts = []

    def run(matvec, length, space, rank, group):
        def counted(v):
            counts.extend([group.num_sums] if rank == 0 else [])
            return matvec(v)

        return lanczos(counted, length, space=space, generator=generator(rank), dtype=torch.float64, smallest=False)

    on_each(CUTS["two"], run)
    assert {after - before for before, after in itertools.pairwise(counts[:-1])} == {3}


def test_density_and_trace_of_parts():
    def run(matvec, length, space, rank, group):
        options = {"generator": generator(rank), "dtype": torch.float64, "space": space}
        found = density(matvec, length, num_probes=40, num_steps=6, **options)
        return found, trace(matvec, length, num_matvecs=80, **options)

    (first, first_trace), (second, second_trace) = on_each(CUTS["two"], run)
    assert first == second
    assert first_trace == second_trace
    assert first.dim == N
    assert first.trace == pytest.approx(sum(VALUES), abs=4 * first.trace_stderr)
    assert first_trace.value == pytest.approx(sum(VALUES), abs=4 * first_trace.stderr)
    assert first_trace.frobenius_squared == pytest.approx(
        sum(x * x for x in VALUES), abs=4 * first_trace.frobenius_squared_stderr
    )
    assert (first_trace.num_matvecs, first_trace.method) == (80, "hutchinson")


def test_only_hutchinson_works_on_parts():
    space = ShardedSpace([1], lambda t: t)
    with pytest.raises(
        ValueError, match=r'method must be "hutchinson" where each process holds a part.*got \'xtrace\''
    ):
        trace(lambda v: v, 9, num_matvecs=4, method="xtrace", generator=generator(), space=space)


def test_copies_need_sizes():
    space = ShardedSpace([1, 2], lambda t: t)
    with pytest.raises(ValueError, match="sizes must say how many entries each has, 5 together, got None"):
        space.norm_of(torch.ones(5))
    sized = ShardedSpace([1, 2], lambda t: t, sizes=[2, 3])
    assert float(sized.norm_of(torch.ones(5))) == pytest.approx(3.5**0.5)
    assert sized.products(torch.ones(2, 5), torch.ones(5)).tolist() == [3.5, 3.5]
    with pytest.raises(ValueError, match=r"4 together, got \[2, 3\]"):
        sized.norm_of(torch.ones(4))


def test_a_whole_space_measures_flat_vectors():
    rows, v = torch.randn(3, 7, generator=generator(1)), torch.randn(7, generator=generator(2))
    torch.testing.assert_close(WHOLE.products(rows, v), rows @ v)
    assert WHOLE.norms(v, rows[0]).tolist() == [float(v.norm()), float(rows[0].norm())]
    assert (WHOLE.dimension(7), WHOLE.largest(7)) == (7, 7)


def test_a_bound_on_the_largest_part_is_near_it():
    cut = [ROWS[:5], ROWS[5:], ROWS[:0]]
    for bound in on_each(cut, lambda m, n, space, rank, g: space.largest(n)):
        assert len(cut[1]) <= bound <= len(cut[1]) + 1
    assert ShardedSpace([], lambda t: t).largest(0) <= 1
    assert 10**9 <= ShardedSpace([1], lambda t: 64 * t).largest(10**9) <= 1.15 * 10**9
