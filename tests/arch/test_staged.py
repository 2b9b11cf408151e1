"""Architectures: codes, parts, JSON, published entries."""

import pytest

from crnas_jax import arch as architectures
from crnas_jax.arch import zoo
from crnas_jax.arch.staged import Arch
from crnas_jax.errors import UserError


@pytest.mark.parametrize("name", sorted(zoo.ARCHS))
def test_json_round_trip(name):
    text = zoo.get(name).to_json()
    assert Arch.from_json(text) == architectures.read(text) == zoo.get(name)


# CR-NAS, tables 1 and 2: baseline, stage code, operation code as a string of digits.
PUBLISHED = {
    "mobilenet_v2": ((1, 1, 2, 3, 4, 3, 3, 1, 1, 1), (1, 1, 2, 2, 3, 4, 4, 1, 1, 1)),
    "resnet18": ((2, 2, 2, 2), (1, 1, 2, 4)),
    "resnet50": ((3, 4, 6, 3), (1, 3, 5, 7)),
    "resnet101": ((3, 4, 23, 3), (2, 3, 17, 11)),
    "resnext50_32x4d": ((3, 4, 6, 3), (2, 2, 6, 6)),
    "resnext101_32x4d": ((3, 4, 23, 3), (3, 4, 15, 11)),
}
OPERATIONS = {
    "mobilenet_v2": "01010201100110110200",
    "resnet18": "00101021",
    "resnet50": "0010001200102112",
    "resnet101": "000000101000200010101011001012011",
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_codes(name):
    baseline, searched_code = PUBLISHED[name]
    assert zoo.get(name).stage_code == baseline
    assert zoo.get(f"scr_{name}").stage_code == searched_code
    assert set(zoo.get(name).operation_code) == {0}
    if name in OPERATIONS:
        searched = zoo.get(f"cr_{name}")
        assert searched.stage_code == searched_code
        assert "".join(map(str, searched.operation_code)) == OPERATIONS[name]


def test_channels_and_blocks():
    assert zoo.get("resnet18").out_channels == (64, 128, 256, 512)
    assert zoo.get("cr_resnet50").out_channels == (256, 512, 1024, 2048)
    assert zoo.get("cr_resnet50").stage_dilations()[1] == (1, 2, 1)
    assert zoo.get("mobilenet_v2").out_channels == (24, 32, 96, 1280)
    assert zoo.get("mobilenet_v2").stage_depths == (1, 2, 3, 4, 3, 3, 1)
    centre = zoo.get("resnext50_32x4d").block(2, first=True)
    assert (centre.inner_channels, centre.groups, centre.stride) == (512, 32, 2)
    assert not zoo.get("mobilenet_v2").block(0, first=True).expands


def test_parts_are_stem_stages_and_tail_in_network_order():
    resnet, mobilenet = zoo.get("resnet50"), zoo.get("mobilenet_v2")
    assert [part.name for part in resnet.parts()] == ["stem", *(f"stage{i}" for i in (1, 2, 3, 4))]
    assert [part.level for part in resnet.parts()] == [None, 2, 3, 4, 5]
    assert [len(part.units) for part in resnet.stages] == list(resnet.stage_depths)
    assert resnet.num_blocks == 16
    names, levels = zip(*((part.name, part.level) for part in mobilenet.parts()), strict=True)
    assert names == ("stem", *(f"stage{i}" for i in range(1, 8)), "tail")
    assert levels == (None, None, 2, 3, None, 4, None, None, 5)
    assert mobilenet.num_blocks == 17


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        (("vgg", (1, 1, 1, 1)), "family"),
        (("resnet_basic", (1, 1, 1)), "depths"),
        (("resnet_basic", (1, 0, 1, 1)), "depths"),
        (("resnet_basic", (1, 1.5, 1, 1)), "depths"),
        (("resnet_basic", (1, 1, 1, 1), (1, 1)), "dilations"),
        (("mobilenet_v2", (1, 1, 1, 1)), "depths"),
        (("mobilenet_v2", (1, 1, 1, 1, 1), (1,) * 5), "dilations"),
        (("resnext_32x4d", (1, 1, 1, 1), (), (8, 16, 32, 64)), "widths"),
    ],
)
def test_a_faulty_arch_is_refused_by_field(fields, field):
    with pytest.raises(UserError) as error:
        Arch(*fields)
    assert error.value.field == field


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 2}', '{"format": 1, "family": "x"}'])
def test_faulty_json_is_refused(text):
    for read in (Arch.from_json, architectures.read):
        with pytest.raises(UserError, match=r"^arch: "):
            read(text)


def test_a_file_holds_an_architecture_or_the_result_of_a_search(tmp_path):
    file, arch = tmp_path / "found.json", zoo.get("cr_mobilenet_v2")
    for text in (arch.to_json(), f'{{"score": 0.5, "arch": {arch.to_json()}}}'):
        file.write_text(text)
        assert zoo.find(str(file)) == arch
    for text in ("", "[1, 2]", '{"arch": 3}', arch.to_json().replace("mobilenet_v2", "vgg")):
        file.write_text(text)
        with pytest.raises(UserError, match=r"found\.json"):
            zoo.find(str(file))


def test_an_unknown_name_proposes_the_nearest():
    with pytest.raises(UserError, match="cr_resnet50"):
        zoo.get("cr_resnet_50")
