"""The device mesh: its axes, what is put where on it.

Batches are split over all devices. The axis `data` is there always; with an axis `fsdp` beside it
the state of a training is split over that one (`state_sharding`).
"""

import contextlib
import functools
import math
from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from crnas_jax.errors import UserError
from crnas_jax.parallel import hosts

# Arrays (rows of a bank) with fewer numbers than this are not split: that would save nothing.
_SMALL = 1024
# Batch fields that a step uses; the others stay on the host.
_DEVICE_FIELDS = (
    *("image", "image_size", "weight"),
    *("boxes", "labels", "valid", "crowd", "masks"),  # detection
    *("proposals", "proposals_valid"),  # detection with given proposals
    "label",  # classification
)


def make_mesh(
    batch_size: int, num_devices: int | None = None, num_parts: int = 1, fsdp: int = 1
) -> Mesh:
    """Make a mesh of the first `num_devices` devices (all when None).

    Devices stand in the order of their hosts, so that a host's rows of a batch are neighbours.

    Args:
      batch_size: images in a global batch.
      num_devices: number of devices.
      num_parts: equal parts that the batch is cut into for gradient accumulation.
      fsdp: devices that a training's state is split over.

    Raises:
      UserError: the devices cannot share the batch evenly, or some host would have none.
    """
    available = jax.devices()
    num_devices = len(available) if num_devices is None else num_devices
    if not 1 <= num_devices <= len(available):
        raise UserError(
            "config", "devices", f"{num_devices} asked for", f"{len(available)} are there"
        )
    if num_devices < len(available) and jax.process_count() > 1:
        problem = f"{num_devices}, and {jax.process_count()} hosts have {len(available)}"
        raise UserError("config", "devices", problem, "set 0: several hosts use all of theirs")
    if num_devices % fsdp:
        problem = f"{fsdp} on {num_devices} devices"
        raise UserError("config", "fsdp", problem, "give a divisor of the number of devices")
    if batch_size < 1 or num_parts < 1 or batch_size % (num_devices * num_parts):
        parts = f", accumulated over {num_parts} parts" if num_parts != 1 else ""
        raise UserError(
            "config",
            "batch_size",
            f"{batch_size} on {num_devices} devices{parts}",
            f"use a multiple of {num_devices * max(num_parts, 1)}",
        )
    shape, names = (num_devices,), ("data",)
    if fsdp > 1:
        shape, names = (num_devices // fsdp, fsdp), ("data", "fsdp")
    # Auto axes: the compiler places the collectives.
    types = (AxisType.Auto,) * len(shape)
    if jax.process_count() == 1:
        devices = available[:num_devices]
        return jax.make_mesh(shape, names, axis_types=types, devices=devices)
    devices = sorted(available, key=lambda device: (device.process_index, device.id))
    return Mesh(np.array(devices).reshape(shape), names, axis_types=types)


def local_mesh() -> Mesh:
    """Return a mesh of this host's first device, for work that no other host takes part in."""
    return Mesh(np.array(jax.local_devices()[:1]), ("data",), axis_types=(AxisType.Auto,))


def batch_spec(mesh: Mesh) -> PartitionSpec:
    """Return the partition of a batch's first axis: over all devices."""
    return PartitionSpec(mesh.axis_names)


def state_sharding(mesh: Mesh, shape: tuple[int, ...], first_axis: int = 0) -> NamedSharding:
    """Return where a parameter or its momentum stands: split over `fsdp` where there is such.

    Args:
      mesh: the mesh.
      shape: the array's.
      first_axis: axes before it are not split, such as the rows of a bank: a path takes some rows,
        which every device would have to send to all others.
    """
    return NamedSharding(mesh, _state_spec(mesh, shape, first_axis))


def _state_spec(mesh, shape, first_axis):
    parts = mesh.shape.get("fsdp", 1)
    axes = [axis for axis in range(first_axis, len(shape)) if shape[axis] % parts == 0]
    if parts == 1 or not axes or math.prod(shape[first_axis:]) < _SMALL:
        return PartitionSpec()
    axis = max(axes, key=lambda axis: (shape[axis], axis))
    return PartitionSpec(*[None] * axis, "fsdp")


def gathered(parameters: PyTree) -> PyTree:
    """Return parameters on every device as wholes, where the mesh in context splits them.

    Their gradients are split as they are. Without this the compiler would move the activations
    where it finds that cheaper; where it stands decides how long the wholes are in memory.

    Args:
      parameters: arrays as `state_sharding` splits them, banks without their rows.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if "fsdp" not in mesh.shape:
        return parameters

    def gather(leaf):
        spec = _state_spec(mesh, leaf.shape, 0)
        return leaf if spec == PartitionSpec() else _gathered(leaf, spec)

    return jax.tree.map(gather, parameters)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _gathered(leaf, spec):
    return jax.lax.with_sharding_constraint(leaf, PartitionSpec())


_gathered.defvjp(
    lambda leaf, spec: (_gathered(leaf, spec), None),
    lambda spec, _, gradient: (jax.lax.with_sharding_constraint(gradient, spec),),
)


def splitting(mesh: Mesh) -> contextlib.AbstractContextManager:
    """Return the context in which `gathered` knows the mesh."""
    if "fsdp" not in mesh.shape:
        return contextlib.nullcontext()
    return jax.sharding.use_abstract_mesh(mesh.abstract_mesh)


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the sharding that puts the same array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def jit_once(function: Callable, **options) -> hosts.Program:
    """Jit a function that runs once, such as one that draws weights.

    On CPUs its code is not optimised: the compilation of what draws a detector's weights, hundreds
    of small random arrays, takes longer than a finalist's short training otherwise.

    Args:
      function: what is jitted.
      **options: further options of `jax.jit`.
    """
    on_cpu = jax.default_backend() == "cpu"
    quickly = {"xla_backend_optimization_level": 0} if on_cpu else None
    return hosts.jit(function, compiler_options=quickly, **options)


def put_batch(mesh: Mesh, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """Put this host's rows of a batch on the devices as global arrays, split over all devices.

    Returns:
      The batch fields that a step uses, and `image_key`, uint32 [images]: the image id folded to
      32 bits, which keys random draws.
    """
    ids = batch["image_id"].astype(np.uint64)
    arrays = {name: batch[name] for name in _DEVICE_FIELDS if name in batch}
    arrays["image_key"] = ((ids & 0xFFFFFFFF) ^ (ids >> np.uint64(32))).astype(np.uint32)
    sharding = NamedSharding(mesh, batch_spec(mesh))
    return {
        name: jax.make_array_from_process_local_data(sharding, array)
        for name, array in arrays.items()
    }


def put_parts(
    mesh: Mesh, batch: dict[str, np.ndarray], num_parts: int
) -> list[dict[str, jax.Array]]:
    """Cut a batch into `num_parts` equal parts for gradient accumulation, each as `put_batch`.

    Part j has every `num_parts`-th image from the j-th on, whatever the devices and hosts.
    """
    return [
        put_batch(mesh, {name: rows[part::num_parts] for name, rows in batch.items()})
        for part in range(num_parts)
    ]
