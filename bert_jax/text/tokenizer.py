"""One tokenizer, two kinds: WordPiece from any BERT vocab.txt, and SentencePiece unigram or BPE.

Ids are always those of the `tokenizers` library: by wordpiece.py and word_memo.py, which give the same faster, and from
the library itself where character offsets are asked for. SentencePiece trains a model and its file is kept beside, but
where its own library would break a tie of scores differently (rare: long runs of one character), ours is
`tokenizers`, so that `AutoTokenizer` on a saved directory gives the same ids by construction.

Special tokens never come from text: a literal "[MASK]" in a corpus is ordinary characters.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bert_jax.errors import UserError
from bert_jax.text import spiece
from bert_jax.text.trie import MAX_WORD
from bert_jax.text.word_memo import WordMemo
from bert_jax.text.wordpiece import WordPiece

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Engine

SPECIAL_NAMES = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
ROLES = ("pad", "unk", "cls", "sep", "mask")
_SPACE = "\u2581"  # what SentencePiece writes for a blank


@dataclass(frozen=True)
class Special:
    """Ids of the special tokens."""

    pad: int
    unk: int
    cls: int
    sep: int
    mask: int


@dataclass(frozen=True)
class Encoded:
    """Ragged ids of b texts: text i is `ids[rows[i]:rows[i+1]]`.

    ids int32[n]; rows int64[b+1]; word_start bool[n]; offsets int32[n,2] (from, to, in characters of the
    original text, blanks around a token left out) or None where not asked for.
    """

    ids: np.ndarray
    rows: np.ndarray
    word_start: np.ndarray
    offsets: np.ndarray | None


class Tokenizer:
    """A trained tokenizer; make one with `load`.

    Attributes:
        kind: "wordpiece", "unigram" or "bpe".
        special: ids of [PAD] [UNK] [CLS] [SEP] [MASK], wherever the vocabulary has them.
        vocab_size: number of pieces.
        pieces: all of them, by id.
        fingerprint: SHA-256 in hex over kind, pieces in order (with scores or merges, where the kind has
            them), normalisation and special ids. Whatever is made with a tokenizer stores it.
        file: name and bytes of the file it is made from: "vocab.txt", "spiece.model" or "tokenizer.json".
    """

    def __init__(
        self,
        kind: str,
        engine: Engine,
        pieces: Sequence[str],
        special: Special,
        identity: bytes,
        file: tuple[str, bytes],
        lowercase: bool,
    ) -> None:
        self.kind, self.special, self.pieces, self.lowercase = kind, special, tuple(pieces), lowercase
        self.vocab_size = len(self.pieces)
        self._engine, self.file = engine, file
        digest = hashlib.sha256(f"{kind}\0{special}\0".encode())
        for piece in self.pieces:
            digest.update(piece.encode() + b"\0")
        digest.update(identity)
        self.fingerprint = digest.hexdigest()

    def __repr__(self) -> str:
        return f"Tokenizer({self.kind}, {self.vocab_size} pieces, {self.fingerprint[:12]})"

    # -------------------------------------------------------------------------------------------------------
    # Text to ids and back

    def encode_batch(self, texts: Sequence[str], offsets: bool = False) -> Encoded:
        """Ids of each text, without special tokens around it.

        Args:
            texts: any strings; a lone surrogate counts as U+FFFD.
            offsets: also where each token stands in its text (much slower: the library alone).

        Returns:
            Encoded.
        """
        texts = list(texts)
        fast = None if offsets else self._fast
        if fast is None:
            return self._encode_plainly(texts, offsets)
        try:
            ids, rows = fast.encode(texts)
        except (UnicodeEncodeError, TypeError):
            ids, rows = fast.encode(_without_surrogates(texts))
        return Encoded(ids, rows, self._word_starts(ids, rows), None)

    @cached_property
    def _fast(self) -> WordPiece | WordMemo | None:
        """What gives the ids of the engine faster than the engine, if anything does."""
        if self.kind == "wordpiece":
            return WordPiece(self._engine, self.pieces, self.special.unk)
        return WordMemo(self._engine) if _cuts_at_blanks(self._engine) else None

    def _encode_plainly(self, texts: list[str], offsets: bool) -> Encoded:
        """By the library alone: offsets, and the reference for what is faster."""
        try:
            encodings = self._encode(texts, offsets)
        except (UnicodeEncodeError, TypeError):
            encodings = self._encode(_without_surrogates(texts), offsets)
        ids = [encoding.ids for encoding in encodings]
        rows = np.zeros(len(ids) + 1, np.int64)
        np.cumsum([len(row) for row in ids], out=rows[1:])
        flat = np.fromiter((number for row in ids for number in row), np.int32, int(rows[-1]))
        places = None
        if offsets:
            spans = [_trim(span, text) for e, text in zip(encodings, texts, strict=True) for span in e.offsets]
            places = np.array(spans, np.int32).reshape(-1, 2)
        return Encoded(flat, rows, self._word_starts(flat, rows), places)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Readable text of ids; special tokens appear by name."""
        return self._engine.decode([int(number) for number in ids], skip_special_tokens=False)

    def words(self, text: str) -> list[str]:
        """What the model is asked to cut: the normalised words of a text, "\u2581" before those that follow a blank in
        SentencePiece's kinds."""
        (text,) = _without_surrogates([text])
        normaliser, cutter = self._engine.normalizer, self._engine.pre_tokenizer
        text = normaliser.normalize_str(text) if normaliser else text
        return [word for word, _ in cutter.pre_tokenize_str(text)] if cutter else [text] if text else []

    def spell(self, piece: str) -> list[int]:
        """Ids into which this tokenizer cuts a piece of another vocabulary, as it stands, "##" and all.

        [UNK] where it cannot be cut. A WordPiece "##ing" is cut as what continues a word.
        """
        if self.kind != "wordpiece":
            return [token.id for token in self._engine.model.tokenize(piece)]
        path, whole = self.greedy(piece)
        return path if whole and piece else [self.special.unk]

    def greedy(self, piece: str) -> tuple[list[int], bool]:
        """The longest pieces of WordPiece, one after the other, and whether they reach the end.

        Example:
            >>> from_vocab([*SPECIAL_NAMES, "un", "##able"]).greedy("unability")
            ([5], False)
        """
        number, longest = self._numbers
        path = []
        prefix, rest = ("##", piece[2:]) if piece.startswith("##") and len(piece) > 2 else ("", piece)
        while rest:
            sizes = range(min(len(rest), longest), 0, -1)
            size = next((n for n in sizes if prefix + rest[:n] in number), 0)
            if not size:
                return path, False
            path.append(number[prefix + rest[:size]])
            prefix, rest = "##", rest[size:]
        return path, True

    @cached_property
    def _numbers(self) -> tuple[dict[str, int], int]:
        """Ids by piece, and the length of the longest."""
        return {piece: number for number, piece in enumerate(self.pieces)}, max(map(len, self.pieces))

    @property
    def options(self) -> dict[str, bool | None]:
        """How WordPiece normalises, under the names of tokenizer_config.json; empty for other kinds."""
        if self.kind != "wordpiece":
            return {}
        normaliser = self._engine.normalizer
        return {
            "do_lower_case": normaliser.lowercase,
            "strip_accents": normaliser.strip_accents,
            "tokenize_chinese_chars": normaliser.handle_chinese_chars,
        }

    def _encode(self, texts: list[str], offsets: bool) -> list:
        encode = self._engine.encode_batch if offsets else self._engine.encode_batch_fast
        return encode(texts, add_special_tokens=False)

    def _word_starts(self, ids: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """True where a word begins. Punctuation signs and Chinese characters are words of their own."""
        begins, alone = self._piece_tables
        starts = begins[ids]
        starts[1:] |= alone[ids[:-1]]
        starts[rows[:-1][np.diff(rows) > 0]] = True
        return starts

    @cached_property
    def _piece_tables(self) -> tuple[np.ndarray, np.ndarray]:
        """By id: does the piece begin a word, and does it end one whatever follows: bool[V] each."""
        if self.kind == "wordpiece":
            # BERT's pre-tokenizer has set punctuation and Chinese characters apart already.
            begins = np.array([not piece.startswith("##") for piece in self.pieces])
            return begins, np.zeros(self.vocab_size, bool)
        # [UNK] stands for characters of a word; only its name begins with a bracket.
        named = {getattr(self.special, role) for role in ROLES}
        bare = ["x" if n in named else piece.lstrip(_SPACE) for n, piece in enumerate(self.pieces)]
        begins = [
            piece.startswith(_SPACE) or bool(rest) and _stands_alone(rest[0])
            for piece, rest in zip(self.pieces, bare, strict=True)
        ]
        return np.array(begins), np.array([bool(piece) and _stands_alone(piece[-1]) for piece in bare])

    # -------------------------------------------------------------------------------------------------------
    # Files

    @classmethod
    def load(cls, path: str | os.PathLike, lowercase: bool | None = None) -> Tokenizer:
        """Opens a directory that `save` wrote, a bare vocab.txt, spiece.model or tokenizer.json, or a Hugging Face
        directory of BERT, DistilBERT, ELECTRA, MiniLM, ALBERT or sentence-transformers.

        Args:
            path: directory or file.
            lowercase: for a WordPiece vocabulary; None takes what the files say. A vocab.txt without files that
                could say it is lower-casing if no piece (but those in brackets) has an ASCII capital, as in Google's
                models: the Chinese ones are.

        Raises:
            UserError: nothing there, not a tokenizer of these kinds, a special token missing, files that do not
                agree with each other or with the fingerprint beside them, or one that gives other ids in transformers.
        """
        from bert_jax.text import loading

        return loading.load(Path(path), lowercase)

    def save(self, directory: str | os.PathLike) -> None:
        """Writes the model (spiece.model or vocab.txt), tokenizer.json, tokenizer_config.json, fingerprint.

        Loads here and in transformers' `AutoTokenizer`, to the same ids. The fingerprint is written last.
        """
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        for name, content in self._files().items():
            temporary = directory / f".{name}.{os.getpid()}.tmp"
            temporary.write_bytes(content)
            os.replace(temporary, directory / name)

    def _files(self) -> dict[str, bytes]:
        from tokenizers import AddedToken, Tokenizer, processors

        names = {role: self.pieces[getattr(self.special, role)] for role in ROLES}
        engine = Tokenizer.from_str(self._engine.to_str())
        engine.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names.values()])
        cls_, sep = names["cls"], names["sep"]
        engine.post_processor = processors.TemplateProcessing(
            single=f"{cls_} $A {sep}",
            pair=f"{cls_} $A {sep} $B:1 {sep}:1",
            special_tokens=[(cls_, self.special.cls), (sep, self.special.sep)],
        )
        config: dict = {f"{role}_token": name for role, name in names.items()}
        config |= {
            # Without this, transformers would make a literal "[MASK]" in a text the mask token.
            "split_special_tokens": True,
            "model_max_length": 512,
            "model_input_names": ["input_ids", "token_type_ids", "attention_mask"],
            "clean_up_tokenization_spaces": False,
        }
        if self.kind == "wordpiece":
            # transformers rebuilds the normaliser of this class from what stands here.
            config |= {"tokenizer_class": "BertTokenizer"} | self.options
        else:
            config |= {"tokenizer_class": "PreTrainedTokenizerFast"}
        # A tokenizer that came as tokenizer.json goes as it came: `self.file` is that file.
        return {
            "tokenizer.json": engine.to_str(pretty=True).encode(),
            self.file[0]: self.file[1],
            "tokenizer_config.json": (json.dumps(config, indent=1, ensure_ascii=False) + "\n").encode(),
            "fingerprint": (self.fingerprint + "\n").encode(),
        }


def from_vocab(pieces: Sequence[str], where: str = "vocabulary", lowercase: bool | None = None, **options) -> Tokenizer:
    """A WordPiece tokenizer from its pieces in the order of their ids.

    Args:
        pieces: with [PAD] [UNK] [CLS] [SEP] [MASK] anywhere among them.
        where: for messages.
        lowercase: None guesses, see `Tokenizer.load`.
        options: strip_accents (None: as lowercase), tokenize_chinese_chars (True).
    """
    from tokenizers import Tokenizer as Engine
    from tokenizers import decoders, models, normalizers, pre_tokenizers

    vocab = {piece: number for number, piece in enumerate(pieces)}
    if len(vocab) != len(pieces):
        twice = next(piece for number, piece in enumerate(pieces) if vocab[piece] != number)
        raise UserError(f"the piece {twice!r} stands there twice", where, "keep one of them")
    special = special_ids({role: name for role, name in zip(ROLES, SPECIAL_NAMES, strict=True)}, vocab, where)
    if lowercase is None:
        lowercase = looks_lowercase(pieces)
    engine = Engine(models.WordPiece(vocab, unk_token="[UNK]", max_input_chars_per_word=MAX_WORD))
    accents, chinese = options.get("strip_accents"), options.get("tokenize_chinese_chars", True)
    engine.normalizer = normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=chinese, strip_accents=accents, lowercase=lowercase
    )
    engine.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    engine.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    text = "\n".join(pieces) + "\n"
    identity = f"bert lowercase={lowercase} accents={accents} chinese={chinese} word={MAX_WORD}"
    return Tokenizer("wordpiece", engine, pieces, special, identity.encode(), ("vocab.txt", text.encode()), lowercase)


def from_spiece(data: bytes, where: str) -> Tokenizer:
    """A SentencePiece tokenizer from the bytes of its model file."""
    from tokenizers import Tokenizer as Engine
    from tokenizers import decoders, models, normalizers, pre_tokenizers

    model = spiece.read(data, where)
    vocab = {piece: number for number, piece in enumerate(model.pieces)}
    special = special_ids(dict(zip(ROLES, SPECIAL_NAMES, strict=True)), vocab, where)
    if model.kind == "unigram":
        # Control pieces keep their score of 0: `tokenizers` prices the unknown from the least score, so a
        # very low one would change how ordinary text is cut. What keeps them from text is `keep_out`.
        # Scores are written with a float32's nine digits: the JSON reader of `tokenizers` is not exact beyond
        # 15, and its last bit would break ties differently after a save.
        scores = [float(str(np.float32(score))) for score in model.scores]
        engine = Engine(models.Unigram(list(zip(model.pieces, scores, strict=True)), special.unk, False))
    else:
        engine = Engine(models.BPE(vocab, _merges(model, vocab), unk_token=model.pieces[special.unk], fuse_unk=True))
    steps = [normalizers.Precompiled(model.charsmap)] if model.charsmap else []
    if model.remove_extra_whitespaces:
        steps += _stripping()
    engine.normalizer = normalizers.Sequence(steps)
    scheme = "always" if model.add_dummy_prefix else "never"
    blanks = pre_tokenizers.Metaspace(_SPACE, scheme, True)
    engine.pre_tokenizer = pre_tokenizers.Sequence([blanks, keep_out(SPECIAL_NAMES)])
    engine.decoder = decoders.Metaspace(_SPACE, scheme, True)
    identity = np.array(model.scores, "<f4").tobytes() + hashlib.sha256(model.charsmap).digest()
    identity += f"spiece {model.add_dummy_prefix} {model.remove_extra_whitespaces}".encode()
    lowercase = engine.normalizer.normalize_str("A") == "a"
    return Tokenizer(model.kind, engine, model.pieces, special, identity, ("spiece.model", data), lowercase)


def keep_out(names: Sequence[str]):
    """A pre-tokenizer that cuts the name of a special token after its first character.

    No piece reaches beyond a cut, so the whole name cannot be matched, whatever the scores are.
    """
    from tokenizers import Regex, pre_tokenizers

    cuts = "|".join(f"{re.escape(name[0])}(?={re.escape(name[1:])})" for name in names if len(name) > 1)
    return pre_tokenizers.Split(Regex(cuts), "isolated")


def _cuts_at_blanks(engine: Engine) -> bool:
    """Whether the steps of the engine are those that WordMemo relies on."""
    if engine.normalizer is None or engine.pre_tokenizer is None:
        return False
    steps = json.loads(engine.normalizer.__getstate__()).get("normalizers", [])
    blanks = json.loads(engine.pre_tokenizer.__getstate__()).get("pretokenizers", [])
    first = {"type": "Metaspace", "replacement": _SPACE, "prepend_scheme": "always", "split": True}
    return (
        [step["type"] for step in steps] in (["Precompiled", "Strip", "Replace"], ["Strip", "Replace"])
        and steps[-2:] == [json.loads(step.__getstate__()) for step in _stripping()]
        and [step["type"] for step in blanks] == ["Metaspace", "Split"]
        and blanks[0] == first
        and not engine.encode("", add_special_tokens=False).ids
    )


def _stripping() -> list:
    """Normalisers that strip blanks and take several for one."""
    from tokenizers import Regex, normalizers

    return [normalizers.Strip(left=True, right=True), normalizers.Replace(Regex(" {2,}"), " ")]


def _without_surrogates(texts: list[str]) -> list[str]:
    return [re.sub("[\ud800-\udfff]", "\ufffd", text) for text in texts]


def _merges(model: spiece.Model, vocab: dict[str, int]) -> list[tuple[str, str]]:
    """The merges that a SentencePiece BPE model stands for: a piece of higher score is merged earlier."""
    found = []
    for piece, score, type_ in zip(model.pieces, model.scores, model.types, strict=True):
        if type_ != spiece.NORMAL:
            continue
        for cut in range(1, len(piece)):
            left, right = vocab.get(piece[:cut]), vocab.get(piece[cut:])
            if left is not None and right is not None:
                found.append((-score, left, right))
    return [(model.pieces[left], model.pieces[right]) for _, left, right in sorted(found)]


def special_ids(names: dict[str, str], vocab: dict[str, int], where: str) -> Special:
    """Ids of the special tokens, of which `names` holds the name by role.

    Raises:
        UserError: the vocabulary lacks one.
    """
    missing = [name for name in names.values() if name not in vocab]
    if missing:
        raise UserError(
            f"the vocabulary has no {' '.join(missing)}",
            where,
            "BERT needs [PAD] [UNK] [CLS] [SEP] and [MASK]",
        )
    return Special(**{role: vocab[name] for role, name in names.items()})


def looks_lowercase(pieces: Sequence[str]) -> bool:
    """Whether no piece, but those in brackets, has an ASCII capital: Google's uncased and Chinese vocabularies."""
    return not any(re.search("[A-Z]", piece) and not re.fullmatch(r"\[.*\]|<.*>", piece) for piece in pieces)


def _stands_alone(character: str) -> bool:
    """Punctuation, symbols and Chinese ideographs: each is a word of its own."""
    code = ord(character)
    ideograph = 0x3400 <= code <= 0x4DBF or 0x4E00 <= code <= 0x9FFF or 0xF900 <= code <= 0xFAFF
    return ideograph or 0x20000 <= code <= 0x323AF or unicodedata.category(character)[0] in "PS"


def _trim(span: tuple[int, int], text: str) -> tuple[int, int]:
    begin, end = span
    while begin < end and text[begin].isspace():
        begin += 1
    while end > begin and text[end - 1].isspace():
        end -= 1
    return begin, end
