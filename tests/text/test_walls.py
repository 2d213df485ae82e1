"""Who imports what: preparation never imports JAX, TensorFlow or protobuf, and light things stay light."""

from __future__ import annotations

import subprocess
import sys

import pytest

BARRED = ("jax", "jaxlib", "flax", "tensorflow", "google.protobuf", "torch", "transformers")


def _loaded(code: str) -> set[str]:
    """Modules loaded after running code in a fresh process."""
    out = subprocess.run(
        [sys.executable, "-c", f"import sys\n{code}\nprint('\\n'.join(sys.modules))"],
        capture_output=True,
        text=True,
        check=True,
    )
    return set(out.stdout.split("\n"))


def _modules() -> list[str]:
    from pathlib import Path

    import bert_jax.text
    import data_prep

    places = [("bert_jax.text", bert_jax.text), ("data_prep", data_prep)]
    return [
        f"{name}.{path.stem}"
        for name, package in places
        for path in sorted(Path(package.__path__[0]).glob("*.py"))
        if path.stem != "__init__"
    ]


def test_no_room_of_preparation_imports_an_accelerator_framework():
    loaded = _loaded("import " + ", ".join(_modules()))
    assert not [name for name in BARRED if name in loaded]
    ours = {name.split(".")[1] for name in loaded if name.startswith("bert_jax.")}
    assert ours <= {"text", "errors", "config"}


def test_heavy_libraries_are_imported_when_they_are_used():
    loaded = _loaded("import bert_jax.text.tokenizer, bert_jax.text.records, bert_jax.text.manifest")
    assert not {"tokenizers", "sentencepiece", "sentencex", "zstandard", "tqdm"} & loaded


@pytest.mark.parametrize("kind", ["unigram", "wordpiece"])
def test_encoding_needs_no_sentencepiece_and_no_protobuf(kind, tmp_path):
    from data_prep.train_tokenizer import TokenizerSettings, train
    from tests.text import tiny

    (tmp_path / "text.txt").write_text(tiny.text(30))
    train([str(tmp_path / "text.txt")], str(tmp_path / "tok"), TokenizerSettings(kind, 80))
    path = str(tmp_path / "tok")
    loaded = _loaded(f"from bert_jax.text.tokenizer import Tokenizer\nTokenizer.load({path!r}).encode_batch(['a cat'])")
    assert "tokenizers" in loaded and not {"sentencepiece", "google.protobuf", "jax"} & loaded
