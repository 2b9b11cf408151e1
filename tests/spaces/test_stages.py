"""Stage reallocation's space against the paper's counts and brute force."""

import itertools

import numpy as np
import pytest

from crnas_jax.arch import zoo
from crnas_jax.errors import UserError
from crnas_jax.spaces.stages import StageSpace


@pytest.mark.parametrize(("budget", "count"), [(8, 9), (16, 153), (33, 374)])
def test_counts_of_the_paper(budget, count):
    space = StageSpace().within(budget)
    codes = list(space.enumerate())
    assert space.count() == len(codes) == len(set(codes)) == count
    assert codes == sorted(codes)
    assert all(sum(depths) == budget for depths in codes)


def test_the_space_of_mobilenet_is_the_papers():
    space = StageSpace.for_family("mobilenet_v2")
    assert space.within(16).count() == len(list(space.within(16).enumerate())) == 43
    for name in ("mobilenet_v2", "cr_mobilenet_v2"):
        arch = zoo.get(name)
        assert space.cost(arch.depths) == 16
        assert arch.depths in space.within(16).enumerate()
        space.branch(arch.depths)


def test_a_family_has_a_grid_for_each_searched_stage():
    assert StageSpace.for_family("resnext_32x4d").within(16).count() == 153
    with pytest.raises(UserError, match="give 5 for mobilenet_v2"):
        StageSpace.for_family("mobilenet_v2", ((1,),) * 4)


def test_count_equals_brute_force_with_costs():
    space = StageSpace(((1, 2), (1, 3), (1, 2, 4), (2,)), (1.5, 1.0, 0.75, 1.25))
    codes = list(itertools.product(*space.grids))
    assert space.count() == len(list(space.enumerate())) == len(codes) == 12
    for budget in {space.cost(code) for code in codes}:
        expected = [code for code in codes if space.cost(code) == budget]
        assert list(space.within(budget).enumerate()) == expected
        assert space.within(budget).count() == len(expected)


def test_an_impossible_budget_names_the_nearest():
    with pytest.raises(UserError, match="nearest: 6, 7"):
        StageSpace().within(5)
    with pytest.raises(UserError, match=r"no allocation costs 6\.5 blocks; nearest: 6, 7"):
        StageSpace().within(6.5)


@pytest.mark.parametrize("grids", [((),) * 4, ((0, 1),) * 4, ((2, 1),) * 4, ((1, 1),) * 4])
def test_a_grid_that_is_not_ascending_is_refused(grids):
    with pytest.raises(UserError, match=r"grids\[0\]"):
        StageSpace(grids)


def test_a_cost_for_each_stage_is_required():
    with pytest.raises(UserError, match="block_costs"):
        StageSpace(block_costs=(1.0, 1.0))


def test_branches_are_checked():
    space = StageSpace()
    np.testing.assert_array_equal(space.branch((1, 3, 5, 7)), [0, 2, 2, 4])
    with pytest.raises(UserError, match="not on the grid"):
        space.branch((1, 3, 4, 7))
    with pytest.raises(UserError, match="give 4 depths"):
        space.branch((1, 3, 5))


def test_samples_meet_the_budget_and_cover_the_space():
    space, rng = StageSpace(), np.random.default_rng(0)
    within = space.within(8)
    assert {within.sample(rng) for _ in range(200)} == set(within.enumerate())
    assert all(d in grid for d, grid in zip(space.sample(rng), space.grids, strict=True))


def test_children_are_allocations_of_the_budget():
    space, rng = StageSpace().within(16), np.random.default_rng(0)
    codes = set(space.enumerate())
    first, second = space.sample(rng), space.sample(rng)
    for _ in range(50):
        child = space.mutate(first, rng)
        assert child in codes
        assert child != first
        first, second = space.cross(child, second, rng), child
        assert first in codes


def test_a_mutation_changes_as_few_stages_as_the_budget_allows():
    space, rng = StageSpace().within(16), np.random.default_rng(0)
    for _ in range(20):
        code = space.sample(rng)
        changes = [
            sum(a != b for a, b in zip(code, candidate, strict=True))
            for candidate in space.enumerate()
            if candidate != code
        ]
        mutation = space.mutate(code, rng)
        assert sum(a != b for a, b in zip(code, mutation, strict=True)) == min(changes)
