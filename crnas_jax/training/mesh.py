"""Devices: one mesh with the axis `data`, over which batches are split."""

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from crnas_jax.errors import UserError

_ON_DEVICE = ("image", "image_size", "boxes", "labels", "valid", "crowd", "weight")


def make_mesh(batch_size: int, devices: int | None = None) -> Mesh:
    """A mesh of the first `devices` devices (all when None).

    Raises:
      UserError: the devices cannot share a batch of `batch_size` images evenly.
    """
    available = jax.devices()
    number = len(available) if devices is None else devices
    if not 1 <= number <= len(available):
        raise UserError("config", "devices", f"{number} asked for", f"{len(available)} are there")
    if batch_size % number:
        raise UserError(
            "config",
            "batch_size",
            f"{batch_size} on {number} devices",
            f"use a multiple of {number}",
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
    arrays = {name: batch[name] for name in _ON_DEVICE}
    arrays["image_key"] = ((ids & 0xFFFFFFFF) ^ (ids >> np.uint64(32))).astype(np.uint32)
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    return {
        name: jax.make_array_from_process_local_data(sharding, value)
        for name, value in arrays.items()
    }
