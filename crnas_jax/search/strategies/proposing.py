"""Strategies that propose one code at a time, and the one driver that runs them over any scores.

Proposal i is drawn when the results of proposals 0 to i - in_flight have been taken in, in this
order, and no others: what is proposed depends on neither how many workers there are nor which of
them is quick. What was proposed is recorded, so that the state of a strategy is a function of the
record and the scores: a driver that starts again takes the same proposals from there.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import numpy as np

from crnas_jax.search.scores import Scores
from crnas_jax.spaces.space import BreedingSpace, Code

# Stream of the draws of proposals, beside those of the other strategies.
_PROPOSALS = 10
State = Any


@runtime_checkable
class Proposer(Protocol):
    """A strategy; its state consists of what `runtime.team.encode` writes."""

    def begin(self) -> State:
        """Return the state before the first result."""

    def propose(self, state: State, rng: np.random.Generator) -> Code:
        """Draw a code; `rng` is the proposal's own."""

    def update(self, state: State, code: Code, score: float) -> State:
        """Return the state after one more result."""


@runtime_checkable
class PendingScores(Protocol):
    """Scores that are begun first and asked for later."""

    def begin(self, code: Code) -> None:
        """Begin to score a code, unless its score is known or under way."""

    def finish(self, code: Code) -> float:
        """Return the score of a code that was begun, as soon as it is there."""

    def known(self, code: Code) -> float | None:
        """Return the score of a code; None where it has none yet."""


@dataclasses.dataclass(frozen=True)
class Immediate:
    """Scores of any scorer as `PendingScores`: each is computed when it is asked for."""

    scores: Scores

    def begin(self, code: Code) -> None:
        """Do nothing."""

    def finish(self, code: Code) -> float:
        """Score the code."""
        return self.scores.score([code])[0]

    known = finish


@runtime_checkable
class Proposals(Protocol):
    """The record of a driver: what was proposed, and states on the way."""

    def __len__(self) -> int:
        """Return the number of recorded proposals."""

    def code(self, index: int) -> Code:
        """Return a recorded proposal."""

    def add(self, code: Code) -> None:
        """Record the next proposal."""

    def restore(self, score_of: Callable[[Code], float | None]) -> tuple[int, State] | None:
        """Return a number of results that were taken in, and the state after them, or None.

        Args:
          score_of: function from a code to its score, None where it has none: a state that came
            from other scores is not restored.
        """

    def keep(self, results: list[tuple[Code, float]], state: State) -> None:
        """Keep the state after some results, perhaps, to be restored."""


class InMemory:
    """A record that ends with the process."""

    def __init__(self):
        self._codes: list[Code] = []

    def __len__(self) -> int:
        return len(self._codes)

    def code(self, index: int) -> Code:
        """Return a recorded proposal."""
        return self._codes[index]

    def add(self, code: Code) -> None:
        """Record the next proposal."""
        self._codes.append(code)

    def restore(self, score_of: Callable[[Code], float | None]) -> None:
        """Return None: no state is kept."""

    def keep(self, results: list[tuple[Code, float]], state: State) -> None:
        """Keep nothing."""


def run_proposer(
    proposer: Proposer,
    scores: PendingScores,
    num_proposals: int,
    in_flight: int = 1,
    seed: int = 0,
    record: Proposals | None = None,
    after_result: Callable[[int], None] = lambda index: None,
) -> list[tuple[Code, float]]:
    """Propose and score codes.

    Args:
      proposer: the strategy.
      scores: scorer of codes.
      num_proposals: number of proposals; a code may be proposed again.
      in_flight: number of proposals whose results are not taken in when the next one is drawn, and
        which are scored at once.
      seed: seed of the draws.
      record: earlier proposals, which are taken from there; new ones are added.
      after_result: called with the index of each result once it is taken in; what it raises ends
        the search.

    Returns:
      The proposals and their scores, in order.
    """
    record = InMemory() if record is None else record
    restored = record.restore(scores.known)
    # The next proposal to be drawn must not see more than it may.
    if restored is None or restored[0] > min(num_proposals, len(record) - in_flight + 1):
        restored = 0, proposer.begin()
    num_known, state = restored
    codes = map(record.code, range(num_known))
    results = [(code, scores.finish(code)) for code in codes]

    def take_in(index):
        nonlocal state
        code = record.code(index)
        score = scores.finish(code)
        results.append((code, score))
        state = proposer.update(state, code, score)
        after_result(index)

    for index in range(len(results), num_proposals):
        while len(results) <= index - in_flight:
            take_in(len(results))
            # Not of the last results below, which no proposal before more are asked for may see.
            record.keep(results, state)
        if index >= len(record):
            record.add(proposer.propose(state, np.random.default_rng([seed, _PROPOSALS, index])))
        scores.begin(record.code(index))
    while len(results) < num_proposals:
        take_in(len(results))
    return results


@dataclasses.dataclass(frozen=True)
class RandomProposals:
    """Random search: codes are drawn uniformly.

    Attributes:
      space: calls `sample`.
    """

    space: BreedingSpace

    def begin(self) -> State:
        """Return no state."""

    def propose(self, state: State, rng: np.random.Generator) -> Code:
        """Draw a code uniformly."""
        return self.space.sample(rng)

    def update(self, state: State, code: Code, score: float) -> State:
        """Return no state."""


@dataclasses.dataclass(frozen=True)
class RegularizedEvolution:
    """Evolution of a population in which the oldest dies (Real et al., arXiv 1802.01548).

    The first codes are drawn uniformly. Each further one is the mutation of the best of some codes
    drawn from the population, and takes the place of the oldest.

    Attributes:
      space: calls `sample` and `mutate`.
      population: codes in the population.
      parents: codes drawn from it, the best of which is mutated.
    """

    space: BreedingSpace
    population: int = 20
    parents: int = 5

    def begin(self) -> State:
        """Return the empty population."""
        return []

    def propose(self, state: State, rng: np.random.Generator) -> Code:
        """Draw a code, or mutate one."""
        if len(state) < self.population:
            return self.space.sample(rng)
        drawn = rng.choice(len(state), min(self.parents, len(state)), replace=False)
        code, _ = max((state[index] for index in sorted(drawn)), key=lambda pair: pair[1])
        return self.space.mutate(code, rng)

    def update(self, state: State, code: Code, score: float) -> State:
        """Return the population with one more code, without the oldest."""
        return [*state, (code, score)][-self.population :]
