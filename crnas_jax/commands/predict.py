"""Subcommand that runs a trained detector on photographs and videos."""

import dataclasses
import itertools
import pathlib
from collections.abc import Iterator, Sequence

from absl import flags

from crnas_jax.commands.command import Command, define_hosts
from crnas_jax.errors import UserError
from crnas_jax.runtime import team
from crnas_jax.runtime.files import digest, write_json


def _flags(values, _):
    from crnas_jax.data.images import MAX_PIXELS

    text = "Folder with detector.json and variables/."
    flags.DEFINE_string("detector", None, text, flag_values=values)
    text = "An image, a folder of images, or a video; may be repeated."
    flags.DEFINE_multi_string("images", None, text, flag_values=values)
    flags.DEFINE_string("output", None, "json file to write.", flag_values=values)
    text = "Smallest score of a detection."
    flags.DEFINE_float("score", 0.05, text, 0.0, 1.0, flag_values=values)
    text = "Folder for the images with detections drawn on them; none are drawn without."
    flags.DEFINE_string("draw", None, text, flag_values=values)
    text = "Smallest score of a detection that is drawn."
    flags.DEFINE_float("draw_score", 0.5, text, 0.0, 1.0, flag_values=values)
    text = "COCO json with the objects of the images, which --draw shows beside the detections."
    flags.DEFINE_string("annotations", None, text, flag_values=values)
    text = "Largest number of images in a call."
    flags.DEFINE_integer("batch_size", 8, text, 1, flag_values=values)
    text = "Pixels of the largest image that is decoded."
    flags.DEFINE_integer("max_pixels", MAX_PIXELS, text, 1, flag_values=values)
    define_hosts(values)


@dataclasses.dataclass(frozen=True)
class _Media:
    """The images of the command: files, and videos with all their frames.

    Attributes:
      files: image files.
      videos: video files.
      max_pixels: pixels of the largest image.
    """

    files: Sequence[pathlib.Path]
    videos: Sequence[pathlib.Path]
    max_pixels: int

    def images(self) -> Iterator:
        """Yield the images, those of videos as arrays, one file after the other."""
        from crnas_jax.data import videos

        return itertools.chain(self.files, *map(videos.frames, self.videos))


def _predict(values):
    from tqdm import tqdm

    import crnas_jax
    from crnas_jax.checkpoint import content_digest
    from crnas_jax.evaluation.predict import join_turns, predictions_to_coco

    output = pathlib.Path(values.output)
    if output.is_dir() or not output.absolute().parent.is_dir():
        raise UserError(
            values.output, "--output", "no file in an existing folder", "name the json to write"
        )
    media, truth = _media(values), _truth(values)
    detector = crnas_jax.load_detector(values.detector)
    if team.is_joint():
        names = [file.name for file in media.files]
        team.require_alike(
            {
                "--detector": content_digest(pathlib.Path(values.detector) / "variables"),
                "--images": f"{len(names)} images ({digest(*names)[:8]})",
                "--score": str(values.score),
            }
        )
    hosts = team.current()
    numbers = range(hosts.index, len(media.files), hosts.count)
    own = dataclasses.replace(media, files=[media.files[number] for number in numbers])
    shown = tqdm(own.images(), unit="image", disable=None)  # on a terminal
    predictions = detector.predict(shown, values.score, values.batch_size, values.max_pixels)
    names = _names(own, len(predictions))
    result = predictions_to_coco(names, predictions, detector.category_ids, detector.class_names)
    _number_frames(result, own)
    if values.draw:
        _draw(values, own, numbers, predictions, detector, truth)
    if team.is_joint():
        result = join_turns(team.gather(result))
    write_json(output, result)
    num_images = len(result["images"])
    note = "" if num_images else f" (there are no images in {', '.join(values.images)})"
    print(f"{len(result['annotations'])} detections in {num_images} images{note}: {output}")
    if values.draw:
        print(f"drawn with a score from {values.draw_score:g} on: {values.draw}")


def _media(values):
    """Find and check the files, before the detector is loaded and compiled."""
    from crnas_jax.data import images, videos
    from crnas_jax.evaluation.predict import list_images

    films = [pathlib.Path(path) for path in values.images if videos.is_video(path)]
    paths = [path for path in values.images if not videos.is_video(path)]
    files = [file for path in paths for file in list_images(path)]
    if films and team.is_joint():
        remedy = "give it to one process"
        raise UserError(films[0], "--images", "a video, and several hosts share the work", remedy)
    for file in files:
        images.check(file, values.max_pixels)
    for film in films:
        next(videos.frames(film))
    for name in ("draw_score", "annotations"):
        if values[name].present and not values.draw:
            problem, remedy = "given without --draw", "name the folder for the drawn images"
            raise UserError("command line", f"--{name}", problem, remedy)
    if values.draw and pathlib.Path(values.draw).is_file():
        raise UserError(values.draw, "--draw", "it is a file", "name a folder")
    return _Media(files, films, values.max_pixels)


def _names(media, count):
    """Return the file name of each image, a video's for each of its frames."""
    from crnas_jax.data import videos

    names = [str(file) for file in media.files]
    for film in media.videos:
        # Frames are counted only where another video follows: they are decoded for it.
        rest = count - len(names)
        num_frames = rest if film == media.videos[-1] else sum(1 for _ in videos.frames(film))
        names += [str(film)] * num_frames
    return names


def _number_frames(result, media):
    """Say of the frames of videos which they are, from 0."""
    films, seen = set(map(str, media.videos)), {}
    for image in result["images"]:
        if image["file_name"] in films:
            image["frame"] = seen.get(image["file_name"], 0)
            seen[image["file_name"]] = image["frame"] + 1


def _truth(values):
    """Return the annotated data set to draw beside the detections; None without."""
    from crnas_jax.data.coco import CocoSource

    if not values.annotations:
        return None
    file = pathlib.Path(values.annotations)
    return CocoSource(file.parent, file)


def _draw(values, media, numbers, predictions, detector, truth):
    """Write the images with what was detected, frames of a video as a video."""
    import PIL.Image

    from crnas_jax.data import videos
    from crnas_jax.evaluation import draw, results
    from crnas_jax.evaluation.predict import read_image

    folder, remaining = pathlib.Path(values.draw), iter(predictions)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        remedy = "name a folder that can be written"
        raise UserError(folder, "--draw", error.strerror or "unwritable", remedy) from error

    def drawn(image, prediction):
        return draw.draw(image, draw.prediction_on(prediction, values.draw_score))

    for number, file in zip(numbers, media.files, strict=True):
        image = read_image(file, media.max_pixels)
        panels = [drawn(image, next(remaining))]
        if truth is not None:
            entries = results.annotations_of(truth, file)
            objects = draw.results_on(entries, truth.category_ids, truth.class_names, is_truth=True)
            panels.insert(0, draw.draw(image, objects))
        # Files of several folders may have one name.
        picture = PIL.Image.fromarray(draw.beside(panels))
        picture.save(folder / f"{number:06}_{file.stem}.jpg", quality=92)
    for film in media.videos:
        target = folder / f"{film.stem}.mp4"
        with videos.FrameWriter(target, videos.frames_per_second(film)) as writer:
            for frame in videos.frames(film):
                writer.add(drawn(frame, next(remaining)))


COMMANDS = {
    "predict": Command(
        "Run a trained detector on photographs or videos; write its detections as COCO json.",
        "--detector=runs/mine/returned --images=photos --output=detections.json --draw=drawn",
        _flags,
        _predict,
        ("detector", "images", "output"),
        is_joint=True,
    )
}
