"""Spans that tags of words stand for. Standard library only."""

from __future__ import annotations

from collections.abc import Sequence

from bert_jax.errors import UserError

SLOTS = "BIO"  # the scheme of slots where a recipe names none
PREFIXES = {"IOB1": "IOB", "BIO": "BIO", "IOBES": "IOBES", "BMES": "BMESO"}

Entity = tuple[int, int, str]  # from word, to word (not in it), kind


def entities(tags: Sequence[str], scheme: str) -> list[Entity]:
    """The spans that the tags of one sentence stand for, in their order.

    The rules are those of `conlleval` (Tjong Kim Sang and Buchholz 2000), which take what is there: a span begins at
    B or S, at any other tag behind the end of a span, and wherever the kind changes; it ends at E or S and in front of
    whatever begins or is outside. So an IOB1 file reads as it is meant, and a span whose first tag is I or whose last
    is B counts as a span. M of BMES is the I of IOBES. A tag without a kind ("B") has the kind "".

    Raises:
        UserError: a tag is none of the scheme.

    Example:
        >>> entities(["I-PER", "I-PER", "O", "I-LOC", "B-LOC"], "IOB1")
        [(0, 2, 'PER'), (3, 4, 'LOC'), (4, 5, 'LOC')]
    """
    found: list[Entity] = []
    start, current = -1, ""  # of the open span; -1: none is open
    for place, tag in enumerate(tags):
        prefix, _, kind = tag.partition("-")
        if prefix not in PREFIXES[scheme] or len(prefix) != 1:
            raise UserError(
                f"the tag {tag!r} is none of {scheme}", "task", f"tags begin with one of {', '.join(PREFIXES[scheme])}"
            )
        begins = prefix in "BS" or (prefix != "O" and (start < 0 or kind != current))
        if start >= 0 and (begins or prefix == "O"):
            found.append((start, place, current))
            start = -1
        if begins:
            start, current = place, kind
        if prefix in "ES":
            found.append((start, place + 1, current))
            start = -1
    if start >= 0:
        found.append((start, len(tags), current))
    return found
