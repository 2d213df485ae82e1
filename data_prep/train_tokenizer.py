"""Trains a tokenizer: SentencePiece unigram or BPE, or WordPiece. The same input gives the same bytes."""

from __future__ import annotations

import io
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from tqdm import tqdm

from bert_jax.errors import UserError
from bert_jax.text.tokenizer import SPECIAL_NAMES, Tokenizer, from_spiece, from_vocab
from data_prep import sources
from data_prep.shard import document_hash

RECORD = "training.json"
KINDS = ("unigram", "bpe", "wordpiece")
# Unigram's pieces hang on the number of threads (sums of floats in another order), so it is the same
# everywhere.
_THREADS = 4
_LONGEST = 4000  # characters of a line given to training; longer ones are cut there


@dataclass(frozen=True)
class TokenizerSettings:
    """All that decides a tokenizer, besides its text. Defaults stand here only."""

    kind: str = "unigram"
    vocab_size: int = 16_000
    lowercase: bool = False
    coverage: float = 0.9995
    sample_megabytes: float = 100.0
    on_bad_bytes: str = "fail"
    seed: int = 0


def train(patterns: list[str], directory: str, settings: TokenizerSettings) -> Tokenizer:
    """Trains a tokenizer into `directory`; if it is there already from the same settings, only says so.

    Args:
        patterns: input files and globs, see sources.py.
        directory: gets the files of `Tokenizer.save` and training.json, what it was trained with.
        settings: a corpus beyond `sample_megabytes` of text is sampled by documents, by hash and seed;
            characters beyond `coverage` of the text become [UNK].

    Raises:
        UserError: bad input, too little text for the vocabulary, another tokenizer in the directory.
    """
    out = Path(directory)
    paths = sources.expand(patterns)
    record = {"settings": asdict(settings), "inputs": [asdict(sources.describe(path)) for path in paths]}
    if (out / "fingerprint").exists():
        known = out / RECORD
        if known.exists() and json.loads(known.read_text(encoding="utf-8")) == record:
            print(f"already done: {out}", file=sys.stderr)
            return Tokenizer.load(out)
        raise UserError(
            "there is already a tokenizer from other settings or text",
            directory,
            "give another --out, or remove it",
        )
    lines = _sample(paths, settings)
    make = _wordpiece if settings.kind == "wordpiece" else _sentencepiece
    tokenizer = make(lines, settings)
    try:
        out.mkdir(parents=True, exist_ok=True)
        temporary = out / f".{RECORD}.{os.getpid()}.tmp"
        temporary.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        os.replace(temporary, out / RECORD)
        tokenizer.save(out)
    except OSError as error:
        raise UserError(f"the directory cannot be written ({error.strerror})", directory) from None
    return tokenizer


def _sample(paths: list[str], settings: TokenizerSettings) -> list[str]:
    """The lines to train on: all documents, or those whose hash is low enough for the size wanted."""

    def read() -> Iterator[str]:
        with tqdm(desc="reading", unit="B", unit_scale=True, leave=False, disable=None) as bar:
            for path in paths:
                for document in sources.documents(path, settings.on_bad_bytes):
                    bar.update(len(document.encode()))
                    yield document

    limit = settings.sample_megabytes * 1e6
    total = sum(len(document.encode()) for document in read())
    border = 2**64 if total <= limit else int(limit / total * 2**64)
    return [
        line[first : first + _LONGEST]
        for document in read()
        if document_hash(document, settings.seed) < border
        for line in document.split("\n")
        for first in range(0, len(line), _LONGEST)
    ]


def _sentencepiece(lines: list[str], settings: TokenizerSettings) -> Tokenizer:
    """Unigram or BPE with [PAD] [UNK] [CLS] [SEP] [MASK] at 0 to 4, all but [UNK] control symbols."""
    import sentencepiece

    model = io.BytesIO()
    pad, unk, cls_, sep, mask = SPECIAL_NAMES
    try:
        with tqdm(lines, desc="training", unit="lines", leave=False, disable=None) as given:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(given),
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
                max_sentence_length=4 * _LONGEST,
                minloglevel=2,
            )
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().split("\n")[-1]
        raise UserError(
            f"SentencePiece cannot train {settings.vocab_size} pieces on this text ({reason})",
            remedy="ask for fewer pieces with --vocab, or give more text",
        ) from None
    return from_spiece(model.getvalue(), "spiece.model")


def _wordpiece(lines: list[str], settings: TokenizerSettings) -> Tokenizer:
    """WordPiece by the trainer of `tokenizers`, made repeatable.

    That trainer numbers characters in the order of a hash table, and breaks ties by these numbers, so that
    every run gives another vocabulary. Here it gets all characters and their ## forms in sorted order first.
    """
    from tokenizers import Tokenizer as Engine
    from tokenizers import models, normalizers, pre_tokenizers, trainers

    engine = Engine(models.WordPiece(unk_token="[UNK]"))
    engine.normalizer = normalizers.BertNormalizer(lowercase=settings.lowercase)
    engine.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    words: Counter[str] = Counter()
    for line in tqdm(lines, desc="counting", unit="lines", leave=False, disable=None):
        normal = engine.normalizer.normalize_str(line)
        words.update(word for word, _ in engine.pre_tokenizer.pre_tokenize_str(normal))
    first: Counter[str] = Counter()
    later: Counter[str] = Counter()
    for word, count in words.items():
        first[word[0]] += count
        for character in word[1:]:
            later[character] += count
    alphabet = _alphabet(first, later, settings)
    fixed = [*SPECIAL_NAMES, *alphabet, *(f"##{character}" for character in alphabet if character in later)]
    if len(fixed) > settings.vocab_size:
        raise UserError(
            f"the text has {len(alphabet)} frequent characters, which with their ## forms do not fit into "
            f"{settings.vocab_size} pieces",
            remedy="ask for more pieces with --vocab, or lower --coverage",
        )
    trainer = trainers.WordPieceTrainer(
        vocab_size=settings.vocab_size,
        min_frequency=2,
        special_tokens=fixed,
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    # Each word as often as it stands in the text would take long; the trainer counts whole inputs, so words
    # are given in a fixed order, repeated.
    repeated = (word for word in sorted(words) for _ in range(words[word]))
    with tqdm(repeated, desc="training", unit="words", total=words.total(), leave=False, disable=None) as given:
        engine.train_from_iterator(iter(given), trainer)
    vocab = engine.get_vocab()
    return from_vocab(sorted(vocab, key=vocab.get), "vocab.txt", settings.lowercase)


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
