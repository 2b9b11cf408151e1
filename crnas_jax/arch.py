"""`Arch`: the value that names one backbone, and its codes and JSON form."""

import dataclasses
import json

from crnas_jax.errors import UserError

FORMAT = 1
FAMILIES = ("resnet_basic", "resnet_bottleneck")
STANDARD_WIDTHS = (64, 128, 256, 512)


@dataclasses.dataclass(frozen=True)
class Arch:
    """One backbone: how many blocks each stage has and how each block is dilated.

    Attributes:
      family: `resnet_basic` (two 3x3 convolutions a block) or `resnet_bottleneck` (1x1, 3x3, 1x1).
      depths: blocks per stage, for the stages with stride 4, 8, 16 and 32 (the paper's stage code).
      dilations: dilation of the searched 3x3 convolution of every block, in network order;
        all ones when left out.
      widths: channels of the 3x3 convolutions per stage; a bottleneck puts out four times as many.
        The stem has `widths[0]` channels.

    Raises:
      UserError: a field does not describe a network.
    """

    family: str
    depths: tuple[int, ...]
    dilations: tuple[int, ...] = ()
    widths: tuple[int, ...] = STANDARD_WIDTHS

    def __post_init__(self):
        for name in ("depths", "dilations", "widths"):
            object.__setattr__(self, name, _positive_integers(name, getattr(self, name)))
        if not self.dilations:
            object.__setattr__(self, "dilations", (1,) * sum(self.depths))
        if self.family not in FAMILIES:
            raise UserError(
                "arch", "family", f"{self.family!r} is unknown", f"use one of {FAMILIES}"
            )
        if len(self.depths) != 4 or len(self.widths) != 4:
            raise UserError(
                "arch",
                "depths",
                f"{self.depths} and widths {self.widths}",
                "give one number for each of 4 stages",
            )
        if len(self.dilations) != sum(self.depths):
            raise UserError(
                "arch",
                "dilations",
                f"{len(self.dilations)} entries for {sum(self.depths)} blocks",
                "give one dilation for each block",
            )

    @property
    def expansion(self) -> int:
        """Output channels of a block over its width."""
        return 4 if self.family == "resnet_bottleneck" else 1

    @property
    def out_channels(self) -> tuple[int, ...]:
        """Channels of c2..c5."""
        return tuple(self.expansion * width for width in self.widths)

    @property
    def operation_code(self) -> tuple[int, ...]:
        """The paper's 0-based operation code: 0, 1, 2 stand for dilation 1, 2, 3."""
        return tuple(dilation - 1 for dilation in self.dilations)

    def stage_dilations(self) -> tuple[tuple[int, ...], ...]:
        """The dilations cut into stages."""
        rest, stages = self.dilations, []
        for depth in self.depths:
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
