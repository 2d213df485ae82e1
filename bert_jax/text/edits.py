"""A tokenizer with words added, or without the pieces that a domain does not need.

What stays keeps its order and what is added stands behind it, so ids only move together; all settings stay. A model
follows by `bert_jax.convert.vocabulary`.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from bert_jax.errors import UserError
from bert_jax.text import spiece
from bert_jax.text.loading import from_json
from bert_jax.text.tokenizer import ROLES, Tokenizer, from_spiece, from_vocab
from bert_jax.text.trie import MAX_WORD

_UNUSED = re.compile(r"\[unused\d+\]")
_AT_ONCE = 10_000  # texts encoded in one call


# ------------------------------------------------------------------------------------------------------- adding


def as_piece(tokenizer: Tokenizer, word: str) -> str | None:
    """The piece that would stand for a word whole, as the tokenizer normalises it; None if there can be none.

    There can be none for a text that the tokenizer cuts into several words ("e-mail" in WordPiece), that is nothing
    to it, or that WordPiece holds unknown for its length.

    Example:
        >>> as_piece(from_vocab(SPECIAL_NAMES, lowercase=True), "Zebra")
        'zebra'
    """
    words = tokenizer.words(word)
    if len(words) != 1 or tokenizer.kind == "wordpiece" and len(words[0]) > MAX_WORD:
        return None
    return words[0]


def unused_slots(tokenizer: Tokenizer) -> list[int]:
    """Ids of the pieces [unused0], [unused1], …, which Google's vocabularies keep for words to come."""
    return [number for number, piece in enumerate(tokenizer.pieces) if _UNUSED.fullmatch(piece)]


def extended(tokenizer: Tokenizer, words: Iterable[str], use_unused: bool = False) -> Tokenizer:
    """The tokenizer with words that it then knows whole.

    A Unigram piece needs a score, a log-probability. It gets the mean score of the pieces into which the word is cut
    so far, an unknown one counting as the lowest score there is. That is above their sum, so the piece wins over them,
    and not below the lowest score, from which `tokenizers` prices what is unknown: texts that do not hold the word are
    cut as before. The piece begins a word, as all that follow a blank do.

    Args:
        tokenizer: WordPiece or Unigram.
        words: normalised here; those that it has, or that come twice, are left out.
        use_unused: for WordPiece, in the place of [unused0], [unused1], …, so that no id is new.

    Raises:
        UserError: a BPE tokenizer, whose pieces come of merges that would cut other texts too; a text that can be no
            piece; too few [unusedN].
    """
    if tokenizer.kind == "bpe":
        raise UserError(
            "words cannot be added to a BPE tokenizer: the merges that build them would change other words",
            remedy="train a new tokenizer on both texts with bert-data tokenizer",
        )
    known, pieces = frozenset(tokenizer.pieces), {}
    for word in words:
        piece = as_piece(tokenizer, word)
        if piece is None:
            raise UserError(
                f"{word!r} cannot be one piece: it is empty, too long or several words here",
                remedy="leave it out",
            )
        if piece not in known:
            pieces[piece] = None
    if tokenizer.kind == "unigram":
        new = _rebuilt(tokenizer, range(tokenizer.vocab_size), _priced(tokenizer, list(pieces)))
    else:
        new = from_vocab(_placed(tokenizer, list(pieces), use_unused), "vocabulary", **_options(tokenizer))
    _check_whole(new, list(pieces))
    return new


def _placed(tokenizer: Tokenizer, words: list[str], use_unused: bool) -> list[str]:
    pieces, slots = list(tokenizer.pieces), unused_slots(tokenizer)
    if not use_unused:
        return pieces + words
    if len(slots) < len(words):
        raise UserError(
            f"the vocabulary has {len(slots):,} pieces named [unusedN], too few for {len(words):,} words",
            remedy="add fewer words, or let them stand behind the others",
        )
    for slot, word in zip(slots, words, strict=False):
        pieces[slot] = word
    return pieces


def _priced(tokenizer: Tokenizer, words: list[str]) -> list[tuple[str, float]]:
    scores = _scores(tokenizer)
    lowest, unk = min(scores), tokenizer.special.unk
    priced = []
    for word in words:
        parts = [lowest if number == unk else scores[number] for number in tokenizer.spell(word)]
        # A float32 in nine digits, as in `from_spiece`, and never below the lowest by a rounding.
        priced.append((word, max(lowest, float(f"{np.float32(np.mean(parts)):.9g}"))))
    return priced


def _check_whole(tokenizer: Tokenizer, words: list[str]) -> None:
    encoded = tokenizer.encode_batch([word.removeprefix("\u2581") for word in words])
    for number, word in enumerate(words):
        found = [tokenizer.pieces[i] for i in encoded.ids[encoded.rows[number] : encoded.rows[number + 1]]]
        if found != [word]:
            raise UserError(f"{word!r} would still be cut into {' '.join(found)}", remedy="leave it out")


# ----------------------------------------------------------------------------------------------------- trimming


def trimmed(tokenizer: Tokenizer, texts: Iterable[str]) -> Tokenizer:
    """The tokenizer with the special tokens and what these texts need, and nothing else: they are cut as before.

    Needed is also what no id shows: the longest pieces in a word that WordPiece ends by calling unknown, as shorter
    ones might find a way through it; of Unigram a piece of the lowest score, from which the unknown is priced, and
    what is no ordinary piece; of BPE all merges on the way to a needed piece. Other texts may be cut otherwise, and
    what is known now may be unknown.

    Raises:
        UserError: the texts hold no token.
    """
    needed = np.zeros(tokenizer.vocab_size, bool)
    for batch in _batches(texts):
        encoded = tokenizer.encode_batch(batch)
        needed[encoded.ids] = True
        if tokenizer.kind == "wordpiece":
            _keep_unknown(tokenizer, needed, batch, encoded.ids, encoded.rows)
    if not needed.any():
        raise UserError("the texts hold nothing to keep a vocabulary for", remedy="give text")
    if tokenizer.kind == "unigram":
        scores = _scores(tokenizer)
        needed[scores.index(min(scores))] = True
    if tokenizer.kind == "bpe":
        _keep_merges(tokenizer, needed)
    needed[[getattr(tokenizer.special, role) for role in ROLES]] = True
    needed[_extraordinary(tokenizer)] = True
    kept = np.flatnonzero(needed).tolist()
    if tokenizer.kind == "wordpiece":
        return from_vocab([tokenizer.pieces[number] for number in kept], "vocabulary", **_options(tokenizer))
    return _rebuilt(tokenizer, kept, [])


def _keep_unknown(tokenizer: Tokenizer, needed: np.ndarray, texts: list[str], ids: np.ndarray, rows: np.ndarray):
    """The pieces on the way to where unknown words are given up."""
    where = np.flatnonzero(ids == tokenizer.special.unk)
    for row in np.unique(np.searchsorted(rows, where, side="right") - 1).tolist():
        for word in set(tokenizer.words(texts[row])):
            if len(word) <= MAX_WORD:  # beyond, it is unknown for its length
                path, whole = tokenizer.greedy(word)
                needed[path] |= not whole


def _keep_merges(tokenizer: Tokenizer, needed: np.ndarray) -> None:
    numbers = {piece: number for number, piece in enumerate(tokenizer.pieces)}
    parts: dict[str, list[str]] = {}
    for left, right in _merges(tokenizer):
        parts.setdefault(left + right, []).extend((left, right))
    waiting = [tokenizer.pieces[number] for number in np.flatnonzero(needed)]
    while waiting:
        for part in parts.get(waiting.pop(), ()):
            if not needed[numbers[part]]:
                needed[numbers[part]] = True
                waiting.append(part)


def _extraordinary(tokenizer: Tokenizer) -> list[int]:
    """Ids of what SentencePiece has for control or takes whole, or a tokenizer.json adds or frames texts by."""
    name, data = tokenizer.file
    if name == "spiece.model":
        types = spiece.read(data, name).types
        return [number for number, type_ in enumerate(types) if type_ != spiece.NORMAL]
    if name == "tokenizer.json":
        raw, framing = json.loads(data), []
        _renumber(raw.get("post_processor"), lambda old: framing.append(old) or old)
        return [token["id"] for token in raw.get("added_tokens") or []] + framing
    return []


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    texts = iter(texts)
    while batch := list(itertools.islice(texts, _AT_ONCE)):
        yield batch


# --------------------------------------------------------------------------------------------- the files anew


def _options(tokenizer: Tokenizer) -> dict:
    options = dict(tokenizer.options)
    return {"lowercase": options.pop("do_lower_case"), **options}


def _scores(tokenizer: Tokenizer) -> list[float]:
    """Of a Unigram tokenizer, by id."""
    name, data = tokenizer.file
    if name == "spiece.model":
        return list(spiece.read(data, name).scores)
    return [score for _, score in json.loads(data)["model"]["vocab"]]


def _merges(tokenizer: Tokenizer) -> list[tuple[str, str]]:
    """Of a BPE tokenizer, the first to be merged first."""
    merges = json.loads(tokenizer._engine.to_str())["model"]["merges"]
    return [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in merges]


def _rebuilt(tokenizer: Tokenizer, kept: Sequence[int], added: Sequence[tuple[str, float]]) -> Tokenizer:
    """A tokenizer of SentencePiece's kinds over pieces that it has, in this order, and new ones with their scores."""
    name, data = tokenizer.file
    if name == "spiece.model":
        return from_spiece(spiece.rewritten(data, kept, added), name)
    raw = json.loads(data)
    model, number = raw["model"], {old: new for new, old in enumerate(kept)}
    pieces = [tokenizer.pieces[old] for old in kept]
    if tokenizer.kind == "unigram":
        model["vocab"] = [model["vocab"][old] for old in kept] + [list(each) for each in added]
        if model.get("unk_id") is not None:
            model["unk_id"] = number[model["unk_id"]]
    else:
        there = frozenset(pieces)
        merges = [merge for merge in _merges(tokenizer) if {*merge, "".join(merge)} <= there]
        model |= {
            "vocab": {piece: new for new, piece in enumerate(pieces)},
            "merges": [list(merge) for merge in merges],
        }
    for token in raw.get("added_tokens") or []:
        token["id"] = number[token["id"]]
    _renumber(raw.get("post_processor"), number.__getitem__)
    names = {role: tokenizer.pieces[getattr(tokenizer.special, role)] for role in ROLES}
    return from_json(raw, names, name)


def _renumber(processor: dict | None, number: Callable[[int], int]) -> None:
    """Gives every id in a post-processor of the `tokenizers` library its new number, in place."""
    processor = processor or {}
    for token in (processor.get("special_tokens") or {}).values():
        token["ids"] = [number(old) for old in token["ids"]]
    for role in {"sep", "cls"} & processor.keys():
        processor[role] = [processor[role][0], number(processor[role][1])]
    for part in processor.get("processors") or []:
        _renumber(part, number)
