"""Subcommand that runs a trained detector on photographs and videos."""

import dataclasses
import pathlib
from collections.abc import Iterator, Sequence

from absl import flags

from crnas_jax.commands.command import Command, define_hosts
from crnas_jax.errors import UserError
from crnas_jax.runtime import team
from crnas_jax.runtime.files import digest, write_json

# Characters of a file's name in that of its drawing.
_LONGEST_STEM = 80


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
    text = "COCO json with the images' objects (in pixels of the image as shown), for --draw."
    flags.DEFINE_string("annotations", None, text, flag_values=values)
    text = "Largest number of images in a call."
    flags.DEFINE_integer("batch_size", 8, text, 1, flag_values=values)
    text = "Pixels of the largest image that is decoded."
    flags.DEFINE_integer("max_pixels", MAX_PIXELS, text, 1, flag_values=values)
    define_hosts(values)


@dataclasses.dataclass
class _Media:
    """The images of the command: files, and videos with all their frames.

    Attributes:
      files: image files.
      videos: video files.
      num_frames: number of frames of each video; known when `images` are read.
    """

    files: Sequence[pathlib.Path]
    videos: Sequence[pathlib.Path]
    num_frames: list[int] = dataclasses.field(default_factory=list)

    def images(self) -> Iterator:
        """Yield the images, those of videos as arrays, one file after the other."""
        from crnas_jax.data import videos

        yield from self.files
        for film in self.videos:
            self.num_frames.append(0)
            for frame in videos.frames(film):
                self.num_frames[-1] += 1
                yield frame

    def entries(self) -> Iterator[dict]:
        """Yield for each image its file and, of a video, the number of the frame."""
        for file in self.files:
            yield {"file_name": str(file)}
        for film, count in zip(self.videos, self.num_frames, strict=True):
            for frame in range(count):
                yield {"file_name": str(film), "frame": frame}


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
    media = _media(values)
    truth = _truth(values, media.files)
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
    own = _Media([media.files[number] for number in numbers], media.videos)
    count = None if own.videos else len(own.files)
    shown = tqdm(own.images(), unit="image", total=count, disable=None)  # on a terminal
    predictions = detector.predict(shown, values.score, values.batch_size, values.max_pixels)
    entries = list(own.entries())
    names = [entry["file_name"] for entry in entries]
    result = predictions_to_coco(names, predictions, detector.category_ids, detector.class_names)
    for image, entry in zip(result["images"], entries, strict=True):
        image |= entry
    if team.is_joint():
        result = join_turns(team.gather(result))
    write_json(output, result)
    num_images = len(result["images"])
    note = "" if num_images else f" (there are no images in {', '.join(values.images)})"
    print(f"{len(result['annotations'])} detections in {num_images} images{note}: {output}")
    if values.draw:
        _draw(values, own, numbers, predictions, truth)
        scores = [score for prediction in predictions for score in prediction.scores.tolist()]
        if team.is_joint():
            scores = [score for part in team.gather(scores) for score in part]
        num_drawn = sum(score >= values.draw_score for score in scores)
        highest = f"; the highest is {max(scores):.2f}" if scores else ""
        text = f"{num_drawn} detections drawn, with a score from {values.draw_score:g} on"
        print(f"{text}{highest}: {values.draw}")


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
    folder = pathlib.Path(values.draw or "").resolve()
    for path in map(pathlib.Path, paths if values.draw else ()):
        if path.is_dir() and folder.is_relative_to(path.resolve()):
            problem = f"it is inside {path}, from which the next call would read the drawings"
            raise UserError(values.draw, "--draw", problem, "name another folder")
    if values.draw and folder.exists() and not folder.is_dir():
        raise UserError(values.draw, "--draw", "it is no folder", "name another one")
    return _Media(files, films)


def _truth(values, files):
    """Return what to draw beside the detections: by file its annotated objects; None without."""
    from crnas_jax.data.coco import CocoSource
    from crnas_jax.evaluation import draw, results

    if not values.annotations:
        return None
    file = pathlib.Path(values.annotations)
    source = CocoSource(file.parent, file)
    names = source.category_ids, source.class_names
    entries = results.annotations_of(source, file, files)
    num_known = len(entries) - list(entries.values()).count(None)
    if files and not num_known:
        remedy = "give those of these images"
        raise UserError(file, "--annotations", "none of the images is in it", remedy)
    print(f"{num_known} of {len(files)} images are in {file}")
    entries = {file: rows or [] for file, rows in entries.items()}
    return {file: draw.results_on(rows, *names, is_truth=True) for file, rows in entries.items()}


def _draw(values, media, numbers, predictions, truth):
    """Write the images with what was detected, frames of a video as a video."""
    import PIL.Image

    from crnas_jax.data import videos
    from crnas_jax.evaluation import draw
    from crnas_jax.evaluation.predict import read_image

    folder, remaining = pathlib.Path(values.draw), iter(predictions)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        remedy = "name a folder that can be written"
        raise UserError(folder, "--draw", error.strerror or "no folder", remedy) from error

    def drawn(image):
        return draw.draw(image, draw.prediction_on(next(remaining), values.draw_score))

    def target(number, file, suffix):
        # Files of several folders may have one name; a number keeps them apart, and from the input.
        return folder / f"{number:06}_{file.stem[:_LONGEST_STEM]}{suffix}"

    for number, file in zip(numbers, media.files, strict=True):
        image = read_image(file, values.max_pixels)
        panels = [drawn(image)]
        if truth is not None:
            panels.insert(0, draw.draw(image, truth[file]))
        picture = PIL.Image.fromarray(draw.beside(panels))
        picture.save(target(number, file, ".jpg"), quality=92)
    for number, film in enumerate(media.videos, len(media.files)):
        path, rate = target(number, film, ".mp4"), videos.frames_per_second(film)
        if path.exists() and path.samefile(film):
            remedy = "name another folder"
            raise UserError(path, "--draw", "it is the video that is read", remedy)
        with videos.FrameWriter(path, rate) as writer:
            for frame in videos.frames(film):
                writer.add(drawn(frame))


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
