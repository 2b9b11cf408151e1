"""From a description of a backbone to its functions: the one place that tells the kinds apart."""

import dataclasses

import flax.linen as nn
import jax
from jaxtyping import Array, PyTree

from crnas_jax.arch import Architecture
from crnas_jax.arch.scale_permuted import ScalePermuted
from crnas_jax.arch.staged import Arch
from crnas_jax.models.backbones.scale_permuted import ScalePermutedBackbone
from crnas_jax.models.backbones.staged import FreezeOptions, StagedBackbone
from crnas_jax.models.supernet.banks import WHOLE, SupernetSpec
from crnas_jax.models.supernet.connection_spec import ConnectionSupernetSpec
from crnas_jax.models.supernet.module import Supernet
from crnas_jax.models.supernet.scale_connections import ConnectionSupernet
from crnas_jax.models.supernet.scale_operations import ScaleSupernet, ScaleSupernetSpec

# The Flax module of each kind of architecture.
MODULES = {Arch: StagedBackbone, ScalePermuted: ScalePermutedBackbone}


@dataclasses.dataclass(frozen=True)
class Network:
    """A stand-alone backbone as functions on its variables.

    Attributes:
      arch: the architecture.
      remat: recompute blocks in the backward pass instead of storing their inner activations.
      freeze: what is not trained.
    """

    arch: Architecture
    remat: bool = False
    freeze: FreezeOptions = FreezeOptions()

    default_bn = "running"
    example_choice = None
    bank_description = None

    @property
    def module(self) -> nn.Module:
        """The Flax module."""
        return MODULES[type(self.arch)](self.arch, self.remat, self.freeze)

    def sample(self, seed: int, step: int) -> None:
        """Return None: a stand-alone network has one path."""

    def init(self, key: Array, path_variables: PyTree) -> PyTree:
        """Return `path_variables`: there are no banks to draw."""
        del key
        return path_variables

    def rows(self, tree: PyTree, choice) -> PyTree:
        """Return `banks.WHOLE` for every leaf."""
        del choice
        return jax.tree.map(lambda leaf: WHOLE, tree)

    def bank_keys(self, path: tuple[str, ...]) -> None:
        """Return None: no leaf is a bank."""
        del path


# The description of a supernet, and the functions of any backbone.
AnySupernet = SupernetSpec | ScaleSupernetSpec | ConnectionSupernetSpec
AnyBackbone = Network | Supernet | ScaleSupernet | ConnectionSupernet
_SUPERNETS = {
    SupernetSpec: Supernet,
    ScaleSupernetSpec: ScaleSupernet,
    ConnectionSupernetSpec: ConnectionSupernet,
}


def build(spec: Architecture | AnySupernet, remat: bool, freeze: FreezeOptions) -> AnyBackbone:
    """Return the backbone of an architecture or of a supernet's description."""
    return _SUPERNETS.get(type(spec), Network)(spec, remat, freeze)
