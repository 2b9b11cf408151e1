"""`Arch`: the value that names one backbone, and its codes and JSON form."""

import dataclasses
import json

from crnas_jax.arch.families import FAMILIES, INVERTED_EXPANSION, BlockShape, Family
from crnas_jax.errors import UserError

FORMAT = 1


@dataclasses.dataclass(frozen=True)
class Arch:
    """One backbone: how many blocks each stage has and how each block is dilated.

    Attributes:
      family: of `families.FAMILIES`.
      depths: blocks in each searched stage: of ResNet and ResNeXt the four with stride 4, 8, 16 and
        32, of MobileNetV2 m1..m5 (the middle of the paper's stage code).
      dilations: dilation of the searched 3x3 convolution of every block, in network order;
        all ones when left out.
      widths: of every stage; the family's when left out. ResNet: channels of the 3x3 convolutions,
        a bottleneck puts out four times as many. ResNeXt: half of them. MobileNetV2: output
        channels of the seven stages.

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
        for name, number in (("depths", len(traits.searched)), ("widths", len(traits.widths))):
            if len(getattr(self, name)) != number:
                raise UserError(
                    "arch", name, f"{getattr(self, name)}", f"give {number} for {self.family}"
                )
        if any(traits.inner * width % traits.groups for width in self.widths):
            raise UserError(
                "arch",
                "widths",
                f"{self.widths} do not divide into {traits.groups} groups",
                f"give multiples of {traits.groups // traits.inner}",
            )
        if not self.dilations:
            object.__setattr__(self, "dilations", (1,) * self.blocks)
        if len(self.dilations) != self.blocks:
            raise UserError(
                "arch",
                "dilations",
                f"{len(self.dilations)} entries for {self.blocks} blocks",
                "give one dilation for each block",
            )

    @property
    def traits(self) -> Family:
        """What the family fixes."""
        return FAMILIES[self.family]

    @property
    def stage_depths(self) -> tuple[int, ...]:
        """Blocks in every stage, fixed ones included."""
        depths = iter(self.depths)
        stages = range(len(self.traits.widths))
        return tuple(1 if stage in self.traits.fixed else next(depths) for stage in stages)

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        return sum(self.stage_depths)

    @property
    def stem_channels(self) -> int:
        """Channels before the first block."""
        return self.traits.stem * self.widths[0]

    @property
    def tail_channels(self) -> int:
        """Channels of the last 1x1 convolution; 0 where there is none."""
        return self.traits.tail * self.widths[-1]

    @property
    def out_channels(self) -> tuple[int, ...]:
        """Channels of c2..c5."""
        channels = [self.traits.expansion * self.widths[stage] for stage in self.traits.levels]
        return (*channels[:-1], self.tail_channels or channels[-1])

    def block(self, stage: int, first: bool) -> BlockShape:
        """The first or a later block of a stage (0-based)."""
        traits = self.traits
        outer = traits.expansion * self.widths[stage]
        before = traits.expansion * self.widths[stage - 1] if stage else self.stem_channels
        before = before if first else outer
        if traits.block == "inverted":
            factor = 1 if stage == 0 else INVERTED_EXPANSION
            inner = groups = factor * before
        else:
            inner, groups = traits.inner * self.widths[stage], traits.groups
        stride = traits.strides[stage] if first else 1
        return BlockShape(traits.block, before, inner, outer, stride, groups)

    @property
    def stage_code(self) -> tuple[int, ...]:
        """The paper's stage code; MobileNetV2's counts stem and tail too (ten entries)."""
        return (1, *self.stage_depths, 1, 1) if self.traits.tail else self.depths

    @property
    def operation_code(self) -> tuple[int, ...]:
        """The paper's 0-based operation code: 0, 1, 2 stand for dilation 1, 2, 3.

        MobileNetV2's has an entry for every unit of its stage code; those without a block are 0.
        """
        code = tuple(dilation - 1 for dilation in self.dilations)
        return (0, *code, 0, 0) if self.traits.tail else code

    def stage_dilations(self) -> tuple[tuple[int, ...], ...]:
        """The dilations cut into stages."""
        rest, stages = self.dilations, []
        for depth in self.stage_depths:
            stages.append(rest[:depth])
            rest = rest[depth:]
        return tuple(stages)

    def to_json(self) -> str:
        """One JSON object with the four fields and the format version."""
        return json.dumps({"format": FORMAT, **dataclasses.asdict(self)})

    @classmethod
    def from_json(cls, text: str) -> "Arch":
        """Reads what `to_json` wrote.

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


def _positive_integers(name: str, values) -> tuple[int, ...]:
    try:
        numbers = tuple(int(value) for value in values)
        whole = all(
            number == value and number >= 1 for number, value in zip(numbers, values, strict=True)
        )
    except (TypeError, ValueError):
        whole = False
    if not whole:
        raise UserError("arch", name, f"{values!r}", "give whole numbers of at least 1")
    return numbers
