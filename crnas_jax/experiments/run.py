"""A config at work in a folder: what every step of an experiment starts from."""

import dataclasses
import functools
import importlib.metadata
import json
import pathlib
from collections.abc import Callable

import jax
from ml_collections import ConfigDict

from crnas_jax import __version__
from crnas_jax.data import loader
from crnas_jax.data.build import classification_sources, detection_sources, keep_indices
from crnas_jax.data.checks import require_consistent
from crnas_jax.data.source import ClassificationSource, DetectionSource
from crnas_jax.errors import UserError
from crnas_jax.evaluation.matching import GroundTruth
from crnas_jax.export.weights import require_weights, weights_digest
from crnas_jax.parallel.supervisor import log_to
from crnas_jax.runtime import team
from crnas_jax.runtime.files import digest
from crnas_jax.runtime.workdir import Workdir
from crnas_jax.search.executors.ray import require_ray
from crnas_jax.search.journal import Journal
from crnas_jax.settings import data as data_settings
from crnas_jax.settings import models as model_settings
from crnas_jax.settings import run as run_settings
from crnas_jax.settings import search as search_settings
from crnas_jax.settings.architectures import executor_options
from crnas_jax.settings.check import check
from crnas_jax.settings.step_keys import Reads, fields, flat_fields

# Files whose check takes long enough to say so.
_MANY_FILES = 5000


@dataclasses.dataclass(frozen=True)
class Run:
    """A config at work in a folder.

    Attributes:
      config: the config.
      options: options of the run as a whole.
      sources: splits of the detection data by name.
      classification_sources: splits of the classification data by name.
      workdir: the working folder.
      notes: what the plan says about the data.
    """

    config: ConfigDict
    options: run_settings.RunOptions
    sources: dict[str, DetectionSource]
    classification_sources: dict[str, ClassificationSource]
    workdir: Workdir
    notes: tuple[str, ...] = ()

    @property
    def path(self) -> pathlib.Path:
        """Path of the working folder."""
        return self.workdir.path

    @property
    def num_classes(self) -> int:
        """Number of object classes."""
        return len(self.sources["train"].class_names)

    @functools.cached_property
    def data_digests(self) -> dict[str, dict[str, str]]:
        """By split the digests of its `annotations` and, of a detection data set, its `images`."""
        digests = {split: split_digests(source) for split, source in self.sources.items()}
        return digests | {
            f"pretrain/{split}": {"annotations": source.digest}
            for split, source in self.classification_sources.items()
        }

    @functools.cached_property
    def init_digests(self) -> dict[str, str]:
        """Digests of the weights that networks start from, by network; those that name some."""
        starts = run_settings.init_from(self.config).items()
        return {network: weights_digest(start) for network, start in starts if start}

    def fields(self, reads: Reads) -> dict[str, object]:
        """Return the fields that a step reads (`step_keys.fields`), looked up once."""
        if reads not in self._fields:
            self._fields[reads] = fields(self.config, reads)
        return self._fields[reads]

    @functools.cached_property
    def _fields(self):
        return {}

    def record(self) -> None:
        """Write the config into the working folder, for who goes on there without a config."""
        self.workdir.record(self.config.to_dict(), self.data_digests)
        keep_indices([*self.sources.values(), *self.classification_sources.values()])
        log_to(self.path / "logs" / f"host-{team.current().index}.txt")


def open_run(
    config: ConfigDict,
    path: str | pathlib.Path,
    require: Callable[[ConfigDict], None] | None = None,
    dry: bool = False,
    redo: bool = False,
) -> Run:
    """Check a config, open its data and claim the working folder.

    Args:
      config: the config.
      path: path of the working folder.
      require: function that refuses configs without what the caller needs, before anything is
        read.
      dry: only look: nothing is written.
      redo: whether what is finished there may be repeated.

    Raises:
      UserError: the run cannot work with this config, data or folder.
    """
    check(config)
    if executor_options(config).kind == "ray" and not dry:
        require_ray()
    loader.read_with(data_settings.read_options(config))
    if require is not None:
        require(config)
    sources = detection_sources(
        data_settings.data_options(config), model_settings.has_masks(config), _kept(path)
    )
    num_files = sum(len(source.stored_images) for source in sources.values())
    if num_files > _MANY_FILES:
        print(f"checking {num_files} images", flush=True)
    notes = require_consistent(sources)
    pretrain_sources = {}
    if run_settings.pretrained_networks(config):
        pretrain_options = data_settings.classification_data_options(config)
        pretrain_sources = classification_sources(pretrain_options, _kept(path))
    if "val" in sources:
        _require_searchable(config, sources)
    for network, start in run_settings.init_from(config).items():
        if start:
            require_weights(start, f"config.init_from.{network}")
    options = run_settings.run_options(config)
    workdir = Workdir(path, redo, options.num_devices or len(jax.devices()))
    run = Run(config, options, sources, pretrain_sources, workdir, tuple(notes))
    if team.is_joint():
        team.require_alike(_environment(run))
    if dry:
        workdir.require_same_data(run.data_digests)
    else:
        workdir.claim(config.to_dict(), run.data_digests)
        workdir.consent(config.to_dict())
        try:
            Journal(journal_file(run), "", read_only=True)  # refuses a damaged one now
        except UserError:
            workdir.release()
            raise
    return run


def _kept(path):
    """Return the folder in which indices of records lie."""
    return pathlib.Path(path) / "records"


def journal_file(run: Run) -> pathlib.Path:
    """Return the path of the run's journal."""
    return run.path / "journal.jsonl"


def _environment(run):
    """Return by name what has to be the same on all hosts; folders of data may differ."""
    config = run.config.to_dict()
    for section in (config["data"], config["pretrain"]["data"]):
        del section["folder"]
    versions = {
        f"package {name}": importlib.metadata.version(name)
        for name in ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
    }
    digests = {
        f"data.{split} {part}": value
        for split, parts in run.data_digests.items()
        for part, value in parts.items()
    }
    return {
        "package crnas_jax": __version__,
        **versions,
        **{f"config.{name}": json.dumps(value) for name, value in flat_fields(config)},
        **digests,
        # What fields of the config only name.
        **{f"init_from.{name} content": value for name, value in run.init_digests.items()},
        "baseline": model_settings.baseline(run.config).to_json(),
    }


def split_digests(source: DetectionSource) -> dict[str, str]:
    """Return the digests of a split's `annotations` and `images`.

    That of the images is of their files' names and sizes: all of them are not read again.
    """
    images = (f"{pathlib.Path(i.name).name} {i.num_bytes}" for i in source.stored_images)
    return {"annotations": source.digest, "images": digest(*images)}


def _require_searchable(config, sources):
    """Raise UserError unless every budget has a network within limits, and `val` an object."""
    num_classes = len(sources["train"].class_names)
    if run_settings.levels(config):
        search_settings.require_reachable(config, search_settings.limits(config, num_classes))
    options = search_settings.score_options(config, "batch")
    options.require_objects(sources["val"], GroundTruth.from_source(sources["val"]))
