"""Read PyTorch state dicts as NumPy arrays, without torch and without running code from a file."""

import io
import math
import os
import pathlib
import stat
import struct
import zipfile

import numpy as np
import safetensors.numpy

from crnas_jax.errors import UserError
from crnas_jax.interop import pickled

_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # the first two pickles of the legacy format
_MAX_DIMENSIONS, _MAX_NUMBER = 32, 2**48
# Tied weights are copied for every name, so the arrays may be larger than the file, up to a bound.
_GROWTH, _SLACK = 16, 2**24
_REMEDY = (
    "fetch it again, or save only the state dict: safetensors.torch.save_file(model.state_dict(), "
    "...) or torch.save(model.state_dict(), ...)"
)


def read_state_dict(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Read the tensors of a PyTorch state dict by name.

    The format (safetensors, or either format of `torch.save`) is detected from the content. Of a
    training's checkpoint the state dicts are taken, and nothing else; where there are several, such
    as weights and their average, their keys become prefixes of the names.

    Args:
      path: .safetensors, .pth or .pt file.

    Returns:
      Contiguous arrays by name, in the shapes and dtypes of the tensors, but bfloat16 as float32.

    Raises:
      UserError: the file cannot be read, is damaged, or holds anything but tensors.
    """
    path = pathlib.Path(path)
    try:
        arrays = {name: _without_bfloat16(array) for name, array in _read(path).items()}
        if not arrays:
            raise ValueError("it holds no tensors")
    except OSError as error:
        problem = error.strerror or str(error)
        raise UserError(path, "file", problem, "give a file that can be read") from error
    except Exception as error:  # damaged or hostile bytes can provoke any exception
        problem = str(error)
        if type(error) is not ValueError:
            problem = f"it is damaged: {type(error).__name__}: {problem}"
        raise UserError(path, "content", problem[:300], _REMEDY) from error
    return arrays


def _without_bfloat16(array):
    # NumPy gives kind V to the types that only ml_dtypes knows, such as bfloat16.
    return array.astype(np.float32) if array.dtype.kind == "V" else array


def _read(path):
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError("it is not a regular file")
    data = path.read_bytes()
    if data[8:9] == b"{":  # safetensors: 8 bytes with the header's length, then JSON
        return safetensors.numpy.load_file(path)
    if data.startswith(b"PK\x03\x04"):
        checkpoint, contents = _read_zip(data)
    elif data.startswith(b"\x80"):
        checkpoint, contents = _read_legacy(data)
    else:
        raise ValueError("it is neither a safetensors file nor one that torch.save wrote")
    return _arrays(_unwrap(checkpoint), contents, _GROWTH * len(data) + _SLACK)


def _read_zip(data):
    """Read the present format of `torch.save`: the object, and the bytes of its storages by key."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = archive.infolist()
        # Compressed or overlapping entries could expand to any size.
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise ValueError("its entries are compressed, which torch.save never does")
        if sum(entry.file_size for entry in entries) > len(data):
            raise ValueError("its entries are larger than the file")
        names = [entry.filename for entry in entries]
        folders = [name[:-8] for name in names if name.endswith("/data.pkl")]
        if len(folders) != 1:
            raise ValueError(f"it is a zip file with {len(folders)} entries data.pkl, not one")
        byte_order = f"{folders[0]}byteorder"
        if byte_order in names and archive.read(byte_order) != b"little":
            raise ValueError("it was written on a big-endian machine, which is not supported")
        checkpoint, item_sizes = pickled.run(io.BytesIO(archive.read(f"{folders[0]}data.pkl")))
        return checkpoint, {key: archive.read(f"{folders[0]}data/{key}") for key in item_sizes}


def _read_legacy(data):
    """Read the format before torch 1.6, five pickles and then the storages, as `_read_zip` does."""
    file = io.BytesIO(data)
    if any(pickled.run(file)[0] != number for number in (_MAGIC, _PROTOCOL)):
        raise ValueError("it is a pickle, but torch.save did not write it")
    # The third pickle describes the machine that wrote the file; the storages are little-endian
    # whatever the machine.
    pickled.run(file)
    checkpoint, item_sizes = pickled.run(file)
    keys, _ = pickled.run(file)
    contents, position = {}, file.tell()
    for key in map(pickled.key_of, keys):
        (count,) = struct.unpack_from("<q", data, position)
        start, position = position + 8, position + 8 + count * item_sizes[key]
        if not start <= position <= len(data):
            raise ValueError("it is cut off")
        contents[key] = memoryview(data)[start:position]
    return checkpoint, contents


def _unwrap(checkpoint):
    """Return the tensors of a state dict, or of all state dicts in a training's checkpoint."""
    if type(checkpoint) is not dict:
        raise ValueError(f"it is of type {type(checkpoint).__name__.strip('_')}, not a state dict")
    if any(type(value) is pickled.Tensor for value in checkpoint.values()):
        return checkpoint
    states = {key: value for key, value in checkpoint.items() if _is_state(value)}
    if len(states) == 1:
        return next(iter(states.values()))
    if not states:
        return checkpoint
    return {f"{key}.{name}": t for key, state in states.items() for name, t in state.items()}


def _is_state(value):
    """Tell whether a value is a state dict; that of an optimiser holds no tensors itself."""
    return type(value) is dict and any(type(v) is pickled.Tensor for v in value.values())


def _arrays(state, contents, max_bytes):
    """Return contiguous arrays of all tensors, at most `max_bytes` together."""
    arrays = {}
    for name, tensor in state.items():
        if type(name) is not str or type(tensor) is not pickled.Tensor:
            kind = type(tensor).__name__.strip("_")
            raise ValueError(f"entry {str(name)[:80]!r} is of type {kind}, not a named tensor")
        try:
            arrays[name] = _array(tensor, contents, max_bytes)
        except ValueError as error:
            raise ValueError(f"tensor {name[:80]!r}: {error}") from error
        max_bytes -= arrays[name].nbytes
    return arrays


def _array(tensor, contents, max_bytes):
    storage, offset, size, stride = tensor
    if not (type(storage) is pickled.Storage and type(size) is type(stride) is tuple):
        raise ValueError("it is damaged")
    numbers = (storage.start, storage.count, offset, *size, *stride)
    if not all(type(n) is int and 0 <= n < _MAX_NUMBER for n in numbers):
        raise ValueError("its offset, size or stride is not a sensible number")
    if len(size) != len(stride) or len(size) > _MAX_DIMENSIONS:
        raise ValueError(f"it has {len(size)} dimensions and {len(stride)} strides")
    item_size, content = storage.dtype.itemsize, contents[storage.key]
    if (storage.start + storage.count) * item_size > len(content):
        raise ValueError("its storage is cut off")
    if math.prod(size) * item_size > max_bytes:
        raise ValueError("it is too large for this file")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if 0 in size:
        return np.zeros(size, storage.dtype)
    if last >= storage.count:
        raise ValueError("it reaches out of its storage")
    start = (storage.start + offset) * item_size
    byte_strides = [step * item_size for step in stride]
    array = np.ndarray(size, storage.dtype, content, start, byte_strides).copy()
    # NumPy booleans are bytes of 0 and 1; a file may hold other bytes.
    return array.view(np.uint8).astype(bool) if array.dtype == bool else array
