"""BERT in JAX and Flax, whole. Importing this package imports nothing else until a name is used.

Example:
    >>> import bert_jax
    >>> model = bert_jax.load("runs/demo/run")            # doctest: +SKIP
    >>> model.fill_mask("The default value is [MASK].")   # doctest: +SKIP
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bert_jax.api import load
    from bert_jax.config import BertConfig
    from bert_jax.fine_tuned import load_task
    from bert_jax.text.tokenizer import Tokenizer

__version__ = "0.1.0"
__all__ = ["BertConfig", "Tokenizer", "__version__", "load", "load_task"]

_HOMES = {
    "load": "bert_jax.api",
    "load_task": "bert_jax.fine_tuned",
    "BertConfig": "bert_jax.config",
    "Tokenizer": "bert_jax.text.tokenizer",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'bert_jax' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
