"""The fast WordPiece gives the ids of the `tokenizers` library on any text, with any memo and any block border."""

from __future__ import annotations

import pickle
import random
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bert_jax.text.exact_table import Table
from bert_jax.text.tokenizer import SPECIAL_NAMES, Tokenizer, from_vocab
from bert_jax.text.wordpiece import WordPiece
from tests.text import tiny

# Letters of many scripts; marks, ideographs, half-composed Hangul, astral planes; capitals and accents.
LETTERS = (
    "abcdeghilmnoprstuABCÉéàßıσςΣжяא\u05b0ع\u064bहन\u093f\u094dก\u0e48ア゙か한국어가\u1112\u1161\u11ab\u0301\u0323\u302e中文"
    "\U00010400\U00020000𝔸ﬁǅ\ue000\u0897"
)
PIECES = (
    *SPECIAL_NAMES,
    *dict.fromkeys([*LETTERS, *".,!?-'=[]#▁…。、「"]),
    *dict.fromkeys(f"##{letter}" for letter in LETTERS),
    *"the cat ab abc abcd the\u0301 und straße caf é한국 국어 中文 संน्".split(),
    *"##able ##ing ##bc ##bcd ##국어 ##ㅏ ##\u1161\u11ab ##\u093f\u094d ##\u0301\u0323 ##".split(),
)
OPTIONS = {
    "uncased": {"lowercase": True},
    "cased": {"lowercase": False},
    "cased, stripped": {"lowercase": False, "strip_accents": True},
    "uncased, accents kept": {"lowercase": True, "strip_accents": False},
    "ideographs in words": {"lowercase": False, "tokenize_chinese_chars": False},
}
HARD = (
    "\x00\x01\t\n\x0b\x0c\r\x1c\x1f\x7f\x85\xa0\xad\u1680\u180e\u2000\u200b\u200d\u2028\u2029\u202e\u3000\ufeff\ufffd\uffff"
    "\u0300\u0307\u0338\u0345\u05b0\u0ccd\u302a\u302e\u3099\ufe0f\u20e3İıßẞﬁǰΐᾀ῁΅≠≮⫝ÅΩ½ⅷＡｶﾞ각ᅡ㄰⺀〇々・㐀鿿豈﨎\ua000▁"
    "’“…€·;῀،؟।。\U0001f469\U0001f3fd\U0001f1e9\U0002a6df\U0002b820\U0002b920\U0002f800\U0001d165\ud7a4\ufdd0\U000e0061"
)


@pytest.fixture(scope="module", params=OPTIONS)
def tokenizer(request) -> Tokenizer:
    return from_vocab(PIECES, **OPTIONS[request.param])


def _rows(ids: np.ndarray, rows: np.ndarray) -> list[list[int]]:
    return [ids[a:b].tolist() for a, b in zip(rows[:-1], rows[1:], strict=True)]


def _plain(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    encoded = tokenizer._encode_plainly(texts, False)
    return _rows(encoded.ids, encoded.rows)


def _fast(tokenizer: Tokenizer, **settings: int) -> WordPiece:
    return WordPiece(tokenizer._engine, tokenizer.pieces, tokenizer.special.unk, **settings)


def _lines(count: int, seed: int) -> list[str]:
    """Random lines of words, hard characters and code points from everywhere."""
    rng = random.Random(seed)
    code_points = [*range(0xD800), *range(0xE000, 0x20000)]

    def word() -> str:
        kind = rng.randrange(6)
        if kind == 0:
            return "".join(rng.choices(HARD, k=rng.randrange(1, 4)))
        if kind == 1:
            return "".join(chr(c) for c in rng.choices(code_points, k=rng.randrange(1, 4)))
        if kind == 2:
            return rng.choice(LETTERS) * rng.choice((7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 100))
        if kind == 3:
            return rng.choice(PIECES) + rng.choice(PIECES)
        return "".join(rng.choices(LETTERS, k=rng.randrange(1, 12)))

    return ["".join(word() + rng.choice(("", " ", " ", ".")) for _ in range(rng.randrange(9))) for _ in range(count)]


def test_nasties_and_random_lines_have_the_ids_of_the_library(tokenizer):
    texts = [*tiny.NASTIES, *_lines(1000, seed=1), *HARD, *(f"a{c}b" for c in HARD), *(f"{c}\u0301 {c}" for c in HARD)]
    fast = _fast(tokenizer)
    wanted = _plain(tokenizer, texts)
    for _ in range(2):  # from an empty memo and from a full one
        for text, found, want in zip(texts, _rows(*fast.encode(texts)), wanted, strict=True):
            assert found == want, repr(text)
    assert sum(table.used for tables in fast._tables.values() for table in tables) > 1000


@pytest.mark.parametrize(("block", "limit"), [(1, 20), (8, 0), (61, 250_000), (1000, 0)])
def test_ids_do_not_depend_on_the_memo_or_on_block_borders(tokenizer, block, limit):
    nasties = [text[:300] for text in tiny.NASTIES]
    texts = [*nasties, *_lines(30, seed=2), "", "a" * 200 + "\n\nb", ""]
    fast = _fast(tokenizer, block=block, limit=limit)
    for part in (texts, texts[::-1]):
        assert _rows(*fast.encode(part)) == _plain(tokenizer, part)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(st.text() | st.text(st.sampled_from(LETTERS + HARD + " .")), max_size=6))
def test_any_text_has_the_ids_of_the_library(tokenizer, texts):
    encoded = tokenizer.encode_batch(texts)
    plain = tokenizer._encode_plainly(texts, False)
    for name in ("ids", "rows", "word_start"):
        ours, theirs = getattr(encoded, name), getattr(plain, name)
        np.testing.assert_array_equal(ours, theirs)
        assert ours.dtype == theirs.dtype


@pytest.mark.parametrize("length", [1, 99, 100, 101, 102, 10_000])
def test_a_word_of_more_than_a_hundred_characters_is_unknown(tokenizer, length):
    # Decomposed and stripped characters count as what is left of them; ideographs are words of their own.
    texts = [letter * length for letter in LETTERS] + ["가" * (length // 3) + "a" * (length % 3), "a\u0301" * length]
    assert _rows(*_fast(tokenizer).encode(texts)) == _plain(tokenizer, texts)
    found = tokenizer.encode_batch(["a" * length]).ids.tolist()
    assert (found == [tokenizer.special.unk]) == (length > 100)


def test_ordinary_letters_of_every_script_take_the_fast_way(tokenizer):
    # What goes to the library has the right ids too, only slowly: nothing but this would tell.
    letters = _fast(tokenizer)._letters
    units = np.array([ord(letter) for letter in "aÉßжעع한アกน"], np.uint16)
    signs = np.array([ord(sign) for sign in ",。-中\n"], np.uint16)
    blanks = np.array([ord(blank) for blank in " \t\u3000\xa0"], np.uint16)
    letters.codes(np.concatenate([units, signs, blanks]))
    assert letters.normalised(units, np.ones(units.size, np.int64))[2].all()
    assert (2 <= letters.codes(units[:6])).all() and (letters.codes(units[:6]) < 254).all()
    ideographs_alone = letters.codes(signs).tolist() == [1, 1, 1, 1, 1]
    assert ideographs_alone == (tokenizer._engine.normalizer.normalize_str("中") != "中")
    assert not letters.codes(blanks).any()


def test_no_text_and_empty_texts(tokenizer):
    for texts in ([], [""], ["", "a", ""], ["\n"], [" ", "\n\n", "\x00"]):
        encoded = tokenizer.encode_batch(texts)
        assert _rows(encoded.ids, encoded.rows) == _plain(tokenizer, texts)
        assert encoded.rows.size == len(texts) + 1


def test_newlines_are_blanks_and_halves_of_characters_are_replacement_characters(tokenizer):
    texts = ["a\nb\r\n\nc", "a\ud800b", "\ud83d", "\ude00", "a\ud83d\ude00b"]  # the last is two halves, not a character
    wanted = ["a b c", "a\ufffdb", "\ufffd", "\ufffd", "a\ufffd\ufffdb"]
    assert _rows(*_fast(tokenizer).encode(texts)) == _plain(tokenizer, wanted)


def test_runs_of_deleted_characters_do_not_disturb_their_neighbours(tokenizer):
    # A NUL is a unit of 0, and so is a free row of the memo: four of them before anything once spoilt another entry.
    rng = random.Random(4)
    for _ in range(5):
        words = ["\0" * n + "\uac00" * m for n in range(10) for m in range(10)]
        words += ["".join(rng.choices("\0\x01\ufffd가나다a", k=rng.randrange(1, 20))) for _ in range(500)]
        rng.shuffle(words)
        texts = [" ".join(words), "".join(words[:4])]
        assert _rows(*_fast(tokenizer).encode(texts)) == _plain(tokenizer, texts)


def test_a_vocabulary_without_continuations_or_of_special_tokens_alone():
    for pieces in ([*SPECIAL_NAMES], [*SPECIAL_NAMES, "a", "b"], [*SPECIAL_NAMES, "##", "##a", "\U00010400", ""]):
        tokenizer = from_vocab(pieces, lowercase=True)
        texts = ["a", "ab", "b a.", "\U00010400", "[MASK] ##a"]
        assert _rows(*_fast(tokenizer).encode(texts)) == _plain(tokenizer, texts)


def test_the_memo_is_bounded(tokenizer):
    fast = _fast(tokenizer, limit=1000, block=1 << 14)
    rng = random.Random(0)
    sizes = []
    for _ in range(8):
        texts = [" ".join("".join(rng.choices("abcdeghilmno가국어", k=6)) for _ in range(200)) for _ in range(30)]
        assert _rows(*fast.encode(texts)) == _plain(tokenizer, texts)
        sizes.append(fast.nbytes)
    # Without forgetting, 6,000 new runs a call would need several times as much in the end as in the beginning.
    assert max(sizes[2:]) <= 2 * max(sizes[:2])


def test_a_copy_by_pickle_and_threads_give_the_same(tokenizer):
    texts = _lines(100, seed=3)
    wanted = _plain(tokenizer, texts)
    fast = _fast(tokenizer, limit=50, block=256)
    fast.encode(texts[:50])
    assert _rows(*pickle.loads(pickle.dumps(fast)).encode(texts)) == wanted
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: fast.encode(texts), range(8)):
            assert _rows(*found) == wanted


@pytest.mark.parametrize("width", [2, 4])
def test_a_table_keeps_every_key_apart(width):
    rng = np.random.default_rng(0)
    table, known = Table(width), {}
    for _ in range(6):
        # Few values a word, so that keys come again and differ in one word only; multiples of a power of two, which
        # collide in any table that looks at low bits.
        keys = [rng.integers(1, 200, 3000).astype(np.uint64) << np.uint64(50) for _ in range(width)]
        rows = list(zip(*(key.tolist() for key in keys), strict=True))
        found = table.find(keys)
        assert found.tolist() == [known.get(row, -1) for row in rows]
        lost = np.flatnonzero(found < 0)
        number, first = table.claim([key[lost] for key in keys])
        assert len({rows[n] for n in lost[first]}) == first.size == len({rows[n] for n in lost})
        assert [rows[n] for n in lost[first[number]]] == [rows[n] for n in lost]
        values = rng.integers(0, 1 << 60, first.size)
        table.set([key[lost][first] for key in keys], values)
        known |= {rows[n]: value for n, value in zip(lost[first], values.tolist(), strict=True)}
    assert table.used == len(known) and 2 * table.used <= len(table.rows)
