"""Devices: one mesh with the axis `data`, over which batches are split."""

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from crnas_jax.errors import UserError

_ON_DEVICE = (
    *("image", "image_size", "weight"),
    *("boxes", "labels", "valid", "crowd", "masks"),  # of detection
    *("proposals", "proposals_valid"),  # of detection with given proposals
    "label",  # of classification
)


def make_mesh(batch_size: int, devices: int | None = None, parts: int = 1) -> Mesh:
    """A mesh of the first `devices` devices (all when None).

    Raises:
      UserError: the devices cannot share a batch of `batch_size` images, cut into `parts` equal
        parts, evenly.
    """
    available = jax.devices()
    number = len(available) if devices is None else devices
    if not 1 <= number <= len(available):
        raise UserError("config", "devices", f"{number} asked for", f"{len(available)} are there")
    if batch_size < 1 or parts < 1 or batch_size % (number * parts):
        raise UserError(
            "config",
            "batch_size",
            f"{batch_size} on {number} devices"
            + (f", accumulated over {parts} parts" if parts != 1 else ""),
            f"use a multiple of {number * max(parts, 1)}",
        )
    # Auto axes: the compiler places the collectives.
    return jax.make_mesh(
        (number,), ("data",), axis_types=(AxisType.Auto,), devices=available[:number]
    )


def replicated(mesh: Mesh) -> NamedSharding:
    """The same on every device."""
    return NamedSharding(mesh, PartitionSpec())


def put_batch(mesh: Mesh, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """This host's rows of a batch as global arrays, sharded over `data`.

    Of the contract's fields those that a step uses go to the device, and `image_key`, uint32: the
    image id folded to 32 bits, by which random draws are keyed.
    """
    ids = batch["image_id"].astype(np.uint64)
    arrays = {name: batch[name] for name in _ON_DEVICE if name in batch}
    arrays["image_key"] = ((ids & 0xFFFFFFFF) ^ (ids >> np.uint64(32))).astype(np.uint32)
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    return {
        name: jax.make_array_from_process_local_data(sharding, value)
        for name, value in arrays.items()
    }


def put_parts(mesh: Mesh, batch: dict[str, np.ndarray], parts: int) -> list[dict[str, jax.Array]]:
    """`put_batch` of a batch cut into `parts` equal parts, for gradient accumulation.

    Part j has every `parts`-th image from the j-th on, whatever the number of devices.
    """
    return [
        put_batch(mesh, {name: rows[part::parts] for name, rows in batch.items()})
        for part in range(parts)
    ]
