"""Trains a tokenizer: SentencePiece unigram or BPE, or WordPiece. The same input gives the same bytes."""

from __future__ import annotations

import io
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from tqdm import tqdm

from bert_jax.errors import UserError
from bert_jax.text.tokenizer import SPECIAL_NAMES, Tokenizer, from_spiece, from_vocab
from data_prep import sources
from data_prep.merges import PREFIX, learn
from data_prep.sample import read, sample
from data_prep.spool import document_hash
from data_prep.words import Rules, WordCounter, Words

RECORD = "training.json"
KINDS = ("unigram", "bpe", "wordpiece")
SAMPLE_MEGABYTES = 100.0  # for SentencePiece, which holds all it is given
# Unigram's pieces hang on the number of threads (sums of floats in another order), so it is the same
# everywhere.
_THREADS = 4
_LONGEST = 4000  # characters between blanks given to SentencePiece at once; more are cut there
# Characters of text given to SentencePiece, blanks too, counts multiplied out: unigram takes some 22 bytes for each.
_CHARACTERS = 40_000_000
LONGEST_WORD = 100  # characters; a longer one is [UNK] to WordPiece, whatever its pieces
_TRAINED = 1_000_000  # words that merges are learnt from, the most frequent, to bound memory


@dataclass(frozen=True)
class TokenizerSettings:
    """All that decides a tokenizer, besides its text. Defaults stand here only.

    sample_megabytes None is all text for WordPiece, which only counts words, and 100 for the others.
    """

    kind: str = "unigram"
    vocab_size: int = 16_000
    lowercase: bool = False
    coverage: float = 0.9995
    sample_megabytes: float | None = None
    on_bad_bytes: str = "fail"
    seed: int = 0


def train(patterns: list[str], directory: str, settings: TokenizerSettings) -> Tokenizer:
    """Trains a tokenizer into `directory`; if it is there already from the same settings, only says so.

    The text is read once (and once more for its checksum). Memory hangs on the sample and on a limit of words,
    not on the corpus.

    Args:
        patterns: input files and globs, see sources.py.
        directory: gets the files of `Tokenizer.save` and training.json, what it was trained with.
        settings: a corpus beyond `sample_megabytes` of text is sampled by documents, by hash and seed;
            characters beyond `coverage` of the text become [UNK].

    Raises:
        UserError: bad input, too little text for the vocabulary, another tokenizer in the directory.
    """
    if settings.kind != "wordpiece" and settings.coverage < 0.98:
        raise UserError(
            f"SentencePiece trains no tokenizer that covers {settings.coverage:g} of the text",
            "--coverage",
            "give 0.98 to 1, or --kind wordpiece",
        )
    sources.check_apart(patterns, directory)
    paths = sources.expand(patterns)
    inputs = [sources.describe(path) for path in paths]
    record = {"settings": asdict(settings), "inputs": [asdict(each) for each in inputs]}
    if known := finished(directory, record):
        return known
    texts: Iterable[str] = read(paths, inputs, settings.on_bad_bytes)
    megabytes = settings.sample_megabytes
    if megabytes is None and settings.kind != "wordpiece":
        megabytes = SAMPLE_MEGABYTES
    if megabytes is not None:
        texts, total = sample(texts, megabytes, settings.seed)
        if total > megabytes * 1e6:
            note(f"trained on a sample, {megabytes:g} of {total / 1e6:,.6g} MB of text (--sample-megabytes)")
    make = _wordpiece if settings.kind == "wordpiece" else _sentencepiece
    tokenizer = make(texts, settings)
    save(tokenizer, directory, record)
    return tokenizer


def finished(directory: str, record: dict) -> Tokenizer | None:
    """The tokenizer in `directory` if it was made from the same `record`, which is then said; None if there is none.

    Raises:
        UserError: there is one made otherwise.
    """
    out = Path(directory)
    if not (out / "fingerprint").exists():
        return None
    known = out / RECORD
    if known.exists() and json.loads(known.read_text(encoding="utf-8")) == record:
        print(f"already done: {out}", file=sys.stderr)
        return Tokenizer.load(out)
    raise UserError(
        "there is already a tokenizer from other settings or text",
        directory,
        "give another --out, or remove it",
    )


def save(tokenizer: Tokenizer, directory: str, record: dict) -> None:
    """Writes the tokenizer's files and what it was made from; the fingerprint comes last."""
    out = Path(directory)
    try:
        out.mkdir(parents=True, exist_ok=True)
        temporary = out / f".{RECORD}.{os.getpid()}.tmp"
        temporary.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        os.replace(temporary, out / RECORD)
        tokenizer.save(out)
    except OSError as error:
        for half in out.glob(f".*.{os.getpid()}.tmp") if out.is_dir() else ():
            half.unlink(missing_ok=True)
        raise UserError(f"the directory cannot be written ({error.strerror})", directory) from None


def note(text: str) -> None:
    """One line beside the result."""
    print(f"bert-data: note: {text}", file=sys.stderr)


# -----------------------------------------------------------------------------------------------------------
# SentencePiece


def _sentencepiece(texts: Iterable[str], settings: TokenizerSettings) -> Tokenizer:
    """Unigram or BPE with [PAD] [UNK] [CLS] [SEP] [MASK] at 0 to 4, all but [UNK] control symbols.

    No piece reaches over a blank, so stretches between blanks with their counts say all that lines would.
    """
    import sentencepiece

    chunks: Counter[str] = Counter()
    for text in texts:
        for chunk in text.split():
            for first in range(0, len(chunk), _LONGEST):
                chunks[chunk[first : first + _LONGEST]] += 1
    model = io.BytesIO()
    pad, unk, cls_, sep, mask = SPECIAL_NAMES
    with tqdm(desc="giving words", unit="words", leave=False, disable=None) as bar:
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=_counted(chunks, bar),
                input_format="tsv",
                model_writer=model,  # a file name would be written into the model
                model_type=settings.kind,
                vocab_size=settings.vocab_size,
                character_coverage=settings.coverage,
                normalization_rule_name="nmt_nfkc_cf" if settings.lowercase else "nmt_nfkc",
                pad_id=0,
                unk_id=1,
                bos_id=2,
                eos_id=3,
                pad_piece=pad,
                unk_piece=unk,
                bos_piece=cls_,
                eos_piece=sep,
                control_symbols=[mask],
                num_threads=_THREADS,
                max_sentence_length=4 * _LONGEST + 20,  # bytes, the count behind a tab among them
                minloglevel=2,
            )
        except (RuntimeError, ValueError) as error:
            raise _refusal(str(error), settings) from None
    return from_spiece(model.getvalue(), "spiece.model")


def _counted(chunks: Counter[str], bar: tqdm) -> Iterator[str]:
    """Lines of a chunk, a tab and its count, most frequent first, in all not much more than _CHARACTERS.

    Where there are more, counts are divided and the rest of the division is rounded by the chunk's hash, so
    that on average each keeps its share, the rarest too.
    """
    scale = max(1.0, sum((len(chunk) + 1) * count for chunk, count in chunks.items()) / _CHARACTERS)
    for chunk in sorted(chunks, key=lambda chunk: (-chunks[chunk], chunk)):
        count = chunks[chunk]
        if scale > 1:
            count = int(count / scale + document_hash(chunk.encode(), 0) / 2**64)
        if count:
            yield f"{chunk}\t{count}"
            bar.update()
    bar.set_description("training on them")
    bar.refresh()


def _refusal(reason: str, settings: TokenizerSettings) -> UserError:
    """What SentencePiece says of a vocabulary that the text does not allow, in our words."""
    wanted = settings.vocab_size
    if found := re.search(r"too high .*<= (\d+)", reason):
        return UserError(
            f"the text is too little for {wanted:,} pieces: it gives {int(found[1]):,} at most",
            remedy=f"pass --vocab {found[1]} or less, or give more text",
        )
    if found := re.search(r"smaller than required_chars\. \d+ vs (\d+)", reason):
        return UserError(
            f"the text has so many frequent characters that {wanted:,} pieces cannot hold them: "
            f"they need {int(found[1]):,} at least",
            remedy=f"pass --vocab {found[1]} or more, or lower --coverage",
        )
    return UserError(f"SentencePiece cannot train {wanted:,} pieces on this text ({reason.strip().splitlines()[-1]})")


# -----------------------------------------------------------------------------------------------------------
# WordPiece


def _wordpiece(texts: Iterable[str], settings: TokenizerSettings) -> Tokenizer:
    """WordPiece by our own merges on word counts.

    The trainer of `tokenizers` numbers characters in the order of a hash table and breaks ties by these
    numbers, so that every run gives another vocabulary, and it takes words only one by one.
    """
    counter = WordCounter(Rules(settings.lowercase))
    for text in texts:
        counter.add(text)
    found = counter.result()
    tell_pruned(found)
    first: Counter[str] = Counter()
    later: Counter[str] = Counter()
    for word, count in found.counts.items():
        first[word[0]] += count
        for character in word[1:]:
            later[character] += count
    alphabet = _alphabet(first, later, settings)
    if not alphabet:
        raise UserError("the text holds no words", remedy="give text")
    fixed = [*SPECIAL_NAMES, *alphabet, *(PREFIX + character for character in alphabet if character in later)]
    if len(fixed) > settings.vocab_size:
        raise UserError(
            f"the text has {len(alphabet):,} frequent characters, which with their {PREFIX} forms do not fit into "
            f"{settings.vocab_size:,} pieces: they need {len(fixed):,}",
            remedy=f"pass --vocab {len(fixed)} or more, or lower --coverage",
        )
    # A word with any other character is [UNK] as a whole, so it says nothing about pieces.
    known = frozenset(alphabet)
    usable = [word for word in found.counts if len(word) <= LONGEST_WORD and known.issuperset(word)]
    words = sorted(usable, key=lambda word: (-found.counts[word], word))[:_TRAINED]
    if len(usable) > len(words):
        note(f"to bound memory, merges were learnt from the {len(words):,} most frequent of {len(usable):,} words")
    counts = [found.counts[word] for word in words]
    with tqdm(desc="merging", unit="pieces", total=settings.vocab_size, leave=False, disable=None) as bar:
        bar.update(len(fixed))
        pieces = learn(words, counts, fixed, settings.vocab_size, progress=bar.update)
    if len(pieces) < settings.vocab_size:
        note(
            f"the text gives {len(pieces):,} pieces, not {settings.vocab_size:,}: no other pair of pieces stands there "
            "twice"
        )
    return from_vocab(pieces, "vocab.txt", settings.lowercase)


def tell_pruned(found: Words) -> None:
    """Says what a word count gave up, if anything."""
    if found.pruned:
        share = found.pruned / (found.pruned + sum(found.counts.values()))
        note(
            f"to bound memory, rare words were dropped while counting: {found.pruned:,} words of text ({share:.2%}), "
            f"of no word more than {found.border:,}"
        )


def _alphabet(first: Counter[str], later: Counter[str], settings: TokenizerSettings) -> list[str]:
    """The most frequent characters that cover the share of the text asked for, sorted."""
    counts = first + later
    order = sorted(counts, key=lambda character: (-counts[character], character))
    wanted, seen, kept = settings.coverage * counts.total(), 0, []
    for character in order:
        if seen >= wanted:
            break
        kept.append(character)
        seen += counts[character]
    return sorted(kept)
