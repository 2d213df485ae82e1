"""Each format and family as it is read, and how splits are drawn."""

from __future__ import annotations

import gzip
import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from bert_jax.errors import UserError
from bert_jax.tasks.examples import Answer, Example
from bert_jax.tasks.reading import read_examples, read_inputs, read_objects, read_splits
from bert_jax.tasks.settings import ColumnSettings, TaskRecipe, TaskSettings, load_task_recipe

RECIPES = sorted((Path(__file__).parents[2] / "configs" / "tasks").glob("*.toml"))


def read(
    folder: Path, name: str, content: str | bytes, columns: dict[str, Any] | None = None, **task: Any
) -> list[Example]:
    """The examples of a file with this content; `labelled` is not of the task."""
    (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    labelled = task.pop("labelled", True)
    return read_examples(folder / name, TaskSettings(**task), ColumnSettings(**(columns or {})), labelled)


# ------------------------------------------------------------------------------------------------------- tables


def test_csv_keeps_line_breaks_commas_and_quotes_of_a_field(tmp_path: Path) -> None:
    text = 'label,text\r\n1,"He said ""no"", then\r\nleft"\r\n\r\n0,plain\r\n'
    first, second = read(tmp_path, "a.csv", text)
    assert (first.texts, first.label) == (('He said "no", then\r\nleft',), "1")
    assert (second.texts, second.label, second.id) == (("plain",), "0", "1")
    assert first.where.endswith("a.csv, line 2") and second.where.endswith("a.csv, line 5")


SEVERAL = {"family": "multi_label"}


def test_several_labels_are_a_list_a_field_or_flags(tmp_path: Path) -> None:
    """Each once, rewritten as one label is; a text may have none of them."""
    lines = '{"text": "a", "labels": ["x", "y", "x"]}\n{"text": "b", "labels": []}\n{"text": "c", "labels": 7}\n'
    assert [one.labels for one in read(tmp_path, "a.jsonl", lines, **SEVERAL)] == [("x", "y"), (), ("7",)]
    table = "text\tlabels\na\t 3, 14\nb\t\nc\t3\n"
    assert [one.labels for one in read(tmp_path, "a.tsv", table, **SEVERAL)] == [("3", "14"), (), ("3",)]
    renamed = read(tmp_path, "b.tsv", table.replace(",", "|"), {"label_split": "|", "labels": {"3": "joy"}}, **SEVERAL)
    assert [one.labels for one in renamed] == [("joy", "14"), (), ("joy",)]
    flags = "id,sentence1,sentence2,rude,loud\np,a,b,1,0\nq,c,d,0,0\nr,e,f,1.0,True\n"
    columns = {"id": "id", "flags": ("rude", "loud"), "labels": {"loud": "noisy"}}
    found = read(tmp_path, "a.csv", flags, columns, **SEVERAL)
    assert [(one.id, one.labels) for one in found] == [("p", ("rude",)), ("q", ()), ("r", ("rude", "noisy"))]
    assert found[0].texts == ("a", "b") and found[2].gold() == {"gold": ["rude", "noisy"]}


def test_what_is_asked_needs_no_labels_and_may_have_them() -> None:
    columns = ColumnSettings(text_a="comment", flags=("rude", "loud"))
    rows = [{"text": "a"}, {"comment": "b", "rude": 1, "loud": 0}, {"text": "c", "labels": ["loud"]}]
    assert [one.labels for one in read_objects(rows, "multi_label", columns)] == [None, ("rude",), ("loud",)]


def test_a_csv_may_have_another_delimiter(tmp_path: Path) -> None:
    (first,) = read(tmp_path, "a.csv", 'sentence;label\n"fine, he said; yes";1,0\n', delimiter=";")
    assert (first.texts, first.label) == (("fine, he said; yes",), "1,0")


def test_quotes_of_a_tsv_are_characters_unless_asked_for(tmp_path: Path) -> None:
    text = 'text_a\ttext_b\tlabel\n"so" it is\t"\t1\n"a\tb\t0\n'
    plain = read(tmp_path, "a.tsv", text, family="pair")
    assert [example.texts for example in plain] == [('"so" it is', '"'), ('"a', "b")]
    quoted = read(tmp_path, "a.tsv", 'text_a\ttext_b\tlabel\n"a\tb"\t"""c"""\t1\n', family="pair", quotes=True)
    assert quoted[0].texts == ("a\tb", '"c"')


def test_only_line_feeds_end_a_line_of_a_tsv(tmp_path: Path) -> None:
    """U+2028, U+0085 and a lone carriage return stand within texts, and splitlines would cut there."""
    text = "a\u2028b\x85c\rd\x0be"
    (example,) = read(tmp_path, "a.tsv", f"text\tlabel\r\n{text}\t1\r\n")
    assert (example.texts, example.label) == ((text,), "1")


def test_a_gzipped_file_is_found_by_its_plain_name_and_its_mark_taken_off(tmp_path: Path) -> None:
    (tmp_path / "a.tsv.gz").write_bytes(gzip.compress("\ufefftext\tlabel\nfine\t1\n".encode()))
    (example,) = read_examples(tmp_path / "a.tsv", TaskSettings(), ColumnSettings())
    assert example.texts == ("fine",)
    assert example.where == f"{tmp_path / 'a.tsv.gz'}, line 2"


def test_columns_go_by_number_from_either_end(tmp_path: Path) -> None:
    cola = {"text_a": "3", "label": "1", "labels": {"1": "good"}}
    one, two = read(tmp_path, "a.tsv", "x\t1\t\tIt is.\nx\t0\t*\tIs it.\n", cola, header=False)
    assert (one.texts, one.label, two.texts, two.label) == (("It is.",), "good", ("Is it.",), "0")
    (named,) = read(tmp_path, "a.tsv", "s\tt\tu\na\tb\tc\n", {"text_a": "0", "label": "-1"})
    assert (named.texts, named.label) == (("a",), "c")


def test_a_name_of_digits_goes_before_a_number(tmp_path: Path) -> None:
    (example,) = read(tmp_path, "a.tsv", "1\t0\nleft\tright\n", {"text_a": "1", "label": "0"})
    assert (example.texts, example.label) == (("left",), "right")


def test_labels_are_cut_then_rewritten(tmp_path: Path) -> None:
    text = "NUM:dist How far is it ?\nHUM:ind Who : was it ?\n"
    columns = {"label_until": ":", "labels": {"NUM": "number"}}
    examples = read(tmp_path, "a.label", text, columns, format="label_text")
    assert [(e.label, e.texts) for e in examples] == [("number", ("How far is it ?",)), ("HUM", ("Who : was it ?",))]
    assert read(tmp_path, "a.label", text, format="label_text")[0].label == "NUM:dist"


def test_json_keys_may_lie_inside_objects_or_hold_dots(tmp_path: Path) -> None:
    rows = [{"a": {"text": "x"}, "b.c": {"d": True}}, {"a": {"text": "y"}, "b.c": {"d": 2}}]
    text = "\n".join(map(json.dumps, rows))
    examples = read(tmp_path, "a.jsonl", text, {"text_a": "a.text", "label": "b.c.d"})
    assert [(e.texts, e.label) for e in examples] == [(("x",), "true"), (("y",), "2")]


@pytest.mark.parametrize(
    ("family", "names"),
    [
        ("pair", "sentence1 sentence2 label"),
        ("pair", "premise hypothesis label"),
        ("regression", "text_a text_b score"),
        ("regression", "text - score"),
        ("embedding", "anchor positive -"),
        ("single", "sentence - label"),
        ("multi_label", "sentence - labels"),
    ],
)
def test_usual_names_need_no_columns(tmp_path: Path, family: str, names: str) -> None:
    a, b, label = names.split()
    header, row = f"{label}\tother\t{b}\t{a}\n", "4.5\tno\tsecond\tfirst\n"
    (example,) = read(tmp_path, "a.tsv", header + row, family=family)
    assert example.texts == (("first",) if b == "-" else ("first", "second"))
    known = None if label == "-" else "4.5"
    assert (example.label, example.labels) == ((None, (known,)) if label == "labels" else (known, None))


def test_a_field_of_csv_may_be_long(tmp_path: Path) -> None:
    (example,) = read(tmp_path, "a.csv", f"text,label\n{'x' * 200_000},1\n")
    assert len(example.texts[0]) == 200_000


def test_one_text_of_a_pair_may_be_empty(tmp_path: Path) -> None:
    (example,) = read(tmp_path, "a.tsv", "text_a\ttext_b\tlabel\nq\t\t0\n", family="pair")
    assert example.texts == ("q", "")


def test_spans_are_of_the_one_text_or_one_of_each_of_two(tmp_path: Path) -> None:
    columns = {"span_a": "s", "span_b": "t"}
    (one,) = read(tmp_path, "a.tsv", "text\ts\tt\tlabel\nabcdef\t0:2\t5:6\t1\n", columns)
    assert one.spans == ((0, 0, 2), (0, 5, 6))
    row = {"text_a": "abc", "text_b": "abcdef", "s": [1, 3], "t": "5:6", "label": 1}
    (two,) = read(tmp_path, "a.jsonl", json.dumps(row), columns, family="pair")
    assert two.spans == ((0, 1, 3), (1, 5, 6))


# ------------------------------------------------------------------------------------------------------ choices


@pytest.mark.parametrize(("label", "number"), [("B", "1"), ("a", "0"), (1, "1"), ("0", "0")])
def test_a_choice_is_a_number_or_a_letter(tmp_path: Path, label: object, number: str) -> None:
    row = {"question": "q", "choices": ["x", "y"], "label": label}
    (example,) = read(tmp_path, "a.jsonl", json.dumps(row), family="choice")
    assert (example.texts, example.label) == (("q", "x", "y"), number)


def test_a_label_beside_a_choice_goes_before_numbers(tmp_path: Path) -> None:
    """In some sets "1" is the first of four, and the others have letters."""
    choices = [{"label": name, "text": text} for name, text in (("1", "x"), ("2", "y"), ("3", "z"))]
    row = {"question": {"stem": "q", "choices": choices}, "answerKey": "1"}
    columns = {"text_a": "question.stem", "choices": ("question.choices.text",)}
    (example,) = read(tmp_path, "a.jsonl", json.dumps(row), columns, family="choice")
    assert (example.texts, example.label) == (("q", "x", "y", "z"), "0")


def test_choices_may_be_columns_with_two_texts_before_them_or_none(tmp_path: Path) -> None:
    columns = {"text_a": "premise", "text_b": "question", "choices": ("c1", "c2")}
    text = "premise\tquestion\tc1\tc2\tlabel\nIt rained.\teffect\tx\ty\t1\n"
    (copa,) = read(tmp_path, "a.tsv", text, columns, family="choice")
    assert (copa.texts, copa.label) == (("It rained. effect", "x", "y"), "1")
    (alone,) = read(tmp_path, "a.tsv", "c1\tc2\tlabel\nx\ty\t0\n", {"choices": ("c1", "c2")}, family="choice")
    assert alone.texts == ("", "x", "y")


# -------------------------------------------------------------------------------------------------------- words


def test_conll_takes_columns_and_skips_document_starts(tmp_path: Path) -> None:
    text = "-DOCSTART- -X- O O\n\nEU NNP I-NP I-ORG\nsays VBZ  I-VP O\n \n\n. . O O"
    first, second = read(tmp_path, "a.conll", text, family="tagging", scheme="IOB1")
    assert (first.words, first.tags) == (("EU", "says"), ("I-ORG", "O"))
    assert (second.words, second.id) == ((".",), "1") and second.where.endswith("line 7")
    assert read(tmp_path, "a.conll", text, {"tag": "-3"}, family="tagging")[0].tags == ("NNP", "VBZ")


def test_a_sentence_right_behind_a_document_start_is_kept(tmp_path: Path) -> None:
    text = "-DOCSTART- O\nPeter B-PER\nBlackburn I-PER\n\n-DOCSTART- O\n\nx O\n"
    peter, x = read(tmp_path, "a.conll", text, family="tagging", scheme="BIO")
    assert (peter.words, peter.tags, x.words) == (("Peter", "Blackburn"), ("B-PER", "I-PER"), ("x",))


def test_a_word_may_hold_a_blank_where_tabs_part_columns(tmp_path: Path) -> None:
    (example,) = read(tmp_path, "a.conll", "10 000\tNUM\n\u3000\tX\n", family="tagging")
    assert (example.words, example.tags) == (("10 000", "\u3000"), ("NUM", "X"))


def test_place_digits_are_cut_off_words(tmp_path: Path) -> None:
    (example,) = read(tmp_path, "a.bio", "科0 B-ORG\n30 I-ORG\n", {"word_cut": 1}, family="tagging")
    assert example.words == ("科", "3")


def test_conllu_skips_ranges_empty_nodes_and_comments(tmp_path: Path) -> None:
    lines = ["# sent_id = s-1", "# text = im Haus", "1-2\tim" + "\t_" * 8]
    words = ("1 in ADP case", "2 dem DET det", "2.1 x X dep", "3 Haus NOUN root")
    for number, form, upos, relation in map(str.split, words):
        lines.append("\t".join([number, form, "_", upos, "_", "_", "0", relation, "_", "_"]))
    text = "\n".join(lines) + "\n"
    (example,) = read(tmp_path, "a.conllu", text, family="tagging")
    assert (example.id, example.words, example.tags) == ("s-1", ("in", "dem", "Haus"), ("ADP", "DET", "NOUN"))
    (example,) = read(tmp_path, "a.conllu", text, {"tag": "deprel"}, family="tagging")
    assert example.tags == ("case", "det", "root")


def test_the_last_double_hash_of_a_word_begins_its_tag(tmp_path: Path) -> None:
    task: dict[str, Any] = {"family": "tagging", "format": "word_tag"}
    (example,) = read(tmp_path, "a.pos", "C##4##X im##_ \n", **task)
    assert (example.words, example.tags) == (("C##4", "im"), ("X", "_"))
    (bare,) = read(tmp_path, "a.pos", "C 4\n", **task, labelled=False)
    assert (bare.words, bare.tags) == (("C", "4"), None)


def test_utterances_are_three_files_of_lines(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "seq.in").write_text("fly to rome \nstop\n")
    (tmp_path / "train" / "seq.out.gz").write_bytes(gzip.compress(b"O O B-to\nO \n"))
    (tmp_path / "train" / "label").write_text("flight\nend\n")
    task = TaskSettings(family="intent_slots", scheme="BIO")
    first, second = read_examples(tmp_path / "train", task, ColumnSettings())
    assert (first.words, first.tags, first.label) == (("fly", "to", "rome"), ("O", "O", "B-to"), "flight")
    assert (second.words, second.tags, second.label) == (("stop",), ("O",), "end")
    for name in ("label", "seq.out.gz"):
        (tmp_path / "train" / name).unlink()
    unknown = read_examples(tmp_path / "train", task, ColumnSettings(), labelled=False)[0]
    assert (unknown.words, unknown.tags, unknown.label) == (first.words, None, None)


# ---------------------------------------------------------------------------------------------------- questions


def _squad(*questions: dict[str, Any]) -> str:
    return json.dumps({"data": [{"paragraphs": [{"context": "Ana saw Rome and Rome.", "qas": list(questions)}]}]})


def test_squad_keeps_all_answers_and_none_for_the_impossible(tmp_path: Path) -> None:
    rome = [{"text": "Rome", "answer_start": 8}, {"text": "Rome", "answer_start": 17}]
    text = _squad(
        {"id": "a", "question": "What?", "answers": rome, "is_impossible": False},
        {"id": "b", "question": "Why?", "answers": [], "plausible_answers": rome, "is_impossible": True},
        {"id": "c", "question": "Why?", "answers": rome, "is_impossible": True},
    )
    a, b, c = read(tmp_path, "a.json", text, family="qa")
    assert a.texts == ("What?", "Ana saw Rome and Rome.") and a.id == "a"
    assert a.answers == (Answer("Rome", 8), Answer("Rome", 17))
    assert b.answers == c.answers == ()


def test_squad_without_answers_can_be_predicted_and_not_learned(tmp_path: Path) -> None:
    text = _squad({"id": "a", "question": "What?"})
    assert read(tmp_path, "a.json", text, family="qa", labelled=False)[0].answers is None
    with pytest.raises(UserError, match="question a: the question has no answer"):
        read(tmp_path, "a.json", text, family="qa")
    twice = {"id": "a", "question": "What?", "is_impossible": True}
    with pytest.raises(UserError, match="question a: the id is there twice"):
        read(tmp_path, "a.json", _squad(twice, twice), family="qa")


# ------------------------------------------------------------------------------------------------------- splits


def _numbered(folder: Path, name: str, number: int) -> None:
    (folder / name).write_text("text\tlabel\n" + "".join(f"t{i}\t{i % 2}\n" for i in range(number)))


def _ids(examples: list[Example]) -> list[int]:
    return [int(example.id) for example in examples]


def test_a_share_is_held_out_where_there_is_no_dev_file(tmp_path: Path) -> None:
    _numbered(tmp_path, "a.tsv", 40)
    splits = read_splits(tmp_path, TaskRecipe(TaskSettings(train="a.tsv", dev_share=0.25)))
    train, dev = _ids(splits.train), _ids(splits.dev)
    assert (len(dev), sorted(train + dev)) == (10, list(range(40)))
    assert train == sorted(train) and dev == sorted(dev), "the order of the file"
    assert dev not in (list(range(10)), list(range(30, 40))), "drawn, not cut off"
    assert splits.files == {"train": tmp_path / "a.tsv"} and splits.test == []
    other = read_splits(tmp_path, TaskRecipe(TaskSettings(train="a.tsv", dev_share=0.25, sample_seed=1)))
    assert _ids(other.dev) != dev
    _numbered(tmp_path, "b.tsv", 3)
    given = read_splits(tmp_path, TaskRecipe(TaskSettings(train="a.tsv", dev="b.tsv", dev_share=0.25)))
    assert (len(given.train), len(given.dev)) == (40, 3)


def test_a_larger_limit_keeps_what_a_smaller_one_kept(tmp_path: Path) -> None:
    _numbered(tmp_path, "a.tsv", 40)
    kept = []
    for limit in (5, 20, 100):
        recipe = TaskRecipe(TaskSettings(train="a.tsv", train_limit=limit, dev="a.tsv", test="a.tsv", test_limit=7))
        splits = read_splits(tmp_path, recipe)
        kept.append(_ids(splits.train))
        assert (len(splits.dev), len(splits.test)) == (40, 7)
    assert [len(ids) for ids in kept] == [5, 20, 40]
    assert set(kept[0]) < set(kept[1]) < set(kept[2]) and all(ids == sorted(ids) for ids in kept)


# ------------------------------------------------------------------------------------------------------- inputs


@pytest.mark.parametrize(
    ("family", "row", "texts", "words"),
    [
        ("single", {"text": ""}, ("",), ()),
        ("pair", {"text_a": "a", "text_b": "b"}, ("a", "b"), ()),
        ("regression", {"text": "a"}, ("a",), ()),
        ("embedding", {"text_a": "a", "text_b": "b"}, ("a", "b"), ()),
        ("choice", {"text": "a", "choices": ["b", "c"]}, ("a", "b", "c"), ()),
        ("qa", {"question": "a", "context": "b"}, ("a", "b"), ()),
        ("tagging", {"words": ["New York", "is"]}, (), ("New York", "is")),
        ("intent_slots", {"text": " go  home"}, (" go  home",), ("go", "home")),
    ],
)
def test_plain_keys_go_before_those_of_the_recipe(
    tmp_path: Path, family: str, row: dict[str, Any], texts: tuple[str, ...], words: tuple[str, ...]
) -> None:
    path = tmp_path / "in.jsonl"
    columns = ColumnSettings(text_a="x", text_b="y", word="0", tag="-1", label="z", choices=("c1", "c2"))
    path.write_text(json.dumps({**row, "id": 7, "x": "-", "y": "-", "c1": "-", "c2": "-"}))
    if family == "regression":
        columns = ColumnSettings(text_a="x")
    (example,) = read_inputs(path, family, columns)
    assert (example.id, example.texts, example.words) == ("7", texts, words)
    assert (example.label, example.tags, example.answers) == (None, None, None)


def test_inputs_may_be_as_the_training_file_was(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    row = {"premise": "a", "question": "cause", "choice1": "b", "choice2": "c"}
    path.write_text("\n".join([json.dumps(row), json.dumps({**row, "label": 1})]))
    columns = ColumnSettings(text_a="premise", text_b="question", choices=("choice1", "choice2"))
    first, second = read_inputs(path, "choice", columns)
    assert first.texts == second.texts == ("a cause", "b", "c")
    assert (first.id, first.label, second.id, second.label) == ("0", None, "1", "1")


def test_plain_words_are_not_cut_as_those_of_the_file_were() -> None:
    columns = ColumnSettings(word_cut=1)
    rows = [{"words": ["科", "技"]}, {"text": "科技 公司"}]  # each with a key of its own
    assert [one.words for one in read_objects(rows, "tagging", columns)] == [("科", "技"), ("科技", "公司")]
    with pytest.raises(UserError, match=r"examples\[1\]: no column is named"):
        read_objects([rows[0], {"word": "x"}], "tagging", columns)


def test_inputs_come_from_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO('{"text": "schön"}\n'.encode())))
    (example,) = read_inputs("-", "single")
    assert (example.texts, example.where) == (("schön",), "standard input, line 1")


# ------------------------------------------------------------------------------------------------------ recipes


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_is_one_and_says_its_command(path: Path) -> None:
    recipe = load_task_recipe(path)
    first, *others = path.read_text().split("\n")
    assert first == f"# Command:  bert-jax finetune configs/tasks/{path.name} --model MODEL --data DATA --run RUN"
    assert others[0].startswith("# Data:     ") and "# Metric:   " in "\n".join(others)
    assert recipe.task.metric and recipe.task.train and (recipe.task.dev or recipe.task.dev_share)
