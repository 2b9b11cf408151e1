"""Architectures: codes, JSON, published entries."""

import pytest

from crnas_jax import zoo
from crnas_jax.arch import Arch
from crnas_jax.errors import UserError


@pytest.mark.parametrize("name", sorted(zoo.ARCHS))
def test_json_round_trip(name):
    assert Arch.from_json(zoo.get(name).to_json()) == zoo.get(name)


def test_published_codes():
    found = zoo.get("cr_resnet50")
    assert found.depths == (1, 3, 5, 7)
    assert found.operation_code == (0, 0, 1, 0, 0, 0, 1, 2, 0, 0, 1, 0, 2, 1, 1, 2)
    assert found.stage_dilations()[1] == (1, 2, 1)
    assert zoo.get("scr_resnet101").depths == (2, 3, 17, 11)
    assert zoo.get("resnet18").out_channels == (64, 128, 256, 512)
    assert found.out_channels == (256, 512, 1024, 2048)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        (("vgg", (1, 1, 1, 1)), "family"),
        (("resnet_basic", (1, 1, 1)), "depths"),
        (("resnet_basic", (1, 0, 1, 1)), "depths"),
        (("resnet_basic", (1, 1.5, 1, 1)), "depths"),
        (("resnet_basic", (1, 1, 1, 1), (1, 1)), "dilations"),
    ],
)
def test_a_faulty_arch_is_refused_by_field(fields, field):
    with pytest.raises(UserError) as error:
        Arch(*fields)
    assert error.value.field == field


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 2}', '{"format": 1, "family": "x"}'])
def test_faulty_json_is_refused(text):
    with pytest.raises(UserError):
        Arch.from_json(text)


def test_an_unknown_name_proposes_the_nearest():
    with pytest.raises(UserError, match="cr_resnet50"):
        zoo.get("cr_resnet_50")
