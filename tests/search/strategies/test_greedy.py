"""Greedy search against algorithm 1 by brute force on tabulated scores, ties included."""

import numpy as np
import pytest
from helpers import Table

from crnas_jax.arch import zoo
from crnas_jax.errors import UserError
from crnas_jax.search.strategies.greedy import complete, greedy, num_evaluations
from crnas_jax.spaces.constrained import Constrained
from crnas_jax.spaces.operations import OperationSpace


def _brute_force(num_blocks, num_operations, beam, table):
    survivors = np.zeros((1, 0), int)
    for _ in range(num_blocks):
        codes = np.array([[*code, op] for code in survivors for op in range(num_operations)])
        scores = np.array([table.value(tuple(map(int, code))) for code in codes])
        # np.lexsort: the last key is the first to count.
        order = np.lexsort((*codes.T[::-1], -scores))
        survivors, scores = codes[order[:beam]], scores[order[:beam]]
    return tuple(int(entry) for entry in survivors[0]), scores[0]


@pytest.mark.parametrize("levels", [2, 4, 10**6])
@pytest.mark.parametrize(
    ("depths", "dilations", "beam"), [((1, 2, 2, 1), (1, 2, 3), 3), ((1, 1, 1, 2), (1, 2), 5)]
)
def test_greedy_search_is_algorithm_1(depths, dilations, beam, levels):
    space = OperationSpace(depths, dilations)
    for seed in range(10):
        table = Table(seed, levels)
        (ranked,) = greedy([space], table, beam=beam)
        assert sum(map(len, table.calls)) == num_evaluations(space, beam)
        assert ranked[0] == _brute_force(space.num_blocks, len(dilations), beam, table)
        assert len(ranked) == beam


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet18", 66),
        ("resnet50", 138),
        ("resnet101", 291),
        ("mobilenet_v2", 147),
        ("cr_mobilenet_v2", 147),
    ],
)
def test_evaluations_are_the_papers(name, expected):
    assert num_evaluations(OperationSpace(zoo.get(name).stage_depths)) == expected


def test_the_beam_is_not_wider_than_the_codes_there_are():
    assert num_evaluations(OperationSpace((1, 1, 1, 1), (1, 2)), beam=3) == 2 + 4 + 6 + 6


def test_a_limit_on_codes_holds():
    space = OperationSpace((2, 2), (1, 2, 3))
    limited = Constrained(space, lambda code: sum(code) <= 3, "a sum of at most 3")
    ((best, _), *_) = greedy([limited], Table(0, 10**6))[0]
    assert sum(best) <= 3
    with pytest.raises(UserError, match="no code is allowed"):
        greedy([Constrained(space, lambda code: False, "nothing")], Table(0, 5))


def test_completions_are_common_to_candidates_and_differ_between_batches():
    space = OperationSpace((2, 2, 2, 2))
    rest = {complete(space, code, 0, batch=3)[2:] for code in ((0, 0), (1, 2), (2, 1))}
    assert len(rest) == 1
    assert len({complete(space, (0, 0), 0, batch) for batch in range(20)}) > 15
    assert complete(space, (0,) * 8, 0, 1) == (0,) * 8
    assert all(0 <= entry < 3 for entry in complete(space, (), 5, 0))
