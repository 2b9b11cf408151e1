"""Scale-permuted architectures as values: which are accepted, their shapes, their drawings."""

import dataclasses
import json
import xml.etree.ElementTree as ElementTree

import pytest
from helpers import run_commands, tiny_spinenet

from crnas_jax import arch as architectures
from crnas_jax.analysis.drawing import drawing
from crnas_jax.arch import zoo
from crnas_jax.arch.cost.backbones import backbone_cost
from crnas_jax.arch.scale_permuted import PermutedBlock, ScalePermuted, StemBlock
from crnas_jax.errors import UserError

TINY = tiny_spinenet()


@pytest.mark.parametrize("name", zoo.SCALE_PERMUTED)
def test_json_round_trip(name):
    arch = zoo.get(name)
    assert architectures.read(arch.to_json()) == arch == zoo.find(name)
    assert arch.levels == ((3, 4, 5) if name == "spinenet_seed8" else (3, 4, 5, 6, 7))


def test_dilations_stand_in_json_where_there_are_some():
    assert "dilations" not in TINY.to_json()
    assert dataclasses.replace(TINY, dilations=(1,) * 5) == TINY
    arch = dataclasses.replace(TINY, dilations=(1, 3, 1, 2, 1))
    assert architectures.read(arch.to_json()) == arch
    assert [node.dilation for node in arch.nodes()] == [1, 1, 1, 3, 1, 2, 1]
    assert backbone_cost(arch, (128, 128)) == backbone_cost(TINY, (128, 128))
    assert "3 d3" in drawing(arch)


def test_blocks_without_children_join_the_output_of_their_level_and_channels():
    extras = {
        name: [(node.name, node.extras) for node in zoo.get(name).nodes() if node.extras]
        for name in zoo.SCALE_PERMUTED
    }
    assert extras["spinenet49"] == extras["spinenet190"] == [("block14", (11,))]
    assert extras["r0_sp53"] == [("block13", (11,))]
    assert extras["spinenet49_mobile"] == [("block15", (12,))]
    # Stem blocks that may not be read may not be added either.
    assert extras["r23_sp30"] == []


def test_widths_are_scaled_and_rounded_down():
    arch = zoo.get("spinenet190")
    assert [arch.width(level) for level in (2, 3, 4, 7)] == [83, 166, 332, 332]
    assert len(arch.nodes()[5].units) == 4
    assert [zoo.get("spinenet49s").width(level) for level in (2, 3, 4)] == [41, 83, 166]
    # The first repeat alone changes channels, in the stem's first block.
    first, second = zoo.get("spinenet96").nodes()[0].units
    assert (first.projection is not None, second.projection) == (True, None)


def _changed(place, **changes):
    blocks = list(TINY.blocks)
    blocks[place] = dataclasses.replace(blocks[place], **changes)
    return {"blocks": tuple(blocks)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (_changed(1, parents=(1, 3)), "blocks: block 3: parent 3 does not come before it"),
        (_changed(1, parents=(1, 1)), r"block 3: parents \(1, 1\) are the same block"),
        (_changed(1, parents=(1, 2, 0)), "block 3: parents .* give two"),
        (_changed(1, parents=(1, True)), "block 3: parent True"),
        (_changed(2, kind="mbconv"), "block 4: kind 'mbconv'; use one of"),
        (_changed(2, level=8), "block 4: level 8"),
        (_changed(2, level=5), r"outputs at levels \[3, 5, 5, 6, 7\]; give one output for each"),
        (_changed(2, is_output=1), "block 4: is_output 1"),
        (_changed(4, is_output=False, level=2), "block 6: feeds no block, is no output"),
        ({"stem": (StemBlock(3), StemBlock(2))}, "stem: block 1: level 2 after level 3"),
        ({"stem": (StemBlock(2, False), StemBlock(2))}, "block 2: parent 0 is a stem block"),
        ({"stem": ()}, "stem: empty"),
        ({"repeats": 0}, "repeats: 0"),
        ({"width_scale": 0}, "width_scale: 0"),
        ({"alpha": "x"}, "alpha: 'x'"),
        ({"family": "resnet"}, "family: 'resnet'; use one of"),
        ({"dilations": (1, 2)}, "dilations: 2 entries for 5 permuted blocks; give one dilation"),
        ({"dilations": (1, 2, 0, 1, 1)}, r"dilations: \(1, 2, 0, 1, 1\); give whole numbers"),
        ({"dilations": (1, 2, True, 1, 1)}, "dilations: .* give whole numbers"),
        ({"dilations": 2}, "dilations: 2; give whole numbers"),
    ],
)
def test_tables_that_are_no_network_are_refused_by_the_blocks_name(changes, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(TINY, **changes)


def test_a_block_without_children_counts_if_an_output_adds_it():
    """It goes by level and channels: a residual block has other channels than a bottleneck."""
    first, rest = list(TINY.blocks[:2]), list(TINY.blocks[2:])
    rest = [  # parents from index 4 on stand one place later
        dataclasses.replace(block, parents=tuple(p + (p > 3) for p in block.parents))
        for block in rest
    ]
    assert (rest[0].level, rest[0].kind) == (4, "bottleneck")
    lone = PermutedBlock(4, "residual", (0, 1))
    with pytest.raises(UserError, match="block 4: feeds no block"):
        ScalePermuted("spinenet", TINY.stem, (*first, lone, *rest))
    lone = PermutedBlock(4, "bottleneck", (0, 1))
    arch = ScalePermuted("spinenet", TINY.stem, (*first, lone, *rest))
    assert arch.nodes()[5].extras == (4,)


@pytest.mark.parametrize(
    "change",
    [
        lambda fields: fields.pop("alpha"),
        lambda fields: fields.update(format=2),
        lambda fields: fields.update(blocks={}),
        lambda fields: fields["blocks"][0].pop("level"),
        lambda fields: fields["blocks"][0].update(level="3"),
        lambda fields: fields["blocks"][0].update(parents=[0, [1]]),
        lambda fields: fields.update(blocks=[1]),
        lambda fields: fields.update(dilations=[1, 2]),
        lambda fields: fields.update(dilations="12345"),
        lambda fields: fields.update(stem=[None]),
    ],
)
def test_other_json_is_refused(change):
    fields = json.loads(TINY.to_json())
    change(fields)
    with pytest.raises(UserError):
        architectures.read(json.dumps(fields))


@pytest.mark.parametrize("name", ["spinenet49", "r23_sp30", "cr_resnet50", "cr_mobilenet_v2"])
def test_drawings_have_every_block_and_arrow(name):
    arch = zoo.get(name)
    root = ElementTree.fromstring(drawing(arch))
    tag = "{http://www.w3.org/2000/svg}"
    frames = [rect for rect in root.iter(f"{tag}rect") if rect.get("rx")]
    outputs = [rect for rect in frames if rect.get("stroke-width") == "3"]
    arrows = [path for path in root.iter(f"{tag}path") if path.get("marker-end")]
    if arch.has_pyramid:
        blocks, num_extras = arch.nodes(), sum(len(node.extras) for node in arch.nodes())
        num_arrows = 2 * len(arch.blocks) + len(arch.stem) - 1 + num_extras
    else:
        blocks = [unit for part in arch.parts() for unit in part.units]
        num_arrows = len(blocks) - 1
    assert (len(frames), len(outputs), len(arrows)) == (len(blocks), len(arch.levels), num_arrows)
    # Blocks of one level stand at one height, and higher levels higher.
    heights = {}
    for rect in frames:
        level = rect[0].text.rpartition(" ")[2]
        heights.setdefault(level, set()).add(float(rect.get("y")))
    assert all(len(values) == 1 for values in heights.values())
    ordered = [min(heights[level]) for level in sorted(heights)]
    assert ordered == sorted(ordered, reverse=True)


def test_the_scripts_draw_and_count(tmp_path):
    file, picture = tmp_path / "tiny.json", tmp_path / "tiny.svg"
    file.write_text(TINY.to_json())
    draw = ["scripts/draw_arch.py", f"--arch={file}", f"--output={picture}"]
    count = ["scripts/flops.py", "--json"]
    retinanet = ["--detector=retinanet", "--head=spinenet", "--num_classes=91"]
    classifier = ["--detector=classifier", "--num_classes=1001"]
    rows = run_commands(
        [
            draw,
            draw,
            [*count, "--arch=spinenet49", "--size=640x640", *retinanet],
            [*count, "--arch=spinenet49_mobile", "--size=384x384", *retinanet],
            [*count, "--arch=spinenet49", *classifier],
            [*count, "--arch=spinenet49", "--neck=fpn"],
            [*count, "--config=configs/spinenet.py:small", "--head=spinenet"],
            [*draw[:2], f"--output={tmp_path / 'tiny.png'}"],
        ]
    )
    assert [row["status"] for row in rows] == [0, 2, 0, 0, 0, 2, 2, 2]
    assert picture.read_text() == drawing(TINY)
    assert "it exists already" in rows[1]["stderr"]
    flops = [json.loads(row["stdout"])["flops"] for row in rows[2:5]]
    assert flops == [85281555200, 980858928, 3477940480]
    assert "'fpn', and spinenet puts out a pyramid; use 'auto'" in rows[5]["stderr"]
    assert "--head: given beside a config" in rows[6]["stderr"]
    assert "is no SVG file" in rows[7]["stderr"]
