"""Records against TensorFlow: it parses ours, we read its."""

from __future__ import annotations

import numpy as np
import pytest

from bert_jax.text.features import SEVEN, RecordSpec
from bert_jax.text.records import open_shard, write_shard
from tests.text import tiny

pytestmark = pytest.mark.filterwarnings("default")
SPEC = RecordSpec(32, 4)


@pytest.fixture(scope="module")
def tf():
    return pytest.importorskip("tensorflow")


def _feature_spec(tf) -> dict:
    """The specification in run_pretraining.py of google-research/bert."""
    length, predictions = SPEC.length, SPEC.predictions
    return {
        "input_ids": tf.io.FixedLenFeature([length], tf.int64),
        "input_mask": tf.io.FixedLenFeature([length], tf.int64),
        "segment_ids": tf.io.FixedLenFeature([length], tf.int64),
        "masked_lm_positions": tf.io.FixedLenFeature([predictions], tf.int64),
        "masked_lm_ids": tf.io.FixedLenFeature([predictions], tf.int64),
        "masked_lm_weights": tf.io.FixedLenFeature([predictions], tf.float32),
        "next_sentence_labels": tf.io.FixedLenFeature([1], tf.int64),
    }


def test_tensorflow_parses_what_we_write(tf, tmp_path):
    records = tiny.records(40)
    write_shard(tmp_path / "a.tfrecord", [records], SPEC)
    raw = list(tf.data.TFRecordDataset(str(tmp_path / "a.tfrecord")).as_numpy_iterator())
    assert len(raw) == 40
    for row, one in enumerate(raw):
        parsed = tf.io.parse_single_example(one, _feature_spec(tf))
        for name in SEVEN:
            np.testing.assert_array_equal(parsed[name].numpy(), np.atleast_1d(records[name][row]), err_msg=name)


def test_our_bytes_are_protobufs_own(tf, tmp_path):
    write_shard(tmp_path / "a.tfrecord", [tiny.records(20)], SPEC)
    for one in tf.data.TFRecordDataset(str(tmp_path / "a.tfrecord")).as_numpy_iterator():
        message = tf.train.Example.FromString(one)
        assert message.SerializeToString(deterministic=True) == one
        assert sorted(message.features.feature) == sorted([*SEVEN, "word_starts", "documents", "relation"])


@pytest.mark.parametrize("compression", ["", "GZIP"])
def test_what_tensorflow_writes_is_read(tf, tmp_path, monkeypatch, compression):
    monkeypatch.setenv("BERT_JAX_CACHE", str(tmp_path / "cache"))
    records = {name: values for name, values in tiny.records(30).items() if name in SEVEN}
    path = tmp_path / "from_tensorflow.tfrecord"
    with tf.io.TFRecordWriter(str(path), compression) as writer:
        for row in range(30):
            features = {}
            for name, values in records.items():
                if name == "masked_lm_weights":
                    features[name] = tf.train.Feature(float_list=tf.train.FloatList(value=values[row]))
                else:
                    integers = np.atleast_1d(values[row]).tolist()
                    features[name] = tf.train.Feature(int64_list=tf.train.Int64List(value=integers))
            example = tf.train.Example(features=tf.train.Features(feature=features))
            writer.write(example.SerializeToString())
    shard = open_shard(path)
    numbers = np.random.default_rng(0).permutation(30)
    found = shard.read(numbers)
    assert sorted(found) == sorted(SEVEN)
    for name in SEVEN:
        np.testing.assert_array_equal(found[name], records[name][numbers], err_msg=name)
    np.testing.assert_array_equal(shard.tokens, records["input_mask"].sum(1))
