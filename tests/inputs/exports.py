"""Exports, and what they are made of."""

import json

from helpers import change_a_byte, fresh_variables, randomised, tiny_options
from inputs import making
from inputs.making import good

from crnas_jax.arch.staged import Arch
from crnas_jax.data.transforms import ImageSize
from crnas_jax.export.detector import save_detector
from crnas_jax.export.package import write_export
from crnas_jax.export.sources import find_network
from crnas_jax.models.build import Detector

case = making.cases("exports", command="export")
TEST = "tests/export/test_package.py::test_"


def run_folder(folder):
    """Write a working folder with a trained detector; return the flags that export it."""
    arch = Arch("resnet_basic", (1, 1, 1, 1), (1, 2, 1, 1), (4, 4, 4, 4))
    detector = Detector(arch, tiny_options(1))
    variables, size = randomised(fresh_variables(detector)), ImageSize(64, 96)
    save_detector(folder / "returned", detector, variables, size, [{"id": 5, "name": "cell"}])
    return [f"--workdir={folder}", f"--output={folder.with_name('export')}"]


def exported(folder):
    run_folder(folder.with_name("run"))
    write_export(folder, find_network(folder.with_name("run"), "returned"))


def predict_flags(folder):
    photos, output = folder.with_name("photos"), folder.with_name("detections.json")
    return [f"--detector={folder}", f"--images={photos / 'images'}", f"--output={output}"]


@case("a network that the run does not have", refused="no trained network 'mine'; there are retu")
def unknown_network(folder):
    return [*run_folder(folder), "--network=mine"]


@case("a network outside of the folder", refused="--network: '../other' is no folder in ")
def network_elsewhere(folder):
    return [*run_folder(folder), "--network=../other"]


@case("an export to a folder that is there", refused="--output: it exists already; name a new")
def output_is_there(folder):
    flags = run_folder(folder)
    folder.with_name("export").mkdir()
    return flags


@case("depths of a network", refused="returned is no supernet; leave them out")
def depths_of_a_network(folder):
    return [*run_folder(folder), "--depths=1,1,1,1"]


@case("depths that are no numbers", refused="--depths: '1,two'; give whole numbers, separated by")
def depths_in_words(folder):
    return [*run_folder(folder), "--depths=1,two"]


@case(
    "scenic's names for a network of basic blocks",
    refused="--layout=scenic: resnet_basic, and scenic's ResNet with these names has bottleneck",
)
def scenic_basic(folder):
    return [*run_folder(folder), "--layout=scenic"]


@case(
    "an exported detector with a changed byte",
    command="predict",
    refused="does not load: ValueError: its content has changed since it was written",
)
def damaged_detector(folder):
    exported(folder)
    good(folder.with_name("photos"))
    change_a_byte(folder / "variables")
    return predict_flags(folder)


@case("a backbone where a detector is needed", command="predict", refused="detector.json: file: No")
def backbone_as_detector(folder):
    run_folder(folder.with_name("run"))
    write_export(folder, find_network(folder.with_name("run"), "returned"), "backbone")
    good(folder.with_name("photos"))
    return predict_flags(folder)


@case(
    "an export whose architecture was edited",
    refused="arch.json: file: its content has changed; export it again",
    test=f"{TEST}damaged_and_foreign_exports_are_refused",
)
@case(
    "a folder that is no export",
    refused="arch.json: missing: it is no export; give a folder that crnas-jax export wrote",
    test=f"{TEST}damaged_and_foreign_exports_are_refused",
    name="foreign",
)
@case(
    "an export of a later version",
    refused="arch.json: format: 2, this version reads 1; export it again",
    test=f"{TEST}damaged_and_foreign_exports_are_refused",
    name="later",
)
@case(
    "an export without a file",
    refused="weights.safetensors: file: missing; export it again",
    test=f"{TEST}damaged_and_foreign_exports_are_refused",
    name="incomplete",
)
def edited(folder):
    description = json.loads((folder / "arch.json").read_text())
    (folder / "arch.json").write_text(json.dumps({**description, "format": 2}))
