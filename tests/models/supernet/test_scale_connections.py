"""The supernet over connections of a scale-permuted network, and what it draws."""

import numpy as np
import pytest
from supernet_checks import check_only_the_path_moves, check_path_equals_network, one_output

from crnas_jax.errors import UserError
from crnas_jax.models.supernet.connection_spec import ConnectionSupernetSpec

ARCH = one_output((3, "bottleneck", (0, 1)), (2, "residual", (1, 2)))
SPEC = ConnectionSupernetSpec(ARCH, window=2)
# Block 2 feeds nothing and is added to p3; block 3 feeds nothing and is dead.
DEAD = ((1, 0), (2, 1), (1, 0))
# No block is added to another as it is.
CHAIN = ((0, 1), (2, 1), (3, 2))


def test_paths_equal_stand_alone_networks():
    for parents, num_blocks, extras in ((CHAIN, 3, 0), (DEAD, 2, 1)):
        network = SPEC.network(parents)
        assert len(network.blocks) == num_blocks
        assert sum(len(node.extras) for node in network.nodes()) == extras
        check_path_equals_network(SPEC, SPEC.choice(parents), network)


@pytest.mark.campaign
@pytest.mark.programs
def test_dead_blocks_and_other_parents_stay_bit_identical(caplog):
    choice = SPEC.choice(DEAD)
    assert choice["alive"].tolist() == [True, False, True]
    assert np.argwhere(choice["extras"]).tolist() == [[2, 2]]
    num_moved, num_still = check_only_the_path_moves(SPEC, choice, caplog)
    assert num_moved > 50
    assert num_still > 50


def test_connections_off_the_supernet_are_refused():
    """`lax.switch` would clamp them without an error."""
    wide = ConnectionSupernetSpec(ARCH)
    assert wide.candidates == ((0, 1), (0, 1, 2), (0, 1, 2, 3))
    assert SPEC.candidates == ((0, 1), (1, 2), (0, 1, 2, 3))
    assert (wide.num_paths, SPEC.num_paths) == (1 * 3 * 6, 1 * 1 * 6)
    for place, pair in ((1, (0, 2)), (1, (1, 1)), (0, (0, 2)), (2, (1, 4))):
        parents = list(CHAIN)
        parents[place] = pair
        with pytest.raises(UserError, match=f"parents of block {place + 2}"):
            SPEC.choice(parents)
    with pytest.raises(UserError, match="2 pairs for 3"):
        SPEC.choice(CHAIN[:2])
    with pytest.raises(UserError, match="window"):
        ConnectionSupernetSpec(ARCH, window=1)


@pytest.mark.parametrize("draws", ["uniform", "balanced"])
def test_pairs_of_parents_are_drawn_alike(draws):
    spec = ConnectionSupernetSpec(ARCH, draws=draws)
    paths = [spec.parents_of(spec.sample(1, step)) for step in range(300)]
    for place, read in enumerate(spec.candidates):
        pairs, counts = np.unique([path[place] for path in paths], axis=0, return_counts=True)
        assert len(pairs) == len(read) * (len(read) - 1) // 2
        expected = 300 / len(pairs)
        assert (abs(counts - expected) <= (0 if draws == "balanced" else 0.6 * expected)).all()
    assert spec.parents_of(spec.sample(1, 5)) == paths[5]
    assert spec.parents_of(spec.choice(DEAD)) == ((0, 1), (1, 2), (0, 1))
