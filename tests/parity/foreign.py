"""torch and transformers for the parity tests: without them these are skipped, in CI they fail."""

from __future__ import annotations

import os

import pytest

try:
    import torch
    import transformers
except ImportError as error:
    if os.environ.get("BERT_JAX_REQUIRE_PARITY") == "1":
        raise
    pytest.skip(f"{error.name} is not installed", allow_module_level=True)

transformers.utils.logging.disable_progress_bar()
transformers.utils.logging.set_verbosity_error()

__all__ = ["torch", "transformers"]
