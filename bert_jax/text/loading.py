"""Opens the tokenizers that others saved: which file counts, who says the casing, and what cannot give the same ids.

The measure is what `AutoTokenizer` of transformers 5 does with a directory, as tried: the same ids, but that special
tokens never come from text. Where it would take another casing than its files tell, the files are refused.
"""

from __future__ import annotations

import json
from pathlib import Path

from bert_jax.errors import UserError
from bert_jax.text import spiece
from bert_jax.text.tokenizer import (
    ROLES,
    SPECIAL_NAMES,
    Tokenizer,
    from_spiece,
    from_vocab,
    keep_out,
    looks_lowercase,
    special_ids,
)
from bert_jax.text.trie import MAX_WORD

# transformers builds these from the vocabulary and tokenizer_config.json, whatever the steps in tokenizer.json are.
_BERT_LIKE = {"Bert", "DistilBert", "Electra", "MobileBert", "SqueezeBert", "ConvBert", "Lxmert", "MPNet", "RetriBert"}
_BERT_LIKE |= {"DPRContextEncoder", "DPRQuestionEncoder", "DPRReader", "LayoutLM"}
_DEFAULTS: dict[str, bool | None] = {"do_lower_case": True, "strip_accents": None, "tokenize_chinese_chars": True}
_NORMALISER = {
    "do_lower_case": "lowercase",
    "strip_accents": "strip_accents",
    "tokenize_chinese_chars": "handle_chinese_chars",
}
_ALBERT_NAMES = dict(zip(ROLES, ("<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"), strict=True))


def load(path: Path, lowercase: bool | None) -> Tokenizer:
    """See `Tokenizer.load`."""
    try:
        if path.is_dir():
            return _from_directory(path, lowercase)
        if path.suffix == ".model":
            return _from_spiece(path, {})
        if path.suffix == ".json":
            return _from_json(path, {}, lowercase, foreign=False)
        return from_vocab(read_pieces(path), str(path), lowercase)
    except FileNotFoundError:
        raise UserError("there is no tokenizer here", str(path), "give its directory or its vocab.txt") from None
    except OSError as error:
        raise UserError(f"the tokenizer cannot be read ({error.strerror})", str(path)) from None


def read_pieces(path: Path) -> list[str]:
    """The pieces of a vocab.txt in the order of their ids.

    Raises:
        UserError: not UTF-8, or empty.
    """
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"the vocabulary is not UTF-8 at byte {error.start}", str(path), "convert it") from None
    if not text.strip():
        raise UserError("the vocabulary is empty", str(path), "give a vocab.txt with one piece a line")
    # Only \n separates: some vocabularies hold U+0085 or U+2028 as pieces.
    return [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]


# -------------------------------------------------------------------------------------------------- directories


def _from_directory(path: Path, lowercase: bool | None) -> Tokenizer:
    config_file, expected = path / "tokenizer_config.json", path / "fingerprint"
    config = _read_json(config_file) if config_file.exists() else {}
    ours, foreign = expected.exists(), config_file.exists() or (path / "config.json").exists()
    model, vocab, whole = path / "spiece.model", path / "vocab.txt", path / "tokenizer.json"
    if model.exists() and (ours or not whole.exists()):
        tokenizer = _from_spiece(model, config)
    elif vocab.exists() and (ours or not whole.exists()):
        tokenizer = _from_vocab(vocab, config, lowercase, foreign)
    elif whole.exists():
        tokenizer = _from_json(whole, config, lowercase, foreign)
        if tokenizer.kind == "wordpiece" and vocab.exists() and tuple(read_pieces(vocab)) != tokenizer.pieces:
            raise UserError(
                "vocab.txt and tokenizer.json hold other pieces",
                str(path),
                "remove the one that is not the model's",
            )
    elif (path / "tokenizer").is_dir():  # of a run, a data set, an imported model
        return _from_directory(path / "tokenizer", lowercase)
    else:
        raise UserError(
            "the directory holds no tokenizer (spiece.model, vocab.txt or tokenizer.json)",
            str(path),
            "make one with bert-data tokenizer",
        )
    _check_added(path, config, tokenizer)
    if ours and lowercase is None and expected.read_text().strip() != tokenizer.fingerprint:
        raise UserError(
            "the tokenizer's files were changed after it was saved: their fingerprint differs",
            str(path),
            "restore them, or remove the file named fingerprint to accept what is there",
        )
    return tokenizer


def _check_added(path: Path, config: dict, tokenizer: Tokenizer) -> None:
    """Refuses tokens that files beside the vocabulary add to it: they have rows in a model and are found in text."""
    file = path / "added_tokens.json"
    added = [(str(content), number) for content, number in (_read_json(file) if file.exists() else {}).items()]
    decoder = config.get("added_tokens_decoder") or {}
    added += [(token["content"], int(number)) for number, token in decoder.items() if isinstance(token, dict)]
    _refuse_added(added, tokenizer.pieces, str(path))
    more = [config.get(f"{kind}_special_tokens") or [] for kind in ("additional", "extra")]
    named = [token for each in more for token in (each.values() if isinstance(each, dict) else each)]
    for token in named:
        content = token["content"] if isinstance(token, dict) else token
        if content not in tokenizer.pieces:
            raise UserError(
                f"the special token {content!r} is not in the vocabulary, where it would get an id of its own",
                str(path),
                "write it into the vocabulary, or remove it",
            )
    plain = [token["content"] for token in decoder.values() if isinstance(token, dict) and not token.get("special")]
    if tokenizer.file[0] != "tokenizer.json":  # which lists the same
        _refuse_plain(plain, str(path))


def _refuse_added(added: list[tuple[str, int]], pieces: tuple[str, ...] | list[str], where: str) -> None:
    for content, number in added:
        if not 0 <= number < len(pieces) or pieces[number] != content:
            raise UserError(
                f"the added token {content!r} has id {number}, where the vocabulary of {len(pieces):,} pieces has "
                + (repr(pieces[number]) if 0 <= number < len(pieces) else "none"),
                where,
                "write it into the vocabulary, or remove it",
            )


def _refuse_plain(contents: list[str], where: str) -> None:
    if contents:
        raise UserError(
            f"the added token {contents[0]!r} is cut out of text before words are, which WordPiece here does not do",
            where,
            "remove it from the added tokens: it stays in the vocabulary",
        )


# ---------------------------------------------------------------------------------------------------- WordPiece


def _from_vocab(path: Path, config: dict, lowercase: bool | None, foreign: bool) -> Tokenizer:
    if not _is_bert_like(config) and config.get("tokenizer_class") not in (None, "PreTrainedTokenizerFast"):
        raise UserError(
            f"a {config['tokenizer_class']} cuts text otherwise than by its vocab.txt alone",
            str(path.parent),
            "save it with a tokenizer.json, or give the bare vocab.txt if words are cut before",
        )
    pieces = read_pieces(path)
    options = {key: config.get(key, default) for key, default in _DEFAULTS.items()}
    if "do_lower_case" not in config:
        options["do_lower_case"] = looks_lowercase(pieces)
        if foreign and lowercase is None and not options["do_lower_case"]:
            raise UserError(
                "vocab.txt has capitals, but do_lower_case is not said, and transformers lower-cases then",
                str(path.parent),
                'write "do_lower_case": false (or true) into tokenizer_config.json',
            )
    lower = options.pop("do_lower_case")
    return from_vocab(pieces, str(path), lower if lowercase is None else lowercase, **options)


def _is_bert_like(config: dict) -> bool:
    name = config.get("tokenizer_class") or "BertTokenizer"
    return name.removesuffix("Fast").removesuffix("Tokenizer") in _BERT_LIKE


def _wordpiece(raw: dict, config: dict, lowercase: bool | None, where: str, foreign: bool) -> Tokenizer:
    """A WordPiece model in a tokenizer.json."""
    model, normaliser = raw["model"], raw.get("normalizer") or {}
    wanted = (
        ("normalizer", normaliser.get("type"), "BertNormalizer"),
        ("pre_tokenizer", (raw.get("pre_tokenizer") or {}).get("type"), "BertPreTokenizer"),
        ("unk_token", model.get("unk_token", "[UNK]"), "[UNK]"),
        ("continuing_subword_prefix", model.get("continuing_subword_prefix", "##"), "##"),
        ("max_input_chars_per_word", model.get("max_input_chars_per_word", MAX_WORD), MAX_WORD),
        ("clean_text", normaliser.get("clean_text", True), True),
    )
    for name, found, needed in wanted:
        if found != needed:
            raise UserError(f"{name} is {found!r}, where BERT has {needed!r}", where, "use a tokenizer of BERT's kind")
    pieces = _in_order(model["vocab"], where)
    options = {key: normaliser.get(_NORMALISER[key], default) for key, default in _DEFAULTS.items()}
    if foreign and _is_bert_like(config):
        options = _as_transformers(options, config, lowercase, where)
    lower = options.pop("do_lower_case")
    plain = [token["content"] for token in raw.get("added_tokens") or [] if not token.get("special")]
    _refuse_plain(plain, where)
    return from_vocab(pieces, where, lower if lowercase is None else lowercase, **options)


def _as_transformers(
    options: dict[str, bool | None], config: dict, lowercase: bool | None, where: str
) -> dict[str, bool | None]:
    """What tokenizer_config.json says, and transformers' defaults: its BertTokenizer does not look at the normaliser.

    Raises:
        UserError: the normaliser is another, with what the configuration does not say.
    """
    theirs = {key: config.get(key, default) for key, default in _DEFAULTS.items()}
    if lowercase is not None:
        theirs["do_lower_case"] = options["do_lower_case"] = lowercase
    lower = theirs["do_lower_case"]
    for key in (key for key in _DEFAULTS if key not in config):
        found, taken = options[key], theirs[key]
        if key == "strip_accents":  # where nothing is said, they go with the capitals
            found, taken = (lower if each is None else each for each in (found, taken))
        if found != taken:
            raise UserError(
                f"the normalizer has {key} = {json.dumps(found)}, which tokenizer_config.json does not say, and "
                f"transformers takes {json.dumps(taken)} then",
                where,
                f"write {json.dumps(key)} into tokenizer_config.json",
            )
    return theirs


def _in_order(vocab: dict[str, int], where: str) -> list[str]:
    pieces = sorted(vocab, key=vocab.__getitem__)
    if [vocab[piece] for piece in pieces] != list(range(len(pieces))):
        raise UserError("the ids of the vocabulary are not 0, 1, 2, …, one a piece", where, "fill the holes")
    return pieces


# ---------------------------------------------------------------------------------------------- tokenizer.json


def _from_json(path: Path, config: dict, lowercase: bool | None, foreign: bool) -> Tokenizer:
    """A tokenizer.json of the `tokenizers` library with a WordPiece, Unigram or BPE model."""
    raw, where = _read_json(path), str(path)
    model = raw.get("model")
    model = model if isinstance(model, dict) else {}
    type_ = model.get("type") or ("WordPiece" if "continuing_subword_prefix" in model else None)  # old files lack it
    if type_ not in ("WordPiece", "Unigram", "BPE"):
        raise UserError(f"the tokenizer is of type {type_}", where, "use WordPiece, Unigram or BPE")
    vocab = model.get("vocab")
    if not vocab or not isinstance(vocab, list if type_ == "Unigram" else dict):
        raise UserError("the tokenizer has no vocabulary", where, "restore the file")
    pieces = [row[0] for row in vocab] if isinstance(vocab, list) else _in_order(vocab, where)
    added = [(token["content"], token["id"]) for token in raw.get("added_tokens") or []]
    _refuse_added(added, pieces, where)
    if type_ == "WordPiece":
        return _wordpiece(raw, config, lowercase, where, foreign)
    names = dict(
        _ALBERT_NAMES if "[PAD]" not in pieces and "<pad>" in pieces else zip(ROLES, SPECIAL_NAMES, strict=True)
    )
    for role in ROLES:
        named = config.get(f"{role}_token")
        names[role] = named["content"] if isinstance(named, dict) else named or names[role]
    return from_json(raw, names, where)


def from_json(raw: dict, names: dict[str, str], where: str) -> Tokenizer:
    """A Unigram or BPE tokenizer from the tree of a tokenizer.json.

    Special tokens that it adds stay in the file, but nothing may make one of them from text here; others are cut out
    of text first, as `tokenizers` does.

    Args:
        raw: the tree.
        names: of the special tokens, by role ("pad", "unk", "cls", "sep", "mask").
        where: for messages.
    """
    from tokenizers import Tokenizer as Engine

    raw = raw | {
        "truncation": None,
        "padding": None,
    }  # how someone's batches were made; no part of what a text's ids are
    raw["pre_tokenizer"] = _with_last(
        raw.get("pre_tokenizer"), json.loads(keep_out(list(names.values())).__getstate__())
    )
    plain = [token for token in raw.get("added_tokens") or [] if not token.get("special")]
    try:
        engine = Engine.from_str(json.dumps(raw | {"added_tokens": plain, "post_processor": None}))
    except Exception as error:  # the library raises a bare Exception
        raise UserError(f"the tokenizers library cannot read it ({error})", where) from None
    vocab = engine.get_vocab()
    special = special_ids(names, vocab, where)
    parts = [raw["model"], raw.get("normalizer"), raw["pre_tokenizer"], *([plain] if plain else [])]
    lower = engine.normalizer is not None and engine.normalizer.normalize_str("A") == "a"
    kept = ("tokenizer.json", json.dumps(raw, ensure_ascii=False).encode())
    kind = {"Unigram": "unigram", "BPE": "bpe"}[raw["model"]["type"]]
    identity = json.dumps(parts, sort_keys=True).encode()
    return Tokenizer(kind, engine, _in_order(vocab, where), special, identity, kept, lower)


def _with_last(first: dict | None, last: dict) -> dict:
    """Two pre-tokenizers in a row; unchanged where `last` is already there."""
    steps = first["pretokenizers"] if first and first.get("type") == "Sequence" else [first] if first else []
    return {"type": "Sequence", "pretokenizers": steps if last in steps else [*steps, last]}


def _read_json(path: Path) -> dict:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"this is not JSON ({error})", str(path), "restore the file") from None
    if not isinstance(raw, dict):
        raise UserError("this is not a JSON object", str(path), "restore the file")
    return raw


# ------------------------------------------------------------------------------------------------ SentencePiece


def _from_spiece(path: Path, config: dict) -> Tokenizer:
    data, where = path.read_bytes(), str(path)
    model = spiece.read(data, where)
    if "[PAD]" in model.pieces or "<pad>" not in model.pieces:
        return from_spiece(data, where)
    if not (config.get("tokenizer_class") or "Albert").startswith("Albert"):
        raise UserError(
            f"the spiece.model of a {config['tokenizer_class']} is not read",
            where,
            "save it with a tokenizer.json, or give ALBERT's",
        )
    return from_json(_albert(model, config, where), _ALBERT_NAMES, where)


def _albert(model: spiece.Model, config: dict, where: str) -> dict:
    """The tree of a tokenizer.json for a spiece.model of ALBERT, whose text is prepared outside of the model.

    The steps are those of google-research/albert's `preprocess_text` in the order of transformers' AlbertTokenizer.
    Pieces that the model takes whole wherever they stand, such as "-", do so by their score of 0, and what follows them
    is no new word: as in SentencePiece. (transformers 5 begins a new word there, if it is given this file alone.)
    """
    from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors
    from tokenizers import Tokenizer as Engine

    if model.kind != "unigram":
        raise UserError("the model has ALBERT's special tokens but is no unigram model", where, "give another")
    special = special_ids(_ALBERT_NAMES, {piece: number for number, piece in enumerate(model.pieces)}, where)
    # Nine digits and no more: see `from_spiece`.
    scores = [float(f"{score:.9g}") for score in model.scores]
    engine = Engine(models.Unigram(list(zip(model.pieces, scores, strict=True)), special.unk, False))
    steps: list = [normalizers.Replace("``", '"'), normalizers.Replace("''", '"')]
    if not config.get("keep_accents", False):
        steps += [normalizers.NFKD(), normalizers.StripAccents()]
    if config.get("do_lower_case", True):
        steps += [normalizers.Lowercase()]
    if model.charsmap:
        steps += [normalizers.Precompiled(model.charsmap)]
    engine.normalizer = normalizers.Sequence(steps)
    blanks = pre_tokenizers.Metaspace(prepend_scheme="always")
    engine.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), blanks])
    engine.decoder = decoders.Metaspace(prepend_scheme="always")
    engine.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in _ALBERT_NAMES.values()])
    engine.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", special.cls), ("[SEP]", special.sep)],
    )
    return json.loads(engine.to_str())
