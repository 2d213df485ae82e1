"""Says when the loss stands on a level that counting reaches without a network, and what that means.

"My loss is stuck at 7" is the most asked question of this field. The loss first falls to the unigram level and may
stay there for a long time, the longer the larger the vocabulary and the smaller the rate and the batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import takewhile

from bert_jax.text.manifest import LEVELS

_BLOCK = 100  # steps whose mean is one point: single batches jump too much
_FIRST = 1_000  # steps on a level before it is said; then at twice as many, at four times as many, …
_NEAR = 0.02  # of the loss: it stands where it stays within this
_FLAT = 0.01  # of the loss: and falls by no more than this from the first half of that time to the second

# How far below a level the loss still stands on it. Which words occur together, without their order, is worth some
# 6 % of the unigram level: long plateaus lie there, not on the level itself.
_BELOW = {"unigram": 0.10}

_MEANING = {
    "uniform": "the model has learned nothing yet; look at learning rate and warm-up, then at `bert-data inspect`",
    "unigram": "the model knows little more than how frequent words are; a higher learning rate, a larger batch,"
    ' a smaller vocabulary or model.position_init = "sinusoid" shorten this',
    "left_bigram": "the model guesses as well as counts of the word before do; it takes a longer run or a larger"
    " network to get on",
    "two_sided_bigram": "the model guesses as well as counts of both neighbours do; it takes a longer run or a larger"
    " network to get on",
}


@dataclass
class Plateau:
    """Watches the masked-LM loss of the training batches: a function of the losses alone, so a resumed run, shown
    the steps before once more, says what the uninterrupted one says.

    Args:
        levels: name → nats, of the held-out masked tokens.
    """

    levels: dict[str, float]
    _means: list[float] = field(default_factory=list)
    _inside: list[float] = field(default_factory=list)
    _said: dict[str, int] = field(default_factory=dict)

    def see(self, loss: float) -> str | None:
        """Take the loss of the next step; a sentence where there is something to say. Not finite ones are left out."""
        if math.isfinite(loss):
            self._inside.append(loss)
        if len(self._inside) < _BLOCK:
            return None
        self._means.append(sum(self._inside) / _BLOCK)
        self._inside.clear()
        last = self._means[-5:]
        now = sum(last) / len(last)
        stretch = list(takewhile(lambda mean: abs(mean - now) <= _NEAR * now, reversed(self._means)))
        steps, half = len(stretch) * _BLOCK, len(stretch) // 2
        if steps < _FIRST or sum(stretch[-half:]) - sum(stretch[:half]) > _FLAT * now * half:
            return None
        for name, level in self.levels.items():
            below = _BELOW.get(name, _NEAR)
            if level * (1 - below) <= now <= level * (1 + _NEAR) and steps >= 2 * self._said.get(name, 0):
                self._said[name] = steps
                return _sentence(name, level, now, steps)
        return None


def _sentence(name: str, level: float, now: float, steps: int) -> str:
    short, _, counts = LEVELS[name].rstrip(")").partition(" (")
    away = (level - now) / level
    place = f"within {_NEAR:.0%} of" if abs(away) <= _NEAR else f"{away:.0%} below"
    return (
        f"masked LM has stood at {now:.2f} nats for {steps:,} steps, {place} the level {level:.2f} of"
        f" {short!r} ({counts}): {_MEANING[name]}"
    )
