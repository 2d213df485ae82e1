"""Fine-tuned models as transformers has them: in, the same logits, out bit for bit."""

from __future__ import annotations

import argparse
import contextlib
import json
import re
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.parity.foreign import torch, transformers  # first: skips where they are missing

from bert_jax import export, import_model  # isort: skip
from bert_jax.convert import heads, huggingface, task_model
from bert_jax.convert.loaded import Loaded
from bert_jax.convert.proof import TEXTS, pairs, prove
from bert_jax.convert.task_model import TaskModel
from bert_jax.errors import UserError
from bert_jax.model import bert
from tests.parity.test_families import CONFIGS, foreign
from tests.readable import readable_config, readable_params, readable_tokenizer

NAMES = ("no", "perhaps", "yes")
TAGS = ("O", "B-PER", "I-PER")
CASES = {
    "BertForSequenceClassification": ("bert", "single", NAMES),
    "BertForMultipleChoice": ("bert", "choice", ()),
    "BertForTokenClassification": ("bert", "tagging", TAGS),
    "BertForQuestionAnswering": ("bert", "qa", ()),
    "AlbertForSequenceClassification": ("albert", "single", NAMES),
    "AlbertForMultipleChoice": ("albert", "choice", ()),
    "AlbertForTokenClassification": ("albert, two groups, E as wide as D", "tagging", TAGS),
    "AlbertForQuestionAnswering": ("albert", "qa", ()),
    "ElectraForTokenClassification": ("electra", "tagging", TAGS),
    "ElectraForQuestionAnswering": ("electra, E as wide as D", "qa", ()),
    "DistilBertForTokenClassification": ("distilbert", "tagging", TAGS),
    "DistilBertForQuestionAnswering": ("distilbert", "qa", ()),
}


def theirs(folder: Path, architecture: str, **changes: Any) -> Path:
    """A directory of this class with loud random weights, as its own `save_pretrained` writes it."""
    name, _, labels = CASES.get(architecture, (architecture.partition("For")[0].lower(), "", NAMES))
    tree = CONFIGS[name].to_dict()
    if labels:
        tree |= {"id2label": dict(enumerate(labels)), "label2id": {label: n for n, label in enumerate(labels)}}
    return foreign(folder, type(CONFIGS[name])(**tree | changes), architecture)


def bring_in(source: Path, out: Path, *more: str) -> int:
    parser = argparse.ArgumentParser()
    import_model.add_arguments(parser)
    return import_model.run(parser.parse_args([str(source), "--output", str(out), *more]))


def take_out(source: Path, out: Path, *more: str) -> int:
    parser = argparse.ArgumentParser()
    export.add_arguments(parser)
    return export.run(parser.parse_args([str(source), str(out), *more]))


def logits_there(folder: Path, architecture: str, batch: dict[str, np.ndarray]) -> np.ndarray:
    """What transformers computes: float32[B, K], [B, T, K]; of choices [B, 1] with all rows as one example's."""
    model, report = getattr(transformers, architecture).from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    given = {
        name: torch.tensor(batch[key]).long()
        for name, key in {
            "input_ids": "input_ids",
            "attention_mask": "sequence_ids",
            "token_type_ids": "segment_ids",
        }.items()
        if name != "token_type_ids" or "DistilBert" not in architecture
    }
    if "Choice" in architecture:
        given = {name: tensor[None] for name, tensor in given.items()}
    with torch.no_grad():
        outputs = model.eval()(**given)
    if "Question" in architecture:
        return torch.stack([outputs.start_logits, outputs.end_logits], -1).numpy()
    return outputs.logits.T.numpy() if "Choice" in architecture else outputs.logits.numpy()


def logits_here(model: TaskModel, batch: dict[str, np.ndarray]) -> np.ndarray:
    config, params = model.loaded.config, model.loaded.params
    arrays = {name: jnp.asarray(array) for name, array in batch.items()}
    states = bert.encode(config, params, arrays).hidden
    if model.task["readout"]["tokens"] == "pooled":
        states = bert.pool(config, params, states, jnp.zeros((len(batch["input_ids"]), 1), jnp.int32))[:, 0]
    (head,) = model.head.values()
    return np.einsum("...d,dk->...k", np.asarray(states), head["kernel"]) + head["bias"]


@pytest.mark.parametrize("architecture", CASES)
def test_in_the_same_logits_and_out_bit_for_bit(
    architecture: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = theirs(tmp_path / "theirs", architecture)
    assert bring_in(source, tmp_path / "ours", "--prove") == 0
    assert take_out(tmp_path / "ours", tmp_path / "out", "--prove") == 0
    assert capsys.readouterr().out.count("proved with") == 2
    model = task_model.read(tmp_path / "ours")
    _, family, labels = CASES[architecture]
    assert (model.family, model.labels) == (family, labels)
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("theirs", "out"))
    assert after.keys() == before.keys()
    for name, tensor in after.items():
        assert tensor.tobytes() == before[name].tobytes(), name
    for batch in pairs(TEXTS[:3], model.loaded.tokenizer, model.loaded.config):
        expected, found = logits_there(tmp_path / "out", architecture, batch), logits_here(model, batch)
        real = batch["sequence_ids"] > 0
        assert not real.all() and (real.shape[0] > 1)
        if expected.ndim == 3:
            expected, found = expected[real], found[real]
        assert np.ptp(expected) > 0.02  # a head of zeros would not be seen
        np.testing.assert_allclose(found, expected, atol=1e-4)
    proof = json.loads((tmp_path / "out/proof.json").read_text())
    head = {"tagging": "token_classifier", "qa": "qa_outputs"}.get(family, "classifier")
    assert proof["passed"] and {f"layer {model.loaded.config.layers}", head} <= proof["worst"].keys()
    assert bring_in(tmp_path / "out", tmp_path / "again", "--no-prove") == 0
    for name in ("head.safetensors", "task.json"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "ours" / name).read_bytes()


@pytest.mark.parametrize("labels", [NAMES, NAMES[:1]])
def test_several_labels_keep_their_kind_of_problem(labels: tuple[str, ...], tmp_path: Path) -> None:
    """Even where one output would be a number."""
    changes = {"id2label": dict(enumerate(labels)), "label2id": {name: n for n, name in enumerate(labels)}}
    architecture, problem = "BertForSequenceClassification", "multi_label_classification"
    source = theirs(tmp_path / "theirs", architecture, problem_type=problem, **changes)
    assert bring_in(source, tmp_path / "ours", "--prove") == 0
    model = task_model.read(tmp_path / "ours")
    assert (model.family, model.labels) == ("multi_label", labels)
    assert take_out(tmp_path / "ours", tmp_path / "out", "--prove") == 0
    config = transformers.AutoConfig.from_pretrained(tmp_path / "out")
    assert (config.problem_type, tuple(config.id2label.values())) == (problem, labels)
    assert "which labels a text or two have" in (tmp_path / "out/README.md").read_text()


@pytest.mark.parametrize("name", ["pair", "regression"])
def test_pairs_and_numbers_are_of_the_same_class(name: str, tmp_path: Path) -> None:
    """Their directory tells a number from labels, not one text from two."""
    changes = {"id2label": {0: "LABEL_0"}, "label2id": {"LABEL_0": 0}} if name == "regression" else {}
    source = theirs(tmp_path / "theirs", "BertForSequenceClassification", **changes)
    asked = ["--task", "pair"] if name == "pair" else []
    assert bring_in(source, tmp_path / "ours", "--prove", *asked) == 0
    assert task_model.read(tmp_path / "ours").family == name
    assert take_out(tmp_path / "ours", tmp_path / "out", "--prove") == 0
    config = transformers.AutoConfig.from_pretrained(tmp_path / "out")
    said = ("regression", 1) if name == "regression" else ("single_label_classification", 3)
    assert (config.problem_type, config.num_labels) == said
    if name == "pair":
        assert config.id2label == dict(enumerate(NAMES)) and config.label2id == {"no": 0, "perhaps": 1, "yes": 2}


def test_a_wrong_head_fails_the_proof_and_is_named(tmp_path: Path) -> None:
    """The encoder is the same, so that the first difference is the head's own: start and end changed about."""
    assert bring_in(theirs(tmp_path / "theirs", "BertForQuestionAnswering"), tmp_path / "ours", "--no-prove") == 0
    model = task_model.read(tmp_path / "ours")
    head = {"qa_outputs": {name: leaf[..., ::-1] for name, leaf in model.head["qa_outputs"].items()}}
    task_model.write(tmp_path / "swapped", TaskModel(model.loaded, head, model.task), provenance={})
    assert take_out(tmp_path / "swapped", tmp_path / "out", "--no-prove") == 0
    right = heads.to_class(model, "here")
    proof = prove(tmp_path / "out", right, huggingface.kind_for(right, None, "here"), TEXTS[:2])
    assert not proof.passed and proof.first_difference == "qa_outputs"


def test_a_pooler_of_older_years_beside_a_head_of_tokens_is_kept_and_no_difference(tmp_path: Path) -> None:
    source = theirs(tmp_path / "theirs", "BertForTokenClassification")
    path = source / "model.safetensors"
    pooler = {
        "bert.pooler.dense.weight": np.eye(24, dtype=np.float32),
        "bert.pooler.dense.bias": np.ones(24, np.float32),
    }
    save_file({**load_file(path), **pooler}, path, metadata={"format": "pt"})
    assert bring_in(source, tmp_path / "ours", "--prove") == 0
    assert "pooler" in task_model.read(tmp_path / "ours").loaded.params
    assert take_out(tmp_path / "ours", tmp_path / "out", "--prove") == 0
    assert not any("pooler" in name for name in load_file(tmp_path / "out/model.safetensors"))


@pytest.mark.parametrize(
    "architecture",
    [
        *(
            f"{of}For{what}"
            for of in ("Electra", "DistilBert")
            for what in ("SequenceClassification", "MultipleChoice")
        ),
    ],
)
def test_heads_with_layers_of_their_own_are_refused_and_the_encoder_opens(architecture: str, tmp_path: Path) -> None:
    source = theirs(tmp_path / "theirs", architecture)
    with pytest.raises(
        UserError, match=f"{architecture} has a layer with a .*before.*no task here has.*--drop"
    ) as told:
        bring_in(source, tmp_path / "ours", "--no-prove")
    drops = [word for word in told.value.remedy.replace("`", " ").split() if word == "--drop" or word.endswith(".")]
    assert bring_in(source, tmp_path / "ours", "--prove", *drops) == 0
    assert not task_model.is_directory(tmp_path / "ours")


def test_a_card_tells_how_each_class_is_used(tmp_path: Path) -> None:
    """The examples of the cards run, from where the export lies."""
    for family in ("pair", "choice", "tagging", "qa"):
        name = "qa_outputs" if family == "qa" else "classifier"
        rng = np.random.default_rng(5)
        count = {"choice": 1, "qa": 2}.get(family, 3)
        head = {name: {"kernel": rng.normal(0, 0.2, (24, count)), "bias": rng.normal(0, 0.2, count)}}
        labels = {"pair": {"label": list(NAMES)}, "tagging": {"tags": list(TAGS)}}.get(family, {})
        params = readable_params(readable_config())
        model = TaskModel(
            Loaded(readable_config(), params, readable_tokenizer()),
            head,
            {"family": family, "labels": labels, "scores": {"dev": {"accuracy": 0.8125}}},
        )
        task_model.write(tmp_path / f"{family}-ours", model, provenance={})
        assert take_out(tmp_path / f"{family}-ours", tmp_path / family, "--prove") == 0
        text = (tmp_path / family / "README.md").read_text()
        assert "| dev accuracy | 0.8125 |" in text
        block = re.findall("```python\n(.*?)```", text, re.S)[0]
        found: dict[str, Any] = {}
        with contextlib.chdir(tmp_path):
            exec(compile(block, "card", "exec"), found)
        shape = tuple((found["outputs"].start_logits if family == "qa" else found["outputs"].logits).shape)
        assert shape == {"pair": (1, 3), "choice": (1, 2)}.get(family, shape)
