"""Bad models: one sentence each, an exit status, and nothing written or lost.

`python -m tests.convert.test_bad_models` prints the table as Markdown. What each kind of file can have wrong with it is
told byte by byte in the tests of its reader; here whole commands run, as from a terminal.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import shlex
import shutil
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from bert_jax.cli import main
from bert_jax.convert import google, huggingface, native
from bert_jax.convert.loaded import Loaded
from bert_jax.text.tokenizer import from_vocab
from tests.readable import PIECES, readable_config, readable_params, readable_tokenizer

Make = Callable[[Path], object]
WEIGHTS, CONFIG = "model/model.safetensors", "model/config.json"


@dataclass(frozen=True)
class Case:
    """A command that cannot succeed. `make` spoils the folder, which holds the transformers directory model, our own
    directory ours, google-research/bert's directory google and one more file."""

    name: str
    message: str
    make: Make = lambda folder: None
    command: str = "import model --output out --no-prove"
    status: int = 1

    def run(self, folder: Path) -> tuple[int, str]:
        """Exit status and standard error."""
        self.make(folder)
        error = io.StringIO()
        with contextlib.chdir(folder), contextlib.redirect_stderr(error), contextlib.redirect_stdout(io.StringIO()):
            try:
                status = main(shlex.split(self.command))
            except SystemExit as left:
                assert isinstance(left.code, int)
                status = left.code
        return status, error.getvalue()


def world(folder: Path) -> None:
    """What every case finds."""
    model = Loaded(readable_config(), readable_params(readable_config()), readable_tokenizer())
    huggingface.write(folder / "model", model)
    native.write(folder / "ours", model, provenance={})
    tanh = huggingface.read(folder / "model")
    config = json.loads((folder / CONFIG).read_text()) | {"hidden_act": "gelu_new"}
    (folder / "tanh").mkdir()
    for path in (folder / "model").iterdir():
        shutil.copy(path, folder / "tanh" / path.name)
    (folder / "tanh/config.json").write_text(json.dumps(config))
    tanh = huggingface.read(folder / "tanh")
    google.write(folder / "google", tanh, provenance={})
    (folder / "thesis").mkdir()
    (folder / "thesis/thesis.tex").write_text("years of work")


# ------------------------------------------------------------------------------------------------- how to spoil it


def tensors(change: Callable[[dict[str, np.ndarray]], object]) -> Make:
    """Changes the dict of tensors in the weights."""

    def make(folder: Path) -> None:
        found = load_file(folder / WEIGHTS)
        change(found)
        save_file(found, folder / WEIGHTS, metadata={"format": "pt"})

    return make


def settings(**changes: object) -> Make:
    """Changes config.json."""
    return lambda folder: (folder / CONFIG).write_text(
        json.dumps({**json.loads((folder / CONFIG).read_text()), **changes})
    )


def cut(name: str, keep: float) -> Make:
    """Leaves so much of a file."""
    return lambda folder: os.truncate(folder / name, int((folder / name).stat().st_size * keep))


def without(*names: str) -> Make:
    return lambda folder: [(folder / name).unlink() for name in names]


def vocabulary(pieces: list[str]) -> Make:
    """Another tokenizer beside the weights."""

    def make(folder: Path) -> None:
        from_vocab(pieces, lowercase=True).save(folder / "model")

    return make


class _Runs:
    """Unpickled by Python's own unpickler, this makes a file."""

    def __reduce__(self) -> tuple:
        return os.system, ("touch executed",)


def executing(folder: Path) -> None:
    """pytorch_model.bin, as torch.save writes it, with a command for whoever unpickles it."""
    (folder / WEIGHTS).unlink()
    with zipfile.ZipFile(folder / "model/pytorch_model.bin", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"bert.pooler.dense.bias": _Runs()}, protocol=2))
        archive.writestr("archive/version", "3\n")


def swapped(folder: Path) -> None:
    """A tokenizer of as many pieces, two of them changed about."""
    pieces = [*PIECES[:-2], PIECES[-1], PIECES[-2]]
    shutil.rmtree(folder / "ours/tokenizer")
    from_vocab(pieces, lowercase=True).save(folder / "ours/tokenizer")


def unrelated(folder: Path) -> None:
    from_vocab([*PIECES[:-1], "more"], lowercase=True).save(folder / "other")


LAYER = "bert.encoder.layer.2.output.dense.bias"
WORD = "bert.embeddings.word_embeddings.weight"

CASES = [
    Case("a truncated safetensors file", "model.safetensors: not a whole safetensors file", cut(WEIGHTS, 0.9)),
    Case("an empty one", "model.safetensors: not a whole safetensors file", cut(WEIGHTS, 0)),
    Case(
        "a tensor of another shape",
        "has shape [12, 2], where config.json asks for [24]",
        tensors(lambda all_of: all_of.update({LAYER: all_of[LAYER].reshape(12, 2)})),
    ),
    Case(
        "a missing layer",
        "16 tensors are missing: bert.encoder.layer.2",
        tensors(lambda all_of: [all_of.pop(name) for name in list(all_of) if ".layer.2." in name]),
    ),
    Case(
        "half a head",
        "1 tensor is missing: cls.predictions.bias",
        tensors(lambda all_of: all_of.pop("cls.predictions.bias")),
    ),
    Case(
        "an extra layer",
        "16 tensors are not in the table of this architecture: bert.encoder.layer.3",
        tensors(
            lambda all_of: all_of.update(
                {n.replace("layer.2", "layer.3"): t for n, t in all_of.items() if ".layer.2." in n}
            )
        ),
    ),
    Case(
        "a head that is not read",
        "classifier.bias, classifier.weight; leave out a head of yours with `bert-jax import --drop",
        tensors(lambda all_of: all_of.update({"classifier.weight": np.ones((2, 24)), "classifier.bias": np.ones(2)})),
    ),
    Case(
        "NaN in the weights",
        "2 values of 24 in bert.encoder.layer.2.output.dense.bias are NaN or infinite",
        tensors(lambda all_of: all_of[LAYER].__setitem__(slice(2), np.nan)),
    ),
    Case(
        "an untied decoder",
        "cls.predictions.decoder.weight differs from bert.embeddings.word_emb",
        tensors(lambda all_of: all_of.update({"cls.predictions.decoder.weight": all_of[WORD] + 1})),
    ),
    Case(
        "a pickle that would run a command",
        "it asks for posix.system, which no weights need; nothing was run",
        executing,
    ),
    Case(
        "TensorFlow 2 weights",
        "TensorFlow 2 weights (tf_model.h5) are not read",
        lambda folder: (folder / WEIGHTS).rename(folder / "model/tf_model.h5"),
    ),
    Case("no weights", "there is no model.safetensors, pytorch_model.bin or flax_model.msgpack", without(WEIGHTS)),
    Case("a config of another size", "where config.json asks for", settings(hidden_size=32)),
    Case("a config with fewer layers", "not in the table of this architecture", settings(num_hidden_layers=2)),
    Case("heads that do not divide the width", "does not divide into 5 heads", settings(num_attention_heads=5)),
    Case("a config of another architecture", "model_type = 'roberta' is not read", settings(model_type="roberta")),
    Case(
        "relative positions",
        "position_embedding_type = 'relative_key'",
        settings(position_embedding_type="relative_key"),
    ),
    Case("a decoder", "is_decoder = True is not read", settings(is_decoder=True)),
    Case("a config that is no JSON", "config.json: not JSON", cut(CONFIG, 0.5)),
    Case("a larger tokenizer", "the tokenizer has 97 pieces, the model 96", vocabulary([*PIECES, "more"])),
    Case("no tokenizer", "the directory holds no tokenizer", without("model/tokenizer.json", "model/vocab.txt")),
    Case("not a model", "this holds no model", command="import thesis --output out"),
    Case("nothing there", "this does not exist", command="import nothing --output out"),
    Case("a place that is taken", "ours: this exists already; give --force", command="import model --output ours"),
    Case(
        "a place that holds other things",
        "no earlier export, so it is not replaced",
        command=("import model --output thesis --force"),
    ),
    Case(
        "a TensorFlow checkpoint cut short",
        "bert_model.ckpt",
        cut("google/bert_model.ckpt.data-00000-of-00001", 0.5),
        ("import google --output out"),
    ),
    Case(
        "its index cut short",
        "bert_model.ckpt.index: not a whole checkpoint",
        cut("google/bert_model.ckpt.index", 0.5),
        ("import google/bert_model.ckpt --output out"),
    ),
    Case(
        "our own directory, cut short",
        "weights.safetensors: not a whole safetensors",
        cut("ours/weights.safetensors", 0.9),
        ("export ours out"),
    ),
    Case(
        "a GELU that the format does not know",
        "its GELU is the approximation by tanh",
        command=("export ours out --format tf1"),
    ),
    Case(
        "a class without its head",
        "this model has no masked_lm",
        tensors(lambda all_of: [all_of.pop(name) for name in list(all_of) if name.startswith("cls.")]),
        "export model out --model masked-lm",
    ),
    Case(
        "another tokenizer in our directory", "not the tokenizer that came with the weights", swapped, "export ours out"
    ),
    Case("an output that is the source", "would replace what is read", command="export ours ours --force"),
    Case("an output around the source", "would replace what is read", command="export ours . --force"),
    Case(
        "a note of one's own in an export",
        "holds files that no export wrote, so it is not replaced: notes.txt",
        lambda folder: (folder / "model/notes.txt").write_text("mine"),
        "export ours model --force --no-prove",
    ),
    Case(
        "a next-sentence head without its pooler",
        "no pooler for it to read",
        command="import model --output out --no-prove --drop bert.pooler.",
    ),
    Case("a step of what is no run", "only a run has steps", command="export ours out --step 3"),
    Case("pooling for tokens", "make sentence vectors", command="export ours out --format onnx --normalize"),
    Case(
        "no texts to whiten by",
        "there are no texts in it",
        lambda folder: (folder / "empty").touch(),
        "export ours out --format sentence-transformers --whiten empty 8",
    ),
    Case(
        "an unrelated tokenizer", "it lacks 1 piece of the model's", unrelated, "vocabulary ours out --tokenizer other"
    ),
    Case("a vocabulary beyond measure", "10,000,000 rows", command="vocabulary ours out --resize 900000000000"),
    Case("a multiple of nothing", "no number of rows is a multiple of 0", command="vocabulary ours out --multiple 0"),
    Case(
        "a format that there is not",
        "invalid choice: 'savedmodel'",
        command="export ours out --format savedmodel",
        status=2,
    ),
]


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    world(folder)
    return folder


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_it_is_told_in_one_sentence_and_nothing_is_lost(case: Case, origin: Path, tmp_path: Path) -> None:
    folder = tmp_path / "here"
    shutil.copytree(origin, folder)
    case.make(folder)
    before = _standing(folder)
    status, error = Case(case.name, case.message, command=case.command).run(folder)
    assert status == case.status
    assert case.message in error
    assert "Traceback" not in error
    if status == 1:
        assert error.startswith("bert-jax ") and error.count("\n") == 1
    assert _standing(folder) == before, "nothing written, nothing lost, nothing executed"


def test_what_is_asked_to_be_dropped_is_left_out_and_told(
    origin: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    shutil.copytree(origin, tmp_path / "here")
    tensors(lambda all_of: all_of.update({"classifier.weight": np.ones((2, 24)), "classifier.bias": np.ones(2)}))(
        tmp_path / "here"
    )
    out = tmp_path / "out"
    command = ["import", str(tmp_path / "here/model"), "--output", str(out), "--no-prove", "--drop", "classifier."]
    assert main(command) == 0
    assert "2 tensors left out as asked: classifier.bias, classifier.weight" in capsys.readouterr().out
    assert native.read(out).notes[0].startswith("2 tensors left out")


def _standing(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def table() -> str:
    """The cases as a table in Markdown, each one run."""
    lines = ["| case | command | says | exit status |", "|---|---|---|---|"]
    with tempfile.TemporaryDirectory() as box:
        world(Path(box) / "origin")
        for number, case in enumerate(CASES):
            folder = Path(box) / str(number)
            shutil.copytree(Path(box) / "origin", folder)
            status, error = case.run(folder)
            said = error.strip().split("\n")[-1].replace("|", r"\|")
            lines.append(f"| {case.name} | `{case.command}` | {said} | {status} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
