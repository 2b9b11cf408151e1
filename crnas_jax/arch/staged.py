"""`Arch`: the value that describes a backbone of stages, and its codes, parts and JSON form."""

import dataclasses
import json
from collections.abc import Sequence

from crnas_jax.arch.families import FAMILIES, BlockShape, Family, StemShape, TailShape
from crnas_jax.errors import UserError

FORMAT = 1


@dataclasses.dataclass(frozen=True)
class Part:
    """One part of a backbone: the stem, a stage or the tail.

    Attributes:
      kind: `stem`, `stage` or `tail`.
      name: name of its parameters: `stem`, `stage1`, `stage2`, ..., `tail`.
      stage: index of the stage; -1 for the stem, and the last stage's for the tail.
      units: shapes of what is run in order: the blocks of a stage, the layers of stem or tail.
      level: pyramid level that ends with this part (2 for c2), None where none does.
      resolution: level of its output whether or not a pyramid level ends there.
    """

    kind: str
    name: str
    stage: int
    units: tuple[StemShape | BlockShape | TailShape, ...]
    level: int | None
    resolution: int


@dataclasses.dataclass(frozen=True)
class Arch:
    """One backbone: how many blocks each stage has and how each block is dilated.

    Attributes:
      family: key of `families.FAMILIES`.
      depths: number of blocks in each searched stage: for ResNet and ResNeXt the four with stride
        4, 8, 16 and 32, for MobileNetV2 m1..m5 (the middle of the paper's stage code).
      dilations: dilation of every block's searched 3x3 convolution, in network order; all ones
        when left out.
      widths: width of every stage; the family's when left out. ResNet: channels of the 3x3
        convolutions, a bottleneck puts out four times as many. ResNeXt: half of them. MobileNetV2:
        output channels of the seven stages.

    Raises:
      UserError: a field does not describe a network.
    """

    family: str
    depths: tuple[int, ...]
    dilations: tuple[int, ...] = ()
    widths: tuple[int, ...] = ()

    def __post_init__(self):
        if not isinstance(self.family, str) or self.family not in FAMILIES:
            raise UserError(
                "arch", "family", f"{self.family!r} is unknown", f"use one of {tuple(FAMILIES)}"
            )
        for name in ("depths", "dilations", "widths"):
            object.__setattr__(self, name, _positive_integers(name, getattr(self, name)))
        traits = FAMILIES[self.family]
        if not self.widths:
            object.__setattr__(self, "widths", traits.widths)
        lengths = {"depths": len(traits.searched_stages), "widths": len(traits.widths)}
        for name, length in lengths.items():
            if len(getattr(self, name)) != length:
                raise UserError(
                    "arch", name, f"{getattr(self, name)}", f"give {length} for {self.family}"
                )
        if any(traits.inner * width % traits.groups for width in self.widths):
            raise UserError(
                "arch",
                "widths",
                f"{self.widths} do not divide into {traits.groups} groups",
                f"give multiples of {traits.groups // traits.inner}",
            )
        if not self.dilations:
            object.__setattr__(self, "dilations", (1,) * self.num_blocks)
        if len(self.dilations) != self.num_blocks:
            raise UserError(
                "arch",
                "dilations",
                f"{len(self.dilations)} entries for {self.num_blocks} blocks",
                "give one dilation for each block",
            )

    @property
    def traits(self) -> Family:
        """The family's row."""
        return FAMILIES[self.family]

    @property
    def stage_depths(self) -> tuple[int, ...]:
        """Number of blocks in every stage, fixed stages included."""
        depths = iter(self.depths)
        stages = range(len(self.traits.widths))
        return tuple(1 if stage in self.traits.fixed_stages else next(depths) for stage in stages)

    @property
    def num_blocks(self) -> int:
        """Number of blocks in all stages."""
        return sum(self.stage_depths)

    def parts(self) -> tuple[Part, ...]:
        """List stem, stages and tail in network order.

        Everything that walks a backbone (modules, cost, conversion of weights) walks this list.
        """
        traits, last = self.traits, len(self.widths) - 1
        stem_channels = traits.stem * self.widths[0]
        stem = StemShape(stem_channels, traits.stem_size, traits.stem_pool_stride)
        resolution = 2 if traits.stem_pool_stride > 1 else 1
        parts = [Part("stem", "stem", -1, (stem,), None, resolution)]
        levels = {stage: level for level, stage in enumerate(traits.levels, 2)}
        for stage, depth in enumerate(self.stage_depths):
            blocks = tuple(self.block(stage, first=index == 0) for index in range(depth))
            level = None if stage == last and traits.tail else levels.get(stage)
            resolution += traits.strides[stage] - 1  # strides are 1 or 2
            parts.append(Part("stage", f"stage{stage + 1}", stage, blocks, level, resolution))
        if traits.tail:
            tail = TailShape(traits.expansion * self.widths[last], traits.tail * self.widths[last])
            parts.append(Part("tail", "tail", last, (tail,), levels[last], resolution))
        return tuple(parts)

    def part_names(self) -> tuple[str, ...]:
        """List the names under which the parameters stand, in order."""
        return tuple(part.name for part in self.parts())

    def frozen_parts(self, freeze_at: int) -> tuple[str, ...]:
        """Return the parts that are frozen: 1 is the stem, 2 all up to c2, .. 5 everything."""
        last = (-2, -1, *self.traits.levels)[freeze_at]
        return tuple(part.name for part in self.parts() if part.stage <= last)

    @property
    def stages(self) -> tuple[Part, ...]:
        """The stages alone, in network order."""
        return tuple(part for part in self.parts() if part.kind == "stage")

    @property
    def activation(self) -> str:
        """Activation of the family."""
        return self.traits.activation

    @property
    def levels(self) -> tuple[int, ...]:
        """Levels of the outputs, finest first: c2..c5."""
        return tuple(part.level for part in self.parts() if part.level)

    @property
    def has_pyramid(self) -> bool:
        """Whether the outputs are a feature pyramid: False, a detector needs a neck."""
        return False

    @property
    def summary(self) -> str:
        """What tells it from others of its family, in a few words."""
        return str(self.depths)

    @property
    def label(self) -> str:
        """Name of the network in a run: its depths, and its dilations where it has some."""
        label = code_label(self.depths)
        return label if set(self.dilations) == {1} else f"{label}_{code_label(self.dilations)}"

    @property
    def out_channels(self) -> tuple[int, ...]:
        """Channels of c2..c5."""
        outputs = [part.units[-1] for part in self.parts() if part.level]
        return tuple(unit.convolutions[-1].out_channels for unit in outputs)

    def block(self, stage: int, first: bool) -> BlockShape:
        """Return the shape of the first or a later block of a stage (0-based)."""
        return self.traits.block_shape(self.widths, stage, first)

    @property
    def stage_code(self) -> tuple[int, ...]:
        """The paper's stage code; MobileNetV2's counts stem and tail too (ten entries)."""
        return (1, *self.stage_depths, 1, 1) if self.traits.tail else self.depths

    @property
    def operation_code(self) -> tuple[int, ...]:
        """The paper's 0-based operation code: 0, 1, 2 stand for dilation 1, 2, 3.

        MobileNetV2's has an entry for every unit of its stage code; units without a block are 0.
        """
        code = tuple(dilation - 1 for dilation in self.dilations)
        return (0, *code, 0, 0) if self.traits.tail else code

    def stage_dilations(self) -> tuple[tuple[int, ...], ...]:
        """Return the dilations of each stage's blocks."""
        rest, stages = self.dilations, []
        for depth in self.stage_depths:
            stages.append(rest[:depth])
            rest = rest[depth:]
        return tuple(stages)

    def to_json(self) -> str:
        """Return a JSON object with the four fields and the format version."""
        return json.dumps({"format": FORMAT, **dataclasses.asdict(self)})

    @classmethod
    def from_json(cls, text: str) -> "Arch":
        """Read what `to_json` wrote.

        Raises:
          UserError: the text is not such an object.
        """
        try:
            fields = json.loads(text)
        except ValueError as error:
            raise UserError(
                "arch", "json", str(error), "give what Arch.to_json() writes"
            ) from error
        if not isinstance(fields, dict) or fields.pop("format", None) != FORMAT:
            raise UserError("arch", "format", f"not {FORMAT}", "give what Arch.to_json() writes")
        known = {field.name for field in dataclasses.fields(cls)}
        if set(fields) != known:
            raise UserError("arch", "fields", f"{sorted(fields)}", f"give {sorted(known)}")
        return cls(**fields)


def code_label(code: Sequence[int]) -> str:
    """Return the numbers of a code as a name: of depths that of the network without dilation."""
    return "-".join(map(str, code))


def _positive_integers(name: str, values) -> tuple[int, ...]:
    try:
        integers = tuple(int(value) for value in values)
        whole = all(
            integer == value and integer >= 1
            for integer, value in zip(integers, values, strict=True)
        )
    except (TypeError, ValueError):
        whole = False
    if not whole:
        raise UserError("arch", name, f"{values!r}", "give whole numbers of at least 1")
    return integers
