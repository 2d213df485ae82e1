"""Single records as text a person reads; `stats.py` counts what all of them hold."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bert_jax.errors import UserError
from bert_jax.text.corrupt import special_ids
from bert_jax.text.features import Records, check, restore
from bert_jax.text.manifest import Manifest, load_manifest
from bert_jax.text.records import Shard, open_shard
from bert_jax.text.tokenizer import Tokenizer

_LABELS = {  # by layout: the feature that holds the label, and what its values mean
    "pair": ("next_sentence_labels", ("next", "random next")),
    "order": ("next_sentence_labels", ("in order", "swapped")),
    "three": ("relation", ("next", "previous", "random")),
    "full": ("", ()),
    "document": ("", ()),
}
_NUMBERED = ("next_sentence_labels", ())  # of a layout not known here


def plural(number: int, noun: str) -> str:
    """ "1 document", "1,204 documents"."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def layout_of(manifest: Manifest) -> str:
    """The layout of the rows; manifests from before there was a choice are of pairs."""
    return str(manifest.settings.get("layout") or "pair")


def labels(records: Records, layout: str) -> np.ndarray | None:
    """The label of each record, int[n]; None where the layout has none."""
    return records.get(_LABELS.get(layout, _NUMBERED)[0])


def label_names(layout: str) -> tuple[str, ...]:
    """What the labels 0, 1, ... mean."""
    return _LABELS.get(layout, _NUMBERED)[1]


def label_name(layout: str, value: int) -> str:
    """What a label means: "random next"."""
    names = label_names(layout)
    return names[value] if 0 <= value < len(names) else f"label {value}"


@dataclass(frozen=True)
class Data:
    """A split, or one shard (then without a manifest): the files and the number of records of each."""

    manifest: Manifest | None
    tokenizer: Tokenizer
    paths: tuple[Path, ...]
    records: tuple[int, ...]

    @property
    def total(self) -> int:
        """Records in all."""
        return sum(self.records)

    def open(self, at: int) -> Shard:
        """One of the shards.

        Raises:
            UserError: it cannot be read, or is not the one that the manifest counted.
        """
        shard = open_shard(self.paths[at])
        if shard.num_records != self.records[at]:
            what = f"the shard holds {plural(shard.num_records, 'record')} where the manifest says {self.records[at]:,}"
            raise UserError(what, str(shard.path), "copy or make the data again")
        return shard


def open_data(path: str, tokenizer_path: str | None, split: str) -> Data:
    """Opens a split of a data set, or one shard with a tokenizer.

    Raises:
        UserError: no such data set, split or shard, no records, or a tokenizer that is not the shards'.
    """
    place, manifest = Path(path), None
    if not place.exists():
        raise UserError("there is no such data set or shard", path, "check the path")
    if place.is_dir():
        manifest = load_manifest(place)
        if split not in manifest.splits:
            raise UserError(f"there is no split {split}", path, f"choose from {', '.join(manifest.splits)}")
        tokenizer = Tokenizer.load(tokenizer_path or place / "tokenizer")
        if tokenizer.fingerprint != manifest.tokenizer:
            raise UserError("the shards were made with another tokenizer", path, "leave --tokenizer away")
        infos = manifest.splits[split].shards
        paths, records = tuple(place / info.name for info in infos), tuple(info.records for info in infos)
    elif tokenizer_path is None:
        raise UserError("a single shard does not say its tokenizer", path, "pass --tokenizer")
    else:
        tokenizer, paths, records = Tokenizer.load(tokenizer_path), (place,), (open_shard(place).num_records,)
    data = Data(manifest, tokenizer, paths, records)
    if data.total == 0:
        raise UserError("there are no records", path)
    return data


@dataclass(frozen=True)
class Piece:
    """A piece as it reads: the blank before it, its text, and if it was chosen, what stands in its place.

    `fate` is "masked", "kept" or "random" where the piece was chosen, "special", or "".
    """

    blank: str
    text: str
    now: str
    fate: str


@dataclass(frozen=True)
class View:
    """A record as it reads: two lines about it, and the pieces of its segments."""

    title: str
    documents: str
    segments: tuple[tuple[Piece, ...], ...]


def inspect(
    path: str,
    tokenizer_path: str | None = None,
    split: str = "train",
    record: int | None = None,
    seed: int | None = None,
    count: int = 1,
    colour: bool = False,
) -> str:
    """Records as readable text, their masked words and their labels shown.

    Args:
        path: a data set, or one shard (then with a tokenizer).
        tokenizer_path: only for a shard; a data set has its own.
        split: "train" or "heldout", of a data set.
        record: number in the split of the first; None draws them.
        seed: of the drawing; None draws others each time.
        count: how many; fewer where there are no more.
        colour: mark the chosen words with a terminal's colours as well.

    Raises:
        UserError: no such data set, split or record, or a tokenizer that is not the shards'.
    """
    data = open_data(path, tokenizer_path, split)
    if record is None:
        numbers = draw(data.total, count, seed)
    elif 0 <= record < data.total:
        numbers = list(range(record, min(record + count, data.total)))
    else:
        raise UserError(f"there is no record {record}", path, f"records run from 0 to {data.total - 1}")
    return "\n\n".join(_as_text(view(data, number), colour) for number in numbers)


def draw(total: int, count: int, seed: int | None) -> list[int]:
    """Different record numbers, at most all there are."""
    return np.random.default_rng(seed).choice(total, min(count, total), replace=False).tolist()


def view(data: Data, record: int) -> View:
    """One record, by its number among those of `data`."""
    at = int(np.searchsorted(np.cumsum(data.records), record, side="right"))
    shard, tokenizer, number = data.open(at), data.tokenizer, record - sum(data.records[:at])
    records = shard.read(np.array([number]))
    check(records, shard.spec, tokenizer.vocab_size, str(shard.path), number)
    original, now, segment = restore(records)[0], records["input_ids"][0], records["segment_ids"][0]
    length = int(records["input_mask"][0].sum())
    chosen = set(records["masked_lm_positions"][0][records["masked_lm_weights"][0] > 0].tolist())
    segments: list[list[Piece]] = [[], []]
    for place in range(length):
        into = segments[int(segment[place])]
        blank, text = _readable(tokenizer, int(original[place]), into[-1].text if into else "")
        fate = "special" if original[place] in (tokenizer.special.cls, tokenizer.special.sep) else ""
        if place in chosen:
            same = "kept" if now[place] == original[place] else "random"
            fate = "masked" if now[place] == tokenizer.special.mask else same
        into.append(Piece(blank, text, tokenizer.pieces[now[place]] if place in chosen else "", fate))
    layout = layout_of(data.manifest) if data.manifest else "three" if "relation" in records else "pair"
    told = labels(records, layout) if segments[1] else None
    label = "one segment" if told is None else label_name(layout, int(told[0]))
    title = (
        f"record {record} ({shard.path.name}, {number}): {label}, {length} of {plural(shard.spec.length, 'token')}, "
        f"{plural(len(chosen), 'prediction')}, word starts {'known' if 'word_starts' in records else 'unknown'}"
    )
    documents = ""
    if "documents" in records:
        a, b = records["documents"][0].tolist()
        documents = f"document {a}" if b in (a, -1) else f"documents {a} and {b}"
    return View(title, documents, tuple(tuple(pieces) for pieces in segments if pieces))


def _readable(tokenizer: Tokenizer, number: int, before: str) -> tuple[str, str]:
    """The blank before a piece, and its text; `before` is the text of the piece on its left."""
    piece = tokenizer.pieces[number]
    if tokenizer.kind != "wordpiece":
        word = piece.replace("\u2581", " ")
        blank = " " * (len(word) - len(word.lstrip())) or " " * (number in special_ids(tokenizer.special))
        return blank if before else "", word.lstrip()
    if piece.startswith("##") or not before:
        return "", piece.removeprefix("##")
    # Chinese and Japanese are written without blanks, and WordPiece does not say where one stood.
    return "" if _written_close(before[-1]) and _written_close(piece[0]) else " ", piece


def _written_close(character: str) -> bool:
    """Ideographs, kana and their punctuation; not Hangul, though it is as wide."""
    return unicodedata.east_asian_width(character) in "WF" and "HANGUL" not in unicodedata.name(character, "")


_COLOURS = {"special": "\x1b[2m", "masked": "\x1b[1;33m", "kept": "\x1b[1;32m", "random": "\x1b[1;35m"}


def _as_text(one: View, colour: bool) -> str:
    lines = [one.title, *([one.documents] if one.documents else [])]
    for name, pieces in zip("AB", one.segments, strict=False):
        text = ""
        for piece in pieces:
            shown = f"{{{piece.text} → {piece.now}}}" if piece.now else piece.text
            if colour and piece.fate:
                shown = f"{_COLOURS[piece.fate]}{shown}\x1b[0m"
            text += piece.blank + shown
        lines.append(f"{name}: {text}")
    return "\n".join(lines)
