"""Ascent directions against the point of the ball where <g, e> is largest, and `shifted` against the bits it took."""

import math

import pytest
import torch

from lbtrain.functional.ascent import ETA, asam_ascent, friendly_direction, momentum_ascent, sam_ascent, shifted
from lbtrain.functional.vectors import flatten
from tests.problems import generator

SHAPES = [(3, 2), (4,), (), (0,), (2, 1, 2)]
ADAPTED = [True, False, True, True, False]
RADII = [0.1, 0.4, 0.2, 0.3, 0.0]
NORMS = pytest.mark.parametrize("p", [2, math.inf], ids=["p=2", "p=inf"])
INTEGER = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def tensors(seed, dtype=torch.float64, scale=1.0):
    return [
        (scale * torch.randn(s, generator=generator(10 * seed + i), dtype=torch.float64)).to(dtype)
        for i, s in enumerate(SHAPES)
    ]


def doubled(parts):
    return [t.double() for t in parts]


def copies(parts):
    return [t.clone() for t in parts]


def equal(left, right):
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def addresses(parts):
    return [t.data_ptr() for t in parts if t.numel()]  # a tensor without entries has no memory


def scales(weights, adapted=ADAPTED, eta=ETA):
    return [w.abs() + eta if on else torch.ones_like(w) for w, on in zip(weights, adapted, strict=True)]


def sam_by_hand(g, radii, p):
    """Return the closed form, one radius per tensor."""
    length = flatten(g).square().sum().sqrt()
    return [r * t.sign() if p == math.inf else r * t / length for r, t in zip(radii, g, strict=True)]


def asam_by_hand(w, g, radii, p, adapted=ADAPTED, eta=ETA):
    """Return the closed form, one radius per tensor, made of the one for SAM: climb in w / T."""
    T = scales(w, adapted, eta)
    climbed = sam_by_hand([s * t for s, t in zip(T, g, strict=True)], radii, p)
    return [s * u for s, u in zip(T, climbed, strict=True)]


def points_of_ball(e, p, rho):
    """Return points x with |x|_p <= rho, one per row: on the whole surface, inside, and right beside e."""
    n, random = e.numel(), generator(1)
    directions = torch.randn(2000, n, generator=random, dtype=e.dtype)
    beside = e + 0.01 * rho * torch.randn(2000, n, generator=random, dtype=e.dtype)
    if p == math.inf:
        inside = rho * (2 * torch.rand(2000, n, generator=random, dtype=e.dtype) - 1)
        return torch.cat([rho * directions.sign(), inside, beside.clamp(-rho, rho)])
    surface = rho * directions / directions.norm(dim=1, keepdim=True)
    inside = surface * torch.rand(2000, 1, generator=random, dtype=e.dtype)
    return torch.cat([surface, inside, beside * (rho / beside.norm(dim=1, keepdim=True)).clamp(max=1)])


def test_the_step_is_rho_along_the_gradient():
    steps = sam_ascent([torch.tensor([3.0, 0.0]), torch.tensor([[4.0]])], 0.5)
    torch.testing.assert_close(steps, [torch.tensor([0.3, 0.0]), torch.tensor([[0.4]])])


def test_the_step_in_a_box_goes_to_its_corner():
    steps = sam_ascent([torch.tensor([3.0, 0.0]), torch.tensor([[-4.0]])], 0.5, p=math.inf)
    assert equal(steps, [torch.tensor([0.5, 0.0]), torch.tensor([[-0.5]])])


@NORMS
def test_no_other_point_of_the_ball_climbs_higher(p):
    g = tensors(1)
    e, direction = flatten(sam_ascent(g, 0.3, p=p)), flatten(g)
    best = float(e @ direction)
    assert best == pytest.approx(0.3 * float(direction.norm(1 if p == math.inf else 2)), rel=1e-11)
    assert float(e.norm(p)) == pytest.approx(0.3, rel=1e-11)
    values = points_of_ball(e, p, 0.3) @ direction
    assert 0.97 * best < values.max() <= best * (1 + 1e-11)


@NORMS
def test_each_tensor_may_have_its_own_radius(p):
    g = tensors(1)
    torch.testing.assert_close(sam_ascent(g, RADII, p=p), sam_by_hand(g, RADII, p), rtol=1e-11, atol=0)
    assert equal(sam_ascent(g, tuple(RADII), p=p), sam_ascent(g, RADII, p=p))
    torch.testing.assert_close(sam_ascent(g, [0.3] * 5, p=p), sam_ascent(g, 0.3, p=p), rtol=1e-14, atol=0)


@NORMS
@pytest.mark.parametrize("rho", [0.3, [0.3]], ids=["one_radius", "radii"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_a_zero_gradient_gives_a_zero_step(p, rho, dtype):
    zero = torch.zeros(3, dtype=dtype)
    assert equal(sam_ascent([zero], rho, p=p), [zero])
    assert equal(asam_ascent([torch.ones_like(zero)], [zero], rho, adapted=[True], p=p), [zero])


@NORMS
def test_the_step_does_not_see_how_the_gradient_is_cut(p):
    g, w = (torch.randn(60, generator=generator(i), dtype=torch.float64) for i in range(2))
    cut = lambda t: [*t.split([7, 13, 39, 1])[:3], t[59], t[:0]]
    whole, parts = sam_ascent([g], 0.3, p=p), sam_ascent(cut(g), 0.3, p=p)
    torch.testing.assert_close(flatten(parts), whole[0], rtol=1e-14, atol=0)
    whole = asam_ascent([w], [g], 0.3, adapted=[True], p=p)
    parts = asam_ascent(cut(w), cut(g), 0.3, adapted=[True] * 5, p=p)
    torch.testing.assert_close(flatten(parts), whole[0], rtol=1e-14, atol=0)


@NORMS
@pytest.mark.parametrize("factor", [1e-4, 65536.0])
def test_the_step_does_not_see_the_scale_of_the_loss(p, factor):
    g, w = tensors(1), tensors(2)
    scaled = [factor * t for t in g]
    expected = sam_ascent(g, 0.3, p=p)
    torch.testing.assert_close(sam_ascent(scaled, 0.3, p=p), expected, rtol=1e-7, atol=0)
    expected = asam_ascent(w, g, 0.3, adapted=ADAPTED, p=p)
    torch.testing.assert_close(asam_ascent(w, scaled, 0.3, adapted=ADAPTED, p=p), expected, rtol=1e-7, atol=0)


@NORMS
@pytest.mark.parametrize("rho", [0.3, RADII], ids=["one_radius", "radii"])
@pytest.mark.parametrize("adaptive", [False, True], ids=["sam", "asam"])
def test_in_place_the_gradients_become_the_step(p, rho, adaptive):
    g, w = tensors(1), tensors(2)
    kept, before = (copies(g), copies(w)), addresses(g)
    climb = lambda **how: (
        asam_ascent(w, g, rho, adapted=ADAPTED, p=p, **how) if adaptive else sam_ascent(g, rho, p=p, **how)
    )
    fresh = climb()
    assert equal(g, kept[0])
    assert not set(addresses(fresh)) & set(before)
    reused = climb(in_place=True)
    assert addresses(reused) == addresses(g) == before
    assert equal(reused, fresh)
    assert equal(w, kept[1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("scale", [1e3, 1e-5], ids=["squares_overflow", "squares_underflow"])
@NORMS
def test_half_precision_steps_are_right_to_their_own_rounding(dtype, scale, p):
    g = tensors(1, dtype, scale)
    close = {"rtol": 2 * torch.finfo(dtype).eps, "atol": 0}
    steps = sam_ascent(g, 0.3, p=p)
    assert {e.dtype for e in steps} == {dtype}
    torch.testing.assert_close(doubled(steps), sam_by_hand(doubled(g), [0.3] * 5, p), **close)
    steps = momentum_ascent(g, 0.3)
    assert {e.dtype for e in steps} == {dtype}
    torch.testing.assert_close(doubled(steps), sam_by_hand(doubled(g), [-0.3] * 5, 2), **close)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("scale", [1e3, 0.1])  # T^2 g is formed in the type of g, and must be a normal number of it
@NORMS
def test_half_precision_adaptive_steps_are_right_to_their_own_rounding(dtype, scale, p):
    g, w = tensors(1, dtype, scale), tensors(2, dtype)
    steps = asam_ascent(w, g, 0.3, adapted=ADAPTED, p=p)
    assert {e.dtype for e in steps} == {dtype}
    expected = asam_by_hand(doubled(w), doubled(g), [0.3] * 5, p)
    torch.testing.assert_close(doubled(steps), expected, rtol=4 * torch.finfo(dtype).eps, atol=0)


@NORMS
def test_double_precision_is_kept(p):
    g, w = tensors(1), tensors(2)
    # Only the 1e-12 beside |g|, about 3 here, may show.
    close = {"rtol": 1e-12, "atol": 0}
    torch.testing.assert_close(sam_ascent(g, 0.3, p=p), sam_by_hand(g, [0.3] * 5, p), **close)
    expected = asam_by_hand(w, g, [0.3] * 5, p)
    torch.testing.assert_close(asam_ascent(w, g, 0.3, adapted=ADAPTED, p=p), expected, **close)
    torch.testing.assert_close(momentum_ascent(g, 0.3), sam_by_hand(g, [-0.3] * 5, 2), **close)


@NORMS
@pytest.mark.parametrize("first", [torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_tensors_of_mixed_types_keep_their_own(p, first):
    types = [first, torch.float32, torch.bfloat16, torch.float64, torch.float16]
    g, w = ([t.to(d) for t, d in zip(tensors(i), types, strict=True)] for i in (1, 2))
    # The norm that all share may be in float32; that of ASAM is one of products rounded to the types.
    single, coarse = torch.finfo(torch.float32).eps, torch.finfo(torch.bfloat16).eps
    found = [
        (sam_ascent(g, RADII, p=p), sam_by_hand(doubled(g), RADII, p), single),
        (asam_ascent(w, g, RADII, adapted=ADAPTED, p=p), asam_by_hand(doubled(w), doubled(g), RADII, p), coarse),
        (momentum_ascent(g, 0.3), sam_by_hand(doubled(g), [-0.3] * 5, 2), single),
    ]
    for steps, expected, shared in found:
        assert [e.dtype for e in steps] == types
        for e, exact in zip(steps, expected, strict=True):
            rounding = max(torch.finfo(e.dtype).eps, shared)
            torch.testing.assert_close(e.double(), exact, rtol=4 * rounding, atol=0)


def test_an_ascent_without_gradients_says_what_to_do():
    message = "no gradients or momenta: run backward before the ascent step"
    with pytest.raises(ValueError, match=message):
        sam_ascent([], 0.1)
    with pytest.raises(ValueError, match=message):
        asam_ascent([], [], 0.1, adapted=[])
    with pytest.raises(ValueError, match=message):
        momentum_ascent([], 0.1)


@pytest.mark.parametrize("p", [1, 3, 0, -math.inf, math.nan])
def test_a_norm_without_closed_form_is_refused(p):
    one = [torch.ones(1)]
    with pytest.raises(ValueError, match=f"p must be 2 or inf, got {p}: the ascent has a closed form for these two"):
        sam_ascent(one, 0.1, p=p)
    with pytest.raises(ValueError, match=f"p must be 2 or inf, got {p}: the ascent has a closed form for these two"):
        asam_ascent(one, one, 0.1, adapted=[True], p=p)


def test_the_adaptive_step_by_hand():
    # T = (2, 1), T g = (6, 8), |T g| = 10, T^2 g = (12, 8)
    w, g = [torch.tensor([-1.5, 0.5])], [torch.tensor([3.0, 8.0])]
    (e,) = asam_ascent(w, g, 0.5, adapted=[True], eta=0.5)
    torch.testing.assert_close(e, torch.tensor([0.6, 0.4]))
    (e,) = asam_ascent(w, [torch.tensor([-3.0, 8.0])], 0.5, adapted=[True], eta=0.5, p=math.inf)
    torch.testing.assert_close(e, torch.tensor([-1.0, 0.5]))


@NORMS
@pytest.mark.parametrize("adapted", [[True] * 5, ADAPTED, [False] * 5], ids=["all", "some", "none"])
def test_no_other_point_of_the_rescaled_ball_climbs_higher(p, adapted):
    g, w = tensors(1), tensors(2)
    e, direction, T = (flatten(v) for v in (asam_ascent(w, g, 0.3, adapted=adapted, p=p), g, scales(w, adapted)))
    best = float(e @ direction)
    assert best == pytest.approx(0.3 * float((T * direction).norm(1 if p == math.inf else 2)), rel=1e-11)
    assert float((e / T).norm(p)) == pytest.approx(0.3, rel=1e-11)
    values = (points_of_ball(e / T, p, 0.3) * T) @ direction
    assert 0.97 * best < values.max() <= best * (1 + 1e-11)


@NORMS
@pytest.mark.parametrize("rho", [[0.3] * 5, RADII], ids=["equal_radii", "radii"])
def test_the_adaptive_step_is_the_closed_form(p, rho):
    g, w = tensors(1), tensors(2)
    expected = asam_by_hand(w, g, rho, p, eta=0.2)
    torch.testing.assert_close(asam_ascent(w, g, rho, adapted=ADAPTED, eta=0.2, p=p), expected, rtol=1e-11, atol=0)


@NORMS
def test_nothing_adapted_is_plain_sam(p):
    g = tensors(1)
    assert equal(asam_ascent(tensors(2), g, 0.3, adapted=[False] * 5, p=p), sam_ascent(g, 0.3, p=p))


@NORMS
def test_the_adaptive_step_rescales_with_the_weights(p):
    # With eta = 0 the ball does not see a rescaling w -> c w, g -> g / c that leaves the network as it was.
    g, w = tensors(1), tensors(2)
    c = [10.0, 0.1, 3.0, 1.0, 0.5]
    step = asam_ascent(w, g, 0.3, adapted=[True] * 5, eta=0.0, p=p)
    moved = asam_ascent(
        [a * t for a, t in zip(c, w, strict=True)],
        [t / a for a, t in zip(c, g, strict=True)],
        0.3,
        adapted=[True] * 5,
        eta=0.0,
        p=p,
    )
    torch.testing.assert_close(moved, [a * e for a, e in zip(c, step, strict=True)], rtol=1e-11, atol=0)


@NORMS
@pytest.mark.parametrize("in_place", [False, True])
def test_scratch_memory_is_used_and_changes_nothing(p, in_place):
    g, w = tensors(1), tensors(2)
    expected = asam_ascent(w, g, 0.3, adapted=ADAPTED, p=p)
    kept, scratch = (copies(g), copies(w)), [torch.full_like(t, math.nan) for t in w]
    before = addresses(scratch)
    found = asam_ascent(w, g, 0.3, adapted=ADAPTED, p=p, scratch=scratch, in_place=in_place)
    assert equal(found, expected)
    assert equal(w, kept[1])
    assert in_place or equal(g, kept[0])
    assert addresses(scratch) == before
    assert not set(addresses(found)) & set(before)
    assert not torch.isnan(scratch[0]).any()  # it held |w| + eta
    assert torch.isnan(scratch[1]).all()  # no memory is needed where T is the identity


@NORMS
def test_eta_keeps_zero_weights_movable(p):
    w, g = [torch.zeros(2, dtype=torch.float64)], [torch.tensor([3.0, -4.0], dtype=torch.float64)]
    assert ETA == 0.01
    (e,) = asam_ascent(w, g, 0.5, adapted=[True], p=p)
    expected = [0.005, -0.005] if p == math.inf else [0.003, -0.004]
    assert e.tolist() == pytest.approx(expected, rel=1e-9)
    (e,) = asam_ascent(w, g, 0.5, adapted=[True], eta=0.0, p=p)
    assert e.tolist() == [0.0, 0.0]


def test_parameters_may_ask_for_gradients():
    w = [t.requires_grad_() for t in tensors(2)]
    for scratch in (None, tensors(3)):
        steps = asam_ascent(w, tensors(1), 0.3, adapted=[True] * 5, scratch=scratch)
        assert not any(e.requires_grad for e in steps)


def test_the_momentum_step_goes_where_the_optimizer_goes():
    v = [torch.tensor([3.0, 0.0]), torch.tensor([[-4.0]])]
    kept = copies(v)
    torch.testing.assert_close(momentum_ascent(v, 0.5), [torch.tensor([-0.3, 0.0]), torch.tensor([[0.4]])])
    torch.testing.assert_close(momentum_ascent(v, (0.5, 1.0)), [torch.tensor([-0.3, 0.0]), torch.tensor([[0.8]])])
    torch.testing.assert_close(momentum_ascent([1e4 * t for t in v], 0.5), momentum_ascent(v, 0.5))
    assert equal(v, kept)


def test_no_momentum_yet_gives_no_step():
    assert equal(momentum_ascent([torch.zeros(2), torch.zeros(1)], 0.5), [torch.zeros(2), torch.zeros(1)])


def test_the_friendly_direction_takes_off_a_share_of_the_average():
    g, m = [torch.tensor([3.0, 0.0]), torch.tensor(1.0)], [torch.tensor([1.0, 2.0]), torch.tensor(-2.0)]
    kept = (copies(g), copies(m))
    assert equal(friendly_direction(g, m), [torch.tensor([2.0, -2.0]), torch.tensor(3.0)])
    assert equal(friendly_direction(g, m, sigma=0.5), [torch.tensor([2.5, -1.0]), torch.tensor(2.0)])
    assert equal(g, kept[0])
    assert equal(m, kept[1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_sigma_zero_is_the_gradient_in_new_memory(dtype):
    g = tensors(1, dtype)
    found = friendly_direction(g, tensors(2, dtype), sigma=0.0)
    assert equal(found, g)
    assert not set(addresses(found)) & set(addresses(g))


def test_the_average_before_and_after_the_batch_give_the_same_friendly_step():
    g, m, share = tensors(1), tensors(2), 0.9
    after = [a.lerp(b, 1 - share) for a, b in zip(m, g, strict=True)]
    early, late = friendly_direction(g, m), friendly_direction(g, after)
    torch.testing.assert_close(late, [share * d for d in early], rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(sam_ascent(late, 0.3), sam_ascent(early, 0.3), rtol=1e-11, atol=1e-15)


def test_a_process_without_tensors_has_an_empty_friendly_direction():
    assert friendly_direction([], []) == []


def bits(tensor):
    """Return the bits as integers, which also tell -0 from 0 and one NaN from another."""
    return tensor.detach().view(INTEGER[tensor.element_size()]).clone()


def weights_and_steps(dtype, n=100_000):
    w, e = (torch.randn(n, generator=generator(i), dtype=torch.float64).to(dtype) for i in range(2))
    w[:5] = torch.tensor([-0.0, math.inf, -math.inf, math.nan, torch.finfo(dtype).smallest_normal / 2], dtype=dtype)
    return w, e


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("given", [False, True], ids=["fresh_backup", "given_backup"])
def test_shifted_returns_the_same_bits(dtype, given):
    w, e = weights_and_steps(dtype)
    before, address = bits(w), w.data_ptr()
    assert not torch.equal((w + e - e)[5:], w[5:])  # what copies are for
    backup = [torch.zeros_like(w)] if given else None
    with shifted([w], [e], backup=backup):
        assert torch.equal(w[5:], (before.view(dtype) + e)[5:])
    assert torch.equal(bits(w), before)
    assert w.data_ptr() == address
    assert backup is None or torch.equal(bits(backup[0]), before)


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
@pytest.mark.parametrize("given", [False, True], ids=["fresh_backup", "given_backup"])
def test_shifted_returns_the_same_bits_after_an_error(error, given):
    pairs = [weights_and_steps(d, 1000) for d in (torch.float32, torch.bfloat16, torch.float64)]
    params, steps = [w for w, _ in pairs], [e for _, e in pairs]
    before = [bits(w) for w in params]

    def fail_there():
        with shifted(params, steps, backup=[torch.empty_like(w) for w in params] if given else None):
            assert not any(torch.equal(bits(w), b) for w, b in zip(params, before, strict=True))
            raise error

    with pytest.raises(error):
        fail_there()
    assert equal([bits(w) for w in params], before)


def test_a_step_of_another_shape_leaves_the_weights_as_they_were():
    params = [torch.ones(2), torch.ones(3)]
    with pytest.raises(RuntimeError, match="size"), shifted(params, [torch.ones(2), torch.ones(4)]):
        pytest.fail("entered")
    assert equal(params, [torch.ones(2), torch.ones(3)])


def test_gradients_inside_are_those_at_the_shifted_weights():
    w = torch.tensor([1.0, -2.0], requires_grad=True)
    with shifted([w], [torch.tensor([0.5, 0.25])]):
        w.square().sum().backward()
    assert w.grad.tolist() == [3.0, -3.5]
    assert w.tolist() == [1.0, -2.0]


def test_views_of_the_same_memory_move_and_return_with_it():
    flat = torch.arange(6.0)
    pieces = [flat[:2], flat[2:].view(2, 2)]
    with shifted(pieces, [torch.ones(2), torch.ones(2, 2)]):
        assert flat.tolist() == [1, 2, 3, 4, 5, 6]
    assert flat.tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("backup", [None, []], ids=["fresh_backup", "given_backup"])
def test_nothing_to_shift_still_runs_the_block(backup):
    ran = []
    with shifted([], [], backup=backup):
        ran.append(0)
    assert ran
    with pytest.raises(ZeroDivisionError), shifted([], [], backup=backup):
        raise ZeroDivisionError
