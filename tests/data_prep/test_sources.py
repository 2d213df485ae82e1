"""Files to documents, and each way in which a file can be bad."""

from __future__ import annotations

import gzip
import json

import pytest
import zstandard

from bert_jax.errors import UserError
from data_prep.sources import documents, expand

TEXT = "\n\nfirst line\n  second line \r\n \t \nother document\u0085with \u2028 inside\n\n\n\nlast"
EXPECTED = ["first line\nsecond line", "other document\u0085with \u2028 inside", "last"]


def _packed(suffix: str, data: bytes) -> bytes:
    if suffix == ".gz":
        return gzip.compress(data)
    if suffix == ".zst":  # two frames, as parallel compressors write them
        half = len(data) // 2
        return zstandard.compress(data[:half]) + zstandard.compress(data[half:])
    return data


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_blank_lines_and_the_end_of_a_file_end_documents(tmp_path, suffix):
    path = tmp_path / f"a.txt{suffix}"
    path.write_bytes(_packed(suffix, TEXT.encode()))
    assert list(documents(path)) == EXPECTED


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_json_lines_hold_a_document_each(tmp_path, suffix):
    lines = [{"text": "one\n\n two ", "id": 3}, {"text": " "}, {"text": "three"}]
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(_packed(suffix, "\n".join(map(json.dumps, lines)).encode()))
    assert list(documents(path)) == ["one\ntwo", "three"]


def test_a_byte_order_mark_is_no_text(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfhello")
    assert list(documents(tmp_path / "a.txt")) == ["hello"]


def test_lines_across_blocks_stay_whole(tmp_path):
    long = "x" * 2_500_000
    (tmp_path / "a.txt").write_text(f"{long}\n\nshort\n")
    assert list(documents(tmp_path / "a.txt")) == [long, "short"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", r"a\.txt: the file holds no text"),
        ("a.txt", b" \n\n\t\n", "holds no text"),
        ("a.txt", b"good\nnot \xff good\n", r"a\.txt: line 2 is not UTF-8 at byte 9"),
        ("a.txt", b"good\n\x00\x01\n", "binary: line 2 holds a NUL at byte 5"),
        ("a.txt.gz", gzip.compress(b"hello " * 9999)[:60], "gzip stream is damaged"),
        ("a.txt.gz", b"plain text", "gzip stream is damaged"),
        ("a.txt.zst", zstandard.compress(b"hello world " * 9999)[:-5], "zstd stream is (cut|damaged)"),
        ("a.txt.zst", b"plain text", "zstd stream is damaged"),
        ("a.jsonl", b'{"text": "a"}\n{"text": \n', r"a\.jsonl, line 2: this is not JSON"),
        ("a.jsonl", b'{"body": "a"}\n', 'line 1: .* key "text"'),
        ("a.jsonl", b"[1]\n", 'line 1: .* key "text"'),
        ("a.jsonl", b'{"text": 7}\n', "not a string"),
        ("a.jsonl", b'{"text": "a \\ud800 b"}\n', "surrogate"),
        ("a.jsonl", b"\n\n", "holds no text"),
    ],
)
def test_bad_files_are_named_with_the_place(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        list(documents(tmp_path / name))


def test_bad_bytes_are_replaced_on_request(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"not \xff good\n")
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "a \\ud800 b"}\n')
    assert list(documents(tmp_path / "a.txt", "replace")) == ["not \ufffd good"]
    assert list(documents(tmp_path / "a.jsonl", "replace")) == ["a \ufffd b"]


def test_globs_are_sorted_and_name_each_file_once(tmp_path):
    for name in ("b.txt", "a.txt", "c.md"):
        (tmp_path / name).write_text("x")
    found = expand([str(tmp_path / "*.txt"), str(tmp_path / "a.txt"), str(tmp_path / "c.md")])
    assert [path.name for path in found] == ["a.txt", "b.txt", "c.md"]


def test_what_matches_nothing_is_named(tmp_path):
    with pytest.raises(UserError, match=r"\*\.txt: no file matches"):
        expand([str(tmp_path / "*.txt")])
    with pytest.raises(UserError, match="directory"):
        expand([str(tmp_path)])
