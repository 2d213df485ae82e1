"""What the benchmarks of a training step train on: published sizes, and batches whose lengths are like a corpus's."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bert_jax.config import BertConfig, ModelSettings, preset
from bert_jax.cost import Work, work

VOCABULARY = 30522
SEQUENCES = 8  # the most in a packed row


@dataclass(frozen=True)
class Case:
    """Rows of `length` tokens, each one sequence and padding, or packed with up to `SEQUENCES` of them."""

    preset: str
    length: int
    rows: int
    packed: bool = False

    @property
    def name(self) -> str:
        return f"{self.preset}@{self.length}" + ("/packed" if self.packed else "")

    @property
    def sequences(self) -> int:
        return SEQUENCES if self.packed else 1

    @property
    def vocabulary(self) -> int:
        return 1100 if self.preset == "tiny" else VOCABULARY

    @property
    def predictions(self) -> int:
        """Places for masked tokens in a row: those of google-research/bert, or 15 % of a full row and the roundings."""
        share = {128: 20, 512: 76}.get(self.length, self.length // 6)
        return share + (4 if self.packed else 0)

    def config(self, **overrides: object) -> BertConfig:
        """The network; attention dropout 0, as fused attention wants it, hidden dropout 0.1. "tiny" is smaller here."""
        settings = {"attention_dropout": 0.0, "activation": "gelu_tanh", "positions": max(self.length, 512)}
        settings |= {"vocab_multiple": ModelSettings().vocab_multiple}
        settings |= {"layers": 1, "width": 64, "feed_forward": 128} if self.preset == "tiny" else {}
        return preset(self.preset, self.vocabulary, **{**settings, **overrides})


CASES = {
    case.name: case
    for case in (
        Case("base", 128, 512),
        Case("large", 512, 96, packed=True),
        Case("large", 128, 512),
        Case("base", 512, 128, packed=True),
        Case("large", 512, 96),
        Case("base", 512, 128),
        Case("base", 128, 512, packed=True),
        Case("large", 128, 512, packed=True),
    )
}
TINY = {
    case.name: case
    for case in (Case("tiny", 32, 4), Case("tiny", 32, 4, packed=True))  # every path of the code, no figures
}


def lengths_like_a_corpus(length: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """int[count]: of 128 three in four are full and the mean is 0.89, as in shards of Wikipedia; of 512 one in five and
    0.5, as in MLPerf's BERT data set (254), which is what published packed figures are of."""
    full = rng.random(count) < (0.75 if length == 128 else 0.2)
    top = length if length == 128 else int(0.72 * length)
    return np.where(full, length, rng.integers(length // 25 + 1, top, count))


def make_batch(case: Case, seed: int = 0) -> tuple[dict[str, np.ndarray], Work]:
    """A batch of random tokens in the layout of `docs/formats.md`, and the work that is in it."""
    rng = np.random.default_rng(seed)
    rows = _pack(case, rng) if case.packed else [[n] for n in lengths_like_a_corpus(case.length, case.rows, rng)]
    wide, places, pairs = ((case.rows, width) for width in (case.length, case.predictions, case.sequences))
    batch = {name: np.zeros(wide, np.int32) for name in ("input_ids", "segment_ids", "position_ids", "sequence_ids")}
    batch |= {name: np.zeros(places, np.int32) for name in ("mlm_positions", "mlm_labels")}
    batch |= {name: np.zeros(pairs, np.int32) for name in ("cls_positions", "nsp_labels")}
    batch |= {"mlm_weights": np.zeros(places, np.float32), "nsp_weights": np.zeros(pairs, np.float32)}
    for row, lengths in enumerate(rows):
        start = used = 0
        for number, length in enumerate(map(int, lengths)):
            end = start + length
            batch["input_ids"][row, start:end] = rng.integers(1000, case.vocabulary, length)
            batch["segment_ids"][row, start + length // 2 : end] = 1
            batch["position_ids"][row, start:end] = np.arange(length)
            batch["sequence_ids"][row, start:end] = number + 1
            chosen = min(max(round(0.15 * length), 1), case.predictions - used)
            batch["mlm_positions"][row, used : used + chosen] = rng.choice(np.arange(start, end), chosen, replace=False)
            batch["mlm_labels"][row, used : used + chosen] = rng.integers(1000, case.vocabulary, chosen)
            batch["mlm_weights"][row, used : used + chosen] = 1
            batch["cls_positions"][row, number] = start
            batch["nsp_labels"][row, number] = rng.integers(2)
            batch["nsp_weights"][row, number] = 1
            start, used = end, used + chosen
    return batch, work([int(n) for lengths in rows for n in lengths], float(batch["mlm_weights"].sum()))


def _pack(case: Case, rng: np.random.Generator) -> list[list[int]]:
    """Lengths, longest first, each into the fullest row that has room."""
    rows: list[list[int]] = [[] for _ in range(case.rows)]
    room = np.full(case.rows, case.length)
    drawn = lengths_like_a_corpus(case.length, case.rows * case.sequences, rng)
    mean = drawn.mean()
    for length in np.sort(drawn[: int(case.rows * case.length / mean)])[::-1]:
        fits = [row for row in range(case.rows) if room[row] >= length and len(rows[row]) < case.sequences]
        if fits:
            row = min(fits, key=lambda row: room[row])
            rows[row].append(int(length))
            room[row] -= length
    return rows
