"""Records at work: an epoch of pre-training on ImageNet- and iNaturalist-like data."""

import json

import pytest
from record_data import class_folder, inaturalist_archives

from crnas_jax import cli

pytestmark = [pytest.mark.campaign, pytest.mark.programs]


@pytest.mark.parametrize("name", ["imagenet", "inaturalist"])
def test_an_epoch_of_pretraining(tmp_path, name):
    source, flags = class_folder(tmp_path / "images", 150), []
    splits = ["train", "val"]
    if name == "imagenet":
        flags = [f"--split={split}={split}" for split in splits]
    else:
        source = inaturalist_archives(tmp_path / "archives", source)
        flags, splits = ["--any_archives"], ["train", "validation"]
    records = tmp_path / "records"
    command = ["prepare-data", f"--dataset={name}", f"--source={source}", f"--output={records}"]
    assert cli.main([*command, *flags]) == 0
    data = {"name": "tfds", "folder": records, "train": splits[0], "val": splits[1], "size": 32}
    flags = [f"--config.pretrain.data.{field}={value}" for field, value in data.items()]
    flags += ["--config.pretrain.epochs=1", "--config.pretrain.batch_size=16"]
    flags += ["--config.widths=(4,8,16,32)", "--config.devices=1", "--network=baseline"]
    flags += ["--config.precision=float32", f"--workdir={tmp_path / 'run'}"]
    assert cli.main(["pretrain", "--config=configs/imagenet.py:resnet18", *flags]) == 0
    result = json.loads((tmp_path / "run/baseline/pretrain/result.json").read_text())
    assert 0 <= result["top1"] <= result["top5"] == 1.0  # of three classes
    log = (tmp_path / "run/baseline/pretrain/metrics.jsonl").read_text().splitlines()
    assert json.loads(log[-1])["step"] == 9
