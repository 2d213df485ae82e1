"""`bert-data stats` and `inspect`: a person reads what is in the shards."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import numpy as np
import pytest

from bert_jax.text.features import SEVEN, RecordSpec
from bert_jax.text.manifest import Manifest, ShardInfo, Split, load_manifest, write_manifest
from bert_jax.text.records import write_shard
from bert_jax.text.tokenizer import SPECIAL_NAMES, from_vocab
from data_prep import stats, stats_page
from data_prep.cli import main
from data_prep.views import inspect
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


ROWS = (  # as they stand in the shard, and the original pieces at the chosen positions
    ("[CLS] the cat ##s [MASK] [SEP] a house [SEP] [PAD]", {1: "the", 4: "sat", 7: "dog"}),
    ("[CLS] [MASK] ##ing [UNK] [SEP] dog [SEP] [PAD] [PAD] [PAD]", {1: "walk"}),
)


def _records(tokenizer, rows=ROWS, **features):
    """Rows of text as records with word starts; `features` replace or add some."""
    ids = np.array([[tokenizer.pieces.index(name) for name in text.split()] for text, _ in rows], np.int32)
    slots = np.zeros((3, len(rows), 3), np.int32)
    for row, (_, chosen) in enumerate(rows):
        for slot, (at, name) in enumerate(chosen.items()):
            slots[:, row, slot] = at, tokenizer.pieces.index(name), 1
    ends = ids == tokenizer.special.sep
    text = ~np.isin(ids, [tokenizer.special.pad, tokenizer.special.cls, tokenizer.special.sep])
    return {
        "input_ids": ids,
        "input_mask": (ids != tokenizer.special.pad).astype(np.int32),
        "segment_ids": ((np.cumsum(ends, 1) - ends > 0) & (ids != tokenizer.special.pad)).astype(np.int32),
        "masked_lm_positions": slots[0],
        "masked_lm_ids": slots[1],
        "masked_lm_weights": slots[2].astype(np.float32),
        "next_sentence_labels": np.array([1, 0], np.int32)[: len(rows)],
        "word_starts": text & np.array([[not name.startswith("##") for name in row.split()] for row, _ in rows]),
        "documents": np.array([[5, 8], [5, 5]])[: len(rows)],
    } | features


def _data(folder, shards, tokenizer=None, settings=None, rates=None) -> Path:
    """A data set with one split of given records."""
    tokenizer = tokenizer or tiny.tokenizer()
    tokenizer.save(folder / "tokenizer")
    infos = []
    for number, records in enumerate(shards):
        name = f"train-{number:05d}-of-{len(shards):05d}.tfrecord"
        done = write_shard(folder / name, [records], RecordSpec(10, 3))
        infos.append(ShardInfo(name, done.records, done.bytes, done.sha256, done.tokens, 0))
    total, tokens = sum(info.records for info in infos), sum(info.tokens for info in infos)
    manifest = Manifest(
        tokenizer=tokenizer.fingerprint,
        vocab_size=tokenizer.vocab_size,
        special=tokenizer.special,
        length=10,
        predictions=3,
        settings={"rate": 0.15, "mask_share": 0.8, "random_share": 0.1} | (settings or {}),
        inputs=[{"name": "a.txt", "bytes": 1, "sha256": "0" * 64}],
        seed=0,
        splits={"train": Split(tuple(infos), total, tokens, 10 * total - tokens, rates or {})},
    )
    write_manifest(folder, manifest)
    return folder


def test_a_record_reads_as_text_with_its_masks(tmp_path):
    records = _records(tiny.tokenizer(), ROWS[:1])
    write_shard(tmp_path / "x.tfrecord", [{name: records[name] for name in SEVEN}], RecordSpec(10, 3))
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


def test_several_records_and_colours_where_asked_for(tmp_path, capsys):
    folder = str(_data(tmp_path, [_records(tiny.tokenizer())]))
    assert main(["inspect", folder, "--count", "5"]) == 0
    plain = capsys.readouterr().out
    assert [line for line in plain.split("\n") if line.startswith(("doc", "B"))] == [
        "documents 5 and 8",
        "B: a {dog → house} [SEP]",
        "document 5",
        "B: dog [SEP]",
    ]
    coloured = inspect(folder, record=0, count=5, colour=True)
    assert "\x1b" not in plain and re.sub(r"\x1b\[[0-9;]*m", "", coloured) == plain.rstrip("\n")
    assert len({colour for colour in re.findall(r"\x1b\[[0-9;]*m(?=\{)", coloured)}) == 3
    drawn = inspect(folder, seed=3, count=2)
    assert drawn == inspect(folder, seed=3, count=2) and {"record 0", "record 1"} <= set(
        re.findall(r"record \d", drawn)
    )


@pytest.mark.parametrize(
    ("layout", "features", "shown"),
    [
        (None, {}, ["random next", "next"]),
        ("order", {}, ["swapped", "in order"]),
        ("three", {"relation": np.array([2, 1], np.int32)}, ["random", "previous"]),
        ("document", {"segment_ids": np.zeros((2, 10), np.int32), "documents": np.array([[5, -1]] * 2)}, []),
        ("new", {}, ["label 1", "label 0"]),
    ],
)
def test_labels_mean_what_the_layout_says(tmp_path, layout, features, shown):
    folder = str(_data(tmp_path, [_records(tiny.tokenizer(), **features)], settings={"layout": layout}))
    labels = stats.measure(folder).labels
    assert [(name, n) for name, n in labels.items() if n] == [(name, 1) for name in reversed(shown)]
    assert layout != "three" or labels["next"] == 0
    text = inspect(folder, record=0, count=2)
    assert re.findall(r"\): (.*?), \d+ of 10 tokens", text) == (shown or ["one segment"] * 2)
    assert ("B: " in text) == bool(shown)


def test_chinese_reads_without_blanks_and_korean_with_them(tmp_path):
    tokenizer = from_vocab([*SPECIAL_NAMES, "今", "天", "。", "한국", "##어", "책"])
    rows = [("[CLS] 今 天 [MASK] [SEP] 한국 ##어 책 [SEP] [PAD]", {3: "。"})]
    folder = _data(tmp_path, [_records(tokenizer, rows)], tokenizer)
    assert inspect(str(folder), record=0).split("\n")[2:] == ["A: [CLS] 今天{。 → [MASK]} [SEP]", "B: 한국어 책 [SEP]"]
    assert main(["stats", str(folder), "--out", str(tmp_path / "out")]) == 0  # no glyph is missing from the picture
    assert ">。</mark>" in (tmp_path / "out" / "stats.html").read_text(encoding="utf-8")


def test_figures_of_a_data_set_counted_by_hand(tmp_path):
    tokenizer = tiny.tokenizer()
    found = stats.measure(str(_data(tmp_path, [_records(tokenizer)], settings={"duplicates": 2})))
    assert (found.read, found.total, found.shards, found.length) == (2, 2, 1, 10)
    assert np.flatnonzero(found.lengths).tolist() == [7, 9] and found.padding_share == pytest.approx(0.2)
    assert np.flatnonzero(found.a).tolist() == [3, 4] and np.flatnonzero(found.b).tolist() == [1, 2]
    assert (found.masked, found.kept, found.random) == (2, 1, 1)
    # [UNK] and the special tokens are not eligible: six and three tokens are, three and one of them chosen.
    assert found.chosen_share == pytest.approx(4 / 9) and np.flatnonzero(found.shares).tolist() == [66, 100]
    assert found.chosen_at.tolist() == [0, 2, 0, 0, 1, 0, 0, 1, 0, 0]
    assert found.eligible_at.tolist() == [0, 2, 2, 1, 1, 1, 1, 1, 0, 0]
    assert found.labels == {"next": 1, "random next": 1}
    # the | cat ##s | sat / a | dog // walk ##ing | [UNK] / dog
    assert found.words is not None and found.words[:4].tolist() == [0, 6, 2, 0]
    assert found.fertility == pytest.approx(10 / 8) and found.unknown_share == pytest.approx(0.1)
    assert found.pieces[tokenizer.pieces.index("dog")] == 2 and not found.pieces[tokenizer.pieces.index("house")]
    assert (found.ordinary == 0).sum() == len(tiny.WORDS) - 8
    # Both rows of document 5, but not the random B; two passes over the text.
    assert found.documents is not None and found.documents.tolist() == [4]


def test_a_sample_is_spread_over_all_shards_and_says_so(tmp_path):
    folder = str(_data(tmp_path, [_records(tiny.tokenizer())] * 3))
    whole, part = stats.measure(folder), stats.measure(folder, limit=3, seed=1)
    assert (whole.read, whole.shards, part.read, part.shards, part.total) == (6, 3, 3, 3, 6)
    # Document 5 has 8 tokens in a shard; of three records in a sample one whole shard is read for the documents.
    assert whole.documents is not None and whole.documents.tolist() == [24]
    assert part.documents is not None and part.documents.tolist() == [8]
    one = stats.measure(folder, limit=1)
    assert one.documents is None and one.lengths.sum() == 1
    again = stats.measure(folder, limit=3, seed=1)
    assert all(np.array_equal(getattr(part, name), getattr(again, name)) for name in vars(part))
    told = dict(stats.summary(part, load_manifest(folder)))
    assert told["records read"] == "3 of 6 in train, from 3 shards" and "shards read whole" in told["documents"]


def _pixels(png: bytes) -> np.ndarray:
    from matplotlib.image import imread

    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    return imread(io.BytesIO(png), format="png")


def test_the_page_asks_nothing_of_a_network_and_leaves_the_data_alone(data, capsys):
    folder = data / "data"
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert main(["stats", str(folder), "--out", str(folder / "stats")]) == 0
    assert str(folder / "stats" / "stats.html") in capsys.readouterr().out
    assert {path: path.read_bytes() for path in before} == before
    assert sorted(path.name for path in (folder / "stats").iterdir()) == ["stats.html", "stats.png"]
    text = (folder / "stats" / "stats.html").read_text(encoding="utf-8")
    inside = re.findall(r'(?:src|srcset)="data:image/png;base64,([^"]+)"', text)
    light, dark = (base64.b64decode(one) for one in reversed(inside))
    assert light == (folder / "stats" / "stats.png").read_bytes()
    assert _pixels(light)[2, 2, :3].min() > 0.9 and _pixels(dark)[2, 2, :3].max() < 0.2
    bare = re.sub(r'"data:image/png;base64,[^"]+"', '""', text)
    assert not re.search(r"https?:|//|src(set)?=\"[^\"]|href|url\(|@import|<script|<link", bare)
    assert bare.count("<div class=record>") == 6 and "<mark class=masked" in bare
    assert "bigrams (both neighbours)" in bare


def test_the_picture_has_a_panel_for_each_thing_known(tmp_path):
    full = _data(tmp_path / "full", [_records(tiny.tokenizer())])
    records = _records(tiny.tokenizer(), ROWS[:1])
    bare = _data(tmp_path / "bare", [{name: records[name] for name in SEVEN}], settings={"layout": "full"})
    heights = []
    for folder, panels in ((full, 9), (bare, 6)):  # without labels, documents and words
        found, manifest = stats.measure(str(folder)), load_manifest(folder)
        assert sum(panel is not None for panel in stats_page._panels(found, manifest)) == panels
        pixels = _pixels(stats_page.picture(found, manifest))
        heights.append(pixels.shape[0])
        assert pixels.shape[1] == 1500 and len(np.unique(pixels.reshape(-1, 4), axis=0)) > 20
    assert heights[1] < heights[0] < 1500
    written = stats_page.write(str(bare), load_manifest(bare), stats.measure(str(bare)), str(tmp_path / "out"))
    assert "pieces a word" not in written[0].read_text(encoding="utf-8")


def test_text_cannot_become_markup(tmp_path):
    tokenizer = from_vocab([*SPECIAL_NAMES, "<script>", "&", "a"])
    rows = [("[CLS] <script> & [MASK] [SEP] a a a [SEP] [PAD]", {3: "<script>"})]
    folder = _data(tmp_path / "a<b>", [_records(tokenizer, rows)], tokenizer)
    path, _ = stats_page.write(str(folder), load_manifest(folder), stats.measure(str(folder)), str(tmp_path / "out"))
    text = path.read_text(encoding="utf-8")
    assert "<script>" not in text and "<b>" not in text.split("</h1>")[0] and "&lt;script&gt;</mark>" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{}/data", "--split", "test", "--out", "{}/o"], "choose from train, heldout"),
        (["{}/data", "--out", "{}/a.txt"], "cannot be written"),
        (["{}/nothing"], "not a finished data set"),
    ],
)
def test_stats_refuses_in_one_sentence(data, capsys, arguments, message):
    assert main(["stats", *(part.format(data) for part in arguments)]) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_a_shard_of_other_records_is_noticed(tmp_path, capsys):
    folder = _data(tmp_path, [_records(tiny.tokenizer())])
    shard = next(folder.glob("*.tfrecord"))
    write_shard(shard, [_records(tiny.tokenizer(), ROWS[:1])], RecordSpec(10, 3))
    for command in (["stats", str(folder), "--out", str(tmp_path / "out")], ["inspect", str(folder)]):
        assert main(command) == 1
        assert "holds 1 record where the manifest says 2" in capsys.readouterr().err
    shard.unlink()
    assert main(["inspect", str(folder)]) == 1 and "cannot be read" in capsys.readouterr().err


def test_counts_of_a_later_version_are_shown(tmp_path, capsys):
    rates = {"documents": 2, "too_short": 1234, "duplicate_rate": 0.25, "by_language": {"de": 7}, "note": "x"}
    folder = _data(tmp_path, [_records(tiny.tokenizer())], settings={"cleaning": {"near_duplicates": 9}}, rates=rates)
    assert main(["stats", str(folder)]) == 0
    shown = [line.split() for line in capsys.readouterr().out.split("\n")]
    assert ["1", "input", "file,", "1", "byte"] in shown
    for words in ("too short 1,234", "duplicate rate 25.000 %", "by language de 7", "cleaning near duplicates 9"):
        assert words.split() in shown
    assert not any(line[:1] == ["chosen"] for line in shown)  # it was not counted


def test_stats_are_aligned_and_complete(data, capsys):
    assert main(["stats", str(data / "data")]) == 0
    shown = capsys.readouterr().out
    for word in ("records", "padding", "random next", "overflowed", "bigrams (both neighbours)"):
        assert word in shown
    for names in (("records", "tokens", "documents"), ("masked", "kept", "random ")):
        assert len({len(line) for line in shown.split("\n")[3:] if line.startswith(names)}) == 1
