"""The manifest: written whole, read back equal, refused when it is not ours."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from bert_jax.errors import UserError
from bert_jax.text.manifest import Manifest, ShardInfo, Split, load_manifest, write_manifest
from bert_jax.text.tokenizer import Special

SPLIT = Split((ShardInfo("train-00000-of-00001.tfrecord", 3, 999, "ab", 40, 8),), 3, 40, 8, {"masked_rate": 0.8})
MANIFEST = Manifest(
    tokenizer="f" * 64,
    vocab_size=50,
    special=Special(0, 1, 2, 3, 4),
    length=16,
    predictions=3,
    settings={"rate": 0.15},
    inputs=[{"name": "a.txt", "bytes": 5, "sha256": "cd"}],
    seed=7,
    splits={"train": SPLIT, "heldout": replace(SPLIT, shards=())},
    levels={"uniform": {"loss": 3.9}},
)


def test_what_is_written_is_read(tmp_path):
    write_manifest(tmp_path, MANIFEST)
    assert load_manifest(tmp_path) == MANIFEST
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]


def test_no_manifest_is_no_data_set(tmp_path):
    with pytest.raises(UserError, match="not a finished data set"):
        load_manifest(tmp_path)


@pytest.mark.parametrize("change", [{"schema": 99}, {"splits": None}, {"surprise": 1}, {"special": {}}])
def test_other_manifests_are_refused(tmp_path, change):
    write_manifest(tmp_path, MANIFEST)
    raw = json.loads((tmp_path / "manifest.json").read_text()) | change
    (tmp_path / "manifest.json").write_text(json.dumps(raw))
    with pytest.raises(UserError, match="prepare the data again"):
        load_manifest(tmp_path)


def test_half_a_manifest_is_refused(tmp_path):
    write_manifest(tmp_path, MANIFEST)
    whole = (tmp_path / "manifest.json").read_text()
    (tmp_path / "manifest.json").write_text(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="not JSON"):
        load_manifest(tmp_path)
