"""Working folders: resumed, moved, damaged, of others; and what is held by tests elsewhere."""

import pathlib

import numpy as np
from inputs import making
from inputs.making import good, read, write

from configs import bccd
from crnas_jax.checkpoint import save_variables
from crnas_jax.experiments.keys import step_key
from crnas_jax.experiments.run import open_run
from crnas_jax.runtime.workdir import Workdir

case = making.cases("workdirs", command="train-detector")
STARTED = {"params": {"backbone": {"a": np.zeros(2)}}, "batch_stats": {"backbone": {}}}
_HELD = []


def _flags(folder, *more):
    paths = [f"--config.data.folder={folder / 'data'}", f"--workdir={folder / 'run'}"]
    return ["--config=configs/bccd.py", *paths, "--network=baseline", *more]


def finished(folder, step="baseline", **fields):
    """Write a data set and a folder in which a step is finished; return the command's flags."""
    good(folder / "data")
    config = bccd.get_config()
    config.data.folder = str(folder / "data")
    config.update_from_flattened_dict(fields)
    run = open_run(config, folder / "run")
    run.workdir.step(step, step_key(run, step), dict)
    run.workdir.release()
    return _flags(folder)


@case(
    "the same command on a finished folder",
    happens="nothing is repeated; what is finished is named",
    says="baseline: finished before",
)
def again(folder):
    return finished(folder)


@case(
    "--workdir alone",
    happens="the folder's config",
    says="baseline: finished before",
)
def without_config(folder):
    finished(folder)
    return [f"--workdir={folder / 'run'}", "--network=baseline"]


@case(
    "a folder that was renamed, data too",
    happens="goes on",
    says="baseline: finished before",
    report="https://github.com/ray-project/ray/issues/28082",
)
def moved(folder):
    finished(folder)
    (folder / "run").rename(folder / "run ä")
    (folder / "data").rename(folder / "elsewhere")
    data = f"--config.data.folder={folder / 'elsewhere'}"
    return ["--config=configs/bccd.py", data, f"--workdir={folder / 'run ä'}", "--network=baseline"]


@case(
    "another recipe for a finished training",
    refused="--redo: finished or begun work would be repeated: baseline (detector_train.epochs",
    report="https://github.com/huggingface/transformers/issues/18070",
)
def other_recipe(folder):
    return [*finished(folder), "--config.detector_train.epochs=30"]


@case(
    "another field that the step does not read",
    happens="nothing is repeated",
    says="baseline: finished before",
)
def other_field(folder):
    return [*finished(folder), "--config.search.beam=2", "--config.stage_train.epochs=3"]


@case(
    "other weights under the same init_from",
    refused="baseline (init_from is another)",
    report="https://github.com/google/automl/pull/677",
)
def other_start(folder):
    start = folder / "weights"
    save_variables(start, STARTED)
    flags = finished(folder, **{"init_from.baseline": str(start)})
    save_variables(start, {**STARTED, "params": {"backbone": {"a": np.ones(2)}}})
    return [*flags, f"--config.init_from.baseline={start}"]


@case("annotations that changed", refused="data.train: its annotations are not those that")
def other_annotations(folder):
    flags = finished(folder)
    coco = read(folder / "data")
    coco["annotations"][0]["bbox"] = [5, 5, 10, 10]
    write(folder / "data", "train", coco)
    return flags


@case(
    "images that changed", refused="data.val: its images are not those that this folder was begun"
)
def other_images(folder):
    flags = finished(folder)
    image = folder / "data" / "images" / "val1.png"
    image.write_bytes(image.read_bytes() + b"\0")
    return flags


@case(
    "a folder in which another process works",
    refused="--workdir: another process is working in it",
    report="https://github.com/meta-pytorch/torchtune/issues/481",
)
def in_use(folder):
    flags = finished(folder)
    held = Workdir(folder / "run")
    held.claim({}, {})
    _HELD.append(held)
    return flags


@case("a folder of an earlier version", refused="config.json: format: 2, this version works in")
def earlier_version(folder):
    flags = finished(folder)
    (folder / "run" / "config.json").write_text('{"format": 2, "hash": "x", "config": {}}')
    return flags


@case("results whose config is gone", refused="config.json: file: missing beside results")
def no_config(folder):
    flags = finished(folder)
    (folder / "run" / "config.json").unlink()
    return flags


@case("a damaged result", refused="baseline/result.json: json: ")
def damaged_result(folder):
    flags = finished(folder)
    (folder / "run" / "baseline" / "result.json").write_text("{")
    return flags


@case("a damaged line in the journal", refused="journal.jsonl: line 1: no score")
def damaged_journal(folder):
    flags = finished(folder)
    (folder / "run" / "journal.jsonl").write_text('{"format": 2}\n{}\n')
    return flags


@case(
    "a file in the place of the folder",
    refused="run: --workdir: ",
    report="https://github.com/OlafenwaMoses/ImageAI/issues/594",
)
def a_file(folder):
    good(folder / "data")
    (folder / "run").write_text("mine")
    return _flags(folder)


@case("no folder", refused="--workdir: missing; name a folder")
def no_folder(folder):
    good(folder / "data")
    return _flags(folder)[:2]


@case(
    "checkpoints of which none loads",
    refused="checkpoints: checkpoints: none of steps [7] loads",
    is_late=True,
    report="https://github.com/marin-community/levanter/pull/991",
)
def no_checkpoint_loads(folder):
    flags = finished(folder)
    (folder / "run" / "baseline" / "result.json").unlink()
    (folder / "run" / "baseline" / "checkpoints" / "7").mkdir(parents=True)
    return flags


def _elsewhere(text, test, happens, report=""):
    making.CASES[text] = making.Case(text, pathlib.Path, happens, test=test, report=report)


CHECKPOINT, LOOP = "tests/test_checkpoint.py::", "tests/training/test_loop.py::"
_elsewhere(
    "a kill while a checkpoint is written",
    f"{CHECKPOINT}test_an_earlier_checkpoint_is_restored_whatever_file_is_missing",
    "the checkpoint before it is restored",
    "https://github.com/Lightning-AI/pytorch-lightning/issues/688",
)
_elsewhere(
    "a checkpoint with a changed byte",
    f"{CHECKPOINT}test_a_checkpoint_with_changed_bytes_is_not_restored",
    "the one before it is restored",
    "https://github.com/zylo117/Yet-Another-EfficientDet-Pytorch/issues/101",
)
_elsewhere(
    "a full disk while saving",
    f"{CHECKPOINT}test_a_save_that_fails_ends_in_one_line_and_the_rerun_finishes",
    "one line, status 2; earlier checkpoints stay, the rerun finishes",
    "https://github.com/h2oai/h2o-llmstudio/issues/214",
)
_elsewhere(
    "weights saved on eight devices",
    f"{CHECKPOINT}test_weights_saved_on_eight_devices_load_on_one",
    "load on one, by the README's lines too",
    "https://github.com/AI-Hypercomputer/maxtext/pull/3082",
)
_elsewhere(
    "a folder of the user's own files in the place of weights",
    f"{CHECKPOINT}test_a_folder_of_other_files_is_not_replaced",
    "refused, nothing removed",
    "https://github.com/jakeret/tf_unet/issues/34",
)
_elsewhere(
    "a loss that is not finite",
    f"{LOOP}test_a_loss_that_is_not_finite_stops_the_training_and_keeps_the_checkpoint",
    "one line with step, learning rate and images; the checkpoint stays",
    "https://github.com/Rikorose/DeepFilterNet/issues/30",
)
_elsewhere(
    "Ctrl-C in a training, then the same command",
    f"{LOOP}test_a_training_that_was_asked_to_stop_resumes_to_the_same_result",
    "goes on from the step in flight to the same weights, schedule and log",
    "https://github.com/qfgaohao/pytorch-ssd/issues/163",
)
_elsewhere(
    "`train` called again with other options on its folder",
    f"{LOOP}test_a_training_that_was_asked_to_stop_resumes_to_the_same_result",
    "refused, naming the option",
    "https://github.com/hiyouga/LlamaFactory/issues/3975",
)
