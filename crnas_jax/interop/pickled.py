"""A small interpreter for the pickles of PyTorch state dicts.

A pickle is a program. This interpreter runs the few opcodes that a state dict needs and calls only
functions of this file. It does not use `pickle.Unpickler`: even one that resolves no names crashes
on a key nested a million deep, and allocates gigabytes for one large memo index.
"""

import pickletools
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

# Opcodes in one pickle: enough for a hundred thousand tensors, and run within seconds.
MAX_STEPS = 2**22


class Storage(NamedTuple):
    """Elements `start` to `start + count` of the bytes stored under `key`."""

    key: str
    dtype: np.dtype
    start: int
    count: int


class Tensor(NamedTuple):
    """Description of a tensor as a pickle gives it, unchecked; offset and stride count elements."""

    storage: Any
    offset: Any
    size: Any
    stride: Any


def key_of(key):
    """Return a dictionary key after checking its type.

    Raises:
      ValueError: the key is neither a string nor an integer below 2**63.
    """
    # A container is no key here: hashing a deeply nested one could take for ever.
    if type(key) is str or (type(key) is int and key.bit_length() < 64):
        return key
    raise ValueError(f"it has a key of type {type(key).__name__}")


def _ordered_dict(pairs=()):
    result = {key_of(key): value for key, value in pairs}
    if pairs:
        # Python 2 writes the pairs as a list. Emptied, it costs nothing when a hostile pickle
        # passes it again and again.
        pairs.clear()
    return result


# These take no *arguments: a long tuple would be copied each time a pickle passes it again.
def _rebuild_tensor(storage, offset, size, stride, gradient=None, hooks=None, metadata=None):
    return Tensor(storage, offset, size, stride)


def _first(value, gradient=None, hooks=None):
    return value


_STORAGES = {
    "Double": "<f8", "Float": "<f4", "Half": "<f2", "BFloat16": ml_dtypes.bfloat16, "Long": "<i8",
    "Int": "<i4", "Short": "<i2", "Char": "i1", "Byte": "u1", "Bool": "?",
}  # fmt: skip
# All names that a pickle may refer to. Only functions of this file can be called.
_GLOBALS = {f"torch {name}Storage": np.dtype(dtype) for name, dtype in _STORAGES.items()} | {
    "collections OrderedDict": _ordered_dict,
    "torch Size": _first,
    "torch._utils _rebuild_tensor": _rebuild_tensor,  # before torch 0.4
    "torch._utils _rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils _rebuild_parameter": _first,
    "torch.nn.parameter Parameter": _first,  # before torch 0.4
}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_NUMBERS = ("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT")
_STRINGS = ("BINUNICODE", "SHORT_BINUNICODE", "BINSTRING", "SHORT_BINSTRING")


def _global(module, name):
    # Messages show strings only: printing a deep or recursive object would take for ever.
    if not type(module) is type(name) is str:
        raise ValueError("it asks for an object by a name that is no string")
    if f"{module} {name}" not in _GLOBALS:
        name = f"{module[:100]}.{name[:100]}"
        raise ValueError(f"it asks for {name!r}, which no state dict needs and which is not run")
    return _GLOBALS[f"{module} {name}"]


def _storage(kind, dtype, key, _, count, view=None):
    if kind != "storage" or type(key) is not str or not isinstance(dtype, np.dtype):
        raise ValueError("it refers to an object that is no storage")
    if view is None:
        return Storage(key, dtype, 0, count)
    _, start, count = view  # a part of the storage, as torch wrote it before 0.4
    return Storage(key, dtype, start, count)


def run(file):
    """Run the pickle that begins at the file's position.

    Args:
      file: binary file; it is left at the end of the pickle.

    Returns:
      The object of the pickle, and the bytes per element of each storage it names, by key.

    Raises:
      Exception: any kind of exception, where the bytes are not those of a state dict.
    """
    stack, marks, memo, item_sizes = [], [], {}, {}

    def pop_from(start):
        if not 0 <= start <= len(stack):
            raise ValueError("its pickle is damaged")
        items = stack[start:]
        del stack[start:]
        return items

    for step, (opcode, value, _) in enumerate(pickletools.genops(file)):
        if step > MAX_STEPS:
            raise ValueError(f"its pickle has more than {MAX_STEPS} steps")
        match opcode.name:
            case "PROTO" | "FRAME":
                pass
            case name if name in _CONSTANTS:
                stack.append(_CONSTANTS[name])
            case name if name in _NUMBERS or name in _STRINGS:
                stack.append(value)
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_DICT":
                stack.append({})
            case "MARK":
                marks.append(len(stack))
            case "TUPLE":
                stack.append(tuple(pop_from(marks.pop())))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(tuple(pop_from(len(stack) - int(opcode.name[-1]))))
            case "APPEND" | "APPENDS":
                items = pop_from(marks.pop() if opcode.name == "APPENDS" else len(stack) - 1)
                _require(list, stack[-1]).extend(items)
            case "SETITEM" | "SETITEMS":
                items = pop_from(marks.pop() if opcode.name == "SETITEMS" else len(stack) - 2)
                pairs = zip(map(key_of, items[::2]), items[1::2], strict=True)
                _require(dict, stack[-1]).update(pairs)
            case "BINPUT" | "LONG_BINPUT":
                memo[value] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[value])
            case "GLOBAL":
                stack.append(_global(*value.split(" ", 1)))
            case "STACK_GLOBAL":
                stack.append(_global(*pop_from(len(stack) - 2)))
            case "BINPERSID":
                storage = _storage(*_require(tuple, stack.pop()))
                item_sizes.setdefault(storage.key, storage.dtype.itemsize)
                stack.append(storage)
            case "REDUCE" | "NEWOBJ":  # torch before 0.4 writes NEWOBJ for parameters
                function, arguments = pop_from(len(stack) - 2)
                stack.append(function(*_require(tuple, arguments)))
            case "BUILD":
                stack.pop()  # drops attributes, such as a state dict's `_metadata`
            case "STOP":
                return stack.pop(), item_sizes
            case name:
                raise ValueError(f"its pickle has the opcode {name}, which no state dict needs")


def _require(kind, value):
    if type(value) is not kind:
        raise ValueError(f"its pickle has {type(value).__name__} in place of {kind.__name__}")
    return value
