"""PyTorch state dicts as NumPy arrays, without torch and without running what a file asks for."""

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

_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # what the legacy format begins with
_MOST_DIMENSIONS, _LARGEST_NUMBER = 32, 2**48
# Tied weights are copied for every name: the arrays may be larger than the file, but not at will.
_GROWTH, _SLACK = 16, 2**24
_REMEDY = (
    "fetch it again, or save only the state dict: safetensors.torch.save_file(model.state_dict(), "
    "...) or torch.save(model.state_dict(), ...)"
)


def read_state_dict(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Reads the tensors of a PyTorch state dict by name.

    The format (safetensors, or either of those of `torch.save`) is told by content. A state dict
    under "model" or "state_dict" is taken out, and a prefix "module." that all names have is cut.

    Args:
      path: a .safetensors, .pth or .pt file.

    Returns:
      Contiguous arrays in the tensors' shapes and dtypes, but bfloat16 as float32.

    Raises:
      UserError: the file cannot be read, is damaged, or holds anything but tensors.
    """
    path = pathlib.Path(path)
    try:
        arrays = {name: _plain(array) for name, array in _read(path).items()}
        if not arrays:
            raise ValueError("it holds no tensors")
    except OSError as error:
        problem = error.strerror or str(error)
        raise UserError(path, "file", problem, "give a file that can be read") from error
    except Exception as error:  # whatever damaged or hostile bytes provoke
        problem = str(error)
        if type(error) is not ValueError:
            problem = f"it is damaged: {type(error).__name__}: {problem}"
        raise UserError(path, "content", problem[:300], _REMEDY) from error
    wrapped = all(name.startswith("module.") for name in arrays)
    return {name.removeprefix("module." * wrapped): array for name, array in arrays.items()}


def _plain(array):
    # Types that only ml_dtypes knows (bfloat16) are of kind V.
    return array.astype(np.float32) if array.dtype.kind == "V" else array


def _read(path):
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError("it is not a regular file")
    data = path.read_bytes()
    if data[8:9] == b"{":  # after the length of the header, which is JSON
        return safetensors.numpy.load_file(path)
    if data.startswith(b"PK\x03\x04"):
        top, contents = _read_zip(data)
    elif data.startswith(b"\x80"):
        top, contents = _read_legacy(data)
    else:
        raise ValueError("it is neither a safetensors file nor one that torch.save wrote")
    return _arrays(_unwrap(top), contents, _GROWTH * len(data) + _SLACK)


def _read_zip(data):
    """The object in `torch.save`'s present format, and the bytes of its storages by key."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = archive.infolist()
        # Compressed or overlapping entries could unfold into any size.
        if any(e.compress_type != zipfile.ZIP_STORED for e in entries):
            raise ValueError("its entries are compressed, which torch.save never does")
        if sum(e.file_size for e in entries) > len(data):
            raise ValueError("its entries are larger than the file")
        roots = [e.filename[:-8] for e in entries if e.filename.endswith("/data.pkl")]
        if len(roots) != 1:
            raise ValueError(f"it is a zip file with {len(roots)} entries data.pkl, not one")
        order = f"{roots[0]}byteorder"
        if order in archive.namelist() and archive.read(order) != b"little":
            raise ValueError("it was written on a big-endian machine, which is not supported")
        top, item_sizes = pickled.run(io.BytesIO(archive.read(f"{roots[0]}data.pkl")))
        return top, {key: archive.read(f"{roots[0]}data/{key}") for key in item_sizes}


def _read_legacy(data):
    """As `_read_zip`, of the format before torch 1.6: five pickles, then the storages."""
    file = io.BytesIO(data)
    if any(pickled.run(file)[0] != number for number in (_MAGIC, _PROTOCOL)):
        raise ValueError("it is a pickle, but not of torch.save")
    pickled.run(file)  # facts on the machine that wrote it; the storages are little-endian on all
    top, item_sizes = pickled.run(file)
    keys, _ = pickled.run(file)
    contents, position = {}, file.tell()
    for key in map(pickled.key_of, keys):
        (count,) = struct.unpack_from("<q", data, position)
        start, position = position + 8, position + 8 + count * item_sizes[key]
        if not start <= position <= len(data):
            raise ValueError("it is cut off")
        contents[key] = memoryview(data)[start:position]
    return top, contents


def _unwrap(top):
    if type(top) is dict:
        for name in ("model", "state_dict"):
            if type(top.get(name)) is dict:
                return top[name]
        return top
    raise ValueError(f"it is of type {type(top).__name__.strip('_')}, not a state dict")


def _arrays(state, contents, most_bytes):
    """Contiguous arrays of the tensors, `most_bytes` in all."""
    arrays = {}
    for name, tensor in state.items():
        if type(name) is not str or type(tensor) is not pickled.Tensor:
            kind = type(tensor).__name__.strip("_")
            raise ValueError(f"entry {str(name)[:80]!r} is of type {kind}, not a named tensor")
        try:
            arrays[name] = _array(tensor, contents, most_bytes)
        except ValueError as error:
            raise ValueError(f"tensor {name[:80]!r}: {error}") from error
        most_bytes -= arrays[name].nbytes
    return arrays


def _array(tensor, contents, most_bytes):
    storage, offset, size, stride = tensor
    if not (type(storage) is pickled.Storage and type(size) is type(stride) is tuple):
        raise ValueError("it is damaged")
    numbers = (storage.start, storage.count, offset, *size, *stride)
    if not all(type(n) is int and 0 <= n < _LARGEST_NUMBER for n in numbers):
        raise ValueError("its offset, size or stride is no sensible number")
    if len(size) != len(stride) or len(size) > _MOST_DIMENSIONS:
        raise ValueError(f"it has {len(size)} dimensions and {len(stride)} strides")
    item, content = storage.dtype.itemsize, contents[storage.key]
    if (storage.start + storage.count) * item > len(content):
        raise ValueError("its storage is cut off")
    if math.prod(size) * item > most_bytes:
        raise ValueError("it is too large for this file")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if 0 in size:
        return np.zeros(size, storage.dtype)
    if last >= storage.count:
        raise ValueError("it reaches out of its storage")
    start, steps = (storage.start + offset) * item, [step * item for step in stride]
    array = np.ndarray(size, storage.dtype, content, start, steps).copy()
    # Bytes other than 0 and 1 are no booleans to NumPy.
    return array.view(np.uint8).astype(bool) if array.dtype == bool else array
