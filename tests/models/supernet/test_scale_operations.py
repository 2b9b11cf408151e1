"""The supernet over dilations of a scale-permuted network, and what it draws."""

import dataclasses

import numpy as np
import pytest
from helpers import fresh_variables, largest_difference
from supernet_checks import RETINA, check_only_the_path_moves, check_path_equals_network, one_output

from crnas_jax.arch import zoo
from crnas_jax.errors import UserError
from crnas_jax.models.build import Detector
from crnas_jax.models.supernet.scale_operations import ScaleSupernetSpec
from crnas_jax.models.transfer import fill

# Its first block has two dilated convolutions.
ARCH = one_output((4, "residual", (0, 1)))


@pytest.mark.parametrize("sharing", ["own", "shared"])
def test_path_equals_stand_alone_network(sharing):
    spec = ScaleSupernetSpec(ARCH, (1, 2, 3), sharing)
    operations = (1, 2)
    network = spec.network(operations)
    assert network == dataclasses.replace(ARCH, dilations=(2, 3))
    check_path_equals_network(spec, spec.choice(operations), network)


@pytest.mark.campaign
@pytest.mark.programs
def test_dilations_that_are_not_sampled_stay_bit_identical(caplog):
    spec = ScaleSupernetSpec(ARCH, (1, 3))
    num_moved, num_still = check_only_the_path_moves(spec, spec.choice((1, 0)), caplog)
    # Of three searched convolutions a kernel, scale and bias, their momentum, and two statistics.
    assert num_still == 3 * (3 + 3 + 2)
    assert num_moved == num_still


def test_a_network_starts_every_dilation():
    spec, network = ScaleSupernetSpec(ARCH, (1, 2)), Detector(ARCH, RETINA)
    supernet, source = Detector(spec, RETINA), fresh_variables(network, seed=1)
    filled, unfilled = fill(supernet, fresh_variables(supernet), source)
    assert unfilled == []
    for operations in ((0, 1), (1, 0)):
        path = supernet.extract(filled, spec.choice(operations))
        assert largest_difference(path, source) == 0


def test_choices_off_the_supernet_are_refused():
    spec = ScaleSupernetSpec(ARCH, (1, 2))
    for operations in ((0,), (0, 2), (0, -1)):
        with pytest.raises(UserError, match=r"give 2 entries of 0\.\.1"):
            spec.choice(operations)
    for field, value in (("tie", "stage"), ("draws", "x"), ("kernel_sharing", "x")):
        with pytest.raises(UserError, match=field):
            dataclasses.replace(spec, **{field: value})
    with pytest.raises(UserError, match="dilations"):
        dataclasses.replace(spec, dilations=(1, 1))


@pytest.mark.parametrize("draws", ["uniform", "balanced"])
def test_dilations_are_drawn_alike_and_by_level_where_they_are_tied(draws):
    arch = zoo.get("spinenet49")
    spec = ScaleSupernetSpec(arch, (1, 2, 3), draws=draws)
    paths = np.array([spec.sample(3, step)["ops"] for step in range(300)])
    counts = np.stack([(paths == operation).sum(0) for operation in range(3)])
    assert (abs(counts - 100) <= (0 if draws == "balanced" else 40)).all()
    np.testing.assert_array_equal(spec.sample(3, 7)["ops"], paths[7])
    tied = dataclasses.replace(spec, tie="level")
    assert tied.space.num_blocks == 6
    ops = tied.sample(3, 7)["ops"]
    by_level = {block.level: ops[place] for place, block in enumerate(arch.blocks)}
    assert [by_level[block.level] for block in arch.blocks] == ops.tolist()
    assert len(set(by_level.values())) > 1
