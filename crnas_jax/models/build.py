"""From a description to functions: what the rest of the package sees of a model."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from crnas_jax.arch.staged import Arch
from crnas_jax.models.backbones.staged import Backbone, Frozen
from crnas_jax.models.classifier import ClassifierOptions, ImageClassifier
from crnas_jax.models.layers import BN_BATCH, BN_RUNNING, BN_TRAIN
from crnas_jax.models.rcnn import RCNN, DetectorOptions
from crnas_jax.models.supernet import banks
from crnas_jax.models.supernet.module import Supernet, init_banks
from crnas_jax.spaces.stages import OperationSpace, StageSpace

# Statistics a model may be run with: the stored ones, or those of the mini-batch.
BN_MODES = {"running": BN_RUNNING, "batch": BN_BATCH}
# What activations are computed in; parameters, statistics and losses are float32 throughout.
PRECISIONS = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


@dataclasses.dataclass(frozen=True)
class Model:
    """A network as pure functions on `variables` = {"params", "batch_stats"}.

    Attributes:
      spec: the `Arch` of a stand-alone network or the `SupernetSpec` of a supernet.
      options: what stands on the backbone.
      remat: recompute backbone blocks in the backward pass instead of keeping what is inside them.
      precision: of the activations, one of `PRECISIONS`.
      frozen: what of the backbone is not trained.

    Of a supernet, `init` returns banks, and `losses` and `apply` take the variables of
    one path, which `path` takes out of the banks.
    """

    spec: Arch | banks.SupernetSpec
    options: DetectorOptions | ClassifierOptions
    remat: bool = False
    precision: str = "float32"
    frozen: Frozen = Frozen()

    # The Flax module of (backbone, options, dtype); set by the two kinds of models below.
    module_class: ClassVar[type]

    @property
    def has_banks(self) -> bool:
        """Whether this is a supernet: a step works on a part of the parameters alone."""
        return isinstance(self.spec, banks.SupernetSpec)

    @property
    def module(self):
        """The Flax module."""
        backbone = Supernet if self.has_banks else Backbone
        dtype = PRECISIONS[self.precision]
        backbone = backbone(self.spec, self.remat, self.frozen)
        return self.module_class(backbone, self.options, dtype)

    def init(self, key: Array) -> PyTree:
        """Freshly drawn variables."""
        choice = self.spec.choice(self.spec.deepest.depths) if self.has_banks else None
        path_key, bank_key, loss_key = jax.random.split(key, 3)
        keys = jax.random.split(loss_key, 1)
        variables = self.module.init(
            path_key, example_batch(), choice, BN_TRAIN, keys, method="losses"
        )
        if self.has_banks:
            backbone = {name: tree["backbone"] for name, tree in variables.items()}
            for name, tree in init_banks(self.spec, bank_key, backbone).items():
                variables[name]["backbone"] = tree
        return variables

    @property
    def shapes(self) -> PyTree:
        """Shapes of `init`'s variables; nothing is computed."""
        return jax.eval_shape(self.init, jax.random.key(0))

    def losses(self, variables: PyTree, batch, choice, keys) -> tuple[dict[str, Array], PyTree]:
        """Training losses, and the running statistics after this mini-batch."""
        losses, updated = self.module.apply(
            variables, batch, choice, BN_TRAIN, keys, method="losses", mutable=["batch_stats"]
        )
        return losses, updated["batch_stats"]

    def apply(self, variables: PyTree, batch, choice, bn: str = "running") -> dict[str, Array]:
        """What the network is for, with the statistics that `bn` names: the detections of a
        detector (`roi_heads.postprocess`), the logits of a classifier.
        """
        return self.module.apply(variables, batch, choice, BN_MODES[bn])

    def moves(self, gradient: PyTree) -> PyTree | None:
        """Which parameters a step with this gradient moves, bools; None for all of them."""
        if self.frozen == Frozen():
            return None
        arch = self.spec.deepest if self.has_banks else self.spec

        def moves(path, _):
            parts = tuple(key.key for key in path)
            return parts[0] != "backbone" or not self.frozen.holds(arch, parts[1:])

        return jax.tree_util.tree_map_with_path(moves, gradient)

    def sample(self, rng: np.random.Generator) -> dict[str, np.ndarray] | None:
        """A path of a supernet, uniform; None of a stand-alone network."""
        if not self.has_banks:
            return None
        spec = self.spec
        depths = StageSpace.of(spec.family, spec.grids).sample(rng)
        operations = OperationSpace(spec.arch(depths).stage_depths, spec.dilations).sample(rng)
        return spec.choice(depths, operations)

    def rows(self, tree: PyTree, choice) -> PyTree:
        """Rows of the banks in `tree` for a path; `WHOLE` for leaves that are no banks."""
        where = jax.tree.map(lambda leaf: banks.WHOLE, tree)
        if self.has_banks:
            where["backbone"] = banks.rows(self.spec, tree["backbone"], choice)
        return where

    def path(self, variables: PyTree, choice) -> PyTree:
        """The variables of one path; of a stand-alone network, its own."""
        return banks.gather(
            variables, {name: self.rows(tree, choice) for name, tree in variables.items()}
        )

    def extract(self, variables: PyTree, choice, depths) -> PyTree:
        """The stand-alone network's variables for one path of this supernet."""
        network = {name: dict(tree) for name, tree in variables.items()}
        for tree in network.values():
            tree["backbone"] = banks.extract(self.spec, tree["backbone"], choice, depths)
        return network


@dataclasses.dataclass(frozen=True)
class Detector(Model):
    """Faster, Mask or Cascade R-CNN, as its options say."""

    module_class: ClassVar[type] = RCNN


@dataclasses.dataclass(frozen=True)
class Classifier(Model):
    """An image classifier."""

    module_class: ClassVar[type] = ImageClassifier


def example_batch(size: int = 64, number: int = 1) -> dict[str, Array]:
    """A batch of either kind's form, without objects: for shapes only."""
    return {
        "image": jnp.zeros((number, size, size, 3), jnp.uint8),
        "image_size": jnp.full((number, 2), size, jnp.int32),
        "boxes": jnp.zeros((number, 1, 4)),
        "labels": jnp.zeros((number, 1), jnp.int32),
        "valid": jnp.zeros((number, 1), bool),
        "crowd": jnp.zeros((number, 1), bool),
        "masks": jnp.zeros((number, 1, 8, 8), jnp.uint8),
        "label": jnp.zeros(number, jnp.int32),
        "weight": jnp.ones(number),
    }
