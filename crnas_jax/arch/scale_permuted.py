"""`ScalePermuted`: backbones whose blocks are not ordered by scale (SpineNet, arXiv 1912.05027).

A short stem of ordinary blocks is followed by permuted blocks, each at a level of its own (level l
has stride 2^l), each fed by two earlier blocks that are resampled to its size. Some of them are
outputs, one for each level of the pyramid that a detector reads.
"""

import dataclasses
import json

from crnas_jax.arch.families import ConvShape, StemShape
from crnas_jax.arch.scale_shapes import FAMILIES, Node, ScalePermutedFamily, list_nodes
from crnas_jax.errors import UserError
from crnas_jax.runtime.files import digest

FORMAT = 1
_REMEDY = "correct the block list"


@dataclasses.dataclass(frozen=True)
class StemBlock:
    """A block of the stem; it follows the one before it.

    Attributes:
      level: its level.
      is_parent: whether permuted blocks may read it.
    """

    level: int
    is_parent: bool = True


@dataclasses.dataclass(frozen=True)
class PermutedBlock:
    """A permuted block.

    Attributes:
      level: its level.
      kind: `bottleneck`, `residual` or `mbconv`, as its family has.
      parents: the two blocks that it reads, indices into stem blocks and permuted blocks.
      is_output: whether it is the pyramid's output of its level.
    """

    level: int
    kind: str
    parents: tuple[int, int]
    is_output: bool = False


@dataclasses.dataclass(frozen=True)
class ScalePermuted:
    """A scale-permuted backbone; it puts out a pyramid, so detectors need no neck.

    Attributes:
      family: key of `FAMILIES`.
      stem: the stem's blocks.
      blocks: the permuted blocks; their indices go on from the stem's.
      repeats: how often each block, also of the stem, is repeated.
      width_scale: factor of the widths, which are rounded down.
      alpha: channels of the resampling over a parent's width (spinenet only).
      endpoint_channels: channels of every output.
      dilations: dilation of each permuted block's 3x3 convolutions, the resampling's left out; ()
        where all are 1. They cost no multiply-adds.

    Raises:
      UserError: the fields describe no network; the message names the block.
    """

    family: str
    stem: tuple[StemBlock, ...]
    blocks: tuple[PermutedBlock, ...]
    repeats: int = 1
    width_scale: float = 1.0
    alpha: float = 0.5
    endpoint_channels: int = 256
    dilations: tuple[int, ...] = ()

    def __post_init__(self):
        if not isinstance(self.family, str) or self.family not in FAMILIES:
            raise _fault("family", f"{self.family!r}", f"use one of {tuple(FAMILIES)}")
        for name, most in (("repeats", 100), ("endpoint_channels", 2**16)):
            if not _is_integer(getattr(self, name), 1, most):
                remedy = f"give a whole number from 1 to {most}"
                raise _fault(name, f"{getattr(self, name)!r}", remedy)
        for name in ("width_scale", "alpha"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 100:
                raise _fault(name, f"{value!r}", "give a number above 0")
        object.__setattr__(self, "stem", tuple(self.stem))
        object.__setattr__(self, "blocks", tuple(self.blocks))
        self._check_stem()
        for index, block in enumerate(self.blocks, len(self.stem)):
            self._check_block(index, block)
        self._check_dilations()
        outputs = [block.level for block in self.blocks if block.is_output]
        if not outputs or sorted(outputs) != list(range(3, 3 + len(outputs))):
            problem = f"outputs at levels {outputs}"
            raise _fault("blocks", problem, "give one output for each level from 3 on")
        fed = {parent for block in self.blocks for parent in block.parents}
        fed |= {extra for node in self.nodes() for extra in node.extras}
        for index, block in enumerate(self.blocks, len(self.stem)):
            if index not in fed and not block.is_output:
                problem = "feeds no block, is no output, and no output of its level can add it"
                raise _fault(f"blocks: block {index}", problem, _REMEDY)

    def _check_stem(self):
        level = self.traits.stem_level
        for index, block in enumerate(self.stem):
            if not _is_integer(block.level, level, min(level + 1, 7)):
                problem = f"level {block.level!r} after level {level}"
                raise _fault(f"stem: block {index}", problem, "give that level or the next")
            if not isinstance(block.is_parent, bool):
                problem = f"is_parent {block.is_parent!r}"
                raise _fault(f"stem: block {index}", problem, "give true or false")
            level = block.level
        if not self.stem:
            raise _fault("stem", "empty", "give at least one block")

    def _check_block(self, index, block):
        where = f"blocks: block {index}"
        if not _is_integer(block.level, 2, 7):
            raise _fault(where, f"level {block.level!r}", "give a level from 2 to 7")
        kinds = tuple(dict(self.traits.kinds))
        if block.kind not in kinds:
            raise _fault(where, f"kind {block.kind!r}", f"use one of {kinds}")
        if not isinstance(block.is_output, bool):
            raise _fault(where, f"is_output {block.is_output!r}", "give true or false")
        parents = block.parents
        if not isinstance(parents, tuple) or len(parents) != 2:
            raise _fault(where, f"parents {parents!r}", "give two")
        for parent in parents:
            if not _is_integer(parent, 0, index - 1):
                raise _fault(where, f"parent {parent!r} does not come before it", _REMEDY)
            if parent < len(self.stem) and not self.stem[parent].is_parent:
                raise _fault(where, f"parent {parent} is a stem block that is not read", _REMEDY)
        if parents[0] == parents[1]:
            raise _fault(where, f"parents {parents} are the same block", "give two blocks")

    def _check_dilations(self):
        dilations = self.dilations
        is_list = isinstance(dilations, tuple | list)
        if not is_list or not all(_is_integer(entry, 1, 100) for entry in dilations):
            raise _fault("dilations", f"{dilations!r}", "give whole numbers from 1 to 100")
        if len(dilations) not in (0, len(self.blocks)):
            problem = f"{len(dilations)} entries for {len(self.blocks)} permuted blocks"
            raise _fault("dilations", problem, "give one dilation for each permuted block")
        # One form of each network: equal ones compare equal.
        is_dilated = any(dilation > 1 for dilation in dilations)
        object.__setattr__(self, "dilations", tuple(dilations) if is_dilated else ())

    @property
    def block_dilations(self) -> tuple[int, ...]:
        """Dilation of every permuted block."""
        return self.dilations or (1,) * len(self.blocks)

    @property
    def traits(self) -> ScalePermutedFamily:
        """The family's row."""
        return FAMILIES[self.family]

    @property
    def activation(self) -> str:
        """Activation of the family."""
        return self.traits.activation

    @property
    def levels(self) -> tuple[int, ...]:
        """Levels of the outputs, finest first."""
        return tuple(sorted(block.level for block in self.blocks if block.is_output))

    @property
    def out_channels(self) -> tuple[int, ...]:
        """Channels of the outputs."""
        return (self.endpoint_channels,) * len(self.levels)

    @property
    def has_pyramid(self) -> bool:
        """Whether the outputs are a feature pyramid: True."""
        return True

    @property
    def summary(self) -> str:
        """What tells it from others of its family, in a few words."""
        return f"{len(self.stem)} + {len(self.blocks)} blocks x {self.repeats}"

    @property
    def label(self) -> str:
        """A name for its graph, for files, with its dilations where it has some."""
        label = f"{self.family}_{digest(*map(repr, (self.stem, self.blocks)))}"
        return f"{label}_{'-'.join(map(str, self.dilations))}" if self.dilations else label

    @property
    def stem_shape(self) -> StemShape:
        """Shape of the convolution, and perhaps the pooling, before the first block."""
        traits = self.traits
        channels = traits.stem_channels
        if traits.stem_is_scaled:
            channels = max(int(channels * self.width_scale), 1)
        return StemShape(channels, traits.stem_size, traits.stem_pool_stride)

    def width(self, level: int) -> int:
        """Return the width of a block at a level."""
        return max(int(self.traits.widths[level] * self.width_scale), 1)

    def nodes(self) -> tuple[Node, ...]:
        """List all blocks in order: modules, costs and exports walk this list."""
        return list_nodes(self)

    def endpoint(self, node: Node) -> ConvShape:
        """Return the shape of the 1x1 convolution behind an output."""
        return ConvShape("1", node.out_channels, self.endpoint_channels, 1)

    def part_names(self) -> tuple[str, ...]:
        """List the names under which the parameters stand, in order."""
        endpoints = tuple(f"endpoint{level}" for level in self.levels)
        return ("stem", *(node.name for node in self.nodes()), *endpoints)

    def frozen_parts(self, freeze_at: int) -> tuple[str, ...]:
        """Return the parts that are frozen: 1 is the stem's convolution, 2 the stem, 5 everything.

        Raises:
          UserError: another value: such a network has no c3 to stop at.
        """
        names = self.part_names()
        ends = {0: 0, 1: 1, 2: 1 + len(self.stem), 5: len(names)}
        if freeze_at not in ends:
            problem = f"{freeze_at}, and a scale-permuted backbone has no c{freeze_at}"
            raise UserError("FreezeOptions", "freeze_at", problem, f"use one of {tuple(ends)}")
        return names[: ends[freeze_at]]

    def to_json(self) -> str:
        """Return a JSON object with the fields and the format version; `dilations` where given."""
        fields = {"format": FORMAT, **dataclasses.asdict(self)}
        if not self.dilations:  # as before there were any
            del fields["dilations"]
        return json.dumps(fields)

    @classmethod
    def from_json(cls, text: str) -> "ScalePermuted":
        """Read what `to_json` wrote.

        Raises:
          UserError: the text is not such an object.
        """
        remedy = "give what to_json() of an architecture writes"
        try:
            fields = json.loads(text)
        except ValueError as error:
            raise _fault("json", str(error), remedy) from error
        if not isinstance(fields, dict) or fields.pop("format", None) != FORMAT:
            raise _fault("format", f"not {FORMAT}", remedy)
        known = {field.name for field in dataclasses.fields(cls)}
        if set(fields) | {"dilations"} != known:
            unlike = sorted((set(fields) | {"dilations"}) ^ known)
            raise _fault("fields", f"{unlike} unknown or missing", f"give {sorted(known)}")
        for name, kind in (("stem", StemBlock), ("blocks", PermutedBlock)):
            fields[name] = _read_blocks(name, kind, fields[name])
        return cls(**fields)


def _read_blocks(name, kind, entries):
    keys = {field.name for field in dataclasses.fields(kind)}
    if not isinstance(entries, list):
        raise _fault(name, "no list", "give a list of blocks")
    for index, entry in enumerate(entries):
        if not isinstance(entry, dict) or set(entry) != keys:
            raise _fault(f"{name}: entry {index}", "other fields", f"give {sorted(keys)}")
    return tuple(
        kind(**{key: tuple(v) if isinstance(v, list) else v for key, v in entry.items()})
        for entry in entries
    )


def _is_integer(value, least, most=None):
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    return is_whole and value >= least and (most is None or value <= most)


def _fault(field, problem, remedy):
    return UserError("arch", field, problem, remedy)
