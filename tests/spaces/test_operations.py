"""Operation reallocation's space: its size and its codes."""

import numpy as np
import pytest

from crnas_jax.arch import zoo
from crnas_jax.errors import UserError
from crnas_jax.spaces.operations import OperationSpace, PermutedOperationSpace


def test_the_size_of_the_space():
    assert OperationSpace((3, 4, 6, 3)).count() == 3**16 == 43046721
    space = OperationSpace((1, 1, 1, 1))
    codes = list(space.enumerate())
    assert space.count() == len(codes) == len(set(codes)) == 81
    assert codes == sorted(codes)


@pytest.mark.parametrize("name", ["mobilenet_v2", "cr_mobilenet_v2"])
def test_mobilenet_has_a_code_for_the_blocks_of_its_fixed_stages_too(name):
    assert OperationSpace(zoo.get(name).stage_depths).num_blocks == 17


@pytest.mark.parametrize("dilations", [(), (0, 1), (1, 2, 2)])
def test_faulty_dilations_are_refused(dilations):
    with pytest.raises(UserError, match="dilations"):
        OperationSpace((1, 1), dilations)


@pytest.mark.parametrize("code", [[0] * 15 + [3], [0] * 15 + [-1], [0] * 15])
def test_a_code_that_is_not_of_the_space_is_refused(code):
    space = OperationSpace((3, 4, 6, 3))
    with pytest.raises(UserError, match=r"give 16 entries of 0\.\.2"):
        space.validate(code)
    assert space.validate([0] * 15 + [2]).tolist() == [0] * 15 + [2]


def test_a_code_holds_indices_into_the_dilations():
    space = OperationSpace((2, 1), (3, 1))
    assert space.dilations_of((0, 1, 0)) == (3, 1, 3)


def test_tied_codes_have_an_entry_for_each_stage():
    space = OperationSpace((3, 1, 2), (1, 2), "stage")
    assert (space.num_blocks, space.count()) == (3, 8)
    assert space.dilations_of((1, 0, 1)) == (2, 2, 2, 1, 2, 2)
    assert space.operations_of(space.sample(np.random.default_rng(0))) != (0,) * 3
    assert space.dilations_of(space.ones) == (1,) * 6
    assert space.quickest_completion((1,)) == (1, 0, 0)
    assert OperationSpace((1, 1), (2, 3)).ones is None
    with pytest.raises(UserError, match="tie: 'x' is unknown"):
        OperationSpace((1, 1), tie="x")


@pytest.mark.parametrize("dilations", [(1, 2), (3, 1, 2)])
def test_the_quickest_completion_has_the_smallest_dilation(dilations):
    space = OperationSpace((1, 1, 1, 1), dilations)
    two = dilations.index(2)
    completion = space.quickest_completion((two, two))
    assert space.dilations_of(completion) == (2, 2, 1, 1)
    assert space.may_begin_with(completion)
    assert not space.may_begin_with((*completion, two))


def test_samples_and_children_are_codes_of_the_space():
    space, rng = OperationSpace((2, 2)), np.random.default_rng(0)
    codes = set(space.enumerate())
    assert {space.sample(rng) for _ in range(1000)} == codes
    first, second = space.sample(rng), space.sample(rng)
    for _ in range(50):
        mutation = space.mutate(first, rng)
        assert mutation in codes
        assert mutation != first
        child = space.cross(mutation, second, rng)
        parents = zip(mutation, second, strict=True)
        assert all(entry in pair for entry, pair in zip(child, parents, strict=True))
        first, second = child, mutation


def test_blocks_of_a_level_are_tied_wherever_they_stand():
    space = PermutedOperationSpace.of_levels((4, 2, 4, 3), (1, 2, 3), "level")
    assert space.entries == ("level 2", "level 3", "level 4")
    assert space.dilations_of((0, 1, 2)) == (3, 1, 3, 2)
    space = PermutedOperationSpace.of_levels((4, 2, 4, 3), (1, 2, 3), "block")
    assert space.entries == ("block 1", "block 2", "block 3", "block 4")
    assert space.dilations_of((0, 1, 2, 0)) == (1, 2, 3, 1)
    assert OperationSpace((2, 1), tie="stage").entries == ("stage 1", "stage 2")
