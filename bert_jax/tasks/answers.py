"""From logits of windows to answers of questions (Devlin et al. 2018, sections 4.2 and 4.3). NumPy."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Window:
    """One row of a question: as much of its context as fits.

    Attributes:
        example: number of the question.
        offsets: int32[n, 2], from and to in characters of the context that each token covers; (-1, -1) for tokens that
            are none of the context. Token 0 is [CLS].
    """

    example: int
    offsets: np.ndarray


@dataclass(frozen=True)
class Candidate:
    """A span of a context that may be the answer.

    Attributes:
        start_char, end_char: from, and to (not in it), in characters of the context.
        text: what stands there.
        score: start logit of its first token + end logit of its last.
        probability: softmax over the scores of the kept candidates and the null score.
    """

    start_char: int
    end_char: int
    text: str
    score: float
    probability: float


@dataclass(frozen=True)
class Decoded:
    """What the windows of one question say: the best spans, best first, and how likely there is no answer.

    `null_score` is the least over windows of what token 0 gets: a window without the answer should say null, so only
    where all do is there none.
    """

    candidates: list[Candidate]
    null_score: float
    null_probability: float


def decode(
    windows: Sequence[Window],
    start_logits: Sequence[np.ndarray],
    end_logits: Sequence[np.ndarray],
    contexts: Sequence[str],
    longest: int,
    best: int = 20,
) -> list[Decoded]:
    """The best spans of each question over all its windows.

    A span begins and ends in one window, has at most `longest` tokens, and all of them are of the context. Spans of the
    same characters are one, with the higher score. Of equal scores the one further left comes first, then the shorter.

    Args:
        windows: of any number of questions, in any order.
        start_logits, end_logits: float32[n] for each window, n as its offsets have.
        contexts: one a question.
        longest: the most tokens of an answer.
        best: how many spans of a question are kept.

    Returns:
        One a context. A question without windows has no candidates and a null score of 0.
    """
    spans: dict[int, list[np.ndarray]] = defaultdict(list)
    nulls: dict[int, float] = {}
    for window, start, end in zip(windows, start_logits, end_logits, strict=True):
        spans[window.example].append(_best_spans(window.offsets, start, end, longest, best))
        null = float(start[0]) + float(end[0])
        nulls[window.example] = min(null, nulls.get(window.example, null))
    decoded = []
    for number, context in enumerate(contexts):
        found = _distinct(np.concatenate(spans[number]), best) if number in spans else np.empty((0, 3))
        null = nulls.get(number, 0.0)
        scores = np.append(found[:, 0], null)
        weights = np.exp(scores - scores.max())
        probabilities = weights / weights.sum()
        candidates = [
            Candidate(int(first), int(last), context[int(first) : int(last)], float(score), float(probability))
            for (score, first, last), probability in zip(found, probabilities[:-1], strict=True)
        ]
        decoded.append(Decoded(candidates, null, float(probabilities[-1])))
    return decoded


def choose(candidates: Sequence[Candidate], null_score: float, threshold: float | None) -> Candidate | None:
    """The answer: the best candidate, or None where null beats it by more than the threshold.

    Args:
        candidates: best first, as `Decoded` has them.
        null_score: of the same question.
        threshold: None: every question has an answer.
    """
    if not candidates or (threshold is not None and null_score - candidates[0].score > threshold):
        return None
    return candidates[0]


# --------------------------------------------------------------------------------------------------- the parts


def _best_spans(offsets: np.ndarray, start: np.ndarray, end: np.ndarray, longest: int, best: int) -> np.ndarray:
    """(score, from, to) of the best spans of a window, float64[m, 3], best first; characters are exact in float64."""
    n = len(offsets)
    longest = min(longest, n)
    context = offsets[:, 0] >= 0
    outside = np.concatenate([[0], np.cumsum(~context), np.full(longest, n + 1)])  # before each token; ends beyond n
    ends = np.concatenate([end.astype(np.float64), np.full(longest, -np.inf)])
    # Row i, column k: the span from token i to token i + k.
    scores = start.astype(np.float64)[:, None] + np.lib.stride_tricks.sliding_window_view(ends, longest)[:n]
    inside = np.lib.stride_tricks.sliding_window_view(outside[1:], longest)[:n] == outside[:n, None]
    places = np.flatnonzero(inside)
    values = scores.ravel()[places]
    # Tokens that share their characters make several spans of the same: then the best few may be fewer than that.
    used = offsets[context]
    alike = (np.diff(used, axis=0) <= 0).any()
    if not alike and len(places) > best:
        least = np.partition(values, len(values) - best)[len(values) - best]
        keep = values >= least  # with all that tie, so that ties end as they do over all windows
        places, values = places[keep], values[keep]
    first, last = places // longest, places // longest + places % longest
    return _distinct(np.stack([values, offsets[first, 0], offsets[last, 1]], 1), best)


def _distinct(spans: np.ndarray, best: int) -> np.ndarray:
    """The `best` first of (score, from, to) in their order, each pair of characters once."""
    spans = spans[np.lexsort((spans[:, 2], spans[:, 1], -spans[:, 0]))]
    characters = spans[:, 1].astype(np.int64) << 32 | spans[:, 2].astype(np.int64)
    _, first = np.unique(characters, return_index=True)
    return spans[np.sort(first)[:best]]
