"""Data sets in COCO's, VOC's and TFDS's layouts for tests, small and with all that is odd."""

import io
import json
import pathlib
import shutil
import struct
import tarfile
import zipfile

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from pycocotools import mask as coco_mask
from tensorboardX.crc32c import crc32c

from crnas_jax.data.records.folder import FEATURES, INFO

SPLITS = ("train", "val")
CATEGORIES = [{"id": 3, "name": "cell"}, {"id": 17, "name": "dot"}, {"id": 90, "name": "never"}]
VOC_CLASSES = ("cell", "dot")


def pixels(rng, height, width):
    """Return an image that keeps some of its values in a JPEG."""
    image = np.kron(rng.integers(0, 255, (8, 8, 3)), np.ones((16, 16, 1)))
    return Image.fromarray(image.astype(np.uint8)).resize((width, height))


def coco_folder(folder: pathlib.Path, seed: int = 0) -> pathlib.Path:
    """Write a data set in COCO's layout with odd ids, crowds, masks, faulty boxes and EXIF."""
    rng = np.random.default_rng(seed)
    (folder / "images").mkdir(parents=True)
    for number, split in enumerate(SPLITS):
        images, annotations = [], []
        for row in rng.permutation(11 - 4 * number).tolist():
            height, width = (40, 64) if row % 3 else (70, 48)
            image_id = 10**12 + 1000 * number + 7 * row
            name = f"{split}-{row}.{'png' if row == 1 else 'jpg'}"
            image, exif = pixels(rng, height, width), Image.Exif()
            if row == 2:  # the annotations belong to the photograph as shown
                exif[0x0112] = 6
                height, width = width, height
            if row == 1:
                image = image.convert("L")
            image.save(folder / "images" / name, exif=exif)
            images.append({"id": image_id, "file_name": name, "height": height, "width": width})
            for number_of_object in range(0 if row == 3 else 2 + row % 3):
                x, y = rng.uniform(0, 20, 2).round(3).tolist()
                w, h = rng.uniform(5, 25, 2).round(3).tolist()
                entry = {"id": len(annotations) + 11, "image_id": image_id, "bbox": [x, y, w, h]}
                entry |= {"category_id": 17 if number_of_object % 2 else 3, "iscrowd": 0}
                entry["segmentation"] = [[x, y, x + w, y, x + w / 2, y + h]]
                entry["area"] = w * h / 2
                annotations.append(entry)
            if row == 4:
                annotations[-1]["bbox"] = [width + 3, 2, 5, 5]  # outside
                annotations[-2]["bbox"] = [-4, 2, 15, 15]  # reaches out
            if row == 5:
                mask = np.zeros((height, width), np.uint8, order="F")
                mask[3:20, 5:30] = 1
                code = coco_mask.encode(mask)
                code = {"size": code["size"], "counts": code["counts"].decode()}
                annotations[-1] |= {"iscrowd": 1, "segmentation": code, "bbox": [5, 3, 25, 17]}
            if row == 6:
                annotations[-1]["area"] = 0
                annotations[-2] |= {"ignore": 1}
                del annotations[-2]["area"]
        content = {"images": images, "annotations": annotations, "categories": CATEGORIES}
        (folder / f"{split}.json").write_text(json.dumps(content))
    return folder


def voc_folder(folder: pathlib.Path, seed: int = 0) -> pathlib.Path:
    """Write a VOCdevkit with two years; lists are not in the order of names."""
    rng = np.random.default_rng(seed)
    for year in ("VOC2007", "VOC2012"):
        for name in ("Annotations", "JPEGImages", "ImageSets/Main"):
            (folder / year / name).mkdir(parents=True)
        for split in SPLITS:
            stems = [f"{split}_{row}" for row in rng.permutation(4)]
            (folder / year / f"ImageSets/Main/{split}.txt").write_text("\n".join(stems))
            for stem in stems:
                height, width = (40, 64) if stem[-1] != "1" else (64, 40)
                pixels(rng, height, width).save(folder / year / f"JPEGImages/{stem}.jpg")
                objects = ""
                for row in range(1 + int(stem[-1])):
                    x0, y0, width_of_box, height_of_box = rng.integers(4, 15, 4)
                    x1, y1 = x0 + width_of_box, y0 + height_of_box
                    objects += (
                        f"<object><name>{VOC_CLASSES[row % 2]}</name>"
                        f"<difficult>{int(row == 2)}</difficult><bndbox><xmin>{x0}</xmin>"
                        f"<ymin>{y0}</ymin><xmax>{x1}</xmax><ymax>{y1}.5</ymax></bndbox></object>"
                    )
                (folder / year / f"Annotations/{stem}.xml").write_text(
                    f"<annotation><filename>{stem}.jpg</filename><size><width>{width}</width>"
                    f"<height>{height}</height></size>{objects}</annotation>"
                )
    return folder


def class_folder(folder: pathlib.Path, num_images: int = 12, seed: int = 0) -> pathlib.Path:
    """Write `folder/<split>/<class>/<image>` with three classes of coloured images."""
    rng = np.random.default_rng(seed)
    for split in SPLITS:
        for row in range(num_images):
            path = folder / split / f"n{row % 3:08d}" / f"n{row % 3:08d}_{row}.JPEG"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels(rng, 40, 50).save(path)
    return folder


def archive(path, files):
    """Write a zip, tar or tar.gz of (name, content)."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as file:
            for name, content in files:
                file.writestr(name, content)
        return path
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as file:
        for name, content in files:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))
    return path


def inaturalist_archives(folder: pathlib.Path, images: pathlib.Path) -> pathlib.Path:
    """Write what `class_folder` wrote as the archives of iNaturalist 2017."""
    folder.mkdir()
    files, lists = [], []
    for split in SPLITS:
        categories = [{"id": 5 * row, "name": f"n{row:08d}"} for row in (2, 0, 1)]
        entries, annotations = [], []
        paths = (images / split).rglob("*.JPEG")
        for path in sorted(paths, key=lambda path: (path.parent.name, path.name)):
            name = f"train_val_images/Fungi/{path.parent.name}/{split}-{path.name}"
            files.append((name, path.read_bytes()))
            entries.append({"id": len(entries) + 100, "file_name": name})
            category = 5 * int(path.parent.name[1:])
            entry = {"id": len(entries), "image_id": entries[-1]["id"], "category_id": category}
            annotations.append(entry)
        annotations.reverse()
        content = {"images": entries, "annotations": annotations, "categories": categories}
        lists.append((f"{split}2017.json", json.dumps(content).encode()))
    files.sort(key=lambda file: file[0][::-1])  # in no order of ids
    archive(folder / "train_val_images.tar.gz", files)
    archive(folder / "train_val2017.zip", lists)
    return folder


def masked_checksum(content: bytes) -> int:
    """Return TFRecord's checksum, of an implementation that the package does not use."""
    checksum = crc32c(content)
    return ((checksum >> 15 | checksum << 17) + 0xA282EAD8) & 0xFFFFFFFF


def tfrecords(records) -> bytes:
    """Return the content of a TFRecord file."""
    content = io.BytesIO()
    for record in records:
        head = struct.pack("<Q", len(record))
        content.write(head + struct.pack("<I", masked_checksum(head)))
        content.write(record + struct.pack("<I", masked_checksum(record)))
    return content.getvalue()


def tfrecord_copy(folder: pathlib.Path, copy: pathlib.Path) -> pathlib.Path:
    """Copy a folder of array_records as one of TFRecords, as TFDS would lay it out."""
    copy.mkdir(parents=True)
    raw = {"decoders": None, "deserialize_method": tfds.decode.DeserializeMethod.RAW_BYTES}
    builder = tfds.builder_from_directory(folder)
    for split, part in builder.info.splits.items():
        source = builder.as_data_source(split, **raw)
        start = 0
        for name, length in zip(part.filenames, part.shard_lengths, strict=True):
            records = [source[row] for row in range(start, start + length)]
            (copy / name.replace("array_record", "tfrecord")).write_bytes(tfrecords(records))
            start += length
    for name in (FEATURES, *(path.name for path in folder.glob("*.labels.txt"))):
        shutil.copy(folder / name, copy / name)
    info = json.loads((folder / INFO).read_text())
    (copy / INFO).write_text(json.dumps({**info, "fileFormat": "tfrecord"}))
    return copy


def prepared(folder: pathlib.Path, features: dict, examples: dict, name: str = "mine"):
    """Prepare a data set by TFDS's own builder, which knows nothing of this package.

    Args:
      folder: receives it.
      features: its features.
      examples: examples by split; their images are encoded.
      name: name of the data set.
    """

    class Own(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.1.0")

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, manager):
            del manager
            return {split: self._generate_examples(split) for split in examples}

        def _generate_examples(self, split):
            yield from enumerate(examples[split])

    tfds.disable_progress_bar()
    Own.name = name
    builder = Own(data_dir=folder, file_format="array_record")
    builder.download_and_prepare()
    return pathlib.Path(builder.data_dir)


def stock_coco(folder: pathlib.Path, coco: pathlib.Path) -> pathlib.Path:
    """Prepare a COCO folder as TFDS's builder of COCO does: whole areas, no ids of categories."""
    categories = json.loads((coco / "train.json").read_text())["categories"]
    objects = {
        "id": np.int64,
        "area": np.int64,
        "bbox": tfds.features.BBoxFeature(),
        "label": tfds.features.ClassLabel(names=[category["name"] for category in categories]),
        "is_crowd": np.bool_,
    }
    features = {
        "image": tfds.features.Image(),
        "image/filename": tfds.features.Text(),
        "image/id": np.int64,
        "objects": tfds.features.Sequence(objects),
    }
    examples = {}
    for split in SPLITS:
        content = json.loads((coco / f"{split}.json").read_text())
        examples[split] = [_stock_example(coco, content, image) for image in content["images"]]
    return prepared(folder, features, examples, "coco")


def _stock_example(coco, content, image):
    label_of = {category["id"]: row for row, category in enumerate(content["categories"])}
    height, width = image["height"], image["width"]
    objects = []
    for entry in content["annotations"]:
        x, y, w, h = entry["bbox"]
        corners = np.array([y / height, x / width, (y + h) / height, (x + w) / width])
        # TFDS refuses boxes that reach out; rounding may bring them there.
        if entry["image_id"] == image["id"] and abs(corners - corners.clip(0, 1)).max() < 1e-3:
            objects.append(
                {
                    "id": entry["id"],
                    "area": int(entry.get("area", w * h)),
                    "bbox": tfds.features.BBox(*corners.clip(0, 1).tolist()),
                    "label": label_of[entry["category_id"]],
                    "is_crowd": bool(entry["iscrowd"]),
                }
            )
    return {
        "image": io.BytesIO((coco / "images" / image["file_name"]).read_bytes()),
        "image/filename": image["file_name"],
        "image/id": image["id"],
        "objects": objects,
    }
