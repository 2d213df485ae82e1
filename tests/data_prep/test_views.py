"""`bert-data stats` and `inspect`: a person reads what is in the shards."""

from __future__ import annotations

import re

import numpy as np
import pytest

from bert_jax.text.features import RecordSpec
from bert_jax.text.records import write_shard
from data_prep.cli import main
from data_prep.stats import inspect
from tests.text import tiny


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("views")
    (folder / "a.txt").write_text(tiny.text(60))
    tiny.tokenizer().save(folder / "tok")
    command = [
        "shards",
        str(folder / "a.txt"),
        "--tokenizer",
        str(folder / "tok"),
        "--out",
        str(folder / "data"),
    ]
    assert main([*command, "--length", "32", "--workers", "1"]) == 0
    return folder


def _one_record(path, tokenizer):
    names = ["[CLS]", "the", "cat", "##s", "[MASK]", "[SEP]", "a", "dog", "[SEP]", "[PAD]"]
    ids = np.array([[tokenizer.pieces.index(name) for name in names]], np.int32)
    house = tokenizer.pieces.index("house")
    ids[0, 7] = house
    record = {
        "input_ids": ids,
        "input_mask": np.array([[1] * 9 + [0]], np.int32),
        "segment_ids": np.array([[0] * 6 + [1] * 3 + [0]], np.int32),
        "masked_lm_positions": np.array([[1, 4, 7]], np.int32),
        "masked_lm_ids": np.array([[tokenizer.pieces.index(name) for name in ("the", "sat", "dog")]], np.int32),
        "masked_lm_weights": np.ones((1, 3), np.float32),
        "next_sentence_labels": np.array([1], np.int32),
    }
    write_shard(path, [record], RecordSpec(10, 3))


def test_a_record_reads_as_text_with_its_masks(tmp_path):
    _one_record(tmp_path / "x.tfrecord", tiny.tokenizer())
    tiny.tokenizer().save(tmp_path / "tok")
    shown = inspect(str(tmp_path / "x.tfrecord"), str(tmp_path / "tok"), record=0).split("\n")
    assert "random next, 9 of 10 tokens, 3 predictions" in shown[0]
    assert shown[1:] == ["A: [CLS] {the → the} cats {sat → [MASK]} [SEP]", "B: a {dog → house} [SEP]"]


def test_inspect_finds_any_record(data, capsys):
    for more in (["--record", "3"], ["--random"], ["--split", "heldout"], []):
        assert main(["inspect", str(data / "data"), *more]) == 0
        shown = capsys.readouterr().out
        assert re.search(r"record \d+ .*next, \d+ of 32 tokens", shown) and "A: [CLS]" in shown and "→" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{}/data", "--record", "100000"], "records run from 0 to"),
        (["{}/data", "--split", "test"], "choose from train, heldout"),
        (["{}/nothing"], "no such data set"),
        (["{}/tok"], "not a finished data set"),
        (["{}/data/heldout-00000-of-00001.tfrecord"], "pass --tokenizer"),
        (["{}/data", "--tokenizer", "{}/other.txt"], "made with another tokenizer"),
    ],
)
def test_inspect_refuses_in_one_sentence(data, capsys, arguments, message):
    (data / "other.txt").write_text("\n".join([*tiny.PIECES, "more"]))
    assert main(["inspect", *(part.format(data) for part in arguments)]) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_a_shard_of_another_vocabulary_is_noticed(data, tmp_path, capsys):
    (tmp_path / "small.txt").write_text("\n".join(tiny.PIECES[:9]))
    shard = str(data / "data" / "heldout-00000-of-00001.tfrecord")
    assert main(["inspect", shard, "--tokenizer", str(tmp_path / "small.txt")]) == 1
    assert "made with another tokenizer" in capsys.readouterr().err


def test_stats_are_aligned_and_complete(data, capsys):
    assert main(["stats", str(data / "data")]) == 0
    shown = capsys.readouterr().out
    for word in ("records", "padding", "random next", "overflowed", "two sided bigram"):
        assert word in shown
    rows = [line for line in shown.split("\n")[3:] if line.startswith(("records", "tokens", "masked", "kept"))]
    assert len({len(line) for line in rows}) == 1
