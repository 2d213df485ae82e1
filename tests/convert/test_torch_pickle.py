"""`pytorch_model.bin` without torch: what is right is read, and what would run code never runs."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import tarfile
import zipfile

import numpy as np
import pytest

from bert_jax.convert.torch_pickle import read_torch
from bert_jax.errors import UserError
from tests.convert.damage import every_answer_is_an_error_or_weights, little_memory
from tests.convert.pickles import (
    MACHINE,
    MAGIC,
    PROTOCOL,
    START,
    STOP,
    called,
    named,
    program,
    storage,
    tensor,
    value,
    write_legacy,
    write_zip,
)

SIX = np.arange(6, dtype=np.float32)
RAW = {"0": SIX.tobytes()}
FORMS = pytest.mark.parametrize("write", [write_zip, write_legacy], ids=["zip", "legacy"])


def of_six(offset: object = 0, shape: object = (2, 3), strides: object = (3, 1), *more: object) -> bytes:
    return tensor(storage("0", 6), offset, shape, strides, *more)


# --------------------------------------------------------------------------------------------------- what is right


@FORMS
def test_views_of_one_storage_are_read(write, tmp_path):
    state = {
        "whole": of_six(),
        "turned": of_six(0, (3, 2), (1, 3)),
        "last": of_six(5, (1,), (1,)),
        "scalar": of_six(4, (), ()),
        "parameter": called("torch._utils._rebuild_parameter", of_six(), True, called("collections.OrderedDict")),
    }
    found = read_torch(write(tmp_path / "m.bin", program(state), RAW))
    expected = {"whole": SIX.reshape(2, 3), "turned": SIX.reshape(2, 3).T, "last": SIX[5:], "scalar": SIX[4]}
    assert list(found) == list(state)
    for name, array in (expected | {"parameter": SIX.reshape(2, 3)}).items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].shape == array.shape and found[name].dtype == np.float32


@FORMS
def test_the_dict_of_python_2_and_the_attributes_of_a_state_dict_are_read(write, tmp_path):
    old = named("collections.OrderedDict") + value(([["a", of_six()]],)) + b"R"
    attributes = value({"_metadata": {"": {"version": 1}}}) + b"b"
    found = read_torch(write(tmp_path / "m.bin", program(old + attributes), RAW))
    np.testing.assert_array_equal(found["a"], SIX.reshape(2, 3))


def test_a_storage_that_is_a_view_of_another_is_read(tmp_path):
    """As torch before 0.4 wrote it: the id names the whole storage, and the part of it that is meant."""
    part = storage("0", 6, "torch.FloatStorage", ("1", 2, 3))
    path = write_legacy(tmp_path / "m.bin", program({"a": tensor(part, 1, (2,), (1,))}), RAW)
    np.testing.assert_array_equal(read_torch(path)["a"], [3, 4])
    for offset, shape in [(1, (3,)), (3, (1,))]:  # inside of the whole, outside of the part
        path = write_legacy(tmp_path / "m.bin", program({"a": tensor(part, offset, shape, (1,))}), RAW)
        with pytest.raises(UserError, match="a tensor reaches beyond its storage"):
            read_torch(path)
    beyond = storage("0", 6, "torch.FloatStorage", ("1", 4, 3))
    path = write_legacy(tmp_path / "m.bin", program({"a": tensor(beyond, 0, (1,), (1,))}), RAW)
    with pytest.raises(UserError, match="a view of a storage reaches beyond it"):
        read_torch(path)


# ------------------------------------------------------------------------------------------------- what would run


class Runs:
    """Pickles as a call of a function."""

    def __init__(self, function, *arguments) -> None:
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@FORMS
@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_that_would_run_a_command_is_refused_by_name(write, protocol, tmp_path):
    mark = tmp_path / "it_ran"
    evil = Runs(os.system, f"touch {mark}")
    # Of the text protocols, which torch.save never uses, most is no instruction here.
    message = r"it asks for (posix|nt).system, .* nothing was run" + ("|is no instruction" if protocol < 2 else "")
    for thing in (evil, {"a": evil}, [("a", {"b": [evil]})], {"a": Runs(os.system, evil)}):
        path = write(tmp_path / "m.bin", pickle.dumps(thing, protocol=protocol), {})
        with pytest.raises(UserError, match=message):
            read_torch(path)
    path.write_bytes(pickle.dumps(evil, protocol=protocol))  # a bare pickle, no file of torch at all
    with pytest.raises(UserError, match=r"it asks for (posix|nt).system"):
        read_torch(path)
    assert not mark.exists()
    pickle.loads(pickle.dumps(evil))
    assert mark.exists()  # so it would have


@FORMS
@pytest.mark.parametrize(
    ("thing", "message"),
    [
        (called("builtins.eval", "1"), "it asks for builtins.eval"),
        (called("builtins.getattr", named("collections.OrderedDict"), "x"), "it asks for builtins.getattr"),
        (called("__builtin__.eval", "1"), "it asks for __builtin__.eval"),
        (called("torch.load", "other.bin"), "it asks for torch.load"),
        (called("torch.storage._load_from_bytes", "x"), "it asks for torch.storage._load_from_bytes"),
        (called("torch._utils._rebuild_tensor_v2.__class__"), "it asks for torch._utils._rebuild_tensor_v2.__class__"),
        (value("collections") + value("OrderedDict.fromkeys") + b"\x93", "asks for collections.OrderedDict.fromkeys"),
        (value("os\nx") + value("system") + b"\x93", r"it asks for os\\nx.system"),
        (b"(" + value("x") + b"ios\nsystem\n", "it asks for os.system"),
        (b"(icollections\nOrderedDict\n", "it makes an object of collections.OrderedDict"),
        (named("collections.OrderedDict") + b")\x81", "it makes objects .NEWOBJ"),
        (b"(" + named("collections.OrderedDict") + b"o", "it makes objects .OBJ"),
        (b"\x82\x01", "it makes objects .EXT1"),
        (called("torch.FloatStorage", 5), "it calls torch.FloatStorage as torch.save never does"),
        (named("collections.OrderedDict") + value({"fromkeys": 1}) + b"b", "it sets the state of an object"),
        (value("f") + value(()) + b"R", "it calls what is no function"),
        (value(("module", "x", "y", "z", "w")) + b"Q", "a persistent id is of something other than a storage"),
        (value({"a": of_six(0, (2, 3), (3, 1), {"conj": True})}), "conjugate or negative"),
    ],
)
def test_what_weights_never_need_is_refused(write, thing, message, tmp_path):
    with pytest.raises(UserError, match=message):
        read_torch(write(tmp_path / "m.bin", program(thing), RAW))


# ------------------------------------------------------------------------------------------------- what does not fit


@FORMS
@pytest.mark.parametrize(
    ("view", "message"),
    [
        (of_six(1), "reaches beyond its storage"),
        (of_six(0, (2, 4), (3, 1)), "reaches beyond its storage"),
        (of_six(0, (2, 3), (4, 1)), "reaches beyond its storage"),
        (of_six(6, (), ()), "reaches beyond its storage"),
        (of_six(-1), "without storage, offset, shape or strides"),
        (of_six(5, (2, 3), (-3, 1)), "no numbers from 0"),
        (of_six(0, (-2, 3), (3, 1)), "no numbers from 0"),
        (of_six(0, (2, 3), (3,)), "no numbers from 0"),
        (of_six(0, (True, 3), (3, 1)), "no numbers from 0"),
        (of_six(0, (1 << 60, 3), (0, 0)), "no numbers from 0"),
        (of_six(0, (1 << 40, 3), (0, 0)), "has more values than its storage"),
        (of_six(0, (7,), (0,)), "has more values than its storage"),
        (of_six(0, (0, 3), (3, 1)), "a tensor without values"),
        (of_six(0, (1,) * 9, (1,) * 9), "no numbers from 0"),
        (tensor(value("0"), 0, (1,), (1,)), "without storage"),
        (tensor(storage("0", 7), 0, (2, 3), (3, 1)), "the storage 0 is not there or of another size"),
        (
            tensor(storage("0", 6, "torch.DoubleStorage"), 0, (2, 3), (3, 1)),
            "the storage 0 is|the middle of the storage",
        ),
        (tensor(storage("1", 6), 0, (2, 3), (3, 1)), "the storage 1 is not there|not those that its tensors lie in"),
        (tensor(storage("0", 1 << 47), 0, (2, 3), (3, 1)), "the storage 0 is not there or of another size"),
        (tensor(storage("0", -6), 0, (2, 3), (3, 1)), "a storage without type, key or length"),
        (tensor(storage(0, 6), 0, (2, 3), (3, 1)), "a storage without type, key or length"),
        (of_six() + tensor(storage("0", 3, "torch.DoubleStorage"), 0, (1,), (1,)), "two types or lengths"),
    ],
)
def test_a_tensor_that_leaves_its_storage_is_refused(write, view, message, tmp_path):
    with pytest.raises(UserError, match=message):
        read_torch(write(tmp_path / "m.bin", program({"a": view}), RAW))


@FORMS
@pytest.mark.parametrize(
    ("pickled", "message"),
    [
        (START + b"X\xff\xff\xff\xffshort", "the pickle ends in the middle"),
        (START + b"\x8a\xff1", "the pickle ends in the middle"),
        (START + value(1) + b"r\xff\xff\xff\xff" + STOP, "it holds no state dict"),
        (START + STOP, "the pickle is damaged"),
        (START + b"h\x05" + STOP, "the pickle is damaged"),
        (START + b"u" + STOP, "the pickle is damaged"),
        (START + value(1) + value(2) + b"a" + STOP, "appends to what is no list"),
        (START + b"c" + b"a" * 300, "a global without an end"),
        (b"\x80\x09" + STOP, "not a pickle of a known protocol"),
        (START + b"}" + b")" + b"\x85" * 5 + value(1) + b"s" + STOP, "a key of a dict is neither text nor number"),
        (START + b"}" + b"q\x00" + value("a") + b"h\x00" + b"s" + STOP, "a is no tensor"),
        (program({"a": of_six()} | {f"{i}": of_six() for i in range(9)}), "more than 8 times the values"),
        (START + b"}(" + 2 * (value("a") + of_six()) + b"u" + STOP, "the key 'a' is there twice"),
        (program({}), "it holds no state dict"),
        (program({1: of_six()}), "1 is no tensor"),
        (program({"a\nb": 1}), r"a\\nb is no tensor"),
    ],
)
def test_a_pickle_of_something_else_is_told_and_takes_no_memory(write, pickled, message, tmp_path):
    path = write(tmp_path / "m.bin", pickled, RAW)
    with little_memory(), pytest.raises(UserError, match=message) as error:
        read_torch(path)
    assert "\n" not in str(error.value)


def test_compressed_and_doubled_and_swollen_archives_are_refused(tmp_path):
    right = program({"a": of_six()})
    with zipfile.ZipFile(tmp_path / "m.bin", "w") as archive:
        archive.writestr("archive/data.pkl", right)
        archive.writestr("archive/data/0", bytes(1 << 20), compress_type=zipfile.ZIP_DEFLATED)
    with pytest.raises(UserError, match="archive/data/0 is compressed"):
        read_torch(tmp_path / "m.bin")
    with zipfile.ZipFile(tmp_path / "m.bin", "w") as archive:
        archive.writestr("archive/data.pkl", right)
        archive.writestr("other/data.pkl", right)
    with pytest.raises(UserError, match="data.pkl is there twice"):
        read_torch(tmp_path / "m.bin")
    with zipfile.ZipFile(tmp_path / "m.bin", "w") as archive:  # many names for the same bytes
        archive.writestr("archive/data.pkl", right)
        archive.writestr("archive/data/0", bytes(1 << 16))
        for i in range(1, 100):
            again = zipfile.ZipInfo(f"archive/data/{i}")
            first = archive.getinfo("archive/data/0")
            again.file_size, again.compress_size, again.CRC = first.file_size, first.compress_size, first.CRC
            again.header_offset = first.header_offset
            archive.filelist.append(again)
    with pytest.raises(UserError, match="its members are together larger than the file"):
        read_torch(tmp_path / "m.bin")


def test_an_archive_without_weights_big_endian_ones_and_scripts_are_told(tmp_path):
    right = program({"a": of_six()})
    for members, message in [
        ({"byteorder": b"big"}, "big endian"),
        ({"constants.pkl": b""}, "this is TorchScript"),
    ]:
        with pytest.raises(UserError, match=message):
            read_torch(write_zip(tmp_path / "m.bin", right, RAW, **members))
    with zipfile.ZipFile(tmp_path / "m.bin", "w") as archive:
        archive.writestr("[Content_Types].xml", "<a/>")
    with pytest.raises(UserError, match="there is no data.pkl"):
        read_torch(tmp_path / "m.bin")


def test_legacy_files_of_another_machine_version_or_length_are_told(tmp_path):
    path = tmp_path / "m.bin"
    right = write_legacy(path, program({"a": of_six()}), RAW).read_bytes()
    changes = [
        (program(MAGIC), program(MAGIC + 1), "it does not begin as one"),
        (program(PROTOCOL), program(1002), "it does not begin as one"),
        (program(MACHINE), program({**MACHINE, "little_endian": False}), "big endian"),
        (program(["0"]), program(["1"]), "not those that its tensors lie in"),
        (program(["0"]), program(["0", "0"]), "not those that its tensors lie in"),
        (struct.pack("<q", 6), struct.pack("<q", 1 << 60), "the storage 0 is not there or of another size"),
    ]
    for old, new, message in changes:
        assert right.count(old) == 1
        path.write_bytes(right.replace(old, new))
        with pytest.raises(UserError, match=message):
            read_torch(path)
    path.write_bytes(right + b"more")
    with pytest.raises(UserError, match="more bytes follow"):
        read_torch(path)


def test_files_of_other_kinds_are_told(tmp_path):
    path = tmp_path / "m.bin"
    with pytest.raises(UserError, match="m.bin: there is no such file"):
        read_torch(path)
    with pytest.raises(UserError, match="this is a directory"):
        read_torch(tmp_path)
    for raw in (
        b"",
        b"<!DOCTYPE html><html>404</html>",
        bytes(100),
        b"PK\x03\x04" + bytes(100),
        os.urandom(0) or b"\xff" * 99,
    ):
        path.write_bytes(raw)
        with pytest.raises(UserError, match="not a whole file of torch.save"):
            read_torch(path)
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 440473133\n")
    with pytest.raises(
        UserError, match="this is a pointer of Git LFS, not the file itself; fetch it with git lfs pull"
    ):
        read_torch(path)
    with tarfile.open(path, "w") as archive:
        archive.addfile(tarfile.TarInfo("storages"), io.BytesIO())
    with pytest.raises(UserError, match="the tar form of torch"):
        read_torch(path)


@FORMS
def test_nan_and_infinity_are_counted_in_the_first_tensor_that_has_them(write, tmp_path):
    values = np.array([1, np.nan, 3, np.inf, -np.inf, 6], np.float32)
    state = {"good": of_six(5, (1,), (1,)), "bad": of_six(), "worse": of_six(1, (1,), (1,))}
    path = write(tmp_path / "m.bin", program(state), {"0": values.tobytes()})
    with pytest.raises(UserError, match=r"3 values of 6 in bad are NaN or infinite .and so it is in 1 more tensor"):
        read_torch(path)


# ------------------------------------------------------------------------------------------------------- shards


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"b": "../m-2.bin"}, r"'../m-2.bin' is no name of a file beside it"),
        ({"b": "/etc/passwd"}, "'/etc/passwd' is no name of a file beside it"),
        ({"b": ".."}, "'..' is no name of a file beside it"),
        ({"b": "..\\m-2.bin"}, "is no name of a file beside it"),
        ({"b": ""}, "'' is no name of a file beside it"),
        ({"b": "m-2.bin\0"}, "is no name of a file beside it"),
        ({"b": 2}, 'there is no "weight_map" from tensors to files'),
        ({"b": "m-3.bin"}, "m-3.bin: there is no such file"),
        ({"c": "m-2.bin"}, "m-2.bin: it lacks 1 tensor of the index, first c"),
        ({"b": "m-1.bin"}, "m-1.bin: it lacks 1 tensor of the index, first b"),
        ({"a": "m-3.bin"}, "m-3.bin: there is no such file"),
    ],
)
def test_an_index_stays_in_its_folder_and_its_files_hold_what_it_says(change, message, tmp_path):
    write_zip(tmp_path / "m-1.bin", program({"a": of_six()}), RAW)
    write_zip(tmp_path / "m-2.bin", program({"b": of_six()}), RAW)
    places = {"a": "m-1.bin", "b": "m-2.bin"}
    index = tmp_path / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    assert list(read_torch(index)) == ["a", "b"]
    index.write_text(json.dumps({"weight_map": places | change}))
    with pytest.raises(UserError, match=message):
        read_torch(index)


def test_broken_indices_and_tensors_in_two_files_are_told(tmp_path):
    index = tmp_path / "pytorch_model.bin.index.json"
    for raw, message in [
        (b"{", "not JSON"),
        (b"\xff", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", 'no "weight_map"'),
        (b'{"weight_map": {"a": "x", "a": "y"}}', "'a' is there twice"),
    ]:
        index.write_bytes(raw)
        with pytest.raises(UserError, match=message):
            read_torch(index)
    for name in ("m-1.bin", "m-2.bin"):
        write_zip(tmp_path / name, program({"a": of_six(), name: of_six()}), RAW)
    index.write_text(json.dumps({"weight_map": {"m-1.bin": "m-1.bin", "m-2.bin": "m-2.bin"}}))
    with pytest.raises(UserError, match="a is in two files, m-2.bin and one before it"):
        read_torch(index)


@FORMS
def test_flipped_bytes_and_cut_files_are_told_or_read(write, tmp_path):
    state = {"a.weight": of_six(), "b": of_six(2, (2,), (1,))}
    every_answer_is_an_error_or_weights(write(tmp_path / "m.bin", program(state), RAW), read_torch)
