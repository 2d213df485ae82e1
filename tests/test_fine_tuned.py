"""`bert-jax predict` and `evaluate` on fine-tuned models: what goes in comes out in order, and means what it says."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from bert_jax import fine_tuned, load_task
from bert_jax.cli import main
from bert_jax.convert import heads, huggingface, task_model
from bert_jax.convert.loaded import Loaded
from bert_jax.errors import UserError
from bert_jax.tasks.settings import FAMILIES
from tests.readable import readable_config, readable_params, readable_tokenizer
from tests.tasks import toy
from tests.tasks.written import line, write_encoder, write_examples, write_lines, write_model, write_task
from tests.world import WORDS, bert_jax

Answers = Callable[..., list[dict[str, Any]]]
LONG = 100_000  # tokens


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_encoder(tmp_path_factory.mktemp("encoder") / "encoder")


@pytest.fixture(scope="module")
def models(encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The run of a family, made when it is first asked for."""
    made: dict[str, Path] = {}

    def of(family: str) -> Path:
        if family not in made:
            made[family] = write_model(tmp_path_factory.mktemp(family), family, encoder)
        return made[family]

    return of


@pytest.fixture
def predict(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Answers:
    """What `bert-jax predict` prints for these objects."""

    def run(model: Path, lines: list[Any]) -> list[dict[str, Any]]:
        assert main(["predict", str(model), str(write_lines(tmp_path / "in.jsonl", lines))]) == 0
        return [json.loads(one) for one in capsys.readouterr().out.splitlines()]

    return run


@pytest.fixture
def evaluate(capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, float]]:
    def run(*arguments: object) -> dict[str, float]:
        assert main(["evaluate", *map(str, arguments)]) == 0
        return json.loads(capsys.readouterr().out)

    return run


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    def run(*arguments: object) -> str:
        assert main([str(argument) for argument in arguments]) == 1
        out, err = capsys.readouterr()
        assert out == "" and err.count("\n") == 1 and "Traceback" not in err, err
        return err

    return run


# --------------------------------------------------------------------------------------------------------- predict


def test_a_threshold_says_which_labels_are_given(models: Callable[[str], Path], tmp_path: Path, capsys: Any) -> None:
    """The one that the model keeps, or another; probabilities stay, and the likeliest label comes first."""
    path = write_examples(tmp_path / "in.jsonl", "multi_label", 6, 9, labelled=False)
    given: dict[str, list[dict[str, Any]]] = {}
    for threshold in ("", "0", "1", "0.5"):
        settings = ["--set", f"task.threshold={threshold}"] if threshold else []
        assert main(["predict", str(models("multi_label")), str(path), *settings]) == 0
        given[threshold] = [json.loads(one) for one in capsys.readouterr().out.splitlines()]
    assert given[""] == given["0.5"] and not any(one["labels"] for one in given["1"])
    for one in given["0"]:
        assert one["labels"] == sorted(toy.NAMES, key=lambda name: -one["probabilities"][name])
    assert given["0"][0]["probabilities"] == given["1"][0]["probabilities"]


def chances(family: str, one: dict[str, Any]) -> list[float] | None:
    """The probabilities that must sum to one."""
    if family in ("single", "pair"):
        return list(one["probabilities"].values())
    return one["probabilities"] if family == "choice" else None


@pytest.mark.parametrize("family", FAMILIES)
def test_a_line_out_for_each_line_in_whatever_stands_beside_it(
    family: str, models: Callable[[str], Path], predict: Answers
) -> None:
    """In order, with the ids that were given; the same alone, in another order, and from other lengths around it."""
    examples = toy.examples(family, 12, seed=9)
    lines = [{"id": f"q{n}", **line(family, one, labelled=False)} for n, one in enumerate(examples)]
    found = predict(models(family), lines)
    assert [one["id"] for one in found] == [f"q{n}" for n in range(12)]
    turned = predict(models(family), lines[::-1])[::-1]
    alone = predict(models(family), lines[4:5])
    for one, other in [*zip(found, turned, strict=True), (found[4], alone[0])]:
        same(one, other)
    for one in found:
        if (parts := chances(family, one)) is not None:
            assert sum(parts) == pytest.approx(1, abs=1e-5)
        if family in ("single", "pair"):
            assert one["probability"] == max(parts or ()) == one["probabilities"][one["label"]]
        if family == "choice":
            assert one["choice"] == int(np.argmax(one["probabilities"]))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_api_says_what_predict_says(family: str, models: Callable[[str], Path], predict: Answers) -> None:
    lines = [line(family, one, labelled=False) for one in toy.examples(family, 4, seed=9)]
    model = load_task(models(family))
    assert model.predict(lines) == predict(models(family), lines) and model.predict([]) == []
    if family == "single":
        assert model.predict(one["text"] for one in lines) == model.predict(lines)
    for one in ("ban ker", lines[0]):
        with pytest.raises(UserError, match="this is one example; give a list of them"):
            model.predict(one)  # type: ignore[arg-type]
    assert len(repr(model)) < 200 and family in repr(model)
    with pytest.raises(UserError, match=r"examples\[1\]: this is int; give a text, or a dict"):
        model.predict([lines[0], 7])  # type: ignore[list-item]
    with pytest.raises(UserError, match=r"examples\[0\]: no .* is named|examples\[0\]: .* name the key"):
        model.predict([{"unheard": "of"}])


def same(one: Any, other: Any) -> None:
    """Equal, numbers nearly."""
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            same(one[key], other[key])
    elif isinstance(one, list):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            same(a, b)
    elif isinstance(one, float):
        assert one == pytest.approx(other, abs=2e-4)
    else:
        assert one == other


def test_answers_are_where_they_say(models: Callable[[str], Path], predict: Answers) -> None:
    """In the text as it was given: blanks, capitals and letters of other scripts before and between."""
    context = "  Ban\tker… Lir 天天  mot [nud] " + "  ".join(WORDS) + "\u3000bag ked  "
    lines = [{"question": "ban ker ?", "context": context}, {"question": "", "context": "ban"}]
    for one, given in zip(predict(models("qa"), lines), lines, strict=True):
        assert one["answer"] and given["context"][one["start"] : one["end"]] == one["answer"]
        assert one["best"][0] == {"answer": one["answer"], "probability": one["probability"]}
        assert sum(each["probability"] for each in one["best"]) <= 1 + 1e-6


def test_the_kept_threshold_says_when_there_is_no_answer(
    models: Callable[[str], Path], predict: Answers, tmp_path: Path, encoder: Path
) -> None:
    lines = [line("qa", one, labelled=False) for one in toy.examples("qa", 12, seed=4)]
    scores = [one["no_answer_score"] for one in predict(models("qa"), lines)]
    threshold = float(np.mean(sorted(scores)[5:7]))
    found = predict(write_model(tmp_path / "kept", "qa", encoder, threshold), lines)
    assert [one["answer"] == "" for one in found] == [score > threshold for score in scores]
    assert {(one["start"], one["end"]) for one in found if not one["answer"]} == {(None, None)}


@pytest.mark.parametrize("family", ["tagging", "intent_slots"])
def test_words_of_a_text_have_their_places_in_it(family: str, models: Callable[[str], Path], predict: Answers) -> None:
    text = "  ban   Ker\u3000lir\tmod. " + " ".join(WORDS)
    (whole,) = predict(models(family), [{"text": text}])
    (listed,) = predict(models(family), [{"words": text.split()}])
    assert whole["words"] == listed["words"] == [text[a:b] for a, b in whole["offsets"]] == text.split()
    tags = "tags" if family == "tagging" else "slots"
    assert whole[tags] == listed[tags] and "offsets" not in listed
    if family == "tagging":
        assert whole["entities"], "an untrained head that says O alone shows nothing here"
        for entity in whole["entities"]:
            assert text[entity["start"] : entity["end"]].split() == entity["text"].split()
            assert entity["text"].split() == whole["words"][entity["from"] : entity["to"]]


def test_a_document_of_a_hundred_thousand_tokens(models: Callable[[str], Path], predict: Answers) -> None:
    """Read in windows to its end where the family reads all, cut where it does not."""
    words = np.random.default_rng(0).choice(WORDS, LONG).tolist()
    text = " ".join(words)
    (answered,) = predict(models("qa"), [{"question": "ban", "context": text}])
    assert text[answered["start"] : answered["end"]] == answered["answer"]
    (tagged,) = predict(models("tagging"), [{"words": words}])
    assert len(tagged["tags"]) == LONG and min(tagged["probabilities"]) > 0
    (labelled,) = predict(models("single"), [{"text": text}])
    (beginning,) = predict(models("single"), [{"text": " ".join(words[:30])}])  # of a row of 32
    same({**labelled, "id": ""}, {**beginning, "id": ""})


def test_standard_input_and_a_file_are_the_same_but_for_where_they_go(
    models: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_lines(tmp_path / "in.jsonl", [line("single", one, False) for one in toy.examples("single", 12, 3)])
    assert main(["predict", str(models("single") / "model"), str(path), "--out", str(tmp_path / "out.jsonl")]) == 0
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(path.read_bytes())))
    assert main(["predict", str(models("single")), "-"]) == 0
    assert capsys.readouterr().out == (tmp_path / "out.jsonl").read_text(encoding="utf-8")


def test_a_broken_line_is_named_and_nothing_written(
    models: Callable[[str], Path], tmp_path: Path, refused: Callable[..., str]
) -> None:
    (tmp_path / "in.jsonl").write_text('{"text": "ban"}\n\n{"text": "ker"\n', encoding="utf-8")
    said = refused("predict", models("single"), tmp_path / "in.jsonl", "--out", tmp_path / "out.jsonl")
    assert "in.jsonl, line 3: this is not JSON" in said
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]
    asked = write_lines(tmp_path / "in.jsonl", [{"text": "ban"}])
    there = asked.read_bytes()
    for out, what in (
        (tmp_path / "nowhere" / "out", f"{tmp_path / 'nowhere'}: there is no such directory; make it first"),
        (tmp_path, f"{tmp_path}: this is a directory; name a file"),
        (asked.parent / "." / asked.name, f"{asked}: this is what is read; choose another file"),
    ):
        assert what in refused("predict", models("single"), asked, "--out", out)
        assert what in refused("evaluate", models("single"), "--data", asked, "--predictions", out)
    assert asked.read_bytes() == there
    said = refused("predict", tmp_path, tmp_path / "in.jsonl")
    assert "this is no fine-tuned model; give one that `bert-jax finetune` wrote, or import one" in said
    assert "there is no such directory" in refused("predict", tmp_path / "nowhere", tmp_path / "in.jsonl")


def test_a_full_disk_leaves_no_half_of_a_file(models: Callable[[str], Path], tmp_path: Path) -> None:
    path = write_lines(tmp_path / "in" / "in.jsonl", [{"text": "ban"}] * 40)
    (tmp_path / "out").mkdir()
    command = ["predict", models("single"), path, "--out", tmp_path / "out" / "o"]
    full = bert_jax(*command, largest_file=4000, JAX_ENABLE_COMPILATION_CACHE="false")  # which would grow as well
    assert full.returncode == 1 and full.stderr.count("\n") == 1, full.stderr
    assert "o: cannot be written (File too large); make room, or choose another place" in full.stderr
    assert not list((tmp_path / "out").iterdir())


def test_marked_spans_are_read_as_in_training(tmp_path: Path, encoder: Path, predict: Answers) -> None:
    """Columns go with the model: without them nobody would know which key marks the span."""
    rows = [{"text": "ban ker lir", "label": str(n % 2), "mark": "4:7"} for n in range(4)]
    sections = {"columns": {"span_a": "mark"}, "readout": {"tokens": "span"}}
    run = write_model(tmp_path / "task", "single", encoder, lines=rows, **sections)
    one, other = predict(run, [{"text": "ban ker lir", "mark": "4:7"}, {"text": "ban ker lir", "mark": "8:11"}])
    assert one["probabilities"] != other["probabilities"]


def test_a_classifier_of_transformers_is_asked_like_ours(
    tmp_path: Path, predict: Answers, capsys: pytest.CaptureFixture[str]
) -> None:
    """Import knows no recipe: rows are as long as its positions, and no words are cut that it could read."""
    config, params = readable_config(), readable_params(readable_config())
    rng = np.random.default_rng(0)
    head = {"kernel": rng.normal(0, 0.2, (24, 3)).astype(np.float32), "bias": np.zeros(3, np.float32)}
    task = {"family": "single", "labels": {"label": ["no", "perhaps", "yes"]}, "readout": {}, "task": {}}
    model = task_model.TaskModel(Loaded(config, params, readable_tokenizer()), {"classifier": head}, task)
    huggingface.write(tmp_path / "theirs", heads.to_class(model, "here"))
    assert main(["import", str(tmp_path / "theirs"), "--output", str(tmp_path / "ours"), "--no-prove"]) == 0
    opened = fine_tuned.load_task(tmp_path / "ours")
    assert (opened.asked.task.length, opened.asked.task.stride) == (48, 12)
    texts = [" ".join(["paris is"] * 20), " ".join(["paris is"] * 20 + ["berlin"])]
    capsys.readouterr()
    one, other = predict(tmp_path / "ours", [{"text": text} for text in texts])
    assert one["label"] in ("no", "perhaps", "yes")
    assert sum(one["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    assert one["probabilities"] != other["probabilities"]


# -------------------------------------------------------------------------------------------------------- evaluate


@pytest.mark.parametrize("family", ["regression", "qa"])
def test_evaluate_and_predict_say_what_the_report_says(
    family: str, encoder: Path, tmp_path: Path, evaluate: Callable[..., dict[str, float]]
) -> None:
    """Of a model that was trained: numbers in units of the labels, a threshold chosen on dev."""
    recipe, run = write_task(tmp_path, family), tmp_path / "run"
    done = bert_jax(*("finetune", recipe, "--model", encoder, "--data", tmp_path, "--run", run), "--no-random-twin")
    assert done.returncode == 0, done.stderr
    report = json.loads((run / "report.json").read_text())
    for split, count in (("dev", 12), ("test", 12)):
        found = evaluate(run, "--data", tmp_path / family / f"{split}.jsonl", "--predictions", tmp_path / "out")
        assert found.pop("examples") == count
        assert found == pytest.approx(report["chosen"][split], abs=5e-3)
    told = [json.loads(one) for one in (run / "predictions-test.jsonl").read_text().splitlines()]
    same([json.loads(one) for one in (tmp_path / "out").read_text().splitlines()], told)


def test_columns_and_format_are_those_of_training_unless_said_otherwise(
    tmp_path: Path, encoder: Path, evaluate: Callable[..., dict[str, float]], refused: Callable[..., str]
) -> None:
    run = write_model(tmp_path, "single", encoder)
    expected = evaluate(run, "--data", tmp_path / "single" / "test.jsonl")
    examples = toy.examples("single", 12, 2)
    table = tmp_path / "gold.txt"
    table.write_text("gold,said\n" + "".join(f'{e.label},"{e.texts[0]}"\n' for e in examples), encoding="utf-8")
    said = refused("evaluate", run, "--data", table)
    assert "gold.txt: the name does not tell the format" in said
    csv = ["--set", "task.format=csv"]
    assert "no column is named sentence or text" in refused("evaluate", run, "--data", table, *csv)
    columns = ["--set", "columns.label=gold", "--set", "columns.text_a=said"]
    assert evaluate(run, "--data", table, *csv, *columns) == expected
    assert "columns.lable: there is no such setting; did you mean 'label'?" in refused(
        "evaluate", run, "--data", table, "--set", "columns.lable=gold"
    )
    other = refused("evaluate", run, "--data", table, "--set", "task.family=pair")
    assert "the model's family is single" in other
    long = refused("evaluate", run, "--data", table, "--set", "task.length=65")
    assert "length = 65, where the position table has 64" in long


def test_a_label_that_the_model_cannot_say(
    tmp_path: Path, encoder: Path, evaluate: Callable[..., dict[str, float]], refused: Callable[..., str]
) -> None:
    run = write_model(tmp_path, "single", encoder)
    lines = [line("single", one) for one in toy.examples("single", 12, 2)]
    path = write_lines(tmp_path / "more.jsonl", [*lines, {"text": "ban", "label": "never"}])
    said = refused("evaluate", run, "--data", path)
    assert f"has 1 label that train lacks: 'never' ({path}, line 13)" in said
    found = evaluate(run, "--data", path, "--set", "task.unseen=wrong")
    whole = evaluate(run, "--data", write_lines(tmp_path / "fewer.jsonl", lines))
    assert found["accuracy"] == pytest.approx(whole["accuracy"] * 12 / 13)


@pytest.mark.parametrize(
    ("option", "value"), [("--split", "train"), ("--step", 3), ("--batch", 8)], ids=["split", "step", "batch"]
)
def test_options_of_pretraining_are_refused(
    option: str, value: object, models: Callable[[str], Path], refused: Callable[..., str]
) -> None:
    said = refused("evaluate", models("single"), "--data", "x.jsonl", option, value)
    assert f"{option}: this is a fine-tuned model, and the option is of a run of pretraining; leave it out" in said


def test_what_else_is_refused(models: Callable[[str], Path], tmp_path: Path, refused: Callable[..., str]) -> None:
    assert "--data: a fine-tuned model is measured on a file" in refused("evaluate", models("single"))
    for option in ("--set=columns.label=x", "--predictions=out"):
        said = refused("evaluate", tmp_path, option)
        name = option.split("=")[0]
        assert f"{name}: this is a pretrained model, and the option is of a fine-tuned one; leave it out" in said
    path = write_examples(tmp_path / "plain.jsonl", "single", 3, 0, labelled=False)
    assert "plain.jsonl: no column is named label" in refused("evaluate", models("single"), "--data", path)
    (tmp_path / "begun").mkdir()
    for name in ("task.toml", "inputs.json"):
        (tmp_path / "begun" / name).write_text("{}")
    with pytest.raises(UserError, match="this fine-tuning is not finished"):
        fine_tuned.load_task(tmp_path / "begun")
    assert "begun: this fine-tuning is not finished" in refused("evaluate", tmp_path / "begun", "--data", path)
