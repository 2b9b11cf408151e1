"""The spaces against the paper's counts and brute force."""

import itertools

import numpy as np
import pytest

from crnas_jax.arch import zoo
from crnas_jax.errors import UserError
from crnas_jax.spaces.stages import OperationSpace, StageSpace, limited


@pytest.mark.parametrize(("budget", "number"), [(8, 9), (16, 153), (33, 374)])
def test_counts_of_the_paper(budget, number):
    space = StageSpace()
    found = list(space.enumerate(budget))
    assert space.count(budget) == len(found) == len(set(found)) == number
    assert found == sorted(found)
    assert all(sum(depths) == budget for depths in found)


def test_mobilenets_space_is_the_papers():
    space = StageSpace.of("mobilenet_v2")
    assert space.count(16) == len(list(space.enumerate(16))) == 43
    for name in ("mobilenet_v2", "cr_mobilenet_v2"):
        arch = zoo.get(name)
        assert space.cost(arch.depths) == 16
        space.branch(arch.depths)
        assert OperationSpace(arch.stage_depths).blocks == 17
        assert OperationSpace(arch.stage_depths).evaluations() == 147


def test_a_family_has_a_grid_for_each_searched_stage():
    assert StageSpace.of("resnext_32x4d").count(16) == 153
    with pytest.raises(UserError, match="give 5 for mobilenet_v2"):
        StageSpace.of("mobilenet_v2", ((1,),) * 4)


def test_count_equals_brute_force_with_costs():
    space = StageSpace(((1, 2), (1, 3), (1, 2, 4), (2,)), (1.5, 1.0, 0.75, 1.25))
    for budget in (5.0, 6.0, 6.5, 7.25, 100.0):
        brute = [d for d in itertools.product(*space.grids) if space.cost(d) == budget]
        assert list(space.enumerate(budget)) == brute
        assert space.count(budget) == len(brute)
    assert space.count() == 12


def test_an_impossible_budget_names_the_nearest():
    with pytest.raises(UserError, match="nearest: 6, 7"):
        StageSpace().require(5)


def test_branches_are_checked():
    space = StageSpace()
    np.testing.assert_array_equal(space.branch((1, 3, 5, 7)), [0, 2, 2, 4])
    with pytest.raises(UserError, match="not on the grid"):
        space.branch((1, 3, 4, 7))


def test_samples_meet_the_budget_and_cover_the_space():
    space, rng = StageSpace(), np.random.default_rng(0)
    assert {space.sample(rng, 8) for _ in range(200)} == set(space.enumerate(8))
    assert all(d in grid for d, grid in zip(space.sample(rng), space.grids, strict=True))


def test_limits_hold_together_and_nothing_is_measured_twice():
    measured = []

    def milliseconds(arch):
        measured.append(arch)
        return 10.0 * arch[0]

    limits = [(6, "blocks in the last stage", lambda arch: arch[3]), (30, "ms", milliseconds)]
    space, arch_of = StageSpace(), tuple
    few = limited(space, limits, arch_of)
    codes = {code for code in space.enumerate(16) if code[3] <= 6 and code[0] <= 3}
    assert 1 < len(codes) < space.count(16)
    for _ in range(2):
        assert set(few.enumerate(16)) == codes
    assert {few.sample(np.random.default_rng(seed), 16) for seed in range(300)} <= codes
    assert len(measured) == len(set(measured))
    few.require(16)
    nothing = limited(space, [(5, "ms", milliseconds)], arch_of)
    with pytest.raises(UserError, match="no allocation of 16 blocks has at most 5 ms"):
        nothing.require(16)
    with pytest.raises(UserError, match="next to nothing has at most 5 ms"):
        nothing.sample(np.random.default_rng(0), 16)
    assert limited(space, [], arch_of) is space


@pytest.mark.parametrize("dilations", [(1, 2), (3, 1, 2)])
def test_a_partial_code_is_judged_by_its_quickest_completion(dilations):
    space = OperationSpace((1, 1, 1, 1), dilations)
    few = limited(space, [(6, "dilation", lambda code: sum(dilations[i] for i in code))], tuple)
    two = dilations.index(2)
    assert few.begins((two, two))
    assert not few.begins((two, two, two))


def test_operation_space():
    space = OperationSpace((3, 4, 6, 3))
    assert space.count() == 43046721
    assert [
        OperationSpace(d).evaluations() for d in ((2, 2, 2, 2), (3, 4, 6, 3), (3, 4, 23, 3))
    ] == [66, 138, 291]
    assert OperationSpace((1, 1, 1, 1), (1, 2)).evaluations(3) == 2 + 4 + 6 + 6
    assert len(list(OperationSpace((1, 1, 1, 1)).enumerate())) == 81
    with pytest.raises(UserError):
        space.validate([0] * 15 + [3])
    assert len(space.sample(np.random.default_rng(0))) == 16
