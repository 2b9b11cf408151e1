"""Costs of single layers under both conventions of counting.

- `macs`: one for each multiply-add of a convolution or dense layer; the true work.
- `thop2019`: the rules of pytorch-OpCounter in August 2019, which reproduce the FLOPs of the CR-NAS
  tables: also 1 for each output with a bias and 4 for each normalised value, a dense layer twice, a
  transposed convolution four times, 1000 RoIs in the box head and 100 in the mask head, two logits
  for each anchor, and a 1x1 expansion in MobileNetV2's first block, which the network lacks.

RoIAlign, pooling, additions, up-sampling and activations are not counted.
"""

import dataclasses

CONVENTIONS = ("macs", "thop2019")


@dataclasses.dataclass(frozen=True)
class Cost:
    """Multiply-adds (`flops`) and parameters of a part or of a whole detector."""

    flops: int = 0
    params: int = 0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.flops + other.flops, self.params + other.params)


@dataclasses.dataclass(frozen=True)
class Layers:
    """Count single layers.

    Attributes:
      convention: one of `CONVENTIONS`.
    """

    convention: str = "macs"

    @property
    def thop(self) -> bool:
        """Whether to count as pytorch-OpCounter did."""
        return self.convention == "thop2019"

    def conv(
        self,
        in_channels: int,
        out_channels: int,
        size: int,
        num_cells: int,
        *,
        groups: int = 1,
        bias: bool = False,
        norm: bool = False,
    ) -> Cost:
        """Count a convolution over `num_cells` outputs, and with `norm` the batch normalisation."""
        weights = size * size * (in_channels // groups) * out_channels
        flops = weights * num_cells
        if self.thop:
            flops += out_channels * num_cells * (bias + 4 * norm)
        return Cost(flops, weights + out_channels * bias + 2 * out_channels * norm)

    def dense(self, in_channels: int, out_channels: int, num_rows: int) -> Cost:
        """Count a dense layer with bias on `num_rows` rows."""
        weights = in_channels * out_channels
        flops = weights * num_rows
        if self.thop:
            flops = (2 * in_channels - 1) * out_channels * num_rows
        return Cost(flops, weights + out_channels)

    def upsampling(self, in_channels: int, out_channels: int, num_cells: int) -> Cost:
        """Count a transposed 2x2 convolution of stride 2 with bias on `num_cells` inputs."""
        weights = 4 * in_channels * out_channels
        flops = weights * num_cells
        if self.thop:
            flops = 4 * num_cells * (weights + out_channels)
        return Cost(flops, weights + out_channels)


def reduced(size: tuple[int, int], stride: int = 2) -> tuple[int, int]:
    """Return (height, width) after a layer with this stride and torch's padding."""
    return tuple(-(-side // stride) for side in size)


def num_cells(size: tuple[int, int]) -> int:
    """Return the number of cells of a feature map of `size` (height, width)."""
    return size[0] * size[1]
