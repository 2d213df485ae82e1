"""Extends a WordPiece vocabulary by words of a text that it cuts into many pieces."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields

import numpy as np

from bert_jax.errors import UserError
from bert_jax.text.edits import as_piece, extended, unused_slots
from bert_jax.text.tokenizer import Tokenizer
from data_prep import sources
from data_prep.sample import read
from data_prep.spool import document_hash
from data_prep.train_tokenizer import finished, note, save, tell_pruned
from data_prep.words import Rules, WordCounter

_HELD_OUT = 0.05  # share of the text, by hash, on which the vocabularies are compared
_LEAST = 2  # a word seen once is proposed by nobody
_SHOWN = 20  # words in the table
_AT_ONCE = 100_000  # words encoded in one call


@dataclass(frozen=True)
class ExtendSettings:
    """All that decides an extension, besides vocabulary and text. Defaults stand here only."""

    add: int
    use_unused: bool = False
    on_bad_bytes: str = "fail"
    seed: int = 0


@dataclass(frozen=True)
class Proposal:
    """A word for the vocabulary: how often it stands in the text, and into what it is cut so far."""

    word: str
    count: int
    pieces: tuple[str, ...]
    gain: int


@dataclass(frozen=True)
class Figures:
    """How a vocabulary cuts a text.

    Attributes:
        fertility: pieces a word, [UNK] being one.
        whole: share of the words that are one piece (not [UNK]).
        unknown: share of the words that are [UNK].
    """

    fertility: float
    whole: float
    unknown: float


@dataclass(frozen=True)
class Extension:
    """What `extend` made: the new tokenizer, the words added, best first, and the vocabulary before and after.

    `compared` says on what text `before` and `after` were taken: its number of words, and whether it was held out.
    """

    tokenizer: Tokenizer
    added: tuple[Proposal, ...]
    before: Figures
    after: Figures
    compared: tuple[int, bool]


def extend(vocabulary: str, patterns: list[str], directory: str, settings: ExtendSettings) -> Extension | None:
    """Writes a tokenizer directory with new words; None if it is there already from the same settings.

    A word gains count x (pieces - 1) tokens. One that is [UNK] so far loses the model all its characters and
    counts as one piece for each and one more. The words of highest gain are added, whole, with ids after the old
    ones or in the place of [unused0], [unused1], ...; all other ids stay.

    Args:
        vocabulary: a WordPiece tokenizer as `Tokenizer.load` takes it.
        patterns: text to find words in, see sources.py. All of it is read, once, in bounded memory.
        directory: gets the files of `Tokenizer.save` and training.json.
        settings: how many words, and where.

    Raises:
        UserError: bad input, a SentencePiece tokenizer, too few [unusedN], another tokenizer in the directory.
    """
    old = Tokenizer.load(vocabulary)
    if old.kind != "wordpiece":
        raise UserError(
            f"this is a {old.kind} tokenizer, and words can be added to WordPiece only",
            vocabulary,
            "train a new one on both texts with bert-data tokenizer",
        )
    slots = len(unused_slots(old))
    if settings.use_unused and slots < settings.add:
        raise UserError(
            f"the vocabulary has {slots:,} pieces named [unusedN], too few for {settings.add:,} words",
            vocabulary,
            f"pass --add {slots} or less, or leave out --use-unused" if slots else "leave out --use-unused",
        )
    sources.check_apart(patterns, directory)
    paths = sources.expand(patterns)
    inputs = [sources.describe(path) for path in paths]
    record = {
        "settings": asdict(settings),
        "extended": old.fingerprint,
        "inputs": [asdict(each) for each in inputs],
    }
    if finished(directory, record):
        return None

    rules = Rules(**{field.name: old.options[field.name] for field in fields(Rules)})
    seen, held_out = _count(read(paths, inputs, settings.on_bad_bytes), rules, settings.seed)
    if not seen:
        raise UserError("the text holds no words", remedy="give text")
    added = propose(old, seen, settings.add)
    if len(added) < settings.add:
        note(f"the text gives {len(added):,} words to add, not {settings.add:,}")
    new = extended(old, [proposal.word for proposal in added], settings.use_unused)
    sample = held_out or seen
    result = Extension(new, added, figures(old, sample), figures(new, sample), (sum(sample.values()), bool(held_out)))
    save(new, directory, record)
    return result


def propose(tokenizer: Tokenizer, counts: dict[str, int], add: int) -> tuple[Proposal, ...]:
    """At most `add` words of the highest gain; equal ones in the order of count, then of the alphabet."""
    unk, found = tokenizer.special.unk, []
    known = frozenset(tokenizer.pieces)
    words = [word for word in sorted(counts) if counts[word] >= _LEAST and word not in known]
    for batch in _batches(words):
        encoded = tokenizer.encode_batch(batch)
        for word, begin, end in zip(batch, encoded.rows[:-1].tolist(), encoded.rows[1:].tolist(), strict=True):
            ids = encoded.ids[begin:end].tolist()
            pieces = len(word) + 1 if ids == [unk] else len(ids)
            if pieces > 1:
                names = tuple(tokenizer.pieces[number] for number in ids)
                found.append(Proposal(word, counts[word], names, counts[word] * (pieces - 1)))
    found.sort(key=lambda proposal: (-proposal.gain, -proposal.count, proposal.word))
    # One that its own normalisation changes or cuts would never be found.
    return tuple(itertools.islice((each for each in found if as_piece(tokenizer, each.word) == each.word), add))


def figures(tokenizer: Tokenizer, counts: dict[str, int]) -> Figures:
    """How a tokenizer cuts words, each as often as it stands in the text."""
    words, pieces, whole, unknown = 0, 0, 0, 0
    for batch in _batches(sorted(counts)):
        encoded = tokenizer.encode_batch(batch)
        times = np.fromiter((counts[word] for word in batch), np.int64, len(batch))
        lengths = np.diff(encoded.rows)
        lost = np.zeros(len(batch), bool)
        lost[lengths > 0] = encoded.ids[encoded.rows[:-1][lengths > 0]] == tokenizer.special.unk
        words += int(times.sum())
        pieces += int((times * lengths).sum())
        whole += int(times[(lengths == 1) & ~lost].sum())
        unknown += int(times[lost].sum())
    return Figures(pieces / words, whole / words, unknown / words)


def table(extension: Extension) -> str:
    """The best words with what they were, and figures before and after, for the terminal."""
    shown = extension.added[:_SHOWN]
    width = max([len(proposal.word) for proposal in shown] + [4])
    lines = [f"{'word':<{width}}  {'count':>9}  pieces so far"] if shown else []
    lines += [f"{each.word:<{width}}  {each.count:>9,}  {' '.join(each.pieces)}" for each in shown]
    if rest := len(extension.added) - len(shown):
        lines.append(f"and {rest:,} more")
    words, held_out = extension.compared
    text = "held out from the choice" if held_out else "of the same text, which is too short to hold some out"
    lines += ["", f"on {words:,} words {text}:", f"{'':<16}  {'before':>8}  {'after':>8}"]
    before, after = extension.before, extension.after
    lines += [
        f"{'pieces a word':<16}  {before.fertility:>8.3f}  {after.fertility:>8.3f}",
        f"{'words whole':<16}  {before.whole:>8.2%}  {after.whole:>8.2%}",
        f"{'words [UNK]':<16}  {before.unknown:>8.2%}  {after.unknown:>8.2%}",
    ]
    return "\n".join(lines)


def _count(texts: Iterator[str], rules: Rules, seed: int) -> tuple[dict[str, int], dict[str, int]]:
    """Words of the text to choose from, and of that held out; equal stretches of text are on the same side."""
    seen, held_out = WordCounter(rules), WordCounter(rules)
    for text in texts:
        side = held_out if document_hash(text.encode(), seed) < _HELD_OUT * 2**64 else seen
        side.add(text)
    found = seen.result()
    if not found.counts:  # one document, which chance held out
        return held_out.result().counts, {}
    tell_pruned(found)
    return found.counts, held_out.result().counts


def _batches(words: list[str]) -> Iterator[list[str]]:
    for begin in range(0, len(words), _AT_ONCE):
        yield words[begin : begin + _AT_ONCE]
