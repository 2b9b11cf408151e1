"""Effective receptive fields (Luo et al., arXiv 1701.04128; figure 1 of CR-NAS).

The field of a pyramid level is the absolute gradient of its central unit, summed over the unit's
channels, with respect to the input, averaged over images.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree
from scipy import optimize

from crnas_jax.data.source import objects_record
from crnas_jax.data.transforms import DetectionRows, ImageSize
from crnas_jax.errors import UserError
from crnas_jax.models.build import Detector
from crnas_jax.models.layers import preprocess

# Luo et al. count the pixels above 1 - 95.45 % of the largest; a Gaussian has that share of its
# weight within two standard deviations.
_SHARE = 1 - 0.9545
_WIDTH_IN_DEVIATIONS = 4
# Cells of the longer side of a stored map, at most, and of what a Gaussian is fitted to.
_CELLS = 72
# Fits, each on a narrower window.
_FITS = 4


@dataclasses.dataclass(frozen=True)
class Field:
    """The effective receptive field of one level.

    Attributes:
      level: the level, 3 for p3.
      stride: pixels of the input for a cell of the level.
      values: mean absolute gradient, of sum 1, float64 [height, width].
      anchor: side of the level's smallest anchor, pixels; None where there is none.
      num_images: images that it is averaged over.
    """

    level: int
    stride: int
    values: np.ndarray
    anchor: float | None
    num_images: int

    @functools.cached_property
    def centre(self) -> tuple[float, float]:
        """Mean of the field's weight (y, x), pixels."""
        return tuple(float(mean) for mean, _ in map(_moments, self._marginals))

    @functools.cached_property
    def sigma(self) -> tuple[float, float]:
        """Standard deviation (y, x) of the Gaussian with the field's second moments, pixels."""
        return tuple(float(deviation) for _, deviation in map(_moments, self._marginals))

    @functools.cached_property
    def width(self) -> float:
        """Four standard deviations of the fitted Gaussian, pixels.

        A round Gaussian on a flat ground is fitted by least squares: the ground takes up what
        comes from far away by other paths, which `sigma` counts in full.
        """
        return _WIDTH_IN_DEVIATIONS * min(_fitted(self.values, self.centre, self.sigma))

    @property
    def size(self) -> float:
        """Luo's size: the root of the number of pixels above 4.55 % of the largest value."""
        return float(np.sqrt((self.values > _SHARE * self.values.max()).sum()))

    @property
    def ratio(self) -> float | None:
        """Width over the side of the anchor."""
        return self.width / self.anchor if self.anchor else None

    @property
    def _marginals(self):
        return self.values.sum(1), self.values.sum(0)

    def to_json(self) -> dict:
        """Return the numbers and a map: a text for each row, two hexadecimal digits for each cell.

        They are square roots of means over cells, 255 the largest.
        """
        names = ("level", "stride", "anchor", "num_images", "centre", "sigma", "width", "size")
        numbers = {name: getattr(self, name) for name in names}
        cells, step = _pooled(self.values)
        shades = np.round(255 * np.sqrt(cells / max(cells.max(), 1e-300))).astype(np.uint8)
        canvas = [side * step for side in cells.shape]  # what the map shows
        unit = [(side // self.stride // 2 + 0.5) * self.stride for side in self.values.shape]
        return {
            **numbers,
            "ratio": self.ratio,
            "canvas": canvas,
            "unit": unit,
            "map": [bytes(row).hex() for row in shades],
        }


def receptive_fields(
    detector: Detector,
    variables: Sequence[PyTree],
    images: np.ndarray,
    levels: Sequence[int] | None = None,
    batch_size: int = 8,
) -> list[Field]:
    """Return the fields of pyramid levels of a detector.

    Args:
      detector: a stand-alone detector.
      variables: its weights; several are averaged over, such as random ones.
      images: normalised images, float32 [images, height, width, 3] (`plates`, `noise`).
      levels: levels, 3 for p3; None for all.
      batch_size: images in a call.

    Raises:
      UserError: the detector does not have one of the levels.
    """
    maps = jax.eval_shape(detector.pyramid, variables[0], images[:1])
    anchors = itertools.zip_longest(detector.options.anchor_sizes, maps)
    anchor_of = {
        round(math.log2(images.shape[1] / level.shape[1])): anchor
        for anchor, level in anchors
        if level is not None
    }
    missing = sorted(set(levels or ()) - set(anchor_of))
    if missing:
        remedy = f"use some of {', '.join(map(str, anchor_of))}"
        raise UserError("receptive fields", "levels", f"there is no level {missing[0]}", remedy)
    fields = []
    for place, (level, anchor) in enumerate(anchor_of.items()):
        if levels is not None and level not in levels:
            continue
        values = sum(
            field_of(detector.pyramid, weights, images, place, batch_size) for weights in variables
        )
        total = values.sum()
        if not (np.isfinite(total) and total > 0):  # where no gradient arrives the field is flat
            values, total = np.ones_like(values), values.size
        values = values / total
        num_images = len(images) * len(variables)
        fields.append(Field(level, 2**level, values, anchor, num_images))
    return fields


def field_of(
    function: Callable[[PyTree, jax.Array], Sequence[jax.Array]],
    variables: PyTree,
    images: np.ndarray,
    place: int,
    batch_size: int = 8,
) -> np.ndarray:
    """Return the sum over images of the absolute gradient of a map's central unit.

    Args:
      function: function of (variables, images) to maps, each [batch, height, width, channels]; no
        image depends on another.
      variables: its first argument.
      images: float32 [images, height, width, channels].
      place: position of the map among the function's.
      batch_size: images in a call; the last batch is filled up with images that do not count.

    Returns:
      float64 [height, width].
    """
    program, total = _program(function), np.zeros(images.shape[1:3])
    num_maps = len(jax.eval_shape(function, variables, images[:1]))
    is_asked = np.eye(num_maps, dtype=np.float32)[place]
    for start in range(0, len(images), batch_size):
        batch = np.asarray(images[start : start + batch_size])
        missing = min(batch_size, len(images)) - len(batch)
        weight = np.concatenate([np.ones(len(batch)), np.zeros(missing)]).astype(np.float32)
        batch = np.concatenate([batch, np.zeros((missing, *batch.shape[1:]), batch.dtype)])
        total += np.asarray(program(variables, batch, weight, is_asked), np.float64)
    return total


# One program serves all levels of a network: most of the time would go into compiling them.
@functools.lru_cache(maxsize=8)
def _program(function):
    def gradient(variables, images, weight, is_asked):
        def central_units(images):
            levels = [level.astype(jnp.float32) for level in function(variables, images)]
            return jnp.stack(
                [level[:, level.shape[1] // 2, level.shape[2] // 2].sum() for level in levels]
            )

        _, pull_back = jax.vjp(central_units, images)
        (gradients,) = pull_back(is_asked)
        return jnp.einsum("bhw,b->hw", jnp.abs(gradients).sum(3), weight)

    return jax.jit(gradient)


def noise(num_images: int, canvas: tuple[int, int], seed: int = 0) -> np.ndarray:
    """Return normalised images of Gaussian noise, float32 [images, height, width, 3]."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal((num_images, *canvas, 3), np.float32)


def plates(
    images: Iterable[np.ndarray], size: ImageSize, num_images: int, portrait: bool = False
) -> np.ndarray:
    """Return the first images on one canvas, normalised; those of the other orientation are cut.

    Args:
      images: uint8 [height, width, 3] RGB, of any sizes.
      size: resize rule.
      num_images: number of images, at most.
      portrait: whether it is the portrait canvas.

    Returns:
      float32 [images, height, width, 3].
    """
    to_row, rng, rows = DetectionRows(size), np.random.default_rng(0), []
    for image in images:
        if len(rows) == num_images:
            break
        rows.append(to_row({"image": image, **objects_record(0, [])}, portrait, rng))
    pixels, sizes = (np.stack([row[name] for row in rows]) for name in ("image", "image_size"))
    return np.asarray(jax.jit(preprocess, static_argnums=2)(pixels, sizes, jnp.float32))


def _fitted(values, centre, sigma):
    """Return the standard deviation of the fitted Gaussian, and that of the moments (pixels)."""
    spread = float(np.sqrt(np.prod(sigma)))
    corner, middle, deviation = np.zeros(2, int), np.array(centre), max(spread, 0.5)
    for _ in range(_FITS):
        cells, step = _pooled(values)
        if not cells.max() > 0:
            break
        middle, deviation = _fit(cells, step, middle - corner, deviation)
        middle = middle + corner
        if step <= max(deviation / 3, 1):
            break
        # Cells are too coarse for so narrow a peak: once more on what is around it.
        reach = int(_WIDTH_IN_DEVIATIONS * deviation) + step
        low = np.clip(middle.astype(int) - corner - reach, 0, np.array(values.shape) - 2)
        high = low + 2 * reach
        values, corner = values[low[0] : high[0], low[1] : high[1]], corner + low
    return deviation, spread


def _fit(cells, step, middle, deviation):
    """Fit a round Gaussian on a flat ground to cells; return its middle and deviation, pixels."""
    y, x = (np.indices(cells.shape) + 0.5) * step
    cells = cells / cells.max()

    def excess(parameters):
        height, ground, middle_y, middle_x, deviation = parameters
        distance = (y - middle_y) ** 2 + (x - middle_x) ** 2
        # The mean over a cell is nearly a Gaussian with the cell's variance added.
        variance = deviation**2 + step**2 / 12
        return (height * np.exp(-distance / (2 * variance)) + ground - cells).ravel()

    sides = np.array(cells.shape) * step
    start = [1.0, float(cells.min()), *middle, deviation]
    low, high = [0.0, 0.0, 0.0, 0.0, 0.25], [2.0, 1.0, *sides, 2.0 * max(sides)]
    fit = optimize.least_squares(excess, np.clip(start, low, high), bounds=(low, high))
    return fit.x[2:4], float(fit.x[4])


def _moments(weights):
    """Return mean and standard deviation of positions 0.5, 1.5, .. with weights."""
    places, total = np.arange(len(weights)) + 0.5, weights.sum()
    mean = (weights * places).sum() / total
    return mean, np.sqrt((weights * (places - mean) ** 2).sum() / total)


def _pooled(values):
    """Return the means of whole squares of pixels, at most `_CELLS` on a side, and their side."""
    step = min(-(-max(values.shape) // _CELLS), *values.shape)
    height, width = (side // step * step for side in values.shape)
    cells = values[:height, :width].reshape(height // step, step, width // step, step)
    return cells.mean((1, 3)), step
