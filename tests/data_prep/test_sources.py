"""Inputs by name, each format to documents, and each way in which an input can be bad."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import hashlib
import io
import json
import os
import subprocess
import sys
import tracemalloc

import numpy as np
import pyarrow
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from bert_jax.errors import UserError
from data_prep import formats, paths, sources
from data_prep.sources import copies, describe, documents, expand, named, passes

TEXT = "\n\nfirst line\n  second line \r\n \t \nother document\u0085with \u2028 inside\n\n\n\nlast"
EXPECTED = ["first line\nsecond line", "other document\u0085with \u2028 inside", "last"]
EXTRACTED = """<doc id="12" url="https://x?curid=12" title="A "cat"">
A "cat"

A cat sat &lt;down&gt;, and &amp;amp; stayed.

Life.
It lived.

</doc>
<doc id="13" url="https://x?curid=13" title="Empty">
Empty

</doc>
<doc id="14" url="https://x?curid=14" title="Dog">
A dog without a title line.
</doc>
"""
PAGE = """---
title: no text
---
# A *cat*

It [sat](http://x.y "t") on `the mat`,
and **slept**. &amp; so <b>on</b> ![picture](p.png)

```python
no text
```

    nor this

- one\\*
- two
  > three

| head | of |
|---|---|
| a | table |

<div>no text</div>
"""


def _packed(suffix: str, data: bytes) -> bytes:
    """In two frames, as parallel compressors write them."""
    half = len(data) // 2
    pack = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress, ".bz2": bz2.compress}[suffix]
    return pack(data[:half]) + pack(data[half:])


def _parquet(**columns) -> bytes:
    out = io.BytesIO()
    parquet.write_table(pyarrow.table(columns), out, row_group_size=2)
    return out.getvalue()


PACKINGS = pytest.mark.parametrize("packing", ["", ".gz", ".zst", ".bz2"])


# -- formats ---------------------------------------------------------------------------------------------------------


@PACKINGS
def test_blank_lines_and_the_end_of_a_file_end_documents(tmp_path, packing):
    path = tmp_path / f"a.txt{packing}"
    path.write_bytes(_packed(packing, TEXT.encode()))
    assert list(documents(path)) == list(documents(str(path))) == EXPECTED


@PACKINGS
def test_json_lines_hold_a_document_each(tmp_path, packing):
    lines = [{"text": "one\n\n two ", "id": 3}, {"text": " "}, {"text": "three"}]
    path = tmp_path / f"a.jsonl{packing}"
    path.write_bytes(_packed(packing, "\r\n".join(map(json.dumps, lines)).encode()))
    assert list(documents(path)) == ["one\ntwo", "three"]


@PACKINGS
def test_a_markdown_file_is_a_document_without_markup(tmp_path, packing):
    path = tmp_path / f"a.md{packing}"
    path.write_bytes(_packed(packing, PAGE.encode()))
    assert list(documents(path)) == [
        "A cat\nIt sat on the mat, and slept. & so on\none*\ntwo\nthree\nhead of\na table",
    ]


@PACKINGS
def test_extracted_wikipedia_is_known_by_its_first_line(tmp_path, packing):
    for name in ("wiki_00", "x.txt"):
        path = tmp_path / f"{name}{packing}"
        path.write_bytes(_packed(packing, EXTRACTED.encode()))
        assert list(documents(path)) == [
            "A cat sat <down>, and &amp; stayed.\nLife.\nIt lived.",
            "A dog without a title line.",
        ]


@PACKINGS
def test_a_parquet_file_holds_a_document_a_row(tmp_path, packing):
    data = _parquet(n=[1, 2, 3, 4, 5], text=["one\n\n two", None, " ", "drei ä", "five"])
    path = tmp_path / f"a.parquet{packing}"
    path.write_bytes(_packed(packing, data))
    assert list(documents(path)) == ["one\ntwo", "drei ä", "five"]


def test_parquet_strings_of_any_width_and_dictionaries(tmp_path):
    for kind in (pyarrow.large_string(), pyarrow.binary(), pyarrow.dictionary(pyarrow.int32(), pyarrow.string())):
        (tmp_path / "a.parquet").write_bytes(_parquet(text=pyarrow.array(["x", "y", "x"]).cast(kind)))
        assert list(documents(tmp_path / "a.parquet")) == ["x", "y", "x"]


def test_a_file_without_suffix_may_hold_json_lines(tmp_path):
    (tmp_path / "wiki_00").write_text('{"id": 1, "text": "one"}\n')
    assert list(documents(tmp_path / "wiki_00")) == ["one"]
    (tmp_path / "a.txt").write_text('{"id": 1, "text": "one"}\n')
    assert list(documents(tmp_path / "a.txt")) == ['{"id": 1, "text": "one"}']


def test_a_byte_order_mark_is_no_text(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfhello")
    assert list(documents(tmp_path / "a.txt")) == ["hello"]


def _line_by_line(text: str) -> list[str]:
    found: list[list[str]] = [[]]
    for line in text.split("\n"):
        if line.strip():
            found[-1].append(line.strip())
        else:
            found.append([])
    return ["\n".join(lines) for lines in found if lines]


@settings(max_examples=300)
@given(st.text(alphabet="ab \n\n\n\r\t\u0085\u3000é中\U0001f600", max_size=60), st.integers(1, 9))
def test_where_blocks_end_changes_no_document(text, size):
    data = text.encode()
    blocks = (data[at : at + size] for at in range(0, len(data), size))
    assert list(formats.text(formats.whole_lines(blocks, "x", "fail"), "x")) == _line_by_line(text)


@settings(max_examples=300)
@given(st.binary(max_size=30), st.lists(st.sampled_from([b"\n", b"a\n", b"\xff", b"\0", b"\xc3\xa4"]), max_size=9))
def test_where_blocks_end_changes_no_error(noise, parts):
    data = b"x" + noise + b"".join(parts)

    def read(size: int, bad_bytes: str) -> str:
        blocks = (data[at : at + size] for at in range(0, len(data), size))
        try:
            return "\n".join(piece for _, piece in formats.whole_lines(blocks, "x", bad_bytes))
        except UserError as error:
            return str(error).partition(" (")[0]

    assert read(1, "fail") == read(7, "fail") == read(99, "fail")
    assert read(1, "replace") == read(7, "replace") == data.decode("utf-8", "replace").removesuffix("\n")


@pytest.mark.parametrize("size", [1, 3, 1000])
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
def test_places_of_errors_count_from_the_beginning_of_the_file(size, bom):
    for bad, what in ((b"\xff", "line 3 is not UTF-8 at byte {}"), (b"\0", "line 3 holds a NUL at byte {}")):
        data = bom + "ä\n\nb".encode() + bad + b"\nc"
        with pytest.raises(UserError, match=what.format(data.index(bad))):
            list(formats.whole_lines((data[at : at + size] for at in range(0, len(data), size)), "x", "fail"))


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.txt.zst"])
def test_a_long_line_takes_a_few_times_its_size(tmp_path, name):
    line, mb = b"word " * 4_000_000, 20_000_000
    data = b'{"text": "' + line + b'"}\n' if "json" in name else line
    (tmp_path / name).write_bytes(zstandard.compress(data) if name.endswith("zst") else data)
    tracemalloc.start()
    assert [len(document) for document in documents(tmp_path / name)] == [mb - 1]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5 * mb


def test_a_long_file_takes_no_more_memory_than_a_short_one(tmp_path):
    (tmp_path / "a.txt").write_text("some words of a line\n\n" * 500_000)
    tracemalloc.start()
    assert sum(1 for _ in documents(tmp_path / "a.txt")) == 500_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 * formats.BLOCK


def test_lines_and_documents_have_a_limit():
    with pytest.raises(UserError, match="x: line 2 is longer than 10 bytes; cut it into lines"):
        list(formats.whole_lines(iter([b"a\nbbbbbb", b"bbbbbb"]), "x", "fail", longest=10))
    with pytest.raises(UserError, match="document that goes on at line 2 is longer than 10 char.* blank line"):
        list(formats.text(iter([(1, "abcdef"), (2, "abcdef")]), "x", longest=10))
    assert len(list(formats.text(iter([(1, "abcdef\n"), (3, "abcdef")]), "x", longest=10))) == 2
    with pytest.raises(UserError, match="more than 10 characters; cut it"):
        list(formats.markdown(iter([(1, "abcdef"), (2, "abcdef")]), "x", longest=10))


# -- bad files -------------------------------------------------------------------------------------------------------

TABLE = _parquet(text=["a text of some length"] * 50)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", r"a\.txt: the input holds no text; leave it out or fill it"),
        ("a.txt", b" \n\n\t\n", "holds no text"),
        ("a.txt", b"good\nnot \xff good\n", r"a\.txt: line 2 is not UTF-8 at byte 9 \(invalid start byte\); convert"),
        ("a.txt", b"good\n\x00\x01\n", "binary: line 2 holds a NUL at byte 5"),
        ("a.txt", "half".encode("utf-16"), "the file is UTF-16, not UTF-8; convert it"),
        ("a.txt", "cut ä".encode()[:-1], "line 1 is not UTF-8 at byte 4 .unexpected end"),
        ("a.txt.gz", gzip.compress(b"hello " * 9999)[:60], "the gzip stream is cut; copy or make it again"),
        ("a.txt.gz", b"plain text", r"the gzip stream is damaged \(Not a gzipped file"),
        ("a.txt.gz", gzip.compress(b"hello " * 9)[:-8] + b"12345678", r"gzip stream is damaged \(CRC check failed"),
        ("a.txt.zst", zstandard.compress(b"hello world " * 9999)[:-5], "zstd stream is cut"),
        ("a.txt.zst", b"plain text", r"zstd stream is damaged \("),
        ("a.txt.bz2", bz2.compress(b"hello " * 9999)[:-9], "bzip2 stream is cut"),
        ("a.txt.bz2", b"plain text", r"bzip2 stream is damaged \(Invalid data stream\)"),
        ("a.jsonl", b'{"text": "a"}\n{"text": \n', r"a\.jsonl, line 2: this is not JSON \(Expecting value at column 9"),
        ("a.jsonl", b'{"body": "a"}\n', 'line 1: .* key "text"'),
        ("a.jsonl", b"[1]\n", 'line 1: .* key "text"'),
        ("a.jsonl", b'{"text": 7}\n', "not a string"),
        ("a.jsonl", b'{"text": "a \\ud800 b"}\n', "half of a surrogate pair; mend it, or pass --on-bad-bytes"),
        ("a.jsonl", b"[" * 100_000, "line 1: this JSON cannot be read"),
        ("a.jsonl", b'{"text": ' + b"9" * 5000 + b"}", "line 1: this JSON cannot be read"),
        ("a.jsonl", b"\n\n", "holds no text"),
        ("a.md", b"```\nonly code\n```\n", "holds no text"),
        ("a.md", b"\xff", "line 1 is not UTF-8 at byte 0"),
        ("wiki_00", b'<doc id="1" title="A">\nA\n\ntext\n', "<doc …> of line 1 has no </doc>; the file is cut"),
        ("wiki_00", b'<doc id="1" title="A">\nt\n<doc id="2" title="B">\nt\n</doc>', "line 1 has no </doc>"),
        ("wiki_00", b'<doc id="1" title="A">\nA\n</doc>\nstray\n', "line 4 stands outside"),
        ("wiki_00", b'<doc id="1" title="A">\nA\n</doc>\n', "holds no text"),
        ("a.parquet", b"", r"a\.parquet: the Parquet file is damaged \("),
        ("a.parquet", TABLE[:-20], r"Parquet file is damaged \("),
        ("a.parquet", b"PAR1" + bytes(200) + TABLE[204:], r"Parquet file is damaged \("),
        ("a.parquet", _parquet(body=["a"], n=[1]), 'no column "text"; rename one of its columns: body, n'),
        ("a.parquet", _parquet(text=[1, 2]), 'column "text" holds int64, not strings'),
        ("a.parquet", _parquet(text=pyarrow.array([b"a", b"\xff"])), r"row 2: the text is not UTF-8 at byte 0"),
        ("a.parquet", _parquet(text=pyarrow.array([None], pyarrow.string())), "holds no text"),
        ("a.parquet.gz", gzip.compress(TABLE)[:60], "gzip stream is cut"),
    ],
)
def test_bad_files_are_named_with_the_place(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as told:
        list(documents(tmp_path / name))
    assert name in str(told.value) and "\n" not in str(told.value)


def test_bad_bytes_are_replaced_on_request(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"not \xff good\n")
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "a \\ud800 b"}\n')
    (tmp_path / "a.parquet").write_bytes(_parquet(text=pyarrow.array([b"a \xff b"])))
    assert list(documents(tmp_path / "a.txt", "replace")) == ["not \ufffd good"]
    for name in ("a.jsonl", "a.parquet"):
        assert list(documents(tmp_path / name, "replace")) == ["a \ufffd b"]


@pytest.mark.parametrize("name", ["a.txt", "a.parquet"])
def test_what_cannot_be_opened_is_told(tmp_path, name):
    with pytest.raises(UserError, match=r"the file cannot be read \(No such file or directory\)"):
        list(documents(tmp_path / name))
    (tmp_path / name).mkdir()
    for read in (documents, lambda path: [describe(path)]):
        with pytest.raises(UserError, match=r"the file cannot be read \(Is a directory\)"):
            list(read(tmp_path / name))


def test_a_file_that_may_not_be_read_is_told(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "a.txt").chmod(0)
    tmp_path.chmod(0o755)
    code = f"""
import os, sys
from data_prep.sources import describe, documents
from bert_jax.errors import UserError
if os.geteuid() == 0: os.seteuid(65534)  # root may read everything
for read in (describe, lambda path: list(documents(path))):
    try: read({str(tmp_path / "a.txt")!r})
    except UserError as error: print(error)
"""
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=os.getcwd())
    assert made.stdout.count("the file cannot be read (Permission denied)") == 2, made.stderr


@pytest.mark.parametrize(
    ("module", "name", "message"),
    [
        ("pyarrow.parquet", "a.parquet", r"needs pyarrow; pip install 'bert-jax\[sources\]'"),
        ("markdown_it", "a.md", r"needs markdown-it-py; pip install 'bert-jax\[sources\]'"),
        ("zstandard", "a.txt.zst", r"needs zstandard; pip install 'bert-jax\[prep\]'"),
        ("tensorflow_datasets", "tfds:x", r"needs tensorflow-datasets; pip install 'bert-jax\[tfds\]'"),
        ("datasets", "hf:x", r"needs datasets; pip install 'bert-jax\[sources\]'"),
        ("fsspec", "s3://b/x", r"needs fsspec; pip install 'bert-jax\[sources\]'"),
        ("gcsfs", "gs://b/x", "gs:// needs gcsfs; pip install gcsfs"),
        ("s3fs", "s3://b/x", "s3:// needs s3fs; pip install s3fs"),
    ],
)
def test_a_library_that_is_not_installed_is_named(tmp_path, monkeypatch, module, name, message):
    if ":" not in name:
        (tmp_path / name).write_bytes(b"x")
        name = str(tmp_path / name)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=message):
        list(documents(name))


# -- names -----------------------------------------------------------------------------------------------------------


def test_globs_are_sorted_and_name_each_file_once(tmp_path, monkeypatch):
    for name in ("b.txt", "a.txt", "c.md"):
        (tmp_path / name).write_text("x")
    (tmp_path / "d.txt").mkdir()
    found = expand([str(tmp_path / "*.txt"), tmp_path / "a.txt", str(tmp_path / "c.md")])
    assert found == [str(tmp_path / name) for name in ("a.txt", "b.txt", "c.md")]
    monkeypatch.chdir(tmp_path)
    assert expand(["b.txt", "./b.txt", "*.md"]) == ["b.txt", "c.md"]
    assert expand(["-", "tfds:x/y:1.0.0:train", "hf:a/b@c"]) == ["-", "tfds:x/y:1.0.0:train", "hf:a/b@c"]


def test_directories_give_the_files_of_text_below_them(tmp_path, capsys):
    kept = ["AA/wiki_00", "AA/wiki_01.bz2", "a.txt", "b/c/d.JSONL.gz", "b/e.md", "f.parquet"]
    for name in [*kept, "g.png", "Makefile", "AA/h.txt.lz4", "i.tsv", ".git/j.txt", "b/.k.txt"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    assert expand([str(tmp_path)]) == [str(tmp_path / name) for name in kept]
    assert capsys.readouterr().err == f"{tmp_path}: 6 files taken, 4 with other suffixes left out\n"


def test_what_matches_nothing_is_named(tmp_path):
    with pytest.raises(UserError, match=r"\*\.txt: no file matches; check the path; quote a glob"):
        expand([str(tmp_path / "*.txt")])
    with pytest.raises(UserError, match="this directory is empty; known are .txt, .*parquet, also .gz, .zst, .bz2"):
        expand([str(tmp_path)])
    (tmp_path / "a.png").write_text("x")
    with pytest.raises(UserError, match="none of the 1 files in this directory is text"):
        expand([str(tmp_path)])
    with pytest.raises(UserError, match="no input is given"):
        expand([])
    with pytest.raises(UserError, match=r"cannot be opened \(Protocol not known: ftps"):
        expand(["ftps://x/y"])


def test_sources_have_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a.txt", "b.txt", "c=d.txt"):
        (tmp_path / name).write_text("x")
    assert named(["en=a.txt", "b.txt", "de=hf:x/y:train", "z=-"]) == [
        *(("en", "a.txt"), ("", "b.txt"), ("de", "hf:x/y:train"), ("z", "-"))
    ]
    assert named(["c=d.txt"]) == named(["c=*.txt"]) == [("", "c=d.txt")]
    assert named(["c=c=d.txt"]) == [("c", "c=d.txt")]
    with pytest.raises(UserError, match='a.txt: the input belongs to two sources, "en" and "de"; name it once'):
        named(["en=a.txt", "de=*.txt"])
    with pytest.raises(UserError, match="e.txt: no file matches"):
        named(["en=e.txt"])


def test_inputs_are_described_by_name_size_and_digest(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"abc" * 400_000)
    told = describe(tmp_path / "a.txt")
    assert told == sources.Input("a.txt", 1_200_000, hashlib.sha256(b"abc" * 400_000).hexdigest())
    with pytest.raises(ValueError, match="capture"):
        describe("-")


def test_standard_input_is_kept_and_read_again(tmp_path):
    for data, expected in ((TEXT.encode(), EXPECTED), (b'{"text": "one"}\n', ["one"])):
        name = sources.capture(io.BytesIO(data), tmp_path / "new")
        assert os.listdir(tmp_path / "new") == ["standard-input"]
        assert list(documents(name)) == list(documents(name)) == expected
        assert describe(name).bytes == len(data)
    with pytest.raises(UserError, match="standard input: nothing came"):
        sources.capture(io.BytesIO(b""), tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="standard input cannot be kept"):
        sources.capture(io.BytesIO(b"x"), tmp_path / "file")
    assert sorted(os.listdir(tmp_path)) == ["file", "new"]


def test_evaluation_files_give_every_text(tmp_path):
    (tmp_path / "a.tsv").write_text("id\tquestion\n1\tWhat is it?\n")
    (tmp_path / "b.jsonl").write_text('{"a": "x y", "n": 1, "c": [{"d": "z"}, null]}\n')
    (tmp_path / "c.txt").write_text("one\ntwo\n\nthree")
    made = {path: list(sources.texts(tmp_path / path)) for path in ("a.tsv", "b.jsonl", "c.txt")}
    assert made["a.tsv"] == ["id", "question", "1", "What is it?"]
    assert made["b.jsonl"] == ["x y", "z"] and made["c.txt"] == ["one\ntwo", "three"]


# -- places ----------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["local", "memory"])
def place(request, tmp_path):
    if request.param == "local":
        yield str(tmp_path)
        return
    import fsspec

    system = fsspec.filesystem("memory")
    yield "memory://place"
    with contextlib.suppress(FileNotFoundError):
        system.rm("/place", recursive=True)


def test_every_place_is_used_alike(place, tmp_path):
    name = paths.join(place, "a", "b.txt")
    assert paths.is_remote(name) == place.startswith("memory") and not paths.exists(name)
    paths.write_bytes(name, b"first")
    paths.write_bytes(name, b"hello world")
    assert paths.exists(name) and paths.size(name) == 11 and paths.is_directory(paths.join(place, "a"))
    assert paths.read_range(name, 6, 9) == b"wor" and paths.read_range(name, 6, 99) == b"world"
    (tmp_path / "local.bin").write_bytes(b"xyz")
    paths.upload(tmp_path / "local.bin", paths.join(place, "a", "c.bin"))
    found = paths.glob(paths.join(place, "a", "*"))
    assert [one.rsplit("/", 1)[1] for one in found] == ["b.txt", "c.bin"]
    assert paths.files_below(paths.join(place, "a")) == found
    with paths.open_read(found[1]) as file:
        assert file.read() == b"xyz" and file.seek(1) == 1
    paths.remove(name)
    paths.remove(name)
    with pytest.raises(FileNotFoundError, match="No such file"):
        paths.open_read(name)


def test_text_is_read_from_every_place(place, capsys):
    for name, data in (("b.txt", b"one\n\ntwo"), ("a.jsonl.gz", gzip.compress(b'{"text": "x"}')), ("c.png", b"")):
        paths.write_bytes(paths.join(place, "in", name), data)
    paths.write_bytes(paths.join(place, "in", "d.parquet"), _parquet(text=["y"]))
    found = expand([paths.join(place, "in")])
    assert [text for name in found for text in documents(name)] == ["x", "one", "two", "y"]
    assert expand([paths.join(place, "in", "*.txt")]) == [found[1]]
    assert describe(found[1]).sha256 == hashlib.sha256(b"one\n\ntwo").hexdigest()
    with pytest.raises(UserError, match="no file matches"):
        expand([paths.join(place, "in", "*.md")])
    with pytest.raises(UserError, match=r"x\.txt: the file cannot be read \(No such file or directory\)"):
        list(documents(paths.join(place, "x.txt")))


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path):
    paths.write_bytes(tmp_path / "a", b"old")
    with pytest.raises(FileNotFoundError):
        paths.upload(tmp_path / "missing", tmp_path / "a")
    with pytest.raises(TypeError):
        paths.write_bytes(tmp_path / "a", "no bytes")
    assert os.listdir(tmp_path) == ["a"] and (tmp_path / "a").read_bytes() == b"old"


def test_local_names_load_no_library(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    code = f"""
import sys
from data_prep import paths, sources, clean
name, = sources.expand([{str(tmp_path)!r}])
assert list(sources.documents(name)) == ["x"] and sources.describe(name).bytes == 1
print(*sys.modules)
"""
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"fsspec", "pyarrow", "datasets", "tensorflow_datasets", "markdown_it", "rensa"} & {*made.stdout.split()}


# -- data sets of other libraries ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tfds_directory(tmp_path_factory):
    """Written by a process of its own: the library's writer warns, and must not touch this session."""
    where = str(tmp_path_factory.mktemp("tfds"))
    code = f"""
import tensorflow_datasets as tfds
class Small(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.2.0")
    def _info(self):
        text = tfds.features.FeaturesDict({{"text": tfds.features.Text()}})
        return tfds.core.DatasetInfo(builder=self, features=text, disable_shuffling=True)
    def _split_generators(self, manager):
        return {{"train": self._generate_examples(8), "test": self._generate_examples(2)}}
    def _generate_examples(self, n):
        for number in range(n):
            yield number, {{"text": f"document {{number}}\\n\\n ä "}}
builder = Small(data_dir={where!r}, file_format="array_record")
builder.download_and_prepare()
print(builder.data_path)
"""
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert made.returncode == 0, made.stderr[-2000:]
    return made.stdout.split()[-1]


def test_tfds_is_read_in_order_and_without_tensorflow(tfds_directory, tmp_path):
    code = f"""
import sys
from data_prep.sources import *
name = "tfds:{tfds_directory}"
assert list(documents(name)) == [f"document {{n}}\\nä" for n in range(8)]
assert list(documents(name + ":train[2:4]")) == ["document 2\\nä", "document 3\\nä"]
whole, again, part = map(describe, (name, name + ":train", name + ":train[:50%]"))
assert whole == again and whole.name == "tfds:small/1.2.0:train" and len(whole.sha256) == 64, whole
assert part.sha256 != whole.sha256 and 0 < part.bytes < whole.bytes, (part, whole)
import pathlib, shutil
old = shutil.copytree({tfds_directory!r}, {str(tmp_path / "old")!r})
info = pathlib.Path(old, "dataset_info.json")
info.write_text(info.read_text().replace("array_record", "tfrecord"))
for bad in (name + ":nope", name + "x", "tfds:no_such_data_set", "tfds::x", "tfds:" + old):
    try:
        list(documents(bad))
    except UserError as error:
        print(error)
assert "tensorflow" not in sys.modules and "jax" not in sys.modules
"""
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert made.returncode == 0, made.stderr[-2000:]
    told = made.stdout.splitlines()
    assert len(told) == 5 and all("the data set cannot be opened (" in line for line in told[:3]), told
    assert "Unknown split 'nope'" in told[0] and "this is no name of a data set" in told[3]
    assert "cannot be read without TensorFlow" in told[4] and "--file_format=array_record" in told[4]


def test_data_sets_of_hugging_face_are_opened_by_directory(tmp_path):
    code = f"""
import os, sys
os.environ["HF_HUB_OFFLINE"], os.environ["HF_HOME"] = "1", {str(tmp_path / "home")!r}
import datasets
from data_prep.sources import *
datasets.disable_progress_bars()
here = {str(tmp_path)!r}
text = datasets.Dataset.from_dict({{"text": ["one\\n\\n two", " ", None, "three"] * 100, "n": range(400)}})
text.save_to_disk(here + "/one")
datasets.DatasetDict({{"train": text, "test": text.select([3])}}).save_to_disk(here + "/two")
text.select_columns(["n"]).save_to_disk(here + "/bad")
assert list(documents(f"hf:{{here}}/one")) == list(documents(f"hf:{{here}}/two")) == ["one\\ntwo", "three"] * 100
assert list(documents(f"hf:{{here}}/two:test")) == ["three"]
one, test = describe(f"hf:{{here}}/one"), describe(f"hf:{{here}}/two:test")
assert one == describe(f"hf:{{here}}/one") and one.name == "hf:one:train" and one.bytes > 1000, one
assert test.name == "hf:two:test" and test.sha256 != one.sha256
os.mkdir(here + "/plain")
with open(here + "/plain/train.jsonl", "w") as file:
    file.write('{{"text": "four"}}\\n')
assert list(documents(f"hf:{{here}}/plain")) == ["four"]
for bad in (f"hf:{{here}}/two:dev", f"hf:{{here}}/bad", "hf:no/such@thing"):
    try:
        list(documents(bad))
    except UserError as error:
        print(error)
assert not {{"tensorflow", "torch", "jax"}} & set(sys.modules)
"""
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert made.returncode == 0, made.stderr[-2000:]
    told = made.stdout.splitlines()
    assert len(told) == 3 and "no split dev; name one of its splits: train, test" in told[0], told
    assert 'no feature "text"; it has n' in told[1] and "the data set cannot be opened (" in told[2]


# -- several sources -------------------------------------------------------------------------------------------------


def test_weights_are_passes_and_smoothing_keeps_the_total():
    sizes = {"en": 8000, "de": 1500, "sw": 500}
    assert copies(sizes) == {"en": 1, "de": 1, "sw": 1}
    assert copies(sizes, {"sw": 2.5, "en": 0}) == {"en": 0, "de": 1, "sw": 2.5}
    for smoothing in (0.0, 0.3, 0.7, 1.0):
        made = copies(sizes, smoothing=smoothing)
        text = np.array([sizes[name] * made[name] for name in sizes])
        assert text.sum() == pytest.approx(10_000)
        share = (np.array([0.8, 0.15, 0.05])) ** smoothing
        assert text / 10_000 == pytest.approx(share / share.sum())
    assert copies({"en": 10, "none": 0}, smoothing=0.7) == {"en": 1, "none": 1}


@pytest.mark.parametrize(
    ("weights", "smoothing", "message"),
    [
        ({"en": 1}, 0.7, "either weights or smoothing"),
        ({"fr": 1}, None, 'no source "fr" to weigh; sources are en, de'),
        ({"en": -1}, None, "weight of en is -1; give a number of passes"),
        ({"en": float("nan")}, None, "weight of en is nan"),
        ({"en": 0, "de": 0}, None, "all sources have weight 0"),
        (None, 1.5, "smoothing is 1.5; give a number from 0"),
    ],
)
def test_wrong_weights_are_told(weights, smoothing, message):
    with pytest.raises(UserError, match=message):
        copies({"en": 10, "de": 20}, weights, smoothing)


def test_passes_hang_on_the_hash_alone_and_reach_the_mean():
    hashes = np.random.default_rng(0).integers(0, 2**64, 20_000, np.uint64)
    for mean in (0.0, 0.3, 1.0, 2.75):
        made = passes(hashes, mean)
        assert made.dtype == np.int64 and set(made) <= {int(mean), int(mean) + 1}
        assert abs(made.mean() - mean) < 0.015
        order = np.random.default_rng(1).permutation(len(hashes))
        assert (passes(hashes[order], mean) == made[order]).all()
    low = hashes < np.uint64(2**60)  # as the held-out documents are chosen
    assert abs(passes(hashes[low], 0.5).mean() - 0.5) < 0.06
    assert not (passes(hashes, 0.3) > passes(hashes, 0.4)).any()
