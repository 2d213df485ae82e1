"""The directory of a fine-tuned model: an encoder to whoever asks for one, and a head that fits its task."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from bert_jax import export, import_model
from bert_jax.api import load, open_model
from bert_jax.config import BertConfig
from bert_jax.convert import heads, huggingface, task_model
from bert_jax.convert.loaded import Loaded
from bert_jax.convert.names import flatten
from bert_jax.convert.task_model import TaskModel
from bert_jax.errors import UserError
from bert_jax.text.tokenizer import Tokenizer, from_vocab

LABELS = ("no", "perhaps", "yes")


def product(outputs: int, width: int = 24) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(outputs)
    return {
        "kernel": rng.normal(0, 0.2, (width, outputs)).astype(np.float32),
        "bias": rng.normal(0, 0.2, outputs).astype(np.float32),
    }


def fine_tuned(loaded: Loaded, family: str = "single", head: dict | None = None, **task: Any) -> TaskModel:
    labels = {"single": {"label": list(LABELS)}, "pair": {"label": list(LABELS)}, "tagging": {"tags": list(LABELS)}}
    outputs = {"regression": 1, "choice": 1, "qa": 2}.get(family, 3)
    head = head or {"qa_outputs" if family == "qa" else "classifier": product(outputs)}
    readout = {"layers": "last", "tokens": {"tagging": "first", "qa": "all"}.get(family, "pooled")}
    tree = {"family": family, "labels": labels.get(family, {}), "readout": readout, "task": {"family": family}}
    return TaskModel(loaded, head, {**tree, **task})


@pytest.fixture
def loaded(config: BertConfig, params: dict, tokenizer: Tokenizer) -> Loaded:
    return Loaded(config, params, tokenizer)


def run(verb: Any, *arguments: object) -> int:
    parser = argparse.ArgumentParser()
    verb.add_arguments(parser)
    return verb.run(parser.parse_args(["--no-prove", *map(str, arguments)]))


# ---------------------------------------------------------------------------------------------------- the directory


def test_what_is_written_is_read_back_equal(tmp_path: Path, loaded: Loaded) -> None:
    head = {
        "intent": product(2, 48),
        "slots": product(4, 48),
        "mix": {"weights": np.arange(4, dtype=np.float32), "scale": np.float32(1.5)},
    }
    task = {
        "labels": {"intent": ["fly", "buy"], "slots": ["O", "B-city", "I-city", "B-Köln"]},
        "columns": {"label": "2"},
        "scores": {"dev": {"f1": 0.5}},
        "no_answer": -1.25,
    }
    model = fine_tuned(loaded, "intent_slots", head, **task)
    task_model.write(tmp_path / "out", model, provenance={"source": "a test"}, extra={"recipe.toml": "[task]\n"})
    read = task_model.read(tmp_path / "out")
    before, after = (dict(flatten(one.head)) for one in (model, read))
    assert before.keys() == after.keys() and after["mix/scale"].shape == ()
    for name, leaf in before.items():
        assert after[name].dtype == np.float32
        np.testing.assert_array_equal(after[name], leaf)
    assert {name: read.task[name] for name in model.task} == model.task
    assert read.task["schema"] == 1 and read.task["head"]["slots/kernel"] == [48, 4]
    assert (tmp_path / "out/recipe.toml").read_text() == "[task]\n"
    assert json.loads((tmp_path / "out/provenance.json").read_text())["source"] == "a test"
    task_model.write(tmp_path / "again", read, provenance={})
    for name in ("task.json", "head.safetensors", "weights.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()


def test_it_opens_as_the_encoder_and_says_so(tmp_path: Path, loaded: Loaded) -> None:
    """Even with a recipe beside it, which elsewhere marks a run."""
    task_model.write(tmp_path / "out", fine_tuned(loaded), provenance={}, extra={"recipe.toml": "[task]\n"})
    opened = open_model(tmp_path / "out")
    jax.tree.map(np.testing.assert_array_equal, opened.params, loaded.params)
    assert opened.config == loaded.config
    assert opened.notes == ("the head of the task (single) is left out: this is the encoder",)
    assert task_model.read(tmp_path / "out").loaded.notes == ()
    assert "classifier" not in load(tmp_path / "out").params


def test_a_task_without_a_head_is_a_model_with_its_pooling(tmp_path: Path, loaded: Loaded) -> None:
    task_model.write(tmp_path / "out", TaskModel(loaded, {}, {"family": "embedding"}), provenance={})
    assert not (tmp_path / "out/head.safetensors").exists()
    assert task_model.read(tmp_path / "out").head == {}
    assert open_model(tmp_path / "out").notes == () and heads.open_task(tmp_path / "out") is None


def _json(**changes: Any) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        path = folder / "task.json"
        tree = {**json.loads(path.read_text()), **changes}
        path.write_text(json.dumps({key: value for key, value in tree.items() if value != "gone"}))

    return change


def _head(**changes: Any) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        tensors = {**load_file(folder / "head.safetensors"), **changes}
        save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, folder / "head.safetensors")

    return change


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "task.json").unlink(), "there is no task.json"),
        (lambda folder: (folder / "task.json").write_text("{"), "task.json: not JSON"),
        (lambda folder: (folder / "task.json").write_text("[]"), "not the task of a model of ours"),
        (_json(schema=2), "schema 2 is of a later bert_jax"),
        (_json(schema="gone"), "not the task of a model of ours"),
        (_json(family=3), "family = 3 cannot be"),
        (_json(readout="gone"), "readout is missing"),
        (_json(no_answer=float("nan")), "no_answer = nan is no threshold"),
        (_json(no_answer=True), "no_answer = True cannot be"),
        (_json(labels={"label": "yes"}), "the labels of label are no list of names"),
        (_json(labels={"label": ["yes", "no", "yes"]}), "two labels of label have one name"),
        (_json(labels={"label": ["yes", "no"]}), "classifier has 3 outputs and label 2 names"),
        (_json(labels={}), "classifier has 3 outputs and label 0 names"),
        (lambda folder: (folder / "head.safetensors").unlink(), "head.safetensors"),
        (
            lambda folder: (folder / "head.safetensors").write_bytes(b"\x00" * 9),
            "head.safetensors: not a whole safetensors file",
        ),
        (_head(**{"classifier/bias": None}), "classifier/bias of task.json is not in head.safetensors"),
        (_head(**{"mix/scale": np.ones(1, np.float32)}), "mix/scale is not in task.json"),
        (
            _head(**{"classifier/bias": np.ones(2, np.float32)}),
            r"classifier/bias has shape \[2\], where task.json says",
        ),
        (_head(**{"classifier/bias": np.full(3, np.nan, np.float32)}), "in classifier/bias are NaN or infinite"),
        (lambda folder: (folder / "weights.safetensors").unlink(), "weights.safetensors"),
    ],
)
def test_what_is_broken_is_told_in_one_sentence(
    spoil: Callable[[Path], object], message: str, tmp_path: Path, loaded: Loaded
) -> None:
    task_model.write(tmp_path / "out", fine_tuned(loaded), provenance={})
    spoil(tmp_path / "out")
    with pytest.raises(UserError, match=message) as told:
        task_model.read(tmp_path / "out")
    assert "\n" not in str(told.value) and str(tmp_path) in str(told.value)


# ------------------------------------------------------------------------------------------------------ out and in


@pytest.mark.parametrize("family", ["single", "pair", "regression", "choice", "tagging", "qa"])
def test_each_family_goes_out_as_its_class_and_comes_back(family: str, tmp_path: Path, loaded: Loaded) -> None:
    model = fine_tuned(loaded, family)
    task_model.write(tmp_path / "ours", model, provenance={})
    assert run(export, tmp_path / "ours", tmp_path / "out") == 0
    asked = ["--task", "pair"] if family == "pair" else []
    assert run(import_model, tmp_path / "out", "--output", tmp_path / "again", *asked) == 0
    again = task_model.read(tmp_path / "again")
    assert (again.family, again.labels) == (family, model.labels)
    jax.tree.map(np.testing.assert_array_equal, again.head, model.head)
    assert {key: again.task["readout"][key] for key in ("layers", "tokens")} == model.task["readout"]
    for part, tree in again.loaded.params.items():  # heads of pretraining stay behind
        jax.tree.map(np.testing.assert_array_equal, tree, loaded.params[part])
    assert again.loaded.config == loaded.config


REFUSED = {
    "mix": {"head": {"classifier": product(3), "mix": {"weights": np.zeros(4, np.float32)}}, "layers": "mix"},
    "a mean of tokens": {"tokens": "mean"},
    "[CLS] without the pooler": {"tokens": "first"},
    "the last four": {"layers": "cat4", "head": {"classifier": product(3, 96)}},
    "another layer": {"layers": "2"},
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_readout_that_no_class_has_stays_here(name: str, tmp_path: Path, loaded: Loaded) -> None:
    case = dict(REFUSED[name])
    head = case.pop("head", None)
    model = fine_tuned(loaded, head=head)
    model.task["readout"] = {**model.task["readout"], **case}
    task_model.write(tmp_path / "ours", model, provenance={})
    with pytest.raises(UserError, match='readout.layers="last" and readout.tokens="pooled", or give --model encoder'):
        run(export, tmp_path / "ours", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert run(export, tmp_path / "ours", tmp_path / "out", "--model", "encoder") == 0
    assert "classifier" not in huggingface.read(tmp_path / "out", fine_tuned=True).params


def test_the_last_layer_has_several_names(loaded: Loaded) -> None:
    for layers in ("", "last", "-1", str(loaded.config.layers)):
        model = fine_tuned(loaded, "tagging", readout={"layers": layers, "tokens": ""})
        assert heads.to_class(model, "here").architecture == "BertForTokenClassification"


def test_what_no_class_is_for_is_told(tmp_path: Path, loaded: Loaded) -> None:
    slots = fine_tuned(loaded, "intent_slots", {"intent": product(2), "slots": product(2)})
    with pytest.raises(UserError, match="transformers has no class for intent_slots; give --model encoder"):
        heads.to_class(slots, "here")
    bare = replace(loaded, params={part: loaded.params[part] for part in ("embeddings", "layers")})
    with pytest.raises(UserError, match="this model has no pooler, which BertForSequenceClassification has"):
        heads.to_class(fine_tuned(bare), "here")
    for of in ("Electra", "DistilBert"):
        other = fine_tuned(replace(bare, architecture=f"{of}Model"))
        with pytest.raises(UserError, match=f"{of}ForSequenceClassification has a layer with a"):
            heads.to_class(other, "here")
    for head in ({"classifier": product(3, 48)}, {"qa_outputs": product(3)}, {"classifier": {"bias": np.ones(3)}}):
        with pytest.raises(UserError, match=r"is classifier of 24 rows, this is .* \["):
            heads.to_class(fine_tuned(loaded, head=head), "here")
    with pytest.raises(UserError, match="a head of 1 output is none for single"):
        heads.to_class(fine_tuned(loaded, head={"classifier": product(1)}), "here")


@pytest.mark.parametrize("format", ["sentence-transformers", "tf1", "onnx", "stablehlo"])
def test_only_the_encoder_goes_elsewhere(format: str, tmp_path: Path, loaded: Loaded) -> None:
    task_model.write(tmp_path / "ours", fine_tuned(loaded), provenance={})
    with pytest.raises(UserError, match=f"--format {format}: only the encoder .* can go there; add --model encoder"):
        run(export, tmp_path / "ours", tmp_path / "out", "--format", format)
    if format == "sentence-transformers":
        assert run(export, tmp_path / "ours", tmp_path / "out", "--format", format, "--model", "encoder") == 0


# ----------------------------------------------------------------------------------------- what others fine-tuned


@pytest.fixture
def classifier(tmp_path: Path, loaded: Loaded) -> Path:
    """A transformers directory of BertForSequenceClassification."""
    huggingface.write(tmp_path / "theirs", heads.to_class(fine_tuned(loaded), "here"))
    return tmp_path / "theirs"


def _config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    tree = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in tree.items() if value != "gone"}))


def test_labels_without_names_are_counted(classifier: Path, tmp_path: Path) -> None:
    """As transformers writes two: not at all."""
    tensors = load_file(classifier / "model.safetensors")
    two = {name: t[:2].copy() if name.startswith("classifier") else t for name, t in tensors.items()}
    save_file(two, classifier / "model.safetensors")
    _config(classifier, id2label="gone", label2id="gone", problem_type="gone")
    assert run(import_model, classifier, "--output", tmp_path / "ours") == 0
    assert task_model.read(tmp_path / "ours").labels == ("LABEL_0", "LABEL_1")


def test_tags_tell_how_they_write_spans(loaded: Loaded) -> None:
    for tags, scheme in [
        (("O", "B-a", "I-a"), "BIO"),
        (("O", "B-a", "I-a", "E-a", "S-a"), "IOBES"),
        (("NOUN", "VERB", "O"), ""),
        (("O", "B-", "X-a"), ""),
    ]:
        task = {"tags": list(tags)}
        model = fine_tuned(loaded, "tagging", {"classifier": product(len(tags))}, labels=task)
        assert heads.from_class(heads.to_class(model, "here")).task["task"]["scheme"] == scheme, tags


def test_one_text_or_two_is_asked_for_and_told(
    classifier: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(import_model, classifier, "--output", tmp_path / "one") == 0
    assert "--task pair for two" in capsys.readouterr().out
    assert run(import_model, classifier, "--output", tmp_path / "two", "--task", "pair") == 0
    assert "--task" not in capsys.readouterr().out
    assert [task_model.read(tmp_path / name).family for name in ("one", "two")] == ["single", "pair"]


def test_a_task_for_what_has_no_classifier_is_refused(exported: Path, tmp_path: Path, loaded: Loaded) -> None:
    with pytest.raises(UserError, match="there is no classifier of texts; leave --task out"):
        run(import_model, exported, "--output", tmp_path / "out", "--task", "pair")
    huggingface.write(tmp_path / "tags", heads.to_class(fine_tuned(loaded, "tagging"), "here"))
    with pytest.raises(UserError, match="BertForTokenClassification is for tagging; leave --task out"):
        run(import_model, tmp_path / "tags", "--output", tmp_path / "out", "--task", "pair")
    assert not (tmp_path / "out").exists()


def test_a_head_is_dropped_as_asked_and_left_out_where_an_encoder_is_meant(classifier: Path, tmp_path: Path) -> None:
    assert run(import_model, classifier, "--output", tmp_path / "bare", "--drop", "classifier.") == 0
    assert not task_model.is_directory(tmp_path / "bare")
    opened = open_model(classifier)
    assert opened.notes == ("the head of BertForSequenceClassification (2 tensors) is left out: this is the encoder",)
    assert (opened.config.classes, opened.architecture) == (0, "BertModel")
    assert set(opened.params) == {"embeddings", "layers", "pooler"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"problem_type": "regression"}, "several numbers of one text are no task here"),
        (
            {"id2label": {"0": "a", "1": "b"}},
            r"classifier.weight has shape \[3, 24\], where config.json asks for \[2, 24",
        ),
        ({"id2label": {"0": "a", "1": "a", "2": "b"}}, "id2label does not give each output a name of its own"),
        ({"id2label": {"0": "a", "2": "b", "3": "c"}}, "id2label does not give each output a name of its own"),
        ({"id2label": []}, "id2label does not give each output a name of its own"),
        ({"architectures": ["BertForQuestionAnswering"]}, "asks for|has no qa_outputs"),
        ({"architectures": ["BertForNextSentencePrediction"]}, "not in the table"),
        ({"architectures": None}, "not in the table"),
    ],
)
def test_a_head_that_is_not_what_its_config_says_is_refused(
    changes: dict, message: str, classifier: Path, tmp_path: Path
) -> None:
    _config(classifier, **changes)
    with pytest.raises(UserError, match=message):
        run(import_model, classifier, "--output", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_classifier_without_its_pooler_is_refused(classifier: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the weights have no pooler, which BertForSequenceClassification has"):
        run(import_model, classifier, "--output", tmp_path / "out", "--drop", "bert.pooler.")


def test_a_tokenizer_larger_than_the_word_table_is_refused(
    classifier: Path, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    from_vocab([*tokenizer.pieces, "more"], lowercase=True).save(classifier)
    with pytest.raises(UserError, match="the tokenizer has 97 pieces, the model 96"):
        run(import_model, classifier, "--output", tmp_path / "out")


def test_a_class_goes_out_again_with_its_head(classifier: Path, tmp_path: Path) -> None:
    """From one transformers directory to another, without a directory of ours between."""
    assert run(export, classifier, tmp_path / "out") == 0
    before, after = (load_file(folder / "model.safetensors") for folder in (classifier, tmp_path / "out"))
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        np.testing.assert_array_equal(tensor, after[name])
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["label2id"] == {"no": 0, "perhaps": 1, "yes": 2}
    assert config["problem_type"] == "single_label_classification"


def test_the_card_says_what_it_was_fine_tuned_for(tmp_path: Path, loaded: Loaded) -> None:
    model = fine_tuned(loaded, "qa", scores={"dev": {"exact": 0.51234, "f1": 0.6}, "note": "text"}, no_answer=-0.75)
    task_model.write(tmp_path / "ours", model, provenance={})
    assert run(export, tmp_path / "ours", tmp_path / "out") == 0
    text = (tmp_path / "out/README.md").read_text()
    for said in (
        "pipeline_tag: question-answering",
        "BertForQuestionAnswering, 3 layers of 24",
        "fine-tuned to tell where in a text the answer to a question stands",
        "| dev exact | 0.5123 |",
        "| no answer is given below | -0.75 |",
        "AutoModelForQuestionAnswering.from_pretrained",
        "It was measured as the table says",
    ):
        assert said in text, said
    tags = {"single": "text-classification", "choice": "multiple-choice", "tagging": "token-classification"}
    for family, tag in tags.items():
        task_model.write(tmp_path / f"{family}-ours", fine_tuned(loaded, family), provenance={})
        assert run(export, tmp_path / f"{family}-ours", tmp_path / family) == 0
        text = (tmp_path / family / "README.md").read_text()
        assert f"pipeline_tag: {tag}\n" in text and "No measurement of it is on record" in text
        assert ("| 3 labels | no, perhaps, yes |" in text) == (family != "choice")
