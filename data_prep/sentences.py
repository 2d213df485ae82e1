"""Documents to sentences, and sentences to words where a language writes none apart."""

from __future__ import annotations

import difflib
import tempfile
import warnings
from collections.abc import Callable

from bert_jax.errors import UserError
from data_prep.hooks import brief, function_named

# Languages that sentencex has rules for, then those that it refers to one of these (its `fallbacks.rs`, version 1.0).
_OWN = "am ar bg bn ca da de el en es fi fr gu hi hy it ja kk kn ml mr my nl pa pl pt ru sk ta te uk"
_LIKE = """
aae ab acm aeb aeb-arab als alt an anp apc arn arq ary arz ast atj av avk awa ay ba bar bci blk bm bpy bxr cbk-zam ce
co cs csb cv de-at de-ch de-formal dsb dua egl eml es-formal ext fit fon frc frp frr fur gcf gcr gl gld gn gsw guc hke
hrx hsb ht hyw inh jut kaa kab kbp kea kjh kjp kk-arab kk-cn kk-cyrl kk-kz kk-latn kk-tr kl koi krc krl ksh ksw kum kv
lad lb lbe lez li lij lld lmo ln lua mag mai mdf mg mhr mnw mrj mwl myv nah nap nds nds-nl nl-informal oc olo os pcd
pdc pdt pfl pms pnt pt-br qu qug rgn rm roa-tara rue rut sa sah scn sdc ses sg shy shy-latn sjd sli smn srn sro stq sty
szl tcy tet tt tt-cyrl ty tyv udm vec vls vmf vmw vot wa wls wo xal
"""
# Korean and Chinese have no rules of their own there: the general ones know their full stops, and the tests here say
# how far they carry.
LANGUAGES = (*_OWN.split(), "ko", "zh", *_LIKE.split())
_NAMES = dict(
    zip(
        "amharic arabic bulgarian bengali catalan danish german greek english spanish finnish french gujarati hindi"
        " armenian italian japanese kazakh kannada malayalam marathi burmese dutch punjabi polish portuguese russian"
        " slovak tamil telugu ukrainian korean chinese".split(),
        LANGUAGES,
        strict=False,
    )
)


def splitter(language: str) -> Callable[[str], list[str]]:
    """What cuts a document into sentences, by the sentencex library (rules of the language, no model).

    A line break is always a border, as in the corpora that write a paragraph a line. With "none", a line is a
    sentence. Sentences come without blanks around them, and none is empty.

    Args:
        language: a code such as en, de, ko, zh, or "none".

    Raises:
        UserError: a language that sentencex does not know (it would take English rules without a word), or no
            sentencex.
    """
    if language == "none":
        return lambda document: [line for text in document.split("\n") if (line := text.strip())]
    if language not in LANGUAGES:
        plain = language.lower().partition("-")[0].partition("_")[0]
        near = difflib.get_close_matches(plain, [*LANGUAGES, *_NAMES], n=1, cutoff=0.0)[0]
        raise UserError(
            f"no sentence rules are known for the language {language!r}",
            "--language",
            f"did you mean {_NAMES.get(near, near)!r}? en has the general rules, none takes each line as a sentence",
        )
    try:
        from sentencex import segment
    except ImportError:
        raise UserError("sentences need sentencex", "", "pip install 'bert-jax[prep]'") from None

    # sentencex looks across one line break but never across two; one call for a document saves up to a fifth.
    return lambda document: [
        stripped for sentence in segment(language, document.replace("\n", "\n\n")) if (stripped := sentence.strip())
    ]


def segmenter(name: str) -> Callable[[str], list[str]]:
    """What cuts a sentence into words.

    Args:
        name: "jieba" (Chinese; dictionary and hidden Markov model, pip install jieba), or "module:function" for
            one of your own, from a string to its words in order.

    Raises:
        UserError: neither, or it cannot be imported.
    """
    if name == "jieba":
        return _jieba()
    if ":" not in name:
        raise UserError(f"{name!r} is no segmenter", "--segmenter", "give jieba, or module:function")
    found = function_named(name)

    def words(sentence: str) -> list[str]:
        try:
            return list(found(sentence))
        except Exception as error:
            what = f"the segmenter failed on {sentence[:40]!r} ({brief(error)})"
            raise UserError(what, name, "mend it, it takes a string and gives its words") from error

    return words


def word_borders(sentence: str, words: list[str]) -> list[int]:
    """Where in the sentence each word begins and ends; blanks between words may be left out of them.

    Raises:
        UserError: a word that is not there.

    Example:
        >>> word_borders("ab cd", ["ab", "cd"])
        [0, 2, 3, 5]
    """
    borders, at = [], 0
    for word in words:
        begin = sentence.find(word, at)
        if begin < 0 or sentence[at:begin].strip():
            raise UserError(
                f"the segmenter gave {word!r}, which does not come next in the sentence",
                repr(sentence[:60]),
                "a segmenter must give the words of the text as they stand there, in order",
            )
        at = begin + len(word)
        borders += [begin, at]
    return borders


def _jieba() -> Callable[[str], list[str]]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # jieba 0.42.1: invalid escapes in its patterns, and pkg_resources
            import jieba
    except ImportError:
        raise UserError("Chinese words need jieba", "--segmenter jieba", "pip install jieba") from None
    jieba.setLogLevel("WARNING")
    tokenizer = jieba.Tokenizer()
    # It would keep its dictionary in the machine's common temporary folder, and read what lies there unasked.
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.tmp_dir = folder
        tokenizer.initialize()
    return tokenizer.lcut
