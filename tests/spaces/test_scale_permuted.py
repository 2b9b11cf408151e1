"""The space of scale-permuted networks: counts, uniform draws, codes, and graphs that are equal."""

import collections
import dataclasses
import itertools

import numpy as np
import pytest
from scipy import stats

from crnas_jax.arch import graphs, zoo
from crnas_jax.arch.cost.backbones import backbone_cost
from crnas_jax.arch.scale_permuted import PermutedBlock, ScalePermuted, StemBlock
from crnas_jax.errors import UserError
from crnas_jax.spaces.constrained import Constrained, Limit, limited
from crnas_jax.spaces.encoding import encode
from crnas_jax.spaces.scale_permuted import PARTS, ScalePermutedSpace

SEED, SEED_8 = zoo.get("spinenet_seed"), zoo.get("spinenet_seed8")
SPACE = ScalePermutedSpace(SEED)


def _parts():
    return [parts for n in (1, 2, 3) for parts in itertools.combinations(PARTS, n)]


def test_counts_are_the_papers():
    counts = {parts: ScalePermutedSpace(SEED, parts).count() for parts in _parts()}
    assert counts["permutations",] == 435_456_000
    assert f"{ScalePermutedSpace(SEED, ('connections',), window=99).count():.2e}" == "8.35e+20"
    assert f"{counts['connections',]:.2e}" == "1.06e+18"
    assert counts["adjustments",] == 786_432 * 32_768
    assert len(SPACE.offsets) ** SPACE.num_inner == 1_048_576
    assert counts[PARTS] == np.prod([counts[part,] for part in PARTS], dtype=object)


@pytest.mark.parametrize("parts", _parts(), ids=" ".join)
def test_samples_mutations_and_children_are_codes_of_the_space(parts):
    """Ten thousand samples of the full space are networks; all codes encode back."""
    space, rng = ScalePermutedSpace(SEED, parts), np.random.default_rng(0)
    num_samples = 10_000 if parts == PARTS else 50
    for index in range(num_samples):
        code = space.sample(rng)
        space.validate(code)
        arch = space.decode(code)
        assert len(arch.blocks) <= 15
        outputs = [block.level for block in arch.blocks if block.is_output]
        assert sorted(outputs) == list(SEED.levels)
        if index < 50:
            child = space.cross(space.mutate(code, rng), space.sample(rng), rng)
            for other in (code, child):
                space.validate(other)
                network = space.decode(other)
                assert space.decode(encode(space, network)) == network


def test_drawn_parents_leave_no_block_out():
    space = ScalePermutedSpace(SEED, ("permutations",), fixed_parents="drawn")
    for seed in range(20):
        code = space.sample(np.random.default_rng(seed))
        assert len(space.decode(code).blocks) == 15
        assert space.decode(encode(space, space.decode(code))) == space.decode(code)


def test_blocks_that_reach_no_output_are_left_out():
    """As often as the paper's space has them: 12 % of samples, about half with kinds."""
    for parts, share in ((PARTS[:2], 0.12), (PARTS, 0.5)):
        space, rng = ScalePermutedSpace(SEED, parts), np.random.default_rng(1)
        dead = np.mean([len(space.decode(space.sample(rng)).blocks) < 15 for _ in range(1000)])
        assert abs(dead - share) < 0.06
    rows = [(2, (0, 1)), (3, (0, 2)), (4, (0, 1)), (2, (3, 4))]  # the last is read by nothing
    blocks = [PermutedBlock(level, "bottleneck", pair) for level, pair in rows]
    outputs = [PermutedBlock(level, "bottleneck", (3, 4), True) for level in (3, 4)]
    kept = graphs.prune(2, [*blocks, *outputs])
    assert [block.level for block in kept] == [2, 3, 4, 3, 4]
    assert [block.parents for block in kept[-2:]] == [(3, 4), (3, 4)]


@pytest.mark.parametrize("name", ["spinenet49", "r0_sp53"])
def test_published_networks_are_members_within_the_default_bound(name):
    arch = zoo.get(name)
    assert SPACE.decode(encode(SPACE, arch)) == arch
    cost, bound = (backbone_cost(network, (640, 640)).flops for network in (arch, SEED))
    assert cost <= 1.05 * bound
    with pytest.raises(UserError, match="no scale-permuted network"):
        encode(ScalePermutedSpace(SEED, ("permutations",)), arch)


def _relabelled(arch, rng):
    """Return a network with its blocks in another order that adds the same blocks."""
    num_stem, nodes = len(arch.stem), arch.nodes()
    num_inner = graphs.require_outputs_last(arch)
    while True:
        order, left = [], set(range(num_stem, len(nodes)))
        while left:
            ready = [
                index
                for index in left
                if left.isdisjoint(arch.blocks[index - num_stem].parents)
                and (index < num_stem + num_inner or min(left) >= num_stem + num_inner)
            ]
            order.append(ready[rng.integers(len(ready))])
            left.remove(order[-1])
        place = {index: num_stem + new for new, index in enumerate(order)}
        place |= {index: index for index in range(num_stem)}
        blocks = tuple(
            dataclasses.replace(
                arch.blocks[index - num_stem],
                parents=tuple(place[p] for p in arch.blocks[index - num_stem].parents[::-1]),
            )
            for index in order
        )
        other = dataclasses.replace(arch, blocks=blocks)
        added = {place[i]: {place[e] for e in node.extras} for i, node in enumerate(nodes)}
        if all(set(other.nodes()[i].extras) == extras for i, extras in added.items()):
            return other


def test_relabelled_graphs_have_one_key():
    rng = np.random.default_rng(2)
    keys = collections.Counter()
    for _ in range(1000):
        arch = SPACE.decode(SPACE.sample(rng))
        canonical = graphs.canonical(arch)
        assert graphs.canonical(_relabelled(arch, rng)) == canonical
        assert graphs.with_graph(SEED, graphs.graph_code(canonical)) == canonical
        assert backbone_cost(canonical, (96, 64)) == backbone_cost(arch, (96, 64))
        keys[canonical] += 1
    assert len(keys) > 990  # others than relabelled ones have others


def test_twins_with_different_children_are_told_apart():
    """Blocks 2 and 3 read the same: what reads which of them tells networks apart."""

    def network(first, second, third):
        rows = [(3, (0, 1)), (3, (0, 1)), (4, (0, first)), (4, (1, second))]
        blocks = [PermutedBlock(level, "bottleneck", pair) for level, pair in rows]
        pairs = ((3, (4, 5)), (4, (third, 4)))
        blocks += [PermutedBlock(level, "residual", pair, True) for level, pair in pairs]
        return ScalePermuted("spinenet", (StemBlock(2), StemBlock(2)), tuple(blocks))

    keys = [graphs.canonical(network(*readers)) for readers in ((2, 3, 3), (3, 2, 2), (2, 2, 3))]
    assert keys[0] == keys[1] != keys[2]


def _enumerated():
    """Return a space of 576 codes and a bound that rejects at least half of them."""
    base = ScalePermuted(
        "spinenet",
        (StemBlock(2), StemBlock(2)),
        (
            PermutedBlock(2, "bottleneck", (0, 1)),
            PermutedBlock(3, "bottleneck", (1, 2)),
            PermutedBlock(3, "bottleneck", (2, 3), True),
        ),
    )
    space = ScalePermutedSpace(base, offsets=(0, 1), levels=(2, 3))
    costs = {c: backbone_cost(space.decode(c), (64, 64)).flops for c in space.enumerate()}
    return space, Limit(float(np.median(list(costs.values())) - 1), "multiply-adds", None), costs


def test_draws_within_a_bound_are_uniform():
    space, limit, costs = _enumerated()
    codes = list(space.enumerate())
    assert codes == sorted(codes)
    assert 200 <= len(codes) == len(set(codes)) == space.count() <= 1000
    limit = dataclasses.replace(limit, measure=lambda a: backbone_cost(a, (64, 64)).flops)
    listed = limited(space, [limit], space.decode)
    allowed = [code for code in codes if costs[code] <= limit.bound]
    assert len(allowed) <= len(codes) / 2
    assert listed.count() == len(allowed)

    class Large:  # the same codes, drawn again as a whole until one is allowed
        enumerable = False
        sample = staticmethod(space.sample)

    def redrawn(rng):  # only the last decision is drawn again
        code = space.sample(rng)
        while not listed.allows(code):
            code = (*code[:-1], int(rng.integers(2)))
            if not any(listed.allows((*code[:-1], kind)) for kind in (0, 1)):
                code = space.sample(rng)
        return code

    samplers = [listed.sample, Constrained(Large(), listed.allows, "").sample, redrawn]
    for sampler, is_uniform in zip(samplers, (True, True, False), strict=True):
        rng = np.random.default_rng(3)
        counts = collections.Counter(sampler(rng) for _ in range(10_000))
        p = stats.chisquare([counts[code] for code in allowed]).pvalue
        assert (p > 0.001) == is_uniform


def test_wrong_spaces_are_refused():
    for options, match in (
        ({"parts": ()}, "empty"),
        ({"offsets": (1, 2)}, "0 too"),
        ({"levels": (3, 7)}, "level 2"),
        ({"window": 1}, "window"),
    ):
        with pytest.raises(UserError, match=match):
            ScalePermutedSpace(SEED_8, **options)
    with pytest.raises(UserError, match="entry 0"):
        SPACE.validate((99,) * len(SPACE.decisions))
