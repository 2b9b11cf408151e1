"""State dicts as torch writes them, and files that must not be trusted."""

import argparse
import collections
import io
import os
import pickle
import random
import struct
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import safetensors.torch
import torch
from helpers import ROOT

from crnas_jax.errors import UserError
from crnas_jax.interop.state_dict import read_state_dict

FORMATS = ["zip", "legacy"]


def _save(value, path, form="zip", **options):
    torch.save(value, path, _use_new_zipfile_serialization=form == "zip", **options)
    return path


def _tensors():
    torch.manual_seed(0)
    base = torch.randn(4, 6)
    return collections.OrderedDict(
        float=torch.randn(2, 3, 4),
        double=torch.randn(3, dtype=torch.float64),
        half=torch.randn(5).half(),
        bfloat16=torch.randn(2, 5).bfloat16(),
        bfloat16_scalar=torch.tensor(1.5).bfloat16(),
        long=torch.arange(-3, 3),
        int=torch.arange(4, dtype=torch.int32),
        short=torch.arange(4, dtype=torch.int16),
        char=torch.arange(-2, 2, dtype=torch.int8),
        byte=torch.arange(250, 255, dtype=torch.uint8),
        bool=torch.tensor([[True, False], [False, True]]),
        num_batches_tracked=torch.tensor(12345678901),
        empty=torch.zeros(0, 3),
        shared=base,
        part=base[1:3, 2:5],
        transposed=base.T,
        every_other=base[::2, ::3],
        expanded=torch.tensor([1.0, 2.0]).expand(3, 2),
        parameter=torch.nn.Parameter(torch.randn(3, 2)),
        frozen=torch.nn.Parameter(torch.randn(2), requires_grad=False),
    )


def _require_equal(arrays, tensors):
    assert list(arrays) == list(tensors)
    for name, tensor in tensors.items():
        tensor = tensor.detach()
        tensor = tensor.float() if tensor.dtype == torch.bfloat16 else tensor
        expected, array = tensor.numpy(), arrays[name]
        assert type(array) is np.ndarray
        assert array.dtype == expected.dtype, name
        assert array.flags.c_contiguous
        assert array.flags.writeable
        np.testing.assert_array_equal(array, expected, err_msg=name, strict=True)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("protocol", [2, 4])
def test_every_kind_of_tensor_is_read(tmp_path, form, protocol):
    path = _save(_tensors(), tmp_path / "any.name", form, pickle_protocol=protocol)
    _require_equal(read_state_dict(path), _tensors())


def test_safetensors_are_read_whatever_the_suffix(tmp_path):
    tensors = {name: t.detach().clone().contiguous() for name, t in sorted(_tensors().items())}
    safetensors.torch.save_file(tensors, tmp_path / "model.pth")
    arrays = read_state_dict(str(tmp_path / "model.pth"))
    _require_equal(dict(sorted(arrays.items())), tensors)


@pytest.mark.parametrize("form", FORMATS)
def test_the_metadata_of_a_module_is_dropped(tmp_path, form):
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    state = module.state_dict()
    assert state._metadata
    _require_equal(read_state_dict(_save(state, tmp_path / "m.pth", form)), state)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("key", ["model", "state_dict", "net"])
def test_the_state_dict_is_taken_from_a_training_checkpoint(tmp_path, form, key):
    module = torch.nn.Linear(3, 2)
    optimizer = torch.optim.SGD(module.parameters(), 0.1, momentum=0.9)
    module(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    state = {f"module.{name}": t for name, t in module.state_dict().items()}
    checkpoint = {
        "epoch": 3,
        key: state,
        "optimizer": optimizer.state_dict(),
        "best": 0.5,
        "no": None,
    }
    arrays = read_state_dict(_save(checkpoint, tmp_path / "c.pth", form))
    _require_equal(arrays, state)


def test_names_of_several_state_dicts_begin_with_their_keys(tmp_path):
    state = {"model": {"a": torch.ones(1)}, "ema": {"module.a": torch.zeros(1)}, "epoch": 3}
    arrays = read_state_dict(_save(state, tmp_path / "m.pth"))
    assert {name: float(value[0]) for name, value in arrays.items()} == {
        "model.a": 1,
        "ema.module.a": 0,
    }


def test_files_of_python_2_and_torch_0_3_are_read(tmp_path):
    """They hold pairs in a list, byte strings, a `Parameter` with state, and part of a storage."""
    tensor = (
        b"ctorch.nn.parameter\nParameter\nctorch._utils\n_rebuild_tensor\n"
        b"((U\x07storagectorch\nFloatStorage\nU\x017U\x03cpuK\x04(U\x018K\x01K\x02ttQK\x01"
        b"K\x01\x85K\x01\x85tR\x88\x86R(\x88\x89Ntb"
    )
    program = b"\x80\x02ccollections\nOrderedDict\n]](U\x01w" + tensor + b"ea"
    path = tmp_path / "old.pth"
    path.write_bytes(_legacy(program + b"\x85R.", ["7"], [np.arange(4, dtype="<f4").tobytes()]))
    _require_equal(read_state_dict(path), {"w": torch.tensor([2.0])})


# Hostile files.


def _legacy(program, keys=(), storages=(), item_size=4):
    values = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
    head = [pickle.dumps(value, 2) for value in values]
    tail = b"".join(struct.pack("<q", len(raw) // item_size) + raw for raw in storages)
    return b"".join(head) + program + pickle.dumps(list(keys), 2) + tail


def _zip(program, storages=(), compression=zipfile.ZIP_STORED, **entries):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        archive.writestr("archive/data.pkl", program)
        for key, raw in enumerate(storages):
            archive.writestr(f"archive/data/{key}", raw)
        for name, raw in entries.items():
            archive.writestr(f"archive/{name}", raw)
    return file.getvalue()


def _refusal(path, data, field="content"):
    path.write_bytes(data)
    with pytest.raises(UserError) as caught:
        read_state_dict(path)
    assert (caught.value.where, caught.value.field) == (str(path), field)
    assert len(str(caught.value)) < 1000
    return caught.value.problem


class _Reduce:
    def __init__(self, *value):
        self.value = value

    def __reduce__(self):
        return self.value

    def __call__(self):
        """Make pickle accept the object as a function."""


def _text(word):
    return b"X" + struct.pack("<I", len(word)) + word.encode()


def _programs(marker):
    """Yield parts of messages and pickles that would create `marker` or change this process."""
    touch = f"touch {marker}"
    write = f"open({str(marker)!r}, 'w').close()"
    yield "posix.system", pickle.dumps({"a": _Reduce(os.system, (touch,))}, 2)
    yield "posix.system", pickle.dumps(_Reduce(os.system, (touch,)), 4)
    yield "eval", pickle.dumps({"a": _Reduce(eval, (write,))}, 2)
    yield "exec", pickle.dumps({"a": _Reduce(exec, (write,))}, 4)
    yield "commands.Popen", pickle.dumps(_Reduce(subprocess.Popen, (["touch", str(marker)],)), 2)
    yield "torch.hub.load", b"\x80\x02ctorch.hub\nload\n" + _text("x/y") + _text("z") + b"\x86R."
    yield "torch.load", b"\x80\x02ctorch\nload\n" + _text(str(marker)) + b"\x85R."
    attribute = _Reduce(getattr, (collections.OrderedDict, "__init__"))
    yield "getattr", pickle.dumps({"a": _Reduce(attribute, ())}, 2)
    # Dotted names inside modules that are otherwise allowed.
    yield "torch._utils.sys.modules", b"\x80\x02ctorch._utils\nsys.modules\n."
    dotted = _text("torch") + _text("os.system") + b"\x93" + _text(touch)
    yield "torch.os.system", b"\x80\x04" + dotted + b"\x85R."
    # A name assembled from the memo.
    memo = _text("posix") + b"\x94" + _text("system") + b"\x94h\x00h\x01\x93" + _text(touch)
    yield "posix.system", b"\x80\x04" + memo + b"\x85R."
    yield "no string", b"\x80\x04)" + _text("system") + b"\x93."
    # Opcodes that call or import in other ways.
    yield "INST", b"\x80\x02(" + _text(touch) + b"iposix\nsystem\n."
    yield "posix.system", b"\x80\x02(cposix\nsystem\n" + _text(touch) + b"o."
    yield "OBJ", b"\x80\x02(ccollections\nOrderedDict\no."
    yield "NEWOBJ_EX", b"\x80\x04ccollections\nOrderedDict\n)}\x92."
    yield "EXT1", b"\x80\x02\x82\x01."
    yield "PERSID", b"\x80\x02P" + touch.encode() + b"\n."
    # Allowed objects that cannot be called, or not with these arguments.
    yield "not callable", b"\x80\x02ctorch\nFloatStorage\n)R."
    yield "not callable", b"\x80\x02X\x01\x00\x00\x00a)R."
    yield "_ordered_dict", b"\x80\x02ccollections\nOrderedDict\nNN\x86R."
    yield "", b"\x80\x02ccollections\nOrderedDict\nctorch\nSize\n\x85R."
    yield "", b"\x80\x02ccollections\nOrderedDict\n}X\x01\x00\x00\x00aNsbR."
    # Items added to an object that is no list or dict.
    yield "in place of dict", b"\x80\x02ccollections\nOrderedDict\nX\x01\x00\x00\x00aNs."
    yield "in place of list", b"\x80\x02ctorch\nSize\nNa."
    # A stack that is too short, no mark, no memo, no end.
    yield "", b"\x80\x02R."
    yield "", b"\x80\x02."
    yield "", b"\x80\x02t."
    yield "", b"\x80\x02N\x87."
    yield "", b"\x80\x02h\x05."
    yield "", b"\x80\x02N"


@pytest.mark.parametrize("form", FORMATS)
def test_no_program_in_a_file_is_run(tmp_path, form):
    marker, path = tmp_path / "marker", tmp_path / "hostile.pth"
    for message, program in _programs(marker):
        data = _zip(program) if form == "zip" else _legacy(program)
        assert message in _refusal(path, data), program
        assert not marker.exists(), program


@pytest.mark.parametrize("form", FORMATS)
def test_attributes_in_a_file_are_dropped(tmp_path, form):
    before = dict(vars(collections.OrderedDict))
    state = b"}" + _text("items") + b"ctorch\nSize\ns" + b"}" + _text("__class__") + b"Ns\x86b"
    for target in (b"ccollections\nOrderedDict\n", b"ctorch\nSize\n", b"ctorch\nIntStorage\n"):
        program = b"\x80\x02" + target + state + b"."
        _refusal(tmp_path / "m.pth", _zip(program) if form == "zip" else _legacy(program))
    program = b"\x80\x02ccollections\nOrderedDict\n)R" + state + b"."
    problem = _refusal(tmp_path / "m.pth", _zip(program) if form == "zip" else _legacy(program))
    assert problem == "it holds no tensors"
    assert dict(vars(collections.OrderedDict)) == before


def test_files_that_would_exhaust_the_unpickler_are_refused(tmp_path):
    """With pickle.Unpickler each would crash the process or fill the memory, or nearly."""
    path, deep = tmp_path / "bomb.pth", b")" + b"\x85" * 20_000
    doubled = b")" + b"q\x00h\x00\x86" * 200
    huge = struct.pack("<I", 2**32 - 1)
    for program in (
        b"}" + deep + b"Ns.",  # as a key
        b"(" + deep + b"Nd.",
        deep + b".",
        b"}" + doubled + b"Ns.",
        doubled + b"Q.",
        b"ccollections\nOrderedDict\n](" + deep + b"NeaR.",
        b"\x8c\x01a" + doubled + b"\x93.",
        b"X" + huge + b"a.",
        b"U" + b"\xff" + b"a.",
        b"B" + huge + b"a.",
        b"\x8e" + b"\xff" * 7 + b"\x0fa.",
        b"\x8b" + struct.pack("<i", 2**31 - 1) + b"a.",
        b"\x95" + b"\xff" * 8 + b"N.",
        b"I" + b"9" * 10_000 + b"\n.",
        b"Nr" + huge + b".",
        b"(" * 10_000 + b".",
    ):
        _refusal(path, _zip(b"\x80\x02" + program))
        _refusal(path, _legacy(b"\x80\x02" + program))


def test_a_pickle_with_too_many_steps_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("crnas_jax.interop.pickled.MAX_STEPS", 100)
    assert "steps" in _refusal(tmp_path / "m.pth", _zip(b"\x80\x02" + b"N" * 101 + b"."))


def test_a_list_of_pairs_is_used_only_once(tmp_path):
    pairs = b"](" + _text("a") + b"N\x86eq\x00"
    function = b"ccollections\nOrderedDict\n"
    twice = b"]" + pairs + function + b"h\x00\x85R\x86" + function + b"h\x00\x85R\x86a."
    assert "type list" in _refusal(tmp_path / "m.pth", _zip(b"\x80\x02" + twice))


def _number(value):
    return pickle.dumps(value, 2)[2:-1]


def _tensor(offset, size, stride, count=4, kind="Float", key=b"X\x01\x00\x00\x000"):
    """Return the pickle of a state dict with a tensor in a storage of `count` elements."""
    storage = b"(" + _text("storage") + b"ctorch\n" + kind.encode() + b"Storage\n" + key
    storage += _text("cpu") + _number(count) + b"tQ"
    numbers = b"".join(map(_number, (offset, size, stride)))
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + numbers + b"\x89}tR"
    return b"\x80\x02}" + _text("w") + tensor + b"s."


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ((0, (5,), (1,)), "out of its storage"),
        ((1, (4,), (1,)), "out of its storage"),
        ((4, (), ()), "out of its storage"),
        ((0, (2, 2), (4, 1)), "out of its storage"),
        ((0, (2,), (2**40,)), "out of its storage"),
        ((0, (4,), (1,), 5), "cut off"),
        ((0, (4,), (1,), 4, "Double"), "cut off"),
        ((-1, (4,), (1,)), "sensible"),
        ((3, (4,), (-1,)), "sensible"),
        ((0, (-4,), (1,)), "sensible"),
        ((0, (0, -4), (1, 1)), "sensible"),
        ((0, (4,), (1,), -4), "sensible"),
        ((2**64 - 1, (4,), (1,)), "sensible"),
        ((0, (2,), (2**62,)), "sensible"),
        ((0, (2,), (2**64,)), "sensible"),
        ((0, (2**2000,), (0,)), "sensible"),
        ((0, (2.0,), (1,)), "sensible"),
        ((None, (2,), (1,)), "sensible"),
        ((0, (True,), (1,)), "sensible"),
        ((0, 4, 1), "damaged"),
        ((0, (2, 2), (1,)), "dimensions"),
        ((0, (1,) * 33, (1,) * 33), "dimensions"),
        ((0, (2**47, 2**47), (0, 0)), "too large"),
        ((0, (2**23,), (0,)), "too large"),
        ((0, (0, 2**47, 2**47), (0, 0, 0)), "tensor 'w'"),
        ((0, (4,), (1,), 4, "Float", b")"), "no storage"),
        ((0, (4,), (1,), 4, "Float", b"X\x01\x00\x00\x001"), "damaged"),
        ((0, (4,), (1,), 4, "Quantized"), "QuantizedStorage"),
    ],
)
def test_tensors_that_do_not_fit_their_storage_are_refused(tmp_path, arguments, problem):
    program, raw = _tensor(*arguments), np.arange(4, dtype="<f4").tobytes()
    assert problem in _refusal(tmp_path / "m.pth", _zip(program, [raw]))
    if problem not in ("cut off", "damaged") and arguments[-1] not in ("Quantized", b")"):
        assert problem in _refusal(tmp_path / "m.pth", _legacy(program, ["0"], [raw]))


def test_a_hand_made_tensor_that_fits_is_read(tmp_path):
    """The cases above differ from it only in the numbers they vary, so these cause the refusals."""
    raw = np.arange(4, dtype="<f4").tobytes()
    for data in (
        _zip(_tensor(1, (2,), (2,)), [raw]),
        _legacy(_tensor(1, (2,), (2,)), ["0"], [raw]),
    ):
        (tmp_path / "m.pth").write_bytes(data)
        np.testing.assert_array_equal(read_state_dict(tmp_path / "m.pth")["w"], [1, 3])


def test_many_views_of_a_storage_are_refused(tmp_path):
    path, base = tmp_path / "m.pth", torch.zeros(2**20)
    _save({str(i): base for i in range(64)}, path)
    assert "too large" in _refusal(path, path.read_bytes())


def test_bytes_above_one_become_true(tmp_path):
    data = _zip(_tensor(0, (4,), (1,), 4, "Bool"), [b"\x00\x01\x02\xff"])
    (tmp_path / "m.pth").write_bytes(data)
    array = read_state_dict(tmp_path / "m.pth")["w"]
    assert array.view(np.uint8).tolist() == [0, 1, 1, 1]


def test_zip_files_that_torch_never_writes_are_refused(tmp_path):
    path, program = tmp_path / "m.pth", _tensor(0, (4,), (1,))
    bomb = _zip(program, [bytes(2**24)], zipfile.ZIP_DEFLATED)
    assert len(bomb) < 2**16
    assert "compressed" in _refusal(path, bomb)
    raw = bytes(16)
    assert "big-endian" in _refusal(path, _zip(program, [raw], byteorder=b"big"))
    renamed = _zip(program, [raw]).replace(b"data.pkl", b"dota.pkl")
    assert "0 entries data.pkl" in _refusal(path, renamed)
    assert "KeyError" in _refusal(path, _zip(program))
    # An entry that claims to be larger than the file.
    whole = _zip(program, [raw])
    place = whole.rindex(b"PK\x01\x02")
    oversized = whole[: place + 20] + struct.pack("<II", 2**30, 2**30) + whole[place + 28 :]
    assert "larger than the file" in _refusal(path, oversized)
    # A changed byte.
    place = whole.index(raw)
    assert "CRC" in _refusal(path, whole[:place] + b"\x01" + whole[place + 1 :])


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ({}, "no tensors"),
        ({"model": {}}, "'model' is of type dict"),
        (torch.ones(2), "type Tensor"),
        ([torch.ones(2)], "type list"),
        (5, "type int"),
        ({"w": torch.ones(2), "step": 5}, "'step' is of type int"),
        ({"net": {"w": {"w": torch.ones(2)}}}, "'net' is of type dict"),
        ({1: torch.ones(2)}, "'1'"),
        ({None: torch.ones(2)}, "key of type NoneType"),
        ({"w": torch.ones(2, dtype=torch.complex64)}, "torch.ComplexFloatStorage"),
        ({"model": {}, "args": argparse.Namespace(lr=1)}, "argparse.Namespace"),
        (torch.nn.Linear(2, 2), "torch.nn.modules.linear.Linear"),
    ],
)
@pytest.mark.parametrize("form", FORMATS)
def test_objects_that_are_no_state_dict_are_refused(tmp_path, form, value, problem):
    path = _save(value, tmp_path / "m.pth", form)
    assert problem in _refusal(path, path.read_bytes())


def test_the_remedy_is_to_save_the_state_dict(tmp_path):
    _save({"args": argparse.Namespace()}, tmp_path / "m.pth")
    with pytest.raises(UserError, match=r"asks for 'argparse.Namespace'.*torch.save\(model.state"):
        read_state_dict(tmp_path / "m.pth")


def test_files_that_cannot_be_opened_are_refused(tmp_path):
    for path, problem in (
        (tmp_path / "absent.pth", "No such file"),
        (tmp_path, "not a regular file"),
        ("/dev/zero", "not a regular file"),
    ):
        with pytest.raises(UserError, match=problem) as caught:
            read_state_dict(path)
        assert caught.value.field == "file"


def _small(path, form):
    state = {"a.weight": torch.randn(3, 2), "a.bias": torch.randn(3).half(), "n": torch.tensor(3)}
    if form == "safetensors":
        safetensors.torch.save_file(state, path)
    else:
        _save(state, path, form)
    return path.read_bytes()


@pytest.mark.parametrize("form", [*FORMATS, "safetensors"])
def test_truncated_files_are_refused(tmp_path, form):
    data = _small(tmp_path / "whole", form)
    for length in {*range(0, len(data), 37), *range(24), *(len(data) - i for i in range(1, 24))}:
        _refusal(tmp_path / "cut", data[:length])


def test_random_bytes_are_refused(tmp_path):
    generator = random.Random(0)
    heads = (b"", b"PK\x03\x04", b"\x80\x02", _legacy(b""), bytes(8) + b"{", b"\x80\x04\x95")
    for head in heads:
        for length in (0, 1, 10, 100, 3000):
            _refusal(tmp_path / "m.pth", head + generator.randbytes(length))


@pytest.mark.parametrize("form", [*FORMATS, "safetensors", "pickle"])
def test_mutated_files_are_refused_or_read(tmp_path, form):
    """No mutation crashes, hangs or warns."""
    generator, path = random.Random(1), tmp_path / "m.pth"
    data = _small(path, "zip" if form == "pickle" else form)
    if form == "pickle":  # the checksums of the zip file would catch nearly every mutation
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            names = [name for name in archive.namelist() if "/data/" in name]
            raws = [archive.read(name) for name in names]
            data = archive.read(next(n for n in archive.namelist() if n.endswith("data.pkl")))
    refused = 0
    for _ in range(150):
        mutated = bytearray(data)
        for _ in range(generator.choice([1, 1, 2, 8])):
            mutated[generator.randrange(len(mutated))] = generator.choice(
                [generator.randrange(256), generator.choice(b"\x00\xff.(RQbsuhqtc\x93\x85")]
            )
        path.write_bytes(_zip(bytes(mutated), raws) if form == "pickle" else bytes(mutated))
        try:
            arrays = read_state_dict(path)
        except UserError:
            refused += 1
        else:
            assert all(isinstance(array, np.ndarray) for array in arrays.values())
    assert 0 < refused < 150


def test_torch_is_not_imported():
    code = "import sys, crnas_jax.interop.state_dict; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
