"""Effective receptive fields against their closed form."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from crnas_jax.analysis import erf, heat_maps, report
from crnas_jax.arch import zoo
from crnas_jax.arch.staged import Arch
from crnas_jax.errors import UserError
from crnas_jax.models.build import Detector
from crnas_jax.models.rcnn import DetectorOptions

# (kernel, dilation, stride) of each layer.
PLAIN = ((3, 1, 1),) * 6
DILATED = ((3, 1, 1), (3, 2, 1), (5, 3, 1))
STRIDED = ((7, 1, 2), (3, 1, 1), (3, 2, 2), (3, 1, 1))


def _stack(layers):
    """Return linear convolutions with kernels of ones."""

    def function(variables, images):
        x = images
        for size, dilation, stride in layers:
            kernel = jnp.ones((size, size, 1, 1)) * variables
            dimensions = ("NHWC", "HWIO", "NHWC")
            margin = dilation * (size // 2)
            x = lax.conv_general_dilated(
                x,
                kernel,
                (stride, stride),
                [(margin, margin)] * 2,
                rhs_dilation=(dilation, dilation),
                dimension_numbers=dimensions,
            )
        return (x,)

    return function


def _closed_form(layers):
    """Return the number of paths to each pixel along an axis, and the standard deviation."""
    paths, variance, step = np.ones(1), 0.0, 1
    for size, dilation, stride in layers:
        taps = np.zeros((size - 1) * dilation * step + 1)
        taps[:: dilation * step] = 1
        paths = np.convolve(paths, taps)
        variance += (size**2 - 1) / 12 * (dilation * step) ** 2
        step *= stride
    return paths / paths.sum(), math.sqrt(variance)


@pytest.mark.parametrize("layers", [PLAIN, DILATED, STRIDED])
def test_ones_give_the_analytic_field_and_its_gaussian_width(layers):
    images = np.random.default_rng(0).normal(size=(3, 128, 128, 1)).astype(np.float32)
    values = erf.field_of(_stack(layers), jnp.float32(0.5), images, 0, batch_size=2)
    field = erf.Field(0, 1, values / values.sum(), 16.0, 3)
    paths, deviation = _closed_form(layers)
    for axis in (0, 1):
        along = np.trim_zeros(field.values.sum(axis))
        np.testing.assert_allclose(along, paths, rtol=1e-5)
    expected = np.outer(paths, paths)
    rows, columns = (np.flatnonzero(field.values.sum(axis)) for axis in (1, 0))
    inside = field.values[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    np.testing.assert_allclose(inside, expected, rtol=1e-5, atol=1e-12)
    assert field.sigma == pytest.approx((deviation, deviation), rel=1e-5)
    # Sums of boxes are nearly Gaussians.
    assert field.width == pytest.approx(4 * deviation, rel=0.05)
    assert field.ratio == pytest.approx(field.width / 16)
    assert field.size == np.sqrt((expected > 0.0455 * expected.max()).sum())


def test_the_fitted_width_is_that_of_a_gaussian_on_a_ground():
    y, x = np.indices((96, 128))
    peak = np.exp(-((y - 40) ** 2 + (x - 70) ** 2) / (2 * 9.0**2))
    for ground in (0.0, 0.2):
        values = peak + ground
        field = erf.Field(3, 8, values / values.sum(), None, 1)
        assert field.width == pytest.approx(36, rel=0.01)
    assert np.prod(field.sigma) > 2 * 9.0**2
    # Narrow ones on a large canvas, whose cells are wider than they are.
    y, x = np.indices((320, 1344))
    for deviation in (4.0, 12.0, 40.0):
        peak = np.exp(-((y - 168) ** 2 + (x - 680) ** 2) / (2 * deviation**2)) + 0.02
        field = erf.Field(3, 8, peak / peak.sum(), None, 1)
        assert field.width == pytest.approx(4 * deviation, rel=0.03)
    for shape in ((800, 1344), (16, 1333), (1, 100)):  # two peaks; canvases of any shape
        values = np.zeros(shape)
        values[shape[0] // 2, shape[1] // 2] = values[-1, -1] = 0.5
        assert 0 <= erf.Field(3, 8, values, None, 1).width <= 4 * max(shape)
    flat = erf.Field(3, 8, np.full((96, 128), 1 / 96 / 128), None, 1)
    assert flat.width <= 4 * np.sqrt(np.prod(flat.sigma))


def test_a_box_has_its_own_size_and_centre():
    values = np.zeros((64, 96))
    values[20:29, 40:49] = 1
    field = erf.Field(3, 8, values / values.sum(), None, 1)
    assert field.size == 9
    assert field.centre == pytest.approx((24.5, 44.5))
    assert field.ratio is None
    content = field.to_json()
    assert len(content["map"]) == 64 // 2
    assert bytes.fromhex(content["map"][12])[21] == 255


def test_fields_of_a_detector_are_its_levels(tmp_path):
    arch = Arch("resnet_basic", (1, 1, 1, 1), widths=(4, 8, 8, 8))
    detector = Detector(arch, DetectorOptions(num_classes=2, pyramid_channels=8))
    variables = [detector.init(jax.random.key(seed)) for seed in range(2)]
    images = erf.noise(3, (128, 192))
    fields = erf.receptive_fields(detector, variables, images, (3, 5), batch_size=2)
    assert [(field.level, field.anchor, field.num_images) for field in fields] == [
        (3, 64.0, 6),
        (5, 256.0, 6),
    ]
    for field in fields:
        assert field.values.shape == (128, 192)
        assert field.values.sum() == pytest.approx(1)
        # The central unit lies half a cell beyond the middle.
        assert field.values[:64].sum() > 0.2 < field.values[64:].sum()
    assert fields[1].width > fields[0].width
    one_by_one = erf.receptive_fields(detector, variables, images, (3,), batch_size=1)[0]
    np.testing.assert_allclose(one_by_one.values, fields[0].values, rtol=1e-3, atol=1e-9)
    with pytest.raises(UserError, match="there is no level 1; use some of 2, 3, 4, 5, 6"):
        erf.receptive_fields(detector, variables, images, (1,))
    found = {"a <b>": json.loads(json.dumps([field.to_json() for field in fields]))}
    for suffix in (".svg", ".png"):
        heat_maps.save(found, (tmp_path / "fields").with_suffix(suffix))
    assert "<b>" not in (tmp_path / "fields.svg").read_text()
    lines = report.receptive_fields(found).splitlines()
    assert len(lines) == 4
    assert f"{fields[1].width:.1f}" in lines[2]


def test_photographs_lie_on_the_canvas():
    rng = np.random.default_rng(0)
    images = [
        rng.integers(0, 255, (40, 60, 3), np.uint8),
        rng.integers(0, 255, (80, 50, 3), np.uint8),
    ]
    size = erf.ImageSize(64, 96)
    plates = erf.plates(images, size, 5)
    assert plates.shape == (2, 64, 96, 3)
    assert plates[0].std() > 0.5
    assert (plates[1][:, 60:] == 0).all()  # beside a portrait, which is cut


def test_scale_permuted_networks_have_fields_too():
    detector = Detector(zoo.find("spinenet49s"), DetectorOptions(num_classes=2))
    shapes = jax.eval_shape(
        detector.pyramid, detector.shapes, jax.ShapeDtypeStruct((1, 128, 128, 3), jnp.float32)
    )
    assert [level.shape[1] for level in shapes] == [16, 8, 4, 2, 1]
