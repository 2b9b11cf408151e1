"""Strategies that propose one code at a time: what each proposal sees, and going on."""

import jax
import numpy as np
import pytest

from crnas_jax.arch import zoo
from crnas_jax.arch.scale_permuted import PermutedBlock, ScalePermuted, StemBlock
from crnas_jax.search.proposals import ProposalFile
from crnas_jax.search.strategies.proposing import (
    Immediate,
    InMemory,
    RandomProposals,
    RegularizedEvolution,
    run_proposer,
)
from crnas_jax.search.strategies.reinforce import (
    ControllerOptions,
    Reinforce,
    log_probabilities,
    policy_objective,
)
from crnas_jax.search.strategies.successive_halving import num_candidates, successive_halving
from crnas_jax.spaces.scale_permuted import ScalePermutedSpace

SPACE = ScalePermutedSpace(zoo.get("spinenet_seed8"), ("permutations",))


def _value(code):
    """Rank an order by how many places hold their own block."""
    return sum(place == entry for place, entry in enumerate(code[:5])) / 5


class Scores:
    """Values of codes; notes what is under way when each is begun."""

    def __init__(self):
        self.begun, self.finished, self.under_way = [], [], []

    def begin(self, code):
        self.begun.append(code)
        self.under_way.append(len(self.begun) - len(self.finished))

    def finish(self, code):
        self.finished.append(code)
        return _value(code)

    def known(self, code):
        return _value(code)

    def score_at(self, codes, share):
        return [_value(code) for code in codes]


class Seen:
    """A strategy whose proposals are the number of results that it has seen."""

    def begin(self):
        return 0

    def propose(self, state, rng):
        return (state,)

    def update(self, state, code, score):
        return state + 1


@pytest.mark.parametrize("in_flight", [1, 3])
def test_a_proposal_sees_exactly_the_results_before_those_in_flight(in_flight):
    results = run_proposer(Seen(), Scores(), 10, in_flight)
    assert [code[0] for code, _ in results] == [max(i - in_flight + 1, 0) for i in range(10)]


def test_scores_that_are_not_begun_first_serve_as_well():
    class Supernet:
        def score(self, codes):
            return [_value(code) for code in codes]

        def effort(self):
            return {}

    results = run_proposer(_strategies()["evolution"], Immediate(Supernet()), 20, 3)
    assert results == run_proposer(_strategies()["evolution"], Scores(), 20, 3)


def _strategies():
    return {
        "random": RandomProposals(SPACE),
        "evolution": RegularizedEvolution(SPACE, 8, 4),
        "reinforce": Reinforce(SPACE, options=ControllerOptions(8, 4, 1e-2, batch=4)),
    }


@pytest.mark.parametrize("name", ["random", "evolution", "reinforce"])
def test_a_search_that_starts_again_goes_on_alike(tmp_path, name):
    """From the record, from a snapshot, and without it; more proposals go on."""
    whole = run_proposer(_strategies()[name], Scores(), 90, 3, seed=1)
    file, snapshot = tmp_path / "proposals.jsonl", tmp_path / "proposals_snapshot.json"

    def record():
        return ProposalFile(file, "key", lambda code: code)

    run_proposer(_strategies()[name], Scores(), 50, 3, 1, record())
    with file.open("a") as lines:
        lines.write('{"format": 1, "key"')  # torn
    assert record().restore(_value)[0] == 25
    before = file.read_bytes(), snapshot.read_bytes()

    def keep():
        pass

    def damage():
        snapshot.write_text(snapshot.read_text()[:-9])

    for change in (keep, damage, snapshot.unlink):
        file.write_bytes(before[0])
        snapshot.write_bytes(before[1])
        change()
        assert (record().restore(_value) is not None) == (change is keep)
        assert run_proposer(_strategies()[name], Scores(), 90, 3, 1, record()) == whole
        assert record().restore(_value)[0] == 75
        # Fewer are the first of them, and other scores are not those of the snapshot.
        assert run_proposer(_strategies()[name], Scores(), 30, 3, 1, record()) == whole[:30]
        assert record().restore(lambda code: 0.0) is None
    assert len(ProposalFile(file, "other", lambda code: code)) == 0


def test_evolution_beats_random_search_on_an_easy_problem():
    counts = {
        name: np.mean([score for _, score in run_proposer(_strategies()[name], Scores(), 120)])
        for name in ("random", "evolution")
    }
    assert counts["evolution"] > counts["random"] + 0.2


def test_successive_halving_promotes_the_best():
    class Rungs(Scores):
        def score_at(self, codes, share):
            self.finished.append((len(codes), share))
            return super().score_at(codes, share)

    scores = Rungs()
    ranked = successive_halving(SPACE, scores, evaluations=20)
    count = num_candidates(20, 3, 3)
    assert scores.finished == [(count, 1 / 9), (count // 3, 1 / 3), (count // 9, 1.0)]
    spent = count / 9 + (count // 3) * (1 / 3 - 1 / 9) + (count // 9) * (1 - 1 / 3)
    assert spent <= 20
    assert ranked[0][1] == max(value for _, value in ranked)


def _small_space():
    blocks = (
        PermutedBlock(2, "bottleneck", (0, 1)),
        PermutedBlock(3, "bottleneck", (1, 2)),
        PermutedBlock(3, "bottleneck", (2, 3), True),
    )
    base = ScalePermuted("spinenet", (StemBlock(2), StemBlock(2)), blocks)
    return ScalePermutedSpace(base, offsets=(0, 1), levels=(2, 3))


def test_the_policy_gradient_is_that_of_the_mean_reward():
    """Over all codes of a space; what is masked is never drawn."""
    space = _small_space()
    codes = list(space.enumerate())
    assert len(codes) < 1000
    controller = Reinforce(space, options=ControllerOptions(units=8, embedding=4))
    weights = jax.tree.map(lambda leaf: 10 * leaf, controller.weights(controller.begin()))
    values, masks = controller.arrays(codes)
    rewards = np.random.default_rng(0).normal(size=len(codes)).astype(np.float32)

    def mean_reward(weights):
        return (jax.numpy.exp(log_probabilities(weights, values, masks)[0]) * rewards).sum()

    logs, _ = log_probabilities(weights, values, masks)
    probabilities = np.exp(np.asarray(logs, np.float64))
    assert probabilities.sum() == pytest.approx(1, abs=1e-5)
    shares = (probabilities * rewards).astype(np.float32)
    estimated = jax.grad(policy_objective)(weights, values, masks, shares, 0.0)
    exact = jax.grad(mean_reward)(weights)
    for one, other in zip(jax.tree.leaves(estimated), jax.tree.leaves(exact), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    state = {"leaves": [np.asarray(leaf) for leaf in jax.tree.leaves(weights)]}
    controller._structure = jax.tree.structure((weights,))
    rng, drawn = np.random.default_rng(1), []
    for _ in range(2000):
        drawn.append(controller.propose(state, rng))
    counts = np.array([drawn.count(code) for code in codes])
    assert counts.sum() == len(drawn)
    expected = probabilities * len(drawn)
    # Within five standard deviations of a binomial count.
    assert (abs(counts - expected) < 5 * np.sqrt(expected) + 5).all()


def test_a_controller_learns_and_draws_only_what_is_allowed():
    def allows(code):
        return code[0] != 0

    controller = Reinforce(
        SPACE, allows, ControllerOptions(units=32, embedding=8, rate=2e-2, batch=8)
    )
    results = run_proposer(controller, Scores(), 600, record=InMemory())
    assert all(allows(code) for code, _ in results)
    scores = [score for _, score in results]
    assert np.mean(scores[-50:]) > np.mean(scores[:50]) + 0.2
