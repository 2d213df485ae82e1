"""Write the golden parameter trees: python -m tests.golden.write. Look at the difference before committing it."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import jax

from bert_jax.config import PRESETS, preset
from bert_jax.model import bert

for name in PRESETS:
    shapes = jax.eval_shape(partial(bert.init, preset(name, 30522)), jax.random.key(0))
    leaves = jax.tree_util.tree_leaves_with_path(shapes)
    tree = {jax.tree_util.keystr(path, simple=True, separator="/"): list(leaf.shape) for path, leaf in leaves}
    lines = ",\n".join(f" {json.dumps(path)}: {json.dumps(shape)}" for path, shape in sorted(tree.items()))
    (Path(__file__).parent / f"{name}.json").write_text("{\n" + lines + "\n}\n", encoding="utf-8")
