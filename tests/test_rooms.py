"""The walls of docs/architecture.md: who may import whom, and that each room stands alone."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Room → the rooms it may import besides itself: folders of bert_jax, files at its root, and data_prep.
NOUNS = {
    "errors": set(),
    "settings": {"errors"},
    "config": {"errors", "settings"},
    "cost": {"config", "errors"},
    "flags": {"config"},
    "heap": {"flags"},
    "text": {"config", "errors"},
    "data": {"text", "config", "errors"},
    "model": {"config", "errors"},
    "train": {"config", "errors", "model"},
    "store": {"config", "cost", "errors", "settings", "text"},
    "convert": {"config", "errors", "model", "text"},
    "tasks": {"config", "data", "errors", "model", "rows", "settings", "text", "train"},
    "fine_tuned": {"convert", "errors", "settings", "tasks"},  # what `finetune` writes, `predict` and `evaluate` open
    "footprint": {"config", "data", "errors", "model", "train"},  # what a step holds; `plan` and benchmarks ask it
    "advice": {"config", "data", "errors", "text"},
    "rows": {"data", "errors", "text"},  # texts as rows for the questions that `api` answers
    "data_prep": {"text", "config", "errors"},
}
VERBS = {
    *("pretrain", "plan", "doctor", "evaluate", "replay", "report", "compare"),
    *("export", "import_model", "vocabulary", "fill_mask", "finetune", "predict"),
}
MAY = {
    **NOUNS,
    **dict.fromkeys(VERBS, (NOUNS.keys() - {"data_prep"}) | {"api", "warm_start"}),
    "warm_start": {"api", "config", "convert", "errors", "model", "store", "train"},  # opens what `api` opens
    "api": NOUNS.keys() - {"data_prep"},
    "cli": {"errors", "heap"},  # and a verb, by its name
    "__init__": {"api", "config", "fine_tuned", "text"},  # when a name is used
}

# Library → the rooms whose source may name it at all.
LIBRARIES = {
    "jax": {"data", "model", "train", "store", "convert", "tasks", "api", "footprint", "warm_start", *VERBS},
    "flax": {"model", "train"},  # train/sharding.py sets the rules for the names that model/ gives to axes
    "optax": {"train", "tasks"},
    "orbax": {"store"},
    "tensorboardX": {"store"},
    "matplotlib": {"store", "data_prep", "tasks"},
    "sklearn": {"tasks"},
    "scipy": {"tasks"},
    "safetensors": {"convert"},
    "tokamax": {"model"},
    "tokenizers": {"text", "data_prep"},
    "sentencepiece": {"text", "data_prep"},
    "onnx": {"convert"},
    "onnxruntime": {"convert"},  # to prove an export
    "torch": {"convert"},  # to prove a conversion, where installed
    "transformers": {"convert"},
    "tensorflow": set(),
    "google.protobuf": set(),
}
NUMPY_ONLY = {"data/order.py", "data/packing.py", "data/batching.py", "data/loader.py", "data/stages.py"}


def sources() -> Iterator[tuple[str, Path]]:
    for path in sorted((ROOT / "bert_jax").rglob("*.py")):
        yield path.relative_to(ROOT / "bert_jax").parts[0].removesuffix(".py"), path
    for path in sorted((ROOT / "data_prep").rglob("*.py")):
        yield "data_prep", path


def imports(path: Path) -> set[str]:
    """Dotted names of all that a file imports, anywhere in it; `from a import b` counts as a.b."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are written in full here"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_the_tables_name_every_room() -> None:
    assert {room for room, _ in sources()} == set(MAY)


def test_rooms_import_only_what_their_walls_let_through() -> None:
    wrong = []
    for room, path in sources():
        for name in imports(path):
            package, *rest = name.split(".")
            target = rest[0] if package == "bert_jax" and rest else package
            if package in ("bert_jax", "data_prep") and target != room and target not in MAY[room]:
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert not wrong, wrong


def test_store_takes_the_manifest_and_nothing_else_of_text() -> None:
    names = {name for room, path in sources() if room == "store" for name in imports(path)}
    assert all(name.startswith("bert_jax.text.manifest") for name in names if name.startswith("bert_jax.text"))


def test_libraries_are_named_only_where_they_belong() -> None:
    wrong = []
    for room, path in sources():
        for name in imports(path):
            for library, rooms in LIBRARIES.items():
                if (name + ".").startswith(library + ".") and room not in rooms:
                    wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert not wrong, wrong
    for path in NUMPY_ONLY:
        assert not any(name.split(".")[0] == "jax" for name in imports(ROOT / "bert_jax" / path))


@pytest.mark.parametrize("room", sorted(MAY))
def test_each_room_imports_alone_in_a_fresh_process(room: str) -> None:
    if room == "__init__":
        modules = ["bert_jax"]
    else:
        modules = [
            ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            for here, path in sources()
            if here == room
        ]
    code = f"import sys, {', '.join(modules)}\nprint(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.split())
    never = {"tensorflow", "torch", "transformers"}
    if room in ("__init__", "cli", "config", "cost", "errors", "flags", "heap", "settings", "text", "data_prep"):
        never |= {"jax", "flax", "google.protobuf"}
    if room in ("__init__", "cli", "config", "cost", "errors", "flags", "heap", "settings"):
        never |= {"numpy", "tokenizers"}  # standard library only
    assert not loaded & never


def test_an_import_against_the_walls_would_be_seen(tmp_path: Path) -> None:
    path = tmp_path / "file.py"
    path.write_text("def f():\n    from bert_jax.train import step\n    import jax.numpy as jnp\n")
    assert imports(path) == {"bert_jax.train.step", "jax.numpy"}
