"""Limits around a space: which codes they allow, and how often they measure."""

import itertools

import numpy as np
import pytest

from crnas_jax.errors import UserError
from crnas_jax.spaces.constrained import Constrained, Limit, limited, require_any
from crnas_jax.spaces.operations import OperationSpace
from crnas_jax.spaces.stages import StageSpace


def test_limits_hold_together_and_nothing_is_measured_twice():
    measured = []

    def milliseconds(arch):
        measured.append(arch)
        return 10.0 * arch[0]

    limits = [
        Limit(6, "blocks in the last stage", lambda arch: arch[3]),
        Limit(30, "ms", milliseconds),
    ]
    space, arch_of = StageSpace().within(16), tuple
    allowed = limited(space, limits, arch_of)
    codes = {code for code in space.enumerate() if code[3] <= 6 and code[0] <= 3}
    assert 1 < len(codes) < space.count()
    for _ in range(2):
        assert set(allowed.enumerate()) == codes
    assert allowed.count() == len(codes)
    assert {allowed.sample(np.random.default_rng(seed)) for seed in range(300)} <= codes
    assert len(measured) == len(set(measured))
    require_any(allowed, limits, space, arch_of)


def test_limits_that_nothing_meets_are_refused():
    limit = Limit(5, "ms", lambda arch: 10.0 * arch[0])
    space = StageSpace().within(16)
    nothing = limited(space, [limit], tuple)
    message = r"no allocation of 16 blocks has at most 5 ms; the least: 10 ms \(1, "
    with pytest.raises(UserError, match=message):
        require_any(nothing, [limit], space, tuple)
    with pytest.raises(UserError, match="next to nothing has at most 5 ms"):
        nothing.sample(np.random.default_rng(0))


def test_no_limits_leave_the_space_as_it_is():
    space = StageSpace().within(16)
    assert limited(space, [], tuple) is space


def test_a_space_too_large_to_enumerate_is_not_walked_in_search_of_an_allowed_code():
    calls, rejections = [], []
    space, reject = OperationSpace((8, 8)), lambda: rejections.append(1)
    nothing = Constrained(space, calls.append, "nothing", reject)
    with pytest.raises(UserError, match="next to nothing has nothing"):
        nothing.sample(np.random.default_rng(0))
    assert 1 < len(calls) < 1000
    assert len(rejections) == len(calls)


def test_listed_codes_that_are_not_allowed_are_no_rejections():
    rejections, only, rng = [], (10, 2, 2, 2), np.random.default_rng(0)
    space, reject = StageSpace().within(16), lambda: rejections.append(1)
    allowed = Constrained(space, only.__eq__, "ten blocks in the first stage", reject)
    assert allowed.count() == 1
    assert allowed.sample(rng) == only
    assert not rejections
    assert allowed.mutate(only, rng) == only
    assert rejections


@pytest.mark.parametrize("dilations", [(1, 2), (3, 1, 2)])
def test_a_partial_code_is_judged_by_its_quickest_completion(dilations):
    space = OperationSpace((1, 1, 1, 1), dilations)
    limit = Limit(6, "dilation", lambda code: sum(space.dilations_of(code)))
    allowed = limited(space, [limit], tuple)
    two = dilations.index(2)
    assert allowed.may_begin_with((two, two))
    assert not allowed.may_begin_with((two, two, two))


@pytest.mark.parametrize("space", [StageSpace().within(16), OperationSpace((2, 2))])
def test_children_of_a_limited_space_are_allowed(space):
    rng = np.random.default_rng(0)
    codes = set(itertools.islice(sorted(space.enumerate()), 0, None, 2))
    allowed = Constrained(space, codes.__contains__, "an even place")
    first, second = (allowed.sample(rng) for _ in range(2))
    for _ in range(50):
        child = allowed.mutate(first, rng)
        assert child in codes
        assert child != first
        first, second = allowed.cross(child, second, rng), child
        assert first in codes
