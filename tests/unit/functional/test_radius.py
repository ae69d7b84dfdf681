import pytest

from lbtrain.functional.radius import KINDS, radius

MOMENTS = [0.0, 0.5, 1.0]
# At the start, half way and at the end, from 0.2 to 0.06 and from 0 to 0.4; half way a cosine is at the mean.
VALUES = {
    "constant": ([0.2, 0.2, 0.2], [0.0, 0.0, 0.0]),
    "linear": ([0.2, 0.13, 0.06], [0.0, 0.2, 0.4]),
    "cosine": ([0.2, 0.13, 0.06], [0.0, 0.2, 0.4]),
    "lr": ([0.06, 0.13, 0.2], [0.4, 0.2, 0.0]),  # here the moment is the rate
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_radius_at_the_start_half_way_and_at_the_end(kind):
    for (rho, rho_end), expected in zip([(0.2, 0.06), (0.0, 0.4)], VALUES[kind], strict=True):
        # Whichever of the two is not asked for is a number that would show.
        moments = [{"progress": 7.0, "rate": t} if kind == "lr" else {"progress": t, "rate": 7.0} for t in MOMENTS]
        assert [radius(kind, rho, rho_end, **m) for m in moments] == pytest.approx(expected, abs=1e-15)


def test_a_cosine_leaves_both_ends_slowly():
    # cos(pi / 3) = 1/2, so a quarter of the way is gone after a third of the time.
    assert radius("cosine", 1.0, 0.0, progress=1 / 3, rate=1.0) == pytest.approx(0.75, rel=1e-14)
    assert radius("cosine", 1.0, 0.0, progress=2 / 3, rate=1.0) == pytest.approx(0.25, rel=1e-14)
    assert radius("linear", 1.0, 0.0, progress=1 / 3, rate=1.0) == pytest.approx(2 / 3, rel=1e-14)


def test_a_constant_radius_is_the_very_number_given():
    assert 0.7 + (0.1 - 0.7) != 0.1  # which the other formulas would give
    assert radius("constant", 0.1, 0.7, progress=0.7, rate=0.2) == 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_equal_ends_are_a_constant_radius(kind):
    assert radius(kind, 0.1, 0.1, progress=0.3, rate=0.4) == 0.1


@pytest.mark.parametrize("kind", ["Linear", "exponential", ""])
def test_an_unknown_kind_is_refused_with_those_that_there_are(kind):
    with pytest.raises(ValueError, match=f"one of constant, linear, cosine, lr, got '{kind}'"):
        radius(kind, 0.1, 0.1, progress=0.0, rate=1.0)
