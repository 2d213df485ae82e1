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
_ROLES = ("pad", "unk", "cls", "sep", "mask")
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
    """

    def __init__(
        self,
        kind: str,
        engine: Engine,
        pieces: Sequence[str],
        special: Special,
        identity: bytes,
        model: tuple[str, bytes],
        lowercase: bool,
    ) -> None:
        self.kind, self.special, self.pieces, self.lowercase = kind, special, tuple(pieces), lowercase
        self.vocab_size = len(self.pieces)
        self._engine, self._model = engine, model
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
        named = {getattr(self.special, role) for role in _ROLES}
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
        """Opens a directory that `save` wrote, a bare vocab.txt or spiece.model, or a Hugging Face directory.

        Args:
            path: directory or file.
            lowercase: for a WordPiece vocabulary; None takes `do_lower_case` of tokenizer_config.json, else
                the normaliser of tokenizer.json, else guesses: a vocabulary in which no piece (but those in
                brackets) has an ASCII capital is lower-casing.

        Raises:
            UserError: nothing there, not a tokenizer of these kinds, a special token missing, or files that
                do not agree with the fingerprint beside them.
        """
        path = Path(path)
        try:
            if path.is_dir():
                return _load_directory(path, lowercase)
            if path.suffix == ".model":
                return from_spiece(path.read_bytes(), str(path))
            if path.suffix == ".json":
                return _from_json(path, {}, lowercase)
            return _from_vocab_bytes(
                path.read_bytes(), str(path), {} if lowercase is None else {"do_lower_case": lowercase}
            )
        except FileNotFoundError:
            raise UserError("there is no tokenizer here", str(path), "give its directory or its vocab.txt") from None
        except OSError as error:
            raise UserError(f"the tokenizer cannot be read ({error.strerror})", str(path)) from None

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

        names = {role: self.pieces[getattr(self.special, role)] for role in _ROLES}
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
            config |= {"tokenizer_class": "BertTokenizer"} | _wordpiece_options(engine)
        else:
            config |= {"tokenizer_class": "PreTrainedTokenizerFast"}
        # A tokenizer that came as tokenizer.json goes as it came: `self._model` is that file.
        return {
            "tokenizer.json": engine.to_str(pretty=True).encode(),
            self._model[0]: self._model[1],
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
    special = _special({role: name for role, name in zip(_ROLES, SPECIAL_NAMES, strict=True)}, vocab, where)
    if lowercase is None:
        lowercase = not any(re.search("[A-Z]", piece) and not re.fullmatch(r"\[.*\]|<.*>", piece) for piece in pieces)
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
    special = _special(dict(zip(_ROLES, SPECIAL_NAMES, strict=True)), vocab, where)
    if model.kind == "unigram":
        # Control pieces keep their score of 0: `tokenizers` prices the unknown from the least score, so a
        # very low one would change how ordinary text is cut. What keeps them from text is `_keep_out`.
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
    engine.pre_tokenizer = pre_tokenizers.Sequence([blanks, _keep_out(SPECIAL_NAMES)])
    engine.decoder = decoders.Metaspace(_SPACE, scheme, True)
    identity = np.array(model.scores, "<f4").tobytes() + hashlib.sha256(model.charsmap).digest()
    identity += f"spiece {model.add_dummy_prefix} {model.remove_extra_whitespaces}".encode()
    lowercase = engine.normalizer.normalize_str("A") == "a"
    return Tokenizer(model.kind, engine, model.pieces, special, identity, ("spiece.model", data), lowercase)


def _keep_out(names: Sequence[str]):
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


def _load_directory(path: Path, lowercase: bool | None) -> Tokenizer:
    config = _read_json(path / "tokenizer_config.json") if (path / "tokenizer_config.json").exists() else {}
    if lowercase is not None:
        config["do_lower_case"] = lowercase
    expected = path / "fingerprint"
    model, vocab, whole = path / "spiece.model", path / "vocab.txt", path / "tokenizer.json"
    if model.exists() and (expected.exists() or not whole.exists()):
        tokenizer = from_spiece(model.read_bytes(), str(model))
    elif vocab.exists() and ("do_lower_case" in config or not whole.exists()):
        tokenizer = _from_vocab_bytes(vocab.read_bytes(), str(vocab), config)
    elif whole.exists():
        tokenizer = _from_json(whole, config, lowercase)
    else:
        raise UserError(
            "the directory holds no tokenizer (spiece.model, vocab.txt or tokenizer.json)",
            str(path),
            "make one with bert-data tokenizer",
        )
    if expected.exists() and lowercase is None and expected.read_text().strip() != tokenizer.fingerprint:
        raise UserError(
            "the tokenizer's files were changed after it was saved: their fingerprint differs",
            str(path),
            "restore them, or remove the file named fingerprint to accept what is there",
        )
    return tokenizer


def _from_vocab_bytes(data: bytes, where: str, config: dict) -> Tokenizer:
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"the vocabulary is not UTF-8 at byte {error.start}", where, "convert it") from None
    if not text.strip():
        raise UserError("the vocabulary is empty", where, "give a vocab.txt with one piece a line")
    # Only \n separates: some vocabularies hold U+0085 or U+2028 as pieces.
    pieces = [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]
    options = {key: config[key] for key in ("strip_accents", "tokenize_chinese_chars") if key in config}
    return from_vocab(pieces, where, config.get("do_lower_case"), **options)


def _from_json(path: Path, config: dict, lowercase: bool | None) -> Tokenizer:
    """A tokenizer.json of the `tokenizers` library with a WordPiece, Unigram or BPE model."""
    from tokenizers import Tokenizer as Engine

    raw = _read_json(path)
    where, model, normaliser = str(path), raw.get("model", {}), raw.get("normalizer") or {}
    kind = {"WordPiece": "wordpiece", "Unigram": "unigram", "BPE": "bpe"}.get(model.get("type"))
    if kind is None:
        raise UserError(f"the tokenizer is of type {model.get('type')}", where, "use WordPiece, Unigram or BPE")
    if kind == "wordpiece":
        vocab = model["vocab"]
        pieces = sorted(vocab, key=vocab.get)
        options = {
            "strip_accents": normaliser.get("strip_accents"),
            "do_lower_case": normaliser.get("lowercase"),
        }
        options["tokenize_chinese_chars"] = normaliser.get("handle_chinese_chars", True)
        options |= {key: config[key] for key in options if key in config}
        lower = options.pop("do_lower_case") if lowercase is None else lowercase
        return from_vocab(pieces, where, lower, **options)
    names = dict(zip(_ROLES, SPECIAL_NAMES, strict=True))
    for role in _ROLES:
        named = config.get(f"{role}_token")
        names[role] = named["content"] if isinstance(named, dict) else named or names[role]
    raw["pre_tokenizer"] = _with_last(
        raw.get("pre_tokenizer"), json.loads(_keep_out(list(names.values())).__getstate__())
    )
    # Added tokens and their processor stay in the file, but here nothing may make a special token from text.
    bare = raw | {"added_tokens": [], "post_processor": None, "truncation": None, "padding": None}
    try:
        engine = Engine.from_str(json.dumps(bare))
    except Exception as error:  # the library raises a bare Exception
        raise UserError(f"the tokenizers library cannot read it ({error})", where) from None
    vocab = engine.get_vocab()
    special = _special(names, vocab, where)
    identity = json.dumps([model, raw.get("normalizer"), raw["pre_tokenizer"]], sort_keys=True).encode()
    lower = engine.normalizer is not None and engine.normalizer.normalize_str("A") == "a"
    kept = ("tokenizer.json", json.dumps(raw, ensure_ascii=False).encode())
    return Tokenizer(kind, engine, sorted(vocab, key=vocab.get), special, identity, kept, lower)


def _with_last(first: dict | None, last: dict) -> dict:
    """Two pre-tokenizers in a row; unchanged where `last` is already there."""
    steps = first["pretokenizers"] if first and first.get("type") == "Sequence" else [first] if first else []
    return {"type": "Sequence", "pretokenizers": steps if last in steps else [*steps, last]}


def _special(names: dict[str, str], vocab: dict[str, int], where: str) -> Special:
    missing = [name for name in names.values() if name not in vocab]
    if missing:
        raise UserError(
            f"the vocabulary has no {' '.join(missing)}",
            where,
            "BERT needs [PAD] [UNK] [CLS] [SEP] and [MASK]",
        )
    return Special(**{role: vocab[name] for role, name in names.items()})


def _wordpiece_options(engine: Engine) -> dict:
    state = json.loads(engine.to_str())["normalizer"]
    return {
        "do_lower_case": state["lowercase"],
        "strip_accents": state["strip_accents"],
        "tokenize_chinese_chars": state["handle_chinese_chars"],
    }


def _read_json(path: Path) -> dict:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"this is not JSON ({error})", str(path), "restore the file") from None
    if not isinstance(raw, dict):
        raise UserError("this is not a JSON object", str(path), "restore the file")
    return raw


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
