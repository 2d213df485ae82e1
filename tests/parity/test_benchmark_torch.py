"""PyTorch's side of the accelerator's benchmark takes the same batches."""

from __future__ import annotations

import math

import pytest

from tests.parity.foreign import torch

from benchmarks.cases import TINY, Case  # isort: skip
from benchmarks.h200_torch import make_step


@pytest.mark.parametrize("case", TINY.values(), ids=lambda case: case.name)
def test_a_step_in_torch_trains_on_the_same_batch(case: Case) -> None:
    """Fresh weights know nothing (ln V and ln 2); a few steps on one batch take some of it in."""
    torch.manual_seed(0)
    step, work = make_step(case, masked=True, compiled=False, device="cpu")
    losses = [float(step()) for _ in range(5)]
    assert losses[0] == pytest.approx(math.log(case.vocabulary) + math.log(2), abs=0.3)
    assert losses[-1] < losses[0] and work.tokens > 0
