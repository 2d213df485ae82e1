"""A data set in figures: the manifest's counts as a table, and what its records hold.

`stats_page.py` draws what `measure` finds, `views.py` shows single records.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from bert_jax.text.corrupt import special_ids
from bert_jax.text.features import Records, RecordSpec, check, restore
from bert_jax.text.manifest import LEVELS, Manifest, Split
from bert_jax.text.tokenizer import Special
from data_prep.views import Data, label_name, label_names, labels, layout_of, open_data, plural

RECORDS = 500_000  # read by `measure` unless told otherwise: some ten CPU seconds at 128 tokens
LONGEST = 12  # words of so many pieces and more are counted together
FEW = 100  # occurrences below which a piece is rare: its embedding learns little
_BLOCK = 2048
_MOST_LABELS = 10

_COUNTS = {  # in this order, with the rate that stands beside the count
    "records": "",
    "tokens": "",
    "padding": "",
    "documents": "",
    "empty_documents": "",
    "sentences": "",
    "cut_sentences": "",
    "corpus_tokens": "",
    "unknown_tokens": "unknown_rate",
    "truncated_tokens": "truncated_rate",
    "random_next": "random_next_rate",
    "eligible": "",
    "wanted": "",
    "overflowed": "overflowed_rate",
    "unfilled": "",
    "chosen": "chosen_rate",
    "masked": "masked_rate",
    "kept": "kept_rate",
    "random": "random_rate",
}

# ------------------------------------------------------------------------------------------------------------
# The manifest's counts


def headline(manifest: Manifest) -> list[str]:
    """Two lines: what a record is, what the data set was made from."""
    size = sum(one["bytes"] for one in manifest.inputs)
    return [
        f"{plural(manifest.length, 'token')} and {plural(manifest.predictions, 'prediction')} a record, layout "
        f"{layout_of(manifest)}, vocabulary of {manifest.vocab_size:,}, tokenizer {manifest.tokenizer[:12]}, "
        f"seed {manifest.seed}",
        f"{plural(len(manifest.inputs), 'input file')}, {plural(size, 'byte')}",
    ]


def counts(manifest: Manifest) -> list[tuple[str, list[tuple[str, str]]]]:
    """Name, and count and share for each split, of all that the manifest counted; unknown names come last."""
    splits = list(manifest.splits.values())
    rows = [("shards", [(f"{len(split.shards):,}", "") for split in splits])]
    for key, rate in _COUNTS.items():
        cells = [_cell(split, key, rate) for split in splits]
        if any(count for count, _ in cells):
            rows.append((key, cells))
    others = [_numbers(split.rates, {*_COUNTS, *_COUNTS.values()}) for split in splits]
    for key in dict.fromkeys(key for more in others for key in more):
        rows.append((key, [_number(key, more.get(key)) for more in others]))
    return [(name.replace("_", " "), cells) for name, cells in rows]


def whole_counts(manifest: Manifest) -> list[tuple[str, tuple[str, str]]]:
    """Counts of the whole input, of whatever step: tables of numbers among the settings and the manifest's fields."""
    tables = {
        name: value
        for name, value in (manifest.settings | vars(manifest)).items()
        if isinstance(value, dict) and name not in ("settings", "splits", "levels")
    }
    return [(key.replace("_", " "), _number(key, value)) for key, value in _numbers(tables, set()).items()]


def levels(manifest: Manifest) -> list[tuple[str, str, str]]:
    """Name, loss and accuracy of the reference levels."""
    return [
        (LEVELS.get(name, name), f"{level['loss']:.4f}", f"{level['accuracy']:.4f}" if "accuracy" in level else "")
        for name, level in manifest.levels.items()
    ]


def table(manifest: Manifest) -> str:
    """Counts and rates of the splits, and the reference levels, as aligned text."""
    rows, whole = counts(manifest), whole_counts(manifest)
    width = max(18, *(len(name) + 2 for name, *_ in rows + whole + levels(manifest)))

    def line(name: str, *cells: tuple[str, str]) -> str:
        return (f"{name:{width}}" + "".join(f"{count:>15}{share:>10}" for count, share in cells)).rstrip()

    lines = [*headline(manifest), "", line("", *((name, "") for name in manifest.splits))]
    lines += [line(name, *cells) for name, cells in rows]
    lines += ["", *(line(name, cell) for name, cell in whole)] if whole else []
    if manifest.levels:
        lines += ["", f"{'held-out level':{width}}{'loss':>15}{'accuracy':>15}"]
        lines += [f"{name:{width}}{loss:>15}{accuracy:>15}".rstrip() for name, loss, accuracy in levels(manifest)]
    return "\n".join(lines)


def _cell(split: Split, key: str, rate: str) -> tuple[str, str]:
    value = split.rates.get(key, getattr(split, key, None))
    if value is None:
        return "", ""
    share = split.rates.get(rate)
    if key == "padding" and split.tokens:
        share = value / (value + split.tokens)
    return f"{value:,.0f}", "" if share is None else f"{100 * share:.3f} %"


def _numbers(tree: dict, known: set[str], prefix: str = "") -> dict[str, float]:
    """The numbers of nested tables, by names joined with blanks, without those already shown."""
    found: dict[str, float] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            found |= _numbers(value, known, f"{prefix}{key} ")
        elif isinstance(value, int | float) and not isinstance(value, bool) and key not in known:
            found[prefix + key] = value
    return found


def _number(key: str, value: float | None) -> tuple[str, str]:
    """A number as a count, or as a share where its name says so."""
    if value is None:
        return "", ""
    if key.endswith(("rate", "share")):
        return "", f"{100 * value:.3f} %"
    return f"{value:,.4g}" if value % 1 else f"{value:,.0f}", ""


# ------------------------------------------------------------------------------------------------------------
# What the records hold


@dataclass(frozen=True)
class Found:
    """Counts over the records read of one split; histograms by value.

    lengths, a, b int64[T+1]: records by tokens, by tokens of segments A and B without special ones; shares
    int64[201]: records by chosen share of their eligible tokens, in steps of half a percent; chosen_at,
    eligible_at int64[T]: by position; masked, kept, random: what chosen tokens became; labels: records by
    label, empty for layouts without one; pieces int64[V]: original tokens by id, special ones included; words
    int64[LONGEST+1] or None: words by pieces, the last place for all longer ones, None without word starts;
    documents int64[d] or None: tokens a document in one pass over the text, truncated ones left out, of
    the shards read whole; None without document numbers or such shards.
    """

    split: str
    total: int
    read: int
    shards: int
    lengths: np.ndarray
    a: np.ndarray
    b: np.ndarray
    shares: np.ndarray
    chosen_at: np.ndarray
    eligible_at: np.ndarray
    masked: int
    kept: int
    random: int
    labels: dict[str, int]
    pieces: np.ndarray
    special: Special
    words: np.ndarray | None
    documents: np.ndarray | None

    @property
    def length(self) -> int:
        """T, tokens a row."""
        return len(self.lengths) - 1

    @property
    def padding_share(self) -> float:
        return 1 - float(self.lengths @ np.arange(self.length + 1)) / max(self.read * self.length, 1)

    @property
    def chosen(self) -> int:
        return self.masked + self.kept + self.random

    @property
    def chosen_share(self) -> float:
        """Of the tokens that may be chosen: all but special ones, [UNK] among these."""
        return self.chosen / max(int(self.eligible_at.sum()), 1)

    @property
    def ordinary(self) -> np.ndarray:
        """int64[V-5], occurrences of the pieces that are not special."""
        return np.delete(self.pieces, special_ids(self.special))

    @property
    def text_tokens(self) -> int:
        """Tokens that stand for text: ordinary ones and [UNK]."""
        return int(self.ordinary.sum() + self.pieces[self.special.unk])

    @property
    def unknown_share(self) -> float:
        return int(self.pieces[self.special.unk]) / max(self.text_tokens, 1)

    @property
    def fertility(self) -> float | None:
        """Pieces a word."""
        return None if self.words is None else self.text_tokens / max(int(self.words.sum()), 1)


def measure(directory: str, split: str = "train", limit: int = RECORDS, seed: int = 0) -> Found:
    """Reads records of a split and counts what they hold.

    Where there are more than `limit`, as many are taken at even distances, since a shard's records stand in
    random order but shards follow the corpus. Documents are whole only in whole shards: then up to `limit`
    further records are read, of shards drawn from `seed`. Memory does not grow with the number of records,
    but for the documents' sizes.

    Raises:
        UserError: no such data set or split, no records, a shard that is missing or not of this data set.
    """
    data = open_data(directory, None, split)
    manifest, rng = data.manifest, np.random.default_rng(seed)
    assert manifest is not None
    ends = np.cumsum(data.records)
    rows = whole = everything = [range(records) for records in data.records]
    if limit < data.total:
        taken = (np.arange(limit) * data.total + rng.integers(data.total)) // limit
        parts = np.split(taken, np.searchsorted(taken, ends[:-1]))
        rows = [part - end + len(every) for part, end, every in zip(parts, ends.tolist(), everything, strict=True)]
        drawn = rng.permutation(len(ends))
        drawn = drawn[np.cumsum(np.array(data.records)[drawn]) <= limit].tolist()
        whole = [every if at in drawn else range(0) for at, every in enumerate(everything)]
    sums: dict[str, np.ndarray] = {}
    words_known, documents = True, []
    for records in _blocks(data, rows, "records"):
        for name, tally in _tally(records, manifest).items():
            sums[name] = sums[name] + tally if name in sums else tally
        words_known &= "word_starts" in records
        if rows is whole and "documents" in records:
            documents.append(_documents(records, manifest.special))
    if rows is not whole:
        for records in _blocks(data, whole, "documents"):
            if "documents" in records:
                documents.append(_documents(records, manifest.special))
    layout = layout_of(manifest)
    return Found(
        split=split,
        total=data.total,
        read=sum(map(len, rows)),
        shards=sum(len(part) > 0 for part in rows),
        special=manifest.special,
        labels={
            label_name(layout, at): int(n)
            for at, n in enumerate(sums.pop("labels"))
            if n or at < len(label_names(layout))
        },
        words=sums.pop("words") if words_known else None,
        documents=_per_document(documents, manifest.settings.get("duplicates", 1)) if documents else None,
        **{name: sums[name] for name in ("lengths", "a", "b", "shares", "chosen_at", "eligible_at", "pieces")},
        **{name: int(sums[name]) for name in ("masked", "kept", "random")},
    )


def _blocks(data: Data, numbers: Sequence[range | np.ndarray], what: str) -> Iterator[Records]:
    """The records with these numbers in each shard, checked, a block at a time."""
    manifest = data.manifest
    assert manifest is not None
    spec = RecordSpec(manifest.length, manifest.predictions)
    total = sum(map(len, numbers))
    with tqdm(total=total, desc=what, unit="", unit_scale=True, leave=False, disable=None) as bar:
        for at, mine in enumerate(numbers):
            if not len(mine):
                continue
            shard = data.open(at)  # one at a time: an index takes memory too
            for first in range(0, len(mine), _BLOCK):
                part = np.asarray(mine[first : first + _BLOCK])
                records = shard.read(part)
                check(records, spec, manifest.vocab_size, str(shard.path), part)
                yield records
                bar.update(len(part))


def _tally(records: Records, manifest: Manifest) -> dict[str, np.ndarray]:
    """What `Found` counts, of one block of records: arrays that add up."""
    special, length = manifest.special, manifest.length
    original, now, inside = restore(records), records["input_ids"], records["input_mask"] > 0
    text = _text(original, inside, special)
    eligible = text & (original != special.unk)
    a, b = _segments(records, text)
    rows, slots = np.nonzero(records["masked_lm_weights"] > 0)
    places, label = records["masked_lm_positions"][rows, slots], records["masked_lm_ids"][rows, slots]
    masked, kept = now[rows, places] == special.mask, now[rows, places] == label
    share = np.bincount(rows, minlength=len(now)) / np.maximum(eligible.sum(1), 1)
    told = labels(records, layout_of(manifest))
    tally = {
        "lengths": np.bincount(inside.sum(1), minlength=length + 1),
        "a": np.bincount(a, minlength=length + 1),
        "b": np.bincount(b, minlength=length + 1),
        "shares": np.bincount(np.minimum(200 * share, 200).astype(int), minlength=201),
        "chosen_at": np.bincount(places, minlength=length),
        "eligible_at": eligible.sum(0),
        "masked": masked.sum(),
        "kept": (kept & ~masked).sum(),
        "random": (~kept & ~masked).sum(),
        "pieces": np.bincount(original[inside], minlength=manifest.vocab_size),
        "labels": np.bincount(np.clip(told, 0, _MOST_LABELS - 1) if told is not None else [], minlength=_MOST_LABELS),
    }
    if "word_starts" in records:
        # A segment may begin in the middle of a word: what follows a special token counts as a beginning.
        begins = records["word_starts"].astype(bool) & text
        begins[:, 1:] |= text[:, 1:] & ~text[:, :-1]
        sizes = np.diff(np.append(np.flatnonzero(begins[text]), text.sum()))
        tally["words"] = np.bincount(np.minimum(sizes, LONGEST), minlength=LONGEST + 1)
    return tally


def _text(original: np.ndarray, inside: np.ndarray, special: Special) -> np.ndarray:
    """bool[n,T]: tokens that stand for text, [UNK] among them."""
    ordinary = np.delete(special_ids(special), 1)  # without unk
    return inside & ~np.isin(original, ordinary)


def _segments(records: Records, text: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """int64[n] each: tokens of text in segments A and B."""
    in_b = records["segment_ids"] > 0
    return (text & ~in_b).sum(1), (text & in_b).sum(1)


def _documents(records: Records, special: Special) -> tuple[np.ndarray, np.ndarray]:
    """Document numbers of a block and their tokens; a B of another document is left out, being in its rows too."""
    a, b = _segments(records, _text(restore(records), records["input_mask"] > 0, special))
    one, other = records["documents"].T
    return _added(one, a + b * (one == other))


def _per_document(parts: list[tuple[np.ndarray, np.ndarray]], duplicates: int) -> np.ndarray:
    """Tokens of each document in one pass over the text."""
    _, tokens = _added(*(np.concatenate(column) for column in zip(*parts, strict=True)))
    return np.rint(tokens / max(duplicates, 1)).astype(np.int64)


def _added(numbers: np.ndarray, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    different, which = np.unique(numbers, return_inverse=True)
    return different, np.bincount(which, tokens).astype(np.int64)


def summary(found: Found, manifest: Manifest) -> list[tuple[str, str]]:
    """What `measure` found, as names and cells."""
    ordinary, settings = found.ordinary, manifest.settings
    asked = f", {settings['rate']:.2%} asked for" if "rate" in settings else ""
    rows = [
        ("records read", f"{found.read:,} of {found.total:,} in {found.split}, from {plural(found.shards, 'shard')}"),
        ("tokens a row", f"{mean(found.lengths):.1f} of {found.length}, {found.padding_share:.2%} padding"),
        ("segment A", f"{mean(found.a):.1f} tokens"),
    ]
    if found.a.sum() != found.b[0]:
        rows.append(("segment B", f"{mean(found.b):.1f} tokens"))
    rows.append(("chosen", f"{found.chosen_share:.2%} of the tokens{asked}"))
    became = ", ".join(f"{name} {count / max(found.chosen, 1):.2%}" for name, count in outcomes(found))
    rows.append(("became", became))
    if found.labels:
        rows.append(("labels", ", ".join(f"{name} {n / found.read:.2%}" for name, n in found.labels.items())))
    if found.documents is not None:
        size = found.documents
        middle = f"median {np.median(size):,.0f} tokens, {size.min():,} to {size.max():,}"
        some = " in the shards read whole" if found.read < found.total else ""
        rows.append(("documents", f"{len(size):,}{some}, {middle}"))
    if found.fertility is not None:
        rows.append(("pieces a word", f"{found.fertility:.3f}; a punctuation sign or an ideograph is a word"))
    never, few = int((ordinary == 0).sum()), int(((ordinary > 0) & (ordinary < FEW)).sum())
    rows += [
        ("unknown", f"{found.unknown_share:.3%} of the tokens are [UNK]"),
        ("never seen", f"{never:,} of {plural(len(ordinary), 'piece')} ({never / max(len(ordinary), 1):.2%})"),
        ("rarely seen", f"{plural(few, 'piece')}, fewer than {FEW} times"),
    ]
    return rows


def columns(rows: list[tuple[str, str]]) -> str:
    """Names and cells as aligned text."""
    width = max(len(name) for name, _ in rows) + 2
    return "\n".join(f"{name:{width}}{cell}" for name, cell in rows)


def outcomes(found: Found) -> list[tuple[str, int]]:
    """What became of the chosen tokens."""
    return [("[MASK]", found.masked), ("kept", found.kept), ("random", found.random)]


def mean(histogram: np.ndarray) -> float:
    """Of the values counted in a histogram by value."""
    return float(histogram @ np.arange(len(histogram))) / max(int(histogram.sum()), 1)
