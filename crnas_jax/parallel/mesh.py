"""The device mesh: one axis, `data`, over which batches are split."""

from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from crnas_jax.errors import UserError

# Batch fields that a step uses; the others stay on the host.
_DEVICE_FIELDS = (
    *("image", "image_size", "weight"),
    *("boxes", "labels", "valid", "crowd", "masks"),  # detection
    *("proposals", "proposals_valid"),  # detection with given proposals
    "label",  # classification
)


def make_mesh(batch_size: int, num_devices: int | None = None, num_parts: int = 1) -> Mesh:
    """Make a mesh of the first `num_devices` devices (all when None).

    Args:
      batch_size: images in a global batch.
      num_devices: number of devices.
      num_parts: equal parts that the batch is cut into for gradient accumulation.

    Raises:
      UserError: the devices cannot share the batch evenly.
    """
    available = jax.devices()
    num_devices = len(available) if num_devices is None else num_devices
    if not 1 <= num_devices <= len(available):
        raise UserError(
            "config", "devices", f"{num_devices} asked for", f"{len(available)} are there"
        )
    if batch_size < 1 or num_parts < 1 or batch_size % (num_devices * num_parts):
        parts = f", accumulated over {num_parts} parts" if num_parts != 1 else ""
        raise UserError(
            "config",
            "batch_size",
            f"{batch_size} on {num_devices} devices{parts}",
            f"use a multiple of {num_devices * max(num_parts, 1)}",
        )
    # Auto axes: the compiler places the collectives.
    return jax.make_mesh(
        (num_devices,), ("data",), axis_types=(AxisType.Auto,), devices=available[:num_devices]
    )


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the sharding that puts the same array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def jit_once(function: Callable, **options) -> Callable:
    """Jit a function that runs once, such as one that draws weights.

    On CPUs its code is not optimised: the compilation of what draws a detector's weights, hundreds
    of small random arrays, takes longer than a finalist's short training otherwise.

    Args:
      function: what is jitted.
      **options: further options of `jax.jit`.
    """
    on_cpu = jax.default_backend() == "cpu"
    quickly = {"xla_backend_optimization_level": 0} if on_cpu else None
    return jax.jit(function, compiler_options=quickly, **options)


def put_batch(mesh: Mesh, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """Put this host's rows of a batch on the devices as global arrays, sharded over `data`.

    Returns:
      The batch fields that a step uses, and `image_key`, uint32 [images]: the image id folded to
      32 bits, which keys random draws.
    """
    ids = batch["image_id"].astype(np.uint64)
    arrays = {name: batch[name] for name in _DEVICE_FIELDS if name in batch}
    arrays["image_key"] = ((ids & 0xFFFFFFFF) ^ (ids >> np.uint64(32))).astype(np.uint32)
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    return {
        name: jax.make_array_from_process_local_data(sharding, array)
        for name, array in arrays.items()
    }


def put_parts(
    mesh: Mesh, batch: dict[str, np.ndarray], num_parts: int
) -> list[dict[str, jax.Array]]:
    """Cut a batch into `num_parts` equal parts for gradient accumulation, each as `put_batch`.

    Part j has every `num_parts`-th image from the j-th on, whatever the number of devices.
    """
    return [
        put_batch(mesh, {name: rows[part::num_parts] for name, rows in batch.items()})
        for part in range(num_parts)
    ]
