"""From a description to functions: what the rest of the package sees of a model."""

import dataclasses
import functools
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from crnas_jax.arch import Architecture
from crnas_jax.errors import UserError
from crnas_jax.models.backbones.build import AnyBackbone, AnySupernet, build
from crnas_jax.models.backbones.staged import FreezeOptions
from crnas_jax.models.classifier import ClassifierOptions, ImageClassifier
from crnas_jax.models.layers import (
    BN_BATCH,
    BN_COLLECT,
    BN_RUNNING,
    BN_TRAIN,
    BNMode,
    LayerOptions,
    Normalization,
    normalization,
)
from crnas_jax.models.rcnn import RCNN, DetectorOptions
from crnas_jax.models.retinanet import RetinaNet, RetinaNetOptions
from crnas_jax.models.supernet import banks
from crnas_jax.runtime.options import check_choice

# Statistics that a model may be run with: the stored ones, or those of the mini-batch.
BN_MODES = {"running": BN_RUNNING, "batch": BN_BATCH}
# Dtypes of activations; parameters, statistics and losses are float32 throughout.
PRECISIONS = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


@dataclasses.dataclass(frozen=True)
class Model:
    """A network as pure functions on `variables` = {"params", "batch_stats"}.

    With a supernet's backbone `init` returns banks, and `losses` and `apply` take the variables of
    one path, which `path` takes out of the banks.

    Attributes:
      spec: the architecture of a stand-alone network or what describes a supernet.
      options: what stands on the backbone.
      remat: recompute backbone blocks in the backward pass instead of storing what is inside them.
      precision: dtype of the activations, one of `PRECISIONS`.
      freeze: what of the backbone is not trained.
      layers: what the layers have in common.

    Raises:
      UserError: the options do not fit the backbone.
    """

    spec: Architecture | AnySupernet
    options: DetectorOptions | RetinaNetOptions | ClassifierOptions
    remat: bool = False
    precision: str = "float32"
    freeze: FreezeOptions = FreezeOptions()
    layers: LayerOptions = LayerOptions()

    # Flax module of (backbone, options, dtype, layers) by the class of the options.
    module_classes: ClassVar[dict[type, type]]

    def __post_init__(self):
        check_choice(self, "precision", tuple(PRECISIONS))
        arch = self.backbone.arch
        arch.frozen_parts(self.freeze.freeze_at)
        object.__setattr__(self, "options", self.options.for_backbone(arch))
        layers = self.layers
        if layers.stochastic_depth and not arch.has_pyramid:
            problem = f"{layers.stochastic_depth}, and {arch.family} has no permuted blocks"
            raise UserError("LayerOptions", "stochastic_depth", problem, "set it to 0")
        activation = layers.activation or arch.activation
        object.__setattr__(self, "layers", dataclasses.replace(layers, activation=activation))

    @functools.cached_property
    def backbone(self) -> AnyBackbone:
        """The backbone as functions."""
        return build(self.spec, self.remat, self.freeze)

    @property
    def dtype(self):
        """Dtype of the activations."""
        return PRECISIONS[self.precision]

    @property
    def module(self) -> nn.Module:
        """The Flax module."""
        module_class = self.module_classes[type(self.options)]
        return module_class(self.backbone.module, self.options, self.dtype, self.layers)

    def normalization(self, batch, mode: BNMode) -> Normalization:
        """Return what the layers need for a mini-batch that is not trained on."""
        return normalization(batch, mode, self.layers)

    @property
    def default_bn(self) -> str:
        """The key of `BN_MODES` that suits the backbone without recalibration."""
        return self.backbone.default_bn

    @property
    def example_choice(self) -> dict[str, np.ndarray] | None:
        """A path for shapes; None for a stand-alone network."""
        return self.backbone.example_choice

    @functools.partial(jax.jit, static_argnums=0)  # traced once for equal models, `shapes` included
    def init(self, key: Array) -> PyTree:
        """Draw fresh variables."""
        path_key, bank_key, _ = jax.random.split(key, 3)  # other splits are other weights
        variables = self.module.init(
            path_key, _example_batch(), self.example_choice, BN_TRAIN, method="init_layers"
        )
        backbone = {name: tree["backbone"] for name, tree in variables.items()}
        for name, tree in self.backbone.init(bank_key, backbone).items():
            variables[name]["backbone"] = tree
        return variables

    @functools.cached_property
    def shapes(self) -> PyTree:
        """Shapes of `init`'s variables; nothing is computed."""
        return jax.eval_shape(self.init, jax.random.key(0))

    def losses(self, variables: PyTree, batch, choice, keys) -> tuple[dict[str, Array], PyTree]:
        """Return the training losses, and the running statistics after this mini-batch."""
        mode = dataclasses.replace(BN_TRAIN, momentum=self.layers.bn_momentum)
        losses, updated = self.module.apply(
            variables, batch, choice, mode, keys, method="losses", mutable=["batch_stats"]
        )
        return losses, updated["batch_stats"]

    def statistics(self, variables: PyTree, batch, choice) -> PyTree:
        """Return this mini-batch's statistics at every normalisation layer that is not frozen.

        They are a tree like `batch_stats`; frozen layers have theirs as stored.
        """
        _, updated = self.module.apply(
            variables, batch, choice, BN_COLLECT, method="features", mutable=["batch_stats"]
        )
        return updated["batch_stats"]

    def apply(self, variables: PyTree, batch, choice, bn: str = "running") -> dict[str, Array]:
        """Return the detections of a detector (`box_head.postprocess`) or a classifier's logits.

        Args:
          variables: variables of the network or of one path.
          batch: a mini-batch.
          choice: the path; None for a stand-alone network.
          bn: statistics to normalise with, a key of `BN_MODES`.
        """
        return self.module.apply(variables, batch, choice, BN_MODES[bn])

    def trainable_mask(self, gradient: PyTree) -> PyTree | None:
        """Return which parameters a step moves, a tree of bools; None for all of them."""
        if self.freeze == FreezeOptions():
            return None

        def is_trainable(path, _):
            names = tuple(key.key for key in path)
            frozen = self.freeze.freezes_parameter
            return names[0] != "backbone" or not frozen(self.backbone.arch, names[1:])

        return jax.tree_util.tree_map_with_path(is_trainable, gradient)

    def sample(self, seed: int, step: int) -> dict[str, np.ndarray] | None:
        """Draw the path of a supernet's training step; None for a stand-alone network."""
        return self.backbone.sample(seed, step)

    def rows(self, tree: PyTree, choice) -> PyTree:
        """Find the rows of the banks in `tree` for a path; `WHOLE` for leaves that are no banks."""
        where = jax.tree.map(lambda leaf: banks.WHOLE, tree)
        where["backbone"] = self.backbone.rows(tree["backbone"], choice)
        return where

    def path(self, variables: PyTree, choice) -> PyTree:
        """Return the variables of one path; all variables of a stand-alone network."""
        return banks.gather(
            variables, {name: self.rows(tree, choice) for name, tree in variables.items()}
        )

    def extract(self, variables: PyTree, choice, depths=None) -> PyTree:
        """Return the stand-alone network's variables for one path of this supernet.

        Args:
          variables: the supernet's.
          choice: the path.
          depths: number of blocks in each searched stage of the path, of a supernet of stages.
        """
        network = {name: dict(tree) for name, tree in variables.items()}
        for tree in network.values():
            tree["backbone"] = self.backbone.extract(tree["backbone"], choice, depths)
        return network


@dataclasses.dataclass(frozen=True)
class Detector(Model):
    """Faster, Mask or Cascade R-CNN, or RetinaNet, as its options say."""

    module_classes: ClassVar[dict[type, type]] = {
        DetectorOptions: RCNN,
        RetinaNetOptions: RetinaNet,
    }

    def pyramid(self, variables: PyTree, images: Array) -> tuple[Array, ...]:
        """Return the pyramid of a stand-alone detector, finest level first.

        Args:
          variables: its variables.
          images: normalised images, float [batch, height, width, 3] (`layers.preprocess`).
        """
        norm = self.normalization({"weight": jnp.ones(len(images))}, BN_RUNNING)
        x = images.astype(self.dtype)
        return self.module.apply(variables, x, None, norm, method="pyramid")


@dataclasses.dataclass(frozen=True)
class Classifier(Model):
    """An image classifier."""

    module_classes: ClassVar[dict[type, type]] = {ClassifierOptions: ImageClassifier}


# Options of detectors as `detector.json` names them; "rcnn" where it names none.
DETECTOR_OPTIONS = {"rcnn": DetectorOptions, "retinanet": RetinaNetOptions}


def _example_batch() -> dict[str, Array]:
    """Return what `features` takes of a batch of one image: for shapes only."""
    return {
        "image": jnp.zeros((1, 64, 64, 3), jnp.uint8),
        "image_size": jnp.full((1, 2), 64, jnp.int32),
        "weight": jnp.ones(1),
    }
