"""Commands around the procedure: metrics of detections, costs, weights of others."""

import dataclasses
import json
import pathlib
import re
import sys

from absl import flags

from crnas_jax.arch import zoo
from crnas_jax.arch.cost.detectors import (
    CLASSIFIER,
    DETECTORS,
    NECKS,
    P6_SOURCES,
    RETINA_HEADS,
    classifier_parts,
    detector_parts,
    resolve_neck,
    total,
)
from crnas_jax.arch.cost.layers import CONVENTIONS
from crnas_jax.commands.command import (
    Command,
    config_errors,
    define_config,
    define_json,
)
from crnas_jax.errors import UserError


def _ap_flags(values, _):
    flags.DEFINE_string("annotations", None, "COCO json with the objects.", flag_values=values)
    text = "json with detections: COCO's results, or what predict wrote."
    flags.DEFINE_string("detections", None, text, flag_values=values)
    flags.DEFINE_bool("masks", False, "Score masks too.", flag_values=values)
    define_json(values)


def _ap(values):
    from crnas_jax.analysis import report
    from crnas_jax.data.coco import CocoSource
    from crnas_jax.evaluation.predict_split import split_metrics
    from crnas_jax.evaluation.results import read_results

    annotations = pathlib.Path(values.annotations)
    source = CocoSource(annotations.parent, annotations, with_masks=values.masks)
    results, num_left_out = read_results(values.detections, source, values.masks)
    if num_left_out:
        where = f"images that are not in {annotations}"
        print(f"{num_left_out} detections on {where} are left out", file=sys.stderr)
    metrics = split_metrics(source, results, values.masks)
    print(json.dumps(metrics) if values.json else report.metrics(metrics))


def _flops_flags(values, arguments):
    text = "Name in the zoo (resnet50, cr_resnet50, ...), or a .json with an architecture."
    flags.DEFINE_string("arch", None, text, flag_values=values)
    kinds = (*DETECTORS, CLASSIFIER)
    flags.DEFINE_enum("detector", "faster_rcnn", kinds, "Kind.", flag_values=values)
    text = "Kind of neck; auto is none on a backbone with a pyramid, else fpn."
    flags.DEFINE_enum("neck", "auto", NECKS, text, flag_values=values)
    text = "Head of a RetinaNet."
    flags.DEFINE_enum("head", "torchvision", RETINA_HEADS, text, flag_values=values)
    text = "What a RetinaNet's FPN computes p6 from."
    flags.DEFINE_enum("p6_from", "p5", P6_SOURCES, text, flag_values=values)
    text = "Height x width of the input in pixels; a classifier's is 224x224 unless given."
    flags.DEFINE_string("size", "800x1088", text, flag_values=values)
    text = "Number of proposals in the box head."
    flags.DEFINE_integer("rois", 1000, text, 0, flag_values=values)
    text = "Number of detections in the mask head."
    flags.DEFINE_integer("mask_rois", 100, text, 0, flag_values=values)
    text = "Number of object classes, without background."
    flags.DEFINE_integer("num_classes", 80, text, 1, flag_values=values)
    text = "Finest level of NAS-FPN: 2 for p2..p6, 3 for p3..p7."
    flags.DEFINE_enum("lowest_level", "3", ["2", "3"], text, flag_values=values)
    text = "True multiply-adds, or the paper's way of counting."
    flags.DEFINE_enum("convention", "macs", CONVENTIONS, text, flag_values=values)
    text = "Folder of a run: its networks, in its detector, on its canvas."
    flags.DEFINE_string("workdir", None, text, flag_values=values)
    define_json(values)
    define_config(values, arguments)


def _flops(values):
    if values.config is not None or values.workdir:
        rows = _flops_of_run(values)
    elif values.arch:
        rows = [_flops_of_flags(values)]
    else:
        remedy = "give --arch, --config or --workdir; --help has examples"
        raise UserError("command line", "--arch", "missing", remedy)
    for head, parts in rows:
        if not values.json:
            print(" ".join(f"{entry}" for entry in head.values()))
            for name, part in {**parts, "total": total(parts)}.items():
                giga, mega = part.flops / 1e9, part.params / 1e6
                print(f"  {name:12}{giga:10.3f} G{mega:10.3f} M parameters")
            continue
        by_part = {name: dataclasses.asdict(part) for name, part in parts.items()}
        print(json.dumps({**head, **dataclasses.asdict(total(parts)), "parts": by_part}))


def _flops_of_flags(values):
    is_classifier = values.detector == CLASSIFIER
    size = "224x224" if is_classifier and not values["size"].present else values.size
    match = re.fullmatch(r"([1-9]\d{0,5})x([1-9]\d{0,5})", size)
    if not match:
        raise UserError("command line", "--size", size, "give HEIGHTxWIDTH, as 800x1088")
    canvas, arch = tuple(int(side) for side in match.groups()), zoo.find(values.arch)
    if is_classifier:
        for name in ("neck", "head", "p6_from", "rois", "mask_rois", "lowest_level"):
            if values[name].present:
                problem = "given, and a classifier has none"
                raise UserError("command line", f"--{name}", problem, "leave it out")
        parts = classifier_parts(arch, canvas, values.num_classes, values.convention)
        head = {"arch": values.arch, "detector": values.detector, "neck": "none"}
        return {**head, "size": canvas, "convention": values.convention}, parts
    head_convolutions, separable = zoo.published_head(arch, values.head)
    parts = detector_parts(
        arch,
        canvas,
        values.detector,
        values.neck,
        values.num_classes,
        values.rois,
        values.mask_rois,
        values.convention,
        lowest_level=int(values.lowest_level),
        head=values.head,
        p6_from=values.p6_from,
        head_convolutions=head_convolutions,
        separable=separable,
    )
    neck = resolve_neck(arch, values.neck)
    head = {"arch": values.arch, "detector": values.detector, "neck": neck}
    return {**head, "size": canvas, "convention": values.convention}, parts


def _flops_of_run(values):
    """Yield what the plan and the results of a run count, for each network that there is."""
    from crnas_jax import arch
    from crnas_jax.data.build import detection_source
    from crnas_jax.settings import data as data_settings
    from crnas_jax.settings import models as model_settings
    from crnas_jax.settings.run import COMPARED

    names = ("detector", "neck", "size", "rois", "mask_rois", "num_classes", "lowest_level", "head")
    for name in (*names, "p6_from"):
        if values[name].present:
            problem = "given beside a config, which says it"
            raise UserError("command line", f"--{name}", problem, "leave it out, or set the field")
    with config_errors(values):
        config = values.config
        if config.data.name == "none":
            remedy = "count its network: --arch=NAME --detector=classifier"
            raise UserError("command line", "--config", "it has no detector", remedy)
        networks = {"baseline": model_settings.baseline(config)}
        if values.arch:
            networks = {values.arch: zoo.find(values.arch)}
        if values.workdir and not values.arch:
            results = _results(pathlib.Path(values.workdir))
            networks |= {
                name: arch.read(json.dumps(results[name]["arch"]))
                for name in COMPARED
                if name in results
            }
        source = detection_source(data_settings.data_options(config), "train")
        canvas = data_settings.image_size(config).canvas(portrait=False)
        for name, network in networks.items():
            num_classes = len(source.class_names)
            parts = model_settings.cost_by_part(
                config, network, canvas, num_classes, values.convention
            )
            head = {"arch": name, "detector": model_settings.detector_kind(config)}
            head |= {"neck": model_settings.neck_options(config).kind, "size": canvas}
            yield {**head, "convention": values.convention}, parts


def _results(workdir):
    """Read the networks that a run has found so far, by name."""
    from crnas_jax.runtime.files import read_json

    searched = workdir / "operation_search" / "result.json"
    results = {"searched": read_json(searched)} if searched.exists() else {}
    compared = workdir / "result.json"
    return results | (read_json(compared) if compared.exists() else {})


def _convert_flags(values, _):
    from crnas_jax.interop import torchvision

    models = torchvision.CLASSIFIERS + torchvision.DETECTORS
    flags.DEFINE_enum("model", None, models, "Model of the weights.", flag_values=values)
    flags.DEFINE_string("weights", None, ".safetensors or .pth file.", flag_values=values)
    flags.DEFINE_string("output", None, "Folder to write; a new one.", flag_values=values)
    text = (
        "Epsilon of the batch normalisation that the weights were trained with; to be given for "
        "detectors: 0 for those that torchvision publishes as COCO_V1, 1e-5 for your own."
    )
    flags.DEFINE_float("epsilon", None, text, 0.0, flag_values=values)
    text = "Prefix of the names, where the file holds several networks."
    flags.DEFINE_string("prefix", None, text, flag_values=values)


def _convert(values):
    from crnas_jax.checkpoint import save_variables
    from crnas_jax.data.coco import category_entries
    from crnas_jax.data.transforms import ImageSize
    from crnas_jax.export.detector import save_detector
    from crnas_jax.export.weights import VARIABLES
    from crnas_jax.interop import torchvision
    from crnas_jax.interop.state_dict import read_state_dict

    output, is_detector = pathlib.Path(values.output), values.model in torchvision.DETECTORS
    if output.exists():
        raise UserError(values.output, "--output", "it exists already", "name a new folder")
    epsilon = values.epsilon
    if epsilon is None and is_detector:
        raise UserError(
            "command line",
            "--epsilon",
            "missing, and nothing in the file tells",
            "give 0 for torchvision's published COCO_V1 detectors, 1e-5 for your own",
        )
    epsilon = 1e-5 if epsilon is None else epsilon
    state = read_state_dict(values.weights)
    try:
        model, variables, ignored = torchvision.convert(state, values.model, epsilon, values.prefix)
    except UserError as error:
        where = f"{values.weights}: {error.where}"
        raise UserError(where, error.field, error.problem, error.remedy) from error
    if is_detector:
        categories = category_entries(*torchvision.categories(model.options))
        save_detector(output, model, variables, ImageSize(800, 1333), categories)
    else:
        save_variables(output / VARIABLES, variables)
    num_used = len(state) - len(ignored)
    print(f"{num_used} tensors of {values.weights} written to {output}, epsilon {epsilon:g}")
    kinds = ", ".join(sorted({name.split(".")[-1] for name in ignored})[:10])
    print(f"{len(ignored)} not needed: {kinds}")


COMMANDS = {
    "ap": Command(
        "Print COCO's twelve metrics, and AP by class, of detections in a file.",
        "--annotations=test.json --detections=detections.json",
        _ap_flags,
        _ap,
        ("annotations", "detections"),
    ),
    "flops": Command(
        "Print a detector's multiply-adds and parameters by part.",
        "--arch=cr_resnet50 --detector=mask_rcnn    (or --config=..., or --workdir=runs/mine)",
        _flops_flags,
        _flops,
        has_config=True,
    ),
    "convert": Command(
        "Convert torchvision's weights to start from, detectors also to predict.",
        "--model=resnet50 --weights=resnet50-0676ba61.pth --output=weights/resnet50",
        _convert_flags,
        _convert,
        ("model", "weights", "output"),
    ),
}
