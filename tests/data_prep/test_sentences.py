"""Sentences and words: the languages' rules, and what they miss."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from bert_jax.errors import UserError
from data_prep import sentences

TEXTS = {
    "en": (
        "Dr. Smith came at 3.30 p.m. today. He left|What?! Really... Yes, e.g. this",
        'He said "Stop it. Now." Then he left.|“It is late.” She went. ‘No.’ He stayed.',
        ["Dr. Smith came at 3.30 p.m. today.", "He left", "What?!", "Really...", "Yes, e.g. this"],
        ['He said "Stop it. Now."', "Then he left.", "“It is late.”", "She went.", "‘No.’", "He stayed."],
    ),
    "de": (
        "Am 3. Oktober 1990 war es so weit. Dr. Müller kam, z. B. hier.|Ludwig XIV. regierte lange",
        "Er sagte: „Komm. Sofort.“ Dann ging er.|»Ja.« Er ging.",
        ["Am 3. Oktober 1990 war es so weit.", "Dr. Müller kam, z. B. hier.", "Ludwig XIV. regierte lange"],
        ["Er sagte: „Komm. Sofort.“", "Dann ging er.", "»Ja.«", "Er ging."],
    ),
    "ko": (
        "안녕하세요. 반갑습니다! 3.5%였다.|어디 가세요? 밥을 먹었다.",
        "“그렇다.” 그는 말했다.",
        ["안녕하세요.", "반갑습니다!", "3.5%였다.", "어디 가세요?", "밥을 먹었다."],
        ["“그렇다.”", "그는 말했다."],
    ),
    "zh": (
        "今天天气很好。我们去公园吧!好吗?|好的,3.5元。",
        "他说:“走吧。现在就走。”然后离开了。|“你好。”他说。「走。」她说。",
        ["今天天气很好。", "我们去公园吧!", "好吗?", "好的,3.5元。"],
        ["他说:“走吧。现在就走。”", "然后离开了。", "“你好。”", "他说。", "「走。」", "她说。"],
    ),
}
# What sentencex 1.0 does not get right; a change here is good news.
MISSED = {
    "en": ("(Note.) Next one.", ["(Note.) Next one."]),
    "de": ("Der 1. FC Köln gewann.", ["Der 1.", "FC Köln gewann."]),
    "ko": ('그는 "가자. 지금 가자." 라고 말했다.', ['그는 "가자. 지금 가자."', "라고 말했다."]),
    "zh": ("(见附录。)第二章。", ["(见附录。)第二章。"]),
}


@pytest.mark.parametrize("language", TEXTS)
def test_sentences_of_a_language_with_quotations(language):
    split = sentences.splitter(language)
    plain, quoted, wanted_plain, wanted_quoted = TEXTS[language]
    assert split(plain.replace("|", "\n")) == wanted_plain
    assert split(quoted.replace("|", "\n")) == wanted_quoted
    text, missed = MISSED[language]
    assert split(text) == missed


def test_a_line_break_is_a_border_whatever_stands_beside_it():
    from sentencex import segment

    parts = [*"ab.!?\"“”'()„«", "。", " ", "A", "Dr. ", "\r", "\n", "\n\n", "\n \n", "\u2028", "3", "」", "...", "I. "]
    rng = np.random.default_rng(0)
    for language in TEXTS:
        split = sentences.splitter(language)
        for _ in range(300):
            text = "".join(rng.choice(parts, rng.integers(1, 40)))
            alone = [s.strip() for line in text.split("\n") for s in segment(language, line) if s.strip()]
            assert split(text) == alone, repr(text)
    long = "He said “it never ends. " * 900
    assert sentences.splitter("en")(f"{long}\n{long}") == 2 * sentences.splitter("en")(long)


def test_one_sentence_a_line():
    assert sentences.splitter("none")("One. Two.\n\n  three \n") == ["One. Two.", "three"]


@pytest.mark.parametrize(
    ("language", "near"),
    [("klingon", ""), ("english", "en"), ("EN", "en"), ("Chinese", "zh"), ("zh-Hans", "zh"), ("de_DE", "de"), ("", "")],
)
def test_an_unknown_language_is_refused_with_the_nearest(language, near):
    with pytest.raises(UserError) as error:
        sentences.splitter(language)
    assert repr(language) in str(error.value)
    said = str(error.value).partition("did you mean '")[2].partition("'")[0]
    assert said == near if near else said in sentences.LANGUAGES


def test_every_known_language_splits():
    for language in sentences.LANGUAGES:
        assert sentences.splitter(language)("A b c! D e f!") == ["A b c!", "D e f!"], language
    assert len(set(sentences.LANGUAGES)) == len(sentences.LANGUAGES)


def test_words_have_borders():
    assert sentences.word_borders("我们去 北京", ["我们", "去", "北京"]) == [0, 2, 2, 3, 4, 6]
    assert sentences.word_borders("", []) == []
    for words in (["去", "我们"], ["我们", "北京"], ["你"]):
        with pytest.raises(UserError, match="does not come next"):
            sentences.word_borders("我们去 北京", words)


def test_jieba_finds_chinese_words_and_leaves_nothing_behind(tmp_path):
    pytest.importorskip("jieba")
    # In a process of its own, compiled anew: its warnings come when it is compiled and when it is imported.
    code = (
        "from data_prep.sentences import segmenter; words = segmenter('jieba');"
        "print('/'.join(words('我们今天去北京大学参观。')))"
    )
    environment = {"PYTHONPATH": ":".join(sys.path), "PYTHONPYCACHEPREFIX": str(tmp_path / "compiled")}
    environment |= {"TMPDIR": str(tmp_path / "tmp"), "PYTHONIOENCODING": "utf-8", "PATH": "/usr/bin:/bin"}
    (tmp_path / "tmp").mkdir()
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, encoding="utf-8", check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip() == "我们/今天/去/北京大学/参观/。"
    assert not list((tmp_path / "tmp").iterdir())


def test_a_segmenter_of_ones_own(tmp_path, monkeypatch):
    (tmp_path / "cutter.py").write_text("NUMBER = 3\ndef pairs(text):\n    return [text[:2], text[2:]]\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert sentences.segmenter("cutter:pairs")("abcd") == ["ab", "cd"]
    for name, said in {
        "cutter": "no segmenter",
        "cutter:": "names no function",
        "cutter:triples": "no function triples",
        "nowhere:pairs": "there is no module nowhere",
        "cutter:NUMBER": "NUMBER is no function",
    }.items():
        with pytest.raises(UserError, match=said):
            sentences.segmenter(name)
