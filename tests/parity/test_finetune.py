"""A fine-tuned model that goes to transformers says there what `bert-jax predict` says here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.parity.foreign import torch, transformers  # first: skips where they are missing

from bert_jax.cli import main  # isort: skip
from tests.tasks import toy
from tests.tasks.written import line, write_encoder, write_lines, write_model, write_task


def test_a_trained_classifier_goes_out_proved_and_says_the_same_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, encoder = write_task(tmp_path, "pair"), write_encoder(tmp_path / "encoder")
    run, out = tmp_path / "run", tmp_path / "out"
    command = ["finetune", recipe, "--model", encoder, "--data", tmp_path, "--run", run, "--no-random-twin"]
    assert main([str(word) for word in command]) == 0
    assert main(["export", str(run), str(out), "--prove"]) == 0
    assert "proved with" in capsys.readouterr().out and json.loads((out / "proof.json").read_text())["passed"]
    model = transformers.AutoModelForSequenceClassification.from_pretrained(out)
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    examples = toy.examples("pair", 12, 2)
    lines = (run / "predictions-test.jsonl").read_text().splitlines()
    for example, told in zip(examples, map(json.loads, lines), strict=True):
        with torch.no_grad():
            chances = model(**tokenizer(*example.texts, return_tensors="pt")).logits.softmax(-1)[0].tolist()
        theirs = {model.config.id2label[number]: chance for number, chance in enumerate(chances)}
        assert theirs == pytest.approx(told["probabilities"], abs=1e-4)


def test_several_labels_are_the_same_there(tmp_path: Path) -> None:
    """With transformers' sigmoid, and the threshold that the recipe gives."""
    run, out = tmp_path / "run", tmp_path / "out"
    recipe, encoder = write_task(tmp_path, "multi_label"), write_encoder(tmp_path / "encoder")
    command = ["finetune", recipe, "--model", encoder, "--data", tmp_path, "--run", run, "--set", "task.threshold=0.4"]
    assert main([str(word) for word in command]) == 0
    assert {"labels.png", "calibration.png"} <= {path.name for path in run.iterdir()}
    assert main(["export", str(run), str(out), "--prove"]) == 0
    model = transformers.AutoModelForSequenceClassification.from_pretrained(out)
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    lines = (run / "predictions-test.jsonl").read_text().splitlines()
    for example, told in zip(toy.examples("multi_label", 12, 2), map(json.loads, lines), strict=True):
        given = tokenizer(*example.texts, return_tensors="pt")
        with torch.no_grad():
            chances = model(**given).logits.sigmoid()[0].tolist()
        assert chances == pytest.approx([told["probabilities"][model.config.id2label[n]] for n in range(3)], abs=1e-4)
        assert {name for name, chance in told["probabilities"].items() if chance >= 0.4} == set(told["labels"])
        assert told["gold"] == list(example.labels or ())


def test_tags_and_answers_are_the_same_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    encoder = write_encoder(tmp_path / "encoder")
    last = {"readout": {"layers": "last"}}
    for family, sections in (("tagging", last), ("qa", {})):
        run, out = write_model(tmp_path / family, family, encoder, **sections), tmp_path / f"{family}-out"
        assert main(["export", str(run / "model"), str(out), "--prove"]) == 0
        examples = toy.examples(family, 4, 2)
        path = write_lines(tmp_path / "in.jsonl", [line(family, example, labelled=False) for example in examples])
        capsys.readouterr()
        assert main(["predict", str(run), str(path)]) == 0
        found = [json.loads(one) for one in capsys.readouterr().out.splitlines()]
        tokenizer = transformers.AutoTokenizer.from_pretrained(out)
        for example, told in zip(examples, found, strict=True):
            if family == "tagging":
                model = transformers.AutoModelForTokenClassification.from_pretrained(out)
                given = tokenizer(list(example.words), is_split_into_words=True, return_tensors="pt")
                with torch.no_grad():
                    best = model(**given).logits[0].argmax(-1).tolist()
                first = [given.word_ids().index(number) for number in range(len(example.words))]
                assert [model.config.id2label[best[place]] for place in first] == told["tags"]
            else:
                model = transformers.AutoModelForQuestionAnswering.from_pretrained(out)
                given = tokenizer(*example.texts, return_tensors="pt", return_offsets_mapping=True)
                offsets = given.pop("offset_mapping")[0].tolist()
                with torch.no_grad():
                    said = model(**given)
                context = [n for n, part in enumerate(given.sequence_ids()) if part == 1]
                spans = [
                    (float(said.start_logits[0, a] + said.end_logits[0, b]), a, b)
                    for a in context
                    for b in context
                    if a <= b
                ]
                _, a, b = max(spans)
                assert (offsets[a][0], offsets[b][1]) == (told["start"], told["end"])
