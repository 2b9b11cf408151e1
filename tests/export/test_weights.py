"""Weights of supernets: folders of format 1, and what a saved supernet gives back."""

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
from helpers import fresh_variables, tiny_options

from crnas_jax.errors import UserError
from crnas_jax.export.weights import initialiser, load_weights, require_weights, save_weights
from crnas_jax.models.build import Detector
from crnas_jax.models.supernet.banks import SupernetSpec

# Orbax says so of any weights that are read without saying where to put them.
pytestmark = pytest.mark.filterwarnings("ignore:Sharding info not provided")

# Written by version 0.1 with seed 0.
FORMAT_1 = pathlib.Path(__file__).with_name("format1") / "supernet"
SPEC = SupernetSpec(
    "resnet_basic",
    widths=(2, 2, 2, 2),
    grids=((1, 2), (1,), (1,), (1, 2)),
    dilations=(1, 2),
    stage_sharing="prefix",
    kernel_sharing="own",
)


@pytest.fixture(scope="module")
def detector():
    return Detector(SPEC, tiny_options())


@pytest.fixture(scope="module")
def fresh(detector):
    return fresh_variables(detector)


def test_a_supernet_of_format_1_is_read_with_what_it_holds(detector, fresh, capsys):
    require_weights(FORMAT_1)
    variables, spec = load_weights(FORMAT_1)
    assert spec == SPEC
    filled = initialiser(detector, FORMAT_1)(fresh)
    # The file's neck and heads have other widths.
    not_filled = capsys.readouterr().out.partition("not filled: ")[2]
    assert not_filled.startswith("box_head, fpn, ")
    assert "backbone" not in not_filled
    for collection in ("params", "batch_stats"):
        jax.tree.map(
            np.testing.assert_array_equal,
            filled[collection]["backbone"],
            variables[collection]["backbone"],
        )


def test_a_saved_supernet_is_read_back_equal(detector, fresh, tmp_path):
    save_weights(tmp_path, detector, fresh)
    assert json.loads((tmp_path / "supernet.json").read_text())["format"] == 2
    variables, spec = load_weights(tmp_path)
    assert spec == SPEC
    jax.tree.map(np.testing.assert_array_equal, variables, fresh)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"format": 3}, r"supernet\.json: fields: the format is none of \(1, 2\)"),
        ({"format": None}, r"supernet\.json: fields: the format is none of"),
        ({"depths": [1, 2]}, r"supernet\.json: fields: .*depths"),
    ],
)
def test_an_unknown_description_is_refused(tmp_path, fields, message):
    copy = tmp_path / "copy"
    shutil.copytree(FORMAT_1, copy)
    content = json.loads((copy / "supernet.json").read_text())
    (copy / "supernet.json").write_text(json.dumps(content | fields))
    with pytest.raises(UserError, match=message):
        load_weights(copy)
