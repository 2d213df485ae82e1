"""Every format there and back, on random weights and real sentences.

    python -m benchmarks.round_trip CORPORA VOCABULARY [--sizes tiny base] [--texts 200]

CORPORA holds folders of paragraphs (`en_wiki2015`, `de_wiki`, `ko_wiki`, `zh_wiki`, as `*.txt` or `*.txt.zst`),
VOCABULARY is a multilingual `vocab.txt`, trimmed to the texts. For each size and each transformers class that is read
here:

- transformers writes random weights; they are read, written again, and every tensor must be the same bits;
- both compute the texts as pairs with padding and both segments, of 1 to 512 tokens: every layer and head.

And for BERT, the weights as each format that is read (safetensors, torch's zip and legacy pickles, Flax msgpack,
TensorFlow 1 of both versions, our own directory) must give the same parameters bit for bit, and what is written from
them (transformers, TensorFlow 1, our own) must give them back. The exit status is 1 where anything is not so.
"""

from __future__ import annotations

import argparse
import io
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from bert_jax.config import PRESETS
from bert_jax.convert import google, huggingface, native
from bert_jax.convert.families import FAMILIES
from bert_jax.convert.loaded import Loaded
from bert_jax.convert.names import flatten
from bert_jax.convert.opening import open_foreign
from bert_jax.convert.proof import prove
from bert_jax.text.edits import trimmed
from bert_jax.text.tokenizer import Tokenizer

LANGUAGES = ("en_wiki2015", "de_wiki", "ko_wiki", "zh_wiki")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("corpora", type=Path)
    parser.add_argument("vocabulary", type=Path)
    parser.add_argument("--sizes", nargs="+", default=["tiny", "base"], choices=tuple(PRESETS))
    parser.add_argument("--texts", type=int, default=200)
    args = parser.parse_args()
    texts = real_texts(args.corpora, args.texts)
    tokenizer = trimmed(Tokenizer.load(args.vocabulary), texts)  # logits of fewer pieces, the same ids but for numbers
    failed = 0
    for size in args.sizes:
        print(f"\n{size}\n\n| class | tensors | same bits | rows of text | tokens a row | largest difference, where |")
        print("|---|---|---|---|---|---|", flush=True)
        for family in FAMILIES:
            for kind in family.kinds:
                with tempfile.TemporaryDirectory() as box:
                    failed += not through(Path(box), kind.architecture, size, tokenizer, texts)
        print(
            "\n| read from | parameters | same bits | written again as | same bits |\n|---|---|---|---|---|", flush=True
        )
        with tempfile.TemporaryDirectory() as box:
            failed += not between(Path(box), size, tokenizer)
    print(f"\n{failed} not as they should be" if failed else "\nall as they should be")
    return int(failed > 0)


def real_texts(corpora: Path, count: int) -> list[str]:
    """As many of each language; lengths from one word to more than a row holds, evenly over their logarithm."""
    chosen = []
    for language in LANGUAGES:
        long = [line for line in paragraphs(corpora / language) if len(line) > 40]
        each = count // len(LANGUAGES)
        for number, size in enumerate(np.geomspace(1, 3000, each).astype(int)):
            text = " ".join(long[number * 40 : number * 40 + 40])[:size]
            chosen.append(text)
    rng = np.random.default_rng(0)
    return [chosen[number] for number in rng.permutation(len(chosen))]


def paragraphs(folder: Path) -> Iterator[str]:
    """The first lines of a corpus."""
    path = min([*folder.glob("*.txt"), *folder.glob("*.txt.zst")])
    raw = path.read_bytes()
    if path.suffix == ".zst":
        import zstandard

        raw = zstandard.ZstdDecompressor().stream_reader(io.BytesIO(raw)).read(4_000_000)
    for line in raw[:4_000_000].decode("utf-8", "ignore").splitlines()[:20_000]:
        if line.strip():
            yield line.strip()


def random_model(architecture: str, size: str, vocabulary: int) -> Any:
    """Loud weights: products keep the size of what they are given, norms are off 1 and 0."""
    import torch
    import transformers

    p = PRESETS[size]
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    sizes = dict(zip(names, (p["width"], p["layers"], p["heads"], p["feed_forward"]), strict=True))
    settings: dict[str, Any] = {"vocab_size": vocabulary}
    if architecture.startswith("DistilBert"):
        sizes = dict(zip(("dim", "n_layers", "n_heads", "hidden_dim"), sizes.values(), strict=True))
        config = transformers.DistilBertConfig(**settings, **sizes)
    elif architecture.startswith("Albert"):
        config = transformers.AlbertConfig(**settings, **sizes, embedding_size=128, num_hidden_groups=1)
    elif architecture.startswith("Electra"):
        config = transformers.ElectraConfig(**settings, **sizes, embedding_size=128)
    else:
        config = transformers.BertConfig(**settings, **sizes)
    torch.manual_seed(0)
    model = getattr(transformers, architecture)(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
            elif "embeddings." in name and "project" not in name:
                parameter.normal_(0, 0.5)
            else:
                parameter.normal_(0, parameter.shape[-1] ** -0.5)
    return model


def through(box: Path, architecture: str, size: str, tokenizer: Tokenizer, texts: list[str]) -> bool:
    """transformers → here → transformers of one class: bits, and numbers."""
    model = random_model(architecture, size, tokenizer.vocab_size)
    model.save_pretrained(box / "theirs")
    tokenizer.save(box / "theirs")
    loaded = huggingface.read(box / "theirs")
    kind = huggingface.write(box / "ours", loaded)
    before, after = (load_file(box / name / huggingface.WEIGHTS) for name in ("theirs", "ours"))
    same = before.keys() == after.keys() and all(before[n].tobytes() == after[n].tobytes() for n in before)
    proof = prove(box / "ours", loaded, kind, texts)
    lengths = [min(len(ids), 512) for ids in ragged(tokenizer, texts)]
    worst = max(proof.worst, key=lambda name: proof.worst[name])
    print(
        f"| {architecture} | {len(before)} | {'yes' if same else 'NO'} | {proof.rows}"
        f" | texts of {min(lengths)} to {max(lengths)} | {proof.worst[worst]:.1e}, {worst}"
        f"{'' if proof.passed else ' NOT PROVED'} |",
        flush=True,
    )
    return same and proof.passed


def ragged(tokenizer: Tokenizer, texts: list[str]) -> Iterator[np.ndarray]:
    encoded = tokenizer.encode_batch(texts)
    return (encoded.ids[a:b] for a, b in zip(encoded.rows[:-1], encoded.rows[1:], strict=True))


# ---------------------------------------------------------------------------------------- the formats of one model


def between(box: Path, size: str, tokenizer: Tokenizer) -> bool:
    """Each format that is read, and from it each that is written."""
    model = random_model("BertForPreTraining", size, tokenizer.vocab_size)
    model.config.hidden_act = "gelu_new"  # google-research/bert has no other
    model.save_pretrained(box / "safetensors")
    tokenizer.save(box / "safetensors")
    first = huggingface.read(box / "safetensors")
    fine = True
    for name, make in {"safetensors": None, **SOURCES}.items():
        folder = box / name
        if make is not None:
            make(folder, box / "safetensors", model, first)
        loaded = open_foreign(folder)
        same, back = equal(first, loaded), []
        for target, write in TARGETS.items():
            write(box / "again", loaded)
            back.append((target, equal(first, open_foreign(box / "again"))))
            shutil.rmtree(box / "again")
        fine &= same and all(good for _, good in back)
        count = sum(leaf.size for _, leaf in flatten(loaded.params))
        names = ", ".join(target for target, _ in back)
        verdict = "yes" if all(good for _, good in back) else f"NO: {[target for target, good in back if not good]}"
        print(f"| {name} | {count:,} | {'yes' if same else 'NO'} | {names} | {verdict} |", flush=True)
    return fine


def equal(one: Loaded, other: Loaded) -> bool:
    """Config and every parameter, bit for bit."""
    ours, theirs = dict(flatten(one.params)), dict(flatten(other.params))
    same = ours.keys() == theirs.keys() and all(ours[p].tobytes() == theirs[p].tobytes() for p in ours)
    return same and one.config == other.config


def settings(folder: Path, source: Path) -> None:
    """config.json and the tokenizer of a transformers directory, without its weights."""
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.safetensors"))


def as_torch(zipped: bool) -> Callable[..., None]:
    def make(folder: Path, source: Path, model: Any, first: Loaded) -> None:
        import torch

        settings(folder, source)
        torch.save(model.state_dict(), folder / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)

    return make


def as_flax(folder: Path, source: Path, model: Any, first: Loaded) -> None:
    """The tree of transformers' old FlaxBertForPreTraining, by flax."""
    from flax import serialization

    settings(folder, source)
    tree: dict[str, Any] = {}
    for name, tensor in load_file(source / huggingface.WEIGHTS).items():
        *path, last = name.split(".")
        kind = {2: "embedding" if "embeddings" in path else "kernel", 1: "scale" if "LayerNorm" in path else "weight"}
        if last == "weight":
            last = kind[tensor.ndim]
        node = tree
        for part in path:
            node = node.setdefault(part, {})
        node[last] = np.ascontiguousarray(tensor.T) if last == "kernel" else tensor
    (folder / "flax_model.msgpack").write_bytes(serialization.msgpack_serialize(tree))


def as_tensorflow(version: int) -> Callable[..., None]:
    """By TensorFlow itself, with the slots that AdamW leaves."""

    def make(folder: Path, source: Path, model: Any, first: Loaded) -> None:
        import tensorflow as tf

        google.write(folder, first, provenance={})
        reader = tf.train.load_checkpoint(str(folder / google.CHECKPOINT))
        tensors = {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}
        for path in folder.glob(f"{google.CHECKPOINT}*"):
            path.unlink()
        with tf.Graph().as_default(), tf.compat.v1.Session() as session:
            variables = [tf.compat.v1.Variable(tensor, name=name) for name, tensor in tensors.items()]
            some = [tf.compat.v1.Variable(tensor, name=f"{name}/adam_m") for name, tensor in list(tensors.items())[:9]]
            session.run(tf.compat.v1.global_variables_initializer())
            saver = tf.compat.v1.train.Saver(variables + some, write_version=version)
            saver.save(session, str(folder / google.CHECKPOINT), write_meta_graph=False)

    return make


SOURCES: dict[str, Callable[[Path, Path, Any, Loaded], None]] = {
    "torch pickle (zip)": as_torch(True),
    "torch pickle (legacy)": as_torch(False),
    "Flax msgpack": as_flax,
    "TensorFlow 1, V2": as_tensorflow(2),
    "TensorFlow 1, V1": as_tensorflow(1),
    "our own directory": lambda folder, source, model, first: native.write(folder, first, provenance={}),
}
TARGETS: dict[str, Callable[[Path, Loaded], object]] = {
    "transformers": lambda folder, loaded: huggingface.write(folder, loaded),
    "TensorFlow 1": lambda folder, loaded: google.write(folder, loaded, provenance={}),
    "our own": lambda folder, loaded: native.write(folder, loaded, provenance={}),
}


if __name__ == "__main__":
    sys.exit(main())
