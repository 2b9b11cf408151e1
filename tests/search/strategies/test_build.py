"""The table of strategies: names, options, and the bounds that a plan is made of."""

import pytest
from helpers import Noisy

from crnas_jax.errors import UserError
from crnas_jax.search.strategies.build import STRATEGIES, StrategyOptions, strategy
from crnas_jax.spaces.operations import OperationSpace
from crnas_jax.spaces.stages import StageSpace

SPACES = {
    "stage": [StageSpace().within(8), StageSpace().within(16)],
    "operation": [OperationSpace((1, 1, 1, 1))],
}
NAMES = [(level, name) for level, table in STRATEGIES.items() for name in table]


@pytest.mark.parametrize(
    ("level", "name", "known"),
    [
        ("stage", "greedy", "use 'exhaustive' or 'racing' or 'random' or 'evolution'"),
        ("operation", "exhaustive", "use 'greedy' or 'random' or 'evolution'"),
        ("operation", "", "'' is unknown"),
    ],
)
def test_an_unknown_strategy_is_refused_with_those_there_are(level, name, known):
    with pytest.raises(UserError, match=f"search.{level}_strategy: .*{known}"):
        strategy(name, level, StrategyOptions())


@pytest.mark.parametrize(("level", "name"), NAMES)
def test_every_strategy_ranks_each_space_within_its_bounds(level, name):
    chosen = strategy(name, level, StrategyOptions(evaluations=30, population=10, parents=3))
    assert chosen.name == name
    spaces, scores = SPACES[level], Noisy()
    rankings = chosen.run(spaces, scores)
    assert len(rankings) == len(spaces)
    for space, ranked in zip(spaces, rankings, strict=True):
        codes = [code for code, _ in ranked]
        assert codes
        assert len(codes) == len(set(codes))
        assert set(codes) <= set(space.enumerate())
        values = [value for _, value in ranked]
        assert values == sorted(values, reverse=True)
    num_evaluations = [chosen.max_evaluations(space) for space in spaces]
    assert scores.effort()["evaluated"] <= sum(num_evaluations)
    assert sum(scores.passes.values()) <= sum(num_evaluations) * scores.num_batches


def test_greedy_alone_scores_beginnings_of_codes():
    partial = [
        (level, name)
        for level, name in NAMES
        if strategy(name, level, StrategyOptions()).scores_partial_codes
    ]
    assert partial == [("operation", "greedy")]


@pytest.mark.parametrize("level", STRATEGIES)
def test_options_reach_the_strategy(level):
    few, many = (
        strategy("random", level, StrategyOptions(evaluations=evaluations, seed=3))
        for evaluations in (2, 5)
    )
    for chosen, count in ((few, 2), (many, 5)):
        assert [len(ranked) for ranked in chosen.run(SPACES[level], Noisy())] == [count] * len(
            SPACES[level]
        )


def test_codes_to_keep_reach_the_race():
    space = SPACES["stage"][1]
    worst = min(space.enumerate(), key=Noisy().worth)
    for keep in ((), (worst,)):
        scores = Noisy(noise=0.01)
        strategy("racing", "stage", StrategyOptions(keep=keep)).run([space], scores)
        assert (scores.passes[worst] == scores.num_batches) == bool(keep)


@pytest.mark.parametrize(
    ("field", "value"),
    [("beam", 0), ("evaluations", 0), ("population", 0), ("parents", 0), ("confidence", 1.0)],
)
def test_options_out_of_bounds_are_refused_by_field(field, value):
    with pytest.raises(UserError) as error:
        StrategyOptions(**{field: value})
    assert (error.value.where, error.value.field) == ("StrategyOptions", field)
