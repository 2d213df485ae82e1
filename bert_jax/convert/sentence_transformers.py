"""sentence-transformers directories: a transformers directory, and beside it how a text's states become one vector.

`modules.json` lists the modules in their order: the transformer, pooling, any number of dense layers, and perhaps
normalising. Years have moved the classes and renamed the keys; old and new ones are read, and those are written that
both read. Classes are told by the last word of their path, and nothing is imported by a name out of a file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from safetensors.numpy import save

from bert_jax.convert import huggingface
from bert_jax.convert.directory import read_json
from bert_jax.convert.families import Kind
from bert_jax.convert.loaded import Dense, Loaded, Pooling
from bert_jax.convert.names import Tensors
from bert_jax.convert.safetensors_file import read_safetensors
from bert_jax.convert.torch_pickle import read_torch
from bert_jax.errors import UserError
from bert_jax.text.tokenizer import Tokenizer, from_vocab

MODULES, SETTINGS, OWN = "modules.json", "sentence_bert_config.json", "config_sentence_transformers.json"

# Our mode, and the keys that were true for it before there was `pooling_mode`.
_MODES = {"cls": "pooling_mode_cls_token", "mean": "pooling_mode_mean_tokens", "max": "pooling_mode_max_tokens"}
_ACTIVATIONS = {"Identity": "identity", "Tanh": "tanh"}
_PATHS = {"identity": "torch.nn.modules.linear.Identity", "tanh": "torch.nn.modules.activation.Tanh"}
_REMEDY = "save it again with sentence-transformers"


def is_directory(path: str | Path) -> bool:
    """Whether `path` looks like a sentence-transformers directory."""
    return (Path(path) / MODULES).is_file()


# --------------------------------------------------------------------------------------------------- reading


def read(directory: str | Path, drop: Sequence[str] = ()) -> Loaded:
    """The transformer with its tokenizer, and its pooling.

    Args:
        drop: beginnings of names of tensors to leave out, as of a head that is not in the table.

    Raises:
        UserError: files are missing or broken, or a module is one that is not read.
    """
    directory = Path(directory)
    where = str(directory / MODULES)
    modules = [_module(entry, where) for entry in _list(read_json(directory / MODULES), where)]
    kinds = [kind for kind, _ in modules]
    middle = kinds[2:-1] if kinds[-1:] == ["Normalize"] else kinds[2:]
    if kinds[:2] != ["Transformer", "Pooling"] or set(middle) - {"Dense"}:
        raise UserError(
            f"the modules {', '.join(kinds) or '(none)'} are not read",
            where,
            "give a model of a Transformer, Pooling, perhaps Dense and perhaps Normalize",
        )
    root = directory / modules[0][1]
    loaded = huggingface.read(root, drop)
    settings = _settings(root)
    tokenizer, notes = loaded.tokenizer, list(loaded.notes)
    if settings.get("do_lower_case") and not tokenizer.lowercase:
        tokenizer = _lowercasing(root, tokenizer)
    notes += _prompts(directory)
    mode, width = _pooling(directory / modules[1][1])
    _agree(width, loaded.config.width, "the pooling", where)
    width, dense = loaded.config.width, []
    for kind, path in modules[2:]:
        if kind == "Dense":
            dense.append(_dense(directory / path))
            _agree(dense[-1].kernel.shape[0], width, path, where)
            width = dense[-1].kernel.shape[1]
    length = settings.get("max_seq_length") or _model_length(root)
    pooling = Pooling(
        mode,
        normalize=kinds[-1] == "Normalize",
        length=length if isinstance(length, int) and length < loaded.config.positions else None,
        dense=tuple(dense),
    )
    return replace(loaded, tokenizer=tokenizer, pooling=pooling, notes=tuple(notes))


def _list(tree: Any, where: str) -> list:
    if not isinstance(tree, list):
        raise UserError("a list of modules is needed", where, _REMEDY)
    return tree


def _module(entry: Any, where: str) -> tuple[str, str]:
    """Last word of the class, and the folder, which stays inside the directory."""
    if not isinstance(entry, dict) or not all(isinstance(entry.get(key), str) for key in ("type", "path")):
        raise UserError("a module without type or path", where, _REMEDY)
    path = PurePosixPath(entry["path"])
    if path.is_absolute() or ".." in path.parts or "\\" in entry["path"]:
        raise UserError(f"the path {entry['path']!r} leads out of the directory", where, _REMEDY)
    return entry["type"].split(".")[-1], entry["path"]


def _settings(root: Path) -> dict[str, Any]:
    """`max_seq_length` and `do_lower_case`; the file was once called after the family."""
    names = [SETTINGS, *(f"sentence_{family}_config.json" for family in ("distilbert", "albert", "roberta"))]
    path = next((root / name for name in names if (root / name).is_file()), None)
    return {} if path is None else _object(path)


def _object(path: Path) -> dict[str, Any]:
    tree = read_json(path, _REMEDY)
    if not isinstance(tree, dict):
        raise UserError("an object is needed", str(path), _REMEDY)
    return tree


def _model_length(root: Path) -> Any:
    """What the tokenizer says, where newer versions keep the length."""
    path = root / "tokenizer_config.json"
    return _object(path).get("model_max_length") if path.is_file() else None


def _lowercasing(root: Path, tokenizer: Tokenizer) -> Tokenizer:
    """The same tokenizer behind lower case, which takes no accents away in sentence-transformers."""
    if tokenizer.kind != "wordpiece":
        raise UserError(
            "do_lower_case is not read beside a tokenizer of this kind", str(root / SETTINGS), "lower the texts first"
        )
    path = root / "tokenizer_config.json"
    tree = _object(path) if path.is_file() else {}
    options = {key: tree[key] for key in ("strip_accents", "tokenize_chinese_chars") if tree.get(key) is not None}
    return from_vocab(tokenizer.pieces, str(root), True, **{"strip_accents": False, **options})


def _prompts(directory: Path) -> list[str]:
    tree = _object(directory / OWN) if (directory / OWN).is_file() else {}
    name, prompts = tree.get("default_prompt_name"), tree.get("prompts")
    if not name or not isinstance(prompts, dict) or not prompts.get(name):
        return []
    return [f"sentence-transformers puts {prompts[name]!r} before every text; here that is left to the caller"]


def _pooling(folder: Path) -> tuple[Any, Any]:
    """Mode and width, from the keys of today or of older years."""
    tree, where = _object(folder / "config.json"), str(folder / "config.json")
    old = [key for key, value in tree.items() if key.startswith("pooling_mode_") and value is True]
    if "pooling_mode" in tree:
        modes = tree["pooling_mode"] if isinstance(tree["pooling_mode"], list) else [tree["pooling_mode"]]
    else:
        names = {key: mode for mode, key in _MODES.items()}
        modes = [names.get(key, key) for key in old] or ["mean"]
    if len(modes) != 1 or modes[0] not in _MODES:
        raise UserError(
            f"pooling by {' and '.join(map(str, modes))} is not read", where, f"it must be one of {', '.join(_MODES)}"
        )
    return modes[0], tree.get("embedding_dimension", tree.get("word_embedding_dimension"))


def _dense(folder: Path) -> Dense:
    """`linear.weight` [out, in] and `linear.bias` [out], in safetensors or in torch's own file."""
    tree, where = _object(folder / "config.json"), str(folder / "config.json")
    activation = _ACTIVATIONS.get(str(tree.get("activation_function", "Tanh")).split(".")[-1])
    if activation is None:
        names = " or ".join(_ACTIVATIONS)
        raise UserError(f"the activation {tree['activation_function']!r} is not read", where, f"it must be {names}")
    for key, only in (("use_residual", False), ("module_input_name", "sentence_embedding")):
        if tree.get(key, only) != only:
            raise UserError(f"{key} = {tree[key]!r} is not read", where, f"it must be {only!r}")
    new, old = folder / "model.safetensors", folder / "pytorch_model.bin"
    tensors = read_safetensors(new) if new.is_file() or not old.is_file() else read_torch(old)
    weight, bias = tensors.get("linear.weight"), tensors.get("linear.bias")
    shape = (tree.get("out_features"), tree.get("in_features"))
    fits = weight is not None and weight.shape == shape and (bias is None or bias.shape == shape[:1])
    if not fits or set(tensors) - {"linear.weight", "linear.bias"} or (bias is not None) != tree.get("bias", True):
        found = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in tensors.items())
        raise UserError(f"the weights ({found}) are not what config.json says", str(folder), _REMEDY)
    assert weight is not None
    return Dense(np.ascontiguousarray(weight.T), bias, activation)  # pyright: ignore[reportArgumentType]


def _agree(found: Any, width: int, what: str, where: str) -> None:
    if found is not None and found != width:
        raise UserError(f"{what} takes {found} numbers and is given {width}", where, _REMEDY)


# --------------------------------------------------------------------------------------------------- writing


def write(
    out: str | Path,
    loaded: Loaded,
    pooling: Pooling | None = None,
    *,
    force: bool = False,
    provenance: Mapping[str, Any] | None = None,
    extra: Mapping[str, str | bytes] | None = None,
) -> Kind:
    """Write a sentence-transformers directory, whole or not at all.

    Args:
        loaded: its encoder is written, heads are left out.
        pooling: `loaded.pooling` if not given, and the mean over tokens if there is none.
        force: replace an earlier export at `out`; anything else there is never touched.
        provenance: where the weights come from.
        extra: further files by name.

    Returns:
        The transformers class at its root.

    Raises:
        UserError: as `huggingface.write`, or the dense layers do not fit.
    """
    pooling = pooling or loaded.pooling or Pooling()
    width = loaded.config.width
    length = pooling.length or loaded.config.positions
    modules: list[tuple[str, dict[str, Any], Tensors]] = [("Pooling", _pooling_config(pooling.mode, width), {})]
    for dense in pooling.dense:
        _agree(dense.kernel.shape[0], width, "a dense layer", str(out))
        width = dense.kernel.shape[1]
        modules.append(("Dense", _dense_config(dense), _dense_tensors(dense)))
    if pooling.normalize:
        modules.append(("Normalize", {}, {}))
    entries = [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}]
    files: dict[str, Any] = {
        MODULES: entries,
        SETTINGS: {"max_seq_length": length, "do_lower_case": False},
        OWN: {"prompts": {}, "default_prompt_name": None, "similarity_fn_name": "cosine"},
    }
    tensors: dict[str, str | bytes] = {}
    for number, (kind, config, weights) in enumerate(modules, 1):
        path = f"{number}_{kind}"
        entries.append(
            {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
        )
        files[f"{path}/config.json"] = config
        if weights:
            tensors[f"{path}/model.safetensors"] = save(weights, metadata={"format": "pt"})
    texts = {name: json.dumps(tree, indent=2, ensure_ascii=False) + "\n" for name, tree in files.items()}
    extra = {**tensors, **texts, **(extra or {})}
    return huggingface.write(out, loaded, kind="encoder", force=force, provenance=provenance, extra=extra)


def _pooling_config(mode: str, width: int) -> dict[str, Any]:
    return {"word_embedding_dimension": width} | {key: mode == name for name, key in _MODES.items()}


def _dense_config(dense: Dense) -> dict[str, Any]:
    return {
        "in_features": dense.kernel.shape[0],
        "out_features": dense.kernel.shape[1],
        "bias": dense.bias is not None,
        "activation_function": _PATHS[dense.activation],
    }


def _dense_tensors(dense: Dense) -> Tensors:
    tensors = {"linear.weight": np.ascontiguousarray(dense.kernel.T)}
    return tensors if dense.bias is None else tensors | {"linear.bias": dense.bias}


# ------------------------------------------------------------------------------------------------- whitening


def fit_whitening(vectors: np.ndarray, size: int) -> Dense:
    """The dense layer after which these vectors have mean 0 and, in the `size` directions in which they differ most,
    variance 1 and no correlation (Su et al. 2021, https://arxiv.org/abs/2103.15316; Huang et al. 2021,
    https://arxiv.org/abs/2104.01767).

    Args:
        vectors: float32[n, D] of texts like those to come, before any normalising.
        size: directions kept, the largest first; at most D and at most n - 1.

    Returns:
        Of kernel float32[D, size] and bias float32[size].

    Raises:
        UserError: there are fewer directions in the vectors than asked for.
    """
    vectors = np.asarray(vectors, np.float64)
    mean = vectors.mean(0)
    _, deviations, directions = np.linalg.svd((vectors - mean) / np.sqrt(len(vectors)), full_matrices=False)
    # beyond float32's own noise: a direction without spread would be blown up to noise of variance 1
    rank = int((deviations > deviations[0] * np.finfo(np.float32).eps * max(vectors.shape)).sum())
    if not 1 <= size <= rank:
        raise UserError(
            f"{len(vectors):,} vectors of {vectors.shape[1]} differ in {rank} directions, {size} are asked for",
            "whitening",
            "give more texts, or ask for fewer",
        )
    kernel = (directions[:size] / deviations[:size, None]).T
    return Dense(kernel.astype(np.float32), (-mean @ kernel).astype(np.float32))
