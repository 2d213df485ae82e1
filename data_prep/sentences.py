"""Paragraphs to sentences."""

from __future__ import annotations


def split(paragraph: str, language: str) -> list[str]:
    """Sentences of one paragraph, by the sentencex library (rules of the language, no model).

    Args:
        paragraph: one line of text; with language "none" it is taken as one sentence.
        language: a code such as en, de, ko, zh.
    """
    if language == "none":
        return [paragraph]
    from sentencex import segment

    return [stripped for sentence in segment(language, paragraph) if (stripped := sentence.strip())]


def segmenter(name):
    """Stand-in."""
    return None
