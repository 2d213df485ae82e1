"""Bad files and recipes of tasks: one sentence each, that says where and what to do.

`python -m tests.tasks.test_bad_tasks` prints the table as Markdown, and behind it that of test_bad_verbs.py.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import shlex
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from bert_jax.errors import UserError
from bert_jax.tasks.audit import check_labels, labels_of
from bert_jax.tasks.reading import read_inputs, read_splits
from bert_jax.tasks.settings import load_task_recipe


@dataclass(frozen=True)
class Case:
    """A file that cannot be read, or not with these settings.

    `settings` are those of `--set`, a recipe that names `file` as what to train on has them; with `inputs`, the file is
    one of examples to predict. `dev` is another file, of the same kind.
    """

    name: str
    content: bytes | str
    message: str
    settings: str = ""
    file: str = "a.tsv"
    dev: str = ""
    inputs: bool = False

    def run(self, folder: Path) -> str:
        """What is said."""
        with contextlib.chdir(folder):
            path = Path(self.file)
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(self.content.encode() if isinstance(self.content, str) else self.content)
            Path("recipe.toml").write_text("[task]\n")
            settings = [f"task.train={path}", *shlex.split(self.settings)]
            if self.dev:
                Path(f"dev{path.suffix}").write_text(self.dev)
                settings.append(f"task.dev=dev{path.suffix}")
            try:
                recipe = load_task_recipe("recipe.toml", settings)
                if self.inputs:
                    read_inputs(path, recipe.task.family, recipe.columns)
                    return ""
                splits = read_splits(Path(), recipe)
                check_labels(labels_of(splits.train, recipe.task.family), splits.dev, "dev")
            except UserError as error:
                return str(error)
        return ""


def squad(**changes: object) -> str:
    """One question whose answer is "Paris", but for changes."""
    question = {"id": "q7", "question": "Where?", "answers": [{"text": "Paris", "answer_start": 7}], **changes}
    return json.dumps({"data": [{"paragraphs": [{"context": "He saw Paris.", "qas": [question]}]}]})


CONLLU = "\t_" * 4
QA, TAGS, PAIR, CHOICE = "task.family=qa", "task.family=tagging", "task.family=pair", "task.family=choice"
INTENTS, NUMBER, SEVERAL = "task.family=intent_slots", "task.family=regression", "task.family=multi_label"
GOOD = "sentence\tlabel\nfine\t1\nbad\t0\n"

FILES = [
    Case(
        "no such file",
        GOOD,
        "b.tsv: there is no such file, nor one with .gz behind it; its directory holds a.tsv, ",
        "task.train=b.tsv",
    ),
    Case(
        "no such directory",
        GOOD,
        "x/b.tsv: there is no such file; there is no directory x either",
        "task.train=x/b.tsv",
    ),
    Case(
        "a directory for a table",
        GOOD,
        "x: this is a directory; name a file, or set format in [task]",
        "task.train=x task.format=tsv",
        file="x/a.tsv",
    ),
    Case("an empty file", "\n \n", "a.tsv: the file holds nothing; give one with examples"),
    Case("a header alone", "sentence\tlabel\n", "a.tsv: the table has a header and no rows"),
    Case("Latin-1", "sentence\tlabel\ngut\t1\nschön\t1\n".encode("latin-1"), "a.tsv, line 3: not UTF-8"),
    Case("UTF-16", GOOD.encode("utf-16"), "a.tsv: the file is UTF-16, not UTF-8; save it as UTF-8 text"),
    Case("UTF-16 without its mark", GOOD.encode("utf-16-le"), "a.tsv, line 1: a NUL byte: the file is no text"),
    Case("half a gzip", gzip.compress(GOOD.encode())[:-9], "a.tsv.gz: the gzip stream is cut", file="a.tsv.gz"),
    Case("text named gzip", GOOD, "a.tsv.gz: this is not gzip, or damaged", file="a.tsv.gz"),
    Case(
        "a name without a format", GOOD, "a.txt: the name does not tell the format; set format in [task]", file="a.txt"
    ),
]
TABLES = [
    Case(
        "a column too few",
        "sentence\tlabel\nfine\t1\nbad\n",
        "a.tsv, line 3: 1 field, but line 1 has 2; write one tab between fields, or set quotes = true",
    ),
    Case("a tab in a text", "sentence\tlabel\nfi\tne\t1\n", "a.tsv, line 2: 3 fields, but line 1 has 2"),
    Case(
        "a comma in a text of csv",
        "sentence,label\nno, thanks,1\n",
        "a.csv, line 2: 3 fields, but line 1 has 2; put a field that holds a comma into double quotes",
        file="a.csv",
    ),
    Case(
        "a short row behind one of three lines",
        'sentence,label\n"a\nb\nc",1\nd\n',
        "a.csv, line 5: 1 field, but line 1 has 2",
        file="a.csv",
    ),
    Case(
        "labels that are objects",
        '{"text": "fine", "labels": [{"name": "a"}]}\n',
        'a.jsonl, line 1: \'labels\' holds no labels but a list of others; write ["labels", "like", "these"]',
        SEVERAL,
        file="a.jsonl",
    ),
    Case(
        "no labels where none is a list of none",
        '{"text": "fine", "labels": []}\n{"text": "bad", "labels": null}\n',
        "a.jsonl, line 2: the label is empty; give each row one, or drop it",
        SEVERAL,
        file="a.jsonl",
    ),
    Case(
        "a flag that is none",
        "text,rude\nfine,0\nbad,2\n",
        "a.csv, line 3: 'rude' holds neither 0 nor 1 but \"2\"; mend it, or drop the row",
        f"""{SEVERAL} 'columns.flags=["rude"]'""",
        file="a.csv",
    ),
    Case(
        "a flag that has no column",
        "text,rude\nfine,0\n",
        "a.csv: there is no column 'loud'; set flags in [columns]; there are 'text', 'rude'",
        f"""{SEVERAL} 'columns.flags=["rude", "loud"]'""",
        file="a.csv",
    ),
    Case("nothing between labels", GOOD, "columns: label_split is empty", f"{SEVERAL} columns.label_split="),
    Case(
        "a probability of 2",
        GOOD,
        "task: threshold = 2.0 is out of range; give a number from 0 to 1",
        f"{SEVERAL} task.threshold=2",
    ),
    Case(
        "several labels, one of which train lacks",
        "text\tlabels\nfine\ta,b\n",
        "dev has 1 label that train lacks: 'c' (dev.tsv, line 2); give train examples of them",
        SEVERAL,
        dev="text\tlabels\nbad\ta,c\n",
    ),
    Case(
        "a quote that does not end",
        'sentence,label\nfine,1\n"bad,0\nmore,1\n',
        "a.csv, line 3: the quotes do not fit (unexpected end of data); end each quote",
        file="a.csv",
    ),
    Case(
        "a quote inside quotes",
        'sentence,label\n"so "fine" it is",1\n',
        "a.csv, line 2: the quotes do not fit",
        file="a.csv",
    ),
    Case(
        "an example in the line of names",
        "good\t1\nfine\t1\nbad\t0\n",
        "a.tsv: the first line is taken for names of columns, and '1' in it is a label; set header = false in [task]",
        "columns.text_a=0 columns.label=-1",
    ),
    Case(
        "a number in the line of names",
        "good\t3.5\nbad\t0\n",
        "a.tsv: the first line is taken for names of columns, and '3.5' in it is a label",
        f"{NUMBER} columns.text_a=0 columns.label=-1",
    ),
    Case("two delimiters", GOOD, "task: delimiter = ';;' is not one character; give one such as", "task.delimiter=;;"),
    Case("another name of BIO", GOOD, "task: scheme = 'IOB2' is called BIO here; give", "task.scheme=IOB2"),
    Case(
        "a wrong column",
        GOOD,
        "a.tsv: there is no column 'text'; set text_a in [columns]; there are 'sentence', "
        "'label', or their numbers from 0 on",
        "columns.text_a=text",
    ),
    Case(
        "a number that is no column",
        GOOD,
        "a.tsv: there is no column '2'; set label in [columns]",
        "columns.label='\"2\"'",
    ),
    Case(
        "no usual name",
        "review\tlabel\nfine\t1\n",
        "a.tsv: no column is named sentence or text or text_a; set text_a in [columns]; there are 'review', 'label'",
    ),
    Case("two usual names", "text\tsentence\tlabel\na\tb\t1\n", "a.tsv: which column is text_a: sentence or text?"),
    Case("no label at all", "sentence\nfine\n", "a.tsv: no column is named label; set label in [columns]"),
    Case(
        "a question whose answers have another name",
        json.dumps({"question": "Where?", "context": "In Rome.", "answer": "Rome"}),
        "a.jsonl: no column is named answers; set label in [columns]; there are 'question', 'context', 'answer'",
        QA,
        "a.jsonl",
    ),
    Case(
        "slots of another scheme",
        json.dumps({"text": "to Rome", "slots": "O S-city", "intent": "go"}),
        "a.jsonl, line 1: the tag 'S-city' of word 2 is none of BIO",
        INTENTS,
        "a.jsonl",
    ),
    Case(
        "a seed of a date",
        GOOD,
        "train: seeds = [20240101123] is no sweep; give numbers from 0 to 2147483647 that all differ",
        "train.seeds=[20240101123]",
    ),
    Case("no header, and none said so", "fine\t1\nbad\t0\n", "there are 'fine', '1', or their numbers"),
    Case(
        "no header, and names",
        "fine\t1\n",
        "a.tsv: there is no column 'label'; set label in [columns]; there are '0', '1'",
        "task.header=false columns.text_a='\"0\"' columns.label=label",
    ),
    Case("two columns of a name", "sentence\tsentence\tlabel\na\tb\t1\n", "a.tsv, line 1: two columns are named"),
    Case("an empty label", "sentence\tlabel\nfine\t1\nbad\t\n", "a.tsv, line 3: the label is empty; give each row one"),
    Case("an empty text", "sentence\tlabel\nfine\t1\n \t0\n", "a.tsv, line 3: the text is empty; drop the row"),
    Case("a pair of nothing", "text_a\ttext_b\tlabel\na\t\t1\n\t\t0\n", "a.tsv, line 3: the text is empty", PAIR),
    Case(
        "one text of a pair named",
        "a\tb\tlabel\nx\ty\t1\n",
        "a.tsv: no two columns are named sentence1 and sentence2 or",
        PAIR + " columns.text_a=a",
    ),
    Case(
        "two pairs",
        "premise\thypothesis\ttext_a\ttext_b\tlabel\na\tb\tc\td\t1\n",
        "a.tsv: which columns are the two texts: text_a and text_b or premise and hypothesis?",
        PAIR,
    ),
    Case(
        "a word for a number",
        "sentence1\tsentence2\tscore\na\tb\t3.5\na\tc\tmuch\n",
        "a.tsv, line 3: the label 'much' is no finite number",
        NUMBER,
    ),
    Case("no finite number", "sentence1\tsentence2\tscore\na\tb\tnan\n", "the label 'nan' is no finite number", NUMBER),
    Case(
        "a span beyond the text",
        "text\tlabel\ts\nword\t1\t2:5\n",
        "a.tsv, line 2: the span 2:5 is not within the 4 characters of its text",
        "columns.span_a=s",
    ),
    Case(
        "no span",
        "text\tlabel\ts\nword\t1\t2-4\n",
        "a.tsv, line 2: '2-4' in 's' is no span; write FROM:TO",
        "columns.span_a=s",
    ),
    Case(
        "JSON that is cut",
        '{"text": "a", "label": "b"}\n{"text": "a"',
        "a.jsonl, line 2: this is not JSON",
        file="a.jsonl",
    ),
    Case(
        "a list of objects as JSON lines",
        '[{"text": "a"}]',
        "a.jsonl, line 1: this is not a JSON object",
        file="a.jsonl",
    ),
    Case(
        "a number for a text",
        '{"text": 7, "label": 1}',
        "a.jsonl, line 1: 'text' holds no text but a number",
        file="a.jsonl",
    ),
    Case(
        "a key that one row lacks",
        '{"text": "a", "label": 1}\n{"label": 1}',
        "a.jsonl, line 2: 'text' holds no text but nothing",
        file="a.jsonl",
    ),
    Case("a list for a label", '{"text": "a", "label": [1]}', "'label' holds no label but a list", file="a.jsonl"),
    Case(
        "a wrong key",
        '{"text": "a", "meta": {"class": 1}}',
        "a.jsonl: there is no column 'meta.label'; set label in [columns]; there are 'text', 'meta', 'meta.class'",
        "columns.label=meta.label",
        file="a.jsonl",
    ),
    Case("a question as a table of sentences", GOOD, "a.tsv: no two columns are named question and context", QA),
]
CHOICES = [
    Case("no choices", '{"question": "a", "label": 0}', "a.jsonl: no column is named choices", CHOICE, "a.jsonl"),
    Case(
        "one choice",
        '{"question": "a", "choices": ["b"], "label": 0}',
        "a.jsonl, line 1: 'choices' is no list of two texts or more",
        CHOICE,
        "a.jsonl",
    ),
    Case(
        "choices as objects",
        '{"question": "a", "choices": [{"text": "b"}, {"text": "c"}], "label": 0}',
        "'choices' is a list of objects; set choices = [\"choices.text\"] in [columns]",
        CHOICE,
        "a.jsonl",
    ),
    Case(
        "an empty choice",
        '{"question": "a", "choices": ["b", " "], "label": 0}',
        "a.jsonl, line 1: the text is empty",
        CHOICE,
        "a.jsonl",
    ),
    Case(
        "choices counted from 1",
        '{"question": "a", "choices": ["b", "c"], "label": 2}',
        "a.jsonl, line 1: the label '2' is none of 2 choices; numbers count from 0",
        CHOICE,
        "a.jsonl",
    ),
    Case(
        "a letter too far",
        '{"question": "a", "choices": ["b", "c"], "label": "C"}',
        "the label 'C' is none of 2 choices",
        CHOICE,
        "a.jsonl",
    ),
]
WORDS = [
    Case(
        "a word without a tag",
        "EU I-ORG\nsays\n\n",
        "a.conll, line 2: 1 column, but line 1 has 2; give each word",
        TAGS,
        "a.conll",
    ),
    Case("words alone", "EU\nsays\n", "a.conll, line 1: words and tags are in the same column", TAGS, "a.conll"),
    Case(
        "a column that is not there",
        "EU I-ORG\n",
        "a.conll, line 1: there is no column 3: the line has 2 columns; set tag in [columns] to a number from 0 to 1",
        TAGS + " columns.tag='\"3\"'",
        "a.conll",
    ),
    Case(
        "a name for a column", "EU I-ORG\n", "columns: tag = 'ner' is no number", TAGS + " columns.tag=ner", "a.conll"
    ),
    Case(
        "a tag of another scheme",
        "EU S-ORG\nsays O\n",
        "a.conll, line 1: the tag 'S-ORG' of word 1 is none of BIO; "
        "write O or B or I, a hyphen and a name, or set scheme",
        TAGS + " task.scheme=BIO",
        "a.conll",
    ),
    Case(
        "nothing left of a word",
        "科0 O\n，  O\n",
        "a.conll, line 1: word 2 is empty; give each word a character",
        TAGS + " columns.word_cut=1",
        "a.conll",
    ),
    Case(
        "nine fields",
        "1\tEU\t_\tPROPN" + CONLLU + "\t_\n",
        "a.conllu, line 1: 9 fields instead of 10",
        TAGS,
        "a.conllu",
    ),
    Case(
        "no field",
        "1\tEU\t_\tPROPN" + CONLLU + "\t_\t_\n",
        "columns: tag = 'pos' is no field; choose one of lemma, upos",
        TAGS + " columns.tag=pos",
        "a.conllu",
    ),
    Case(
        "no number of a word",
        "EU\tEU\t_\tPROPN" + CONLLU + "\t_\t_\n",
        "line 1: 'EU' is no number of a word",
        TAGS,
        "a.conllu",
    ),
    Case(
        "a word without ##",
        "EU##PROPN says\n",
        "a.pos, line 1: 'says' is no word with a tag; write word##TAG",
        TAGS + " task.format=word_tag",
        "a.pos",
    ),
    Case(
        "more words than tags",
        '{"words": ["a", "b"], "tags": ["X"]}',
        "a.jsonl, line 1: 2 words but 1 tag",
        TAGS,
        "a.jsonl",
    ),
    Case(
        "no words",
        '{"words": [], "tags": []}',
        "a.jsonl, line 1: there are no words; drop the sentence",
        TAGS,
        "a.jsonl",
    ),
    Case(
        "a sentence for a family without words",
        "EU I-ORG\n",
        "a.conll: the family single is not read from conll",
        file="a.conll",
    ),
    Case(
        "no slots",
        "fly home\n",
        "train/seq.out: there is no such file, nor one with .gz behind it; its directory holds seq.in",
        INTENTS + " task.train=train",
        "train/seq.in",
    ),
    Case(
        "no directory",
        "fly home\n",
        "a.txt: this is no directory; name one that holds seq.in, seq.out and label",
        INTENTS + " task.format=utterances",
        "a.txt",
    ),
]
QUESTIONS = [
    Case(
        "an answer that stands elsewhere",
        squad(answers=[{"text": "Paris", "answer_start": 8}]),
        "a.json, question q7: the answer 'Paris' is not at character 8 of the context; it stands at 7",
        QA,
        "a.json",
    ),
    Case(
        "an answer that stands nowhere",
        squad(answers=[{"text": "Rome", "answer_start": 7}]),
        "question q7: the answer 'Rome' is not at character 7 of the context; it stands nowhere",
        QA,
        "a.json",
    ),
    Case(
        "a start counted from the end",
        squad(answers=[{"text": "Paris", "answer_start": -6}]),
        "the answer 'Paris' is not at character -6 of the context; it stands at 7",
        QA,
        "a.json",
    ),
    Case(
        "no answer, and not impossible",
        squad(answers=[]),
        'a.json, question q7: the question has no answer; give one, or write "is_impossible": true',
        QA,
        "a.json",
    ),
    Case(
        "an answer without its start",
        squad(answers=[{"text": "Paris"}]),
        "an answer is no text with a start",
        QA,
        "a.json",
    ),
    Case("no id", squad(id=""), "a.json, data 0, paragraph 0: question 0 has no id", QA, "a.json"),
    Case(
        "JSON of another kind", '{"questions": []}', "a.json: there is no list 'data'; give JSON of SQuAD", QA, "a.json"
    ),
    Case("JSON that is cut", squad()[:-3], "a.json, line 1: this is not JSON", QA, "a.json"),
    Case("questions for a family without", squad(), "the family single is not read from squad", file="a.json"),
]
SPLITS = [
    Case(
        "a label that train lacks",
        GOOD,
        "dev has 1 label that train lacks: '2' (dev.tsv, line 3); give train examples of them",
        dev="sentence\tlabel\nfine\t1\nso so\t2\n",
    ),
    Case(
        "a slot that train lacks",
        "EU I-ORG\n",
        "dev has 1 tag that train lacks: 'I-PER' (dev.conll, line 3)",
        TAGS,
        "a.conll",
        dev="EU I-ORG\n\nhe I-PER\n",
    ),
    Case(
        "all held out",
        "sentence\tlabel\nfine\t1\n",
        "task: dev_share = 0.5 leaves nothing to train on",
        "task.dev_share=0.5",
    ),
    Case("no such setting", GOOD, "columns.text: there is no such setting; did you mean 'text_", "columns.text=a"),
    Case("no such format", GOOD, "task: format = 'tvs' is unknown", "task.format=tvs"),
]
INPUTS = [
    Case(
        "no key to predict from",
        '{"txt": "fine"}',
        "a.jsonl, line 1: no column is named sentence or text or text_a; name the key text; there are 'txt'",
        "",
        "a.jsonl",
        inputs=True,
    ),
    Case(
        "half a pair to predict from",
        '{"text_a": "fine"}',
        "name the keys text_a and text_b; there are 'text_a'",
        PAIR,
        "a.jsonl",
        inputs=True,
    ),
    Case("lines of text to predict from", "fine\n", "a.jsonl, line 1: this is not JSON", "", "a.jsonl", inputs=True),
    Case(
        "no context to predict from",
        '{"question": "Where?", "context": " "}',
        "line 1: the text is empty",
        QA,
        "a.jsonl",
        inputs=True,
    ),
]
CASES = [*FILES, *TABLES, *CHOICES, *WORDS, *QUESTIONS, *SPLITS, *INPUTS]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_bad_input_is_told_in_one_sentence(case: Case, tmp_path: Path) -> None:
    said = case.run(tmp_path)
    assert case.message in said
    assert "\n" not in said and "; " in said, "a remedy belongs to it"


def test_lines_of_utterances_must_agree(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text('[task]\nfamily = "intent_slots"\ntrain = "train"\n')
    recipe = load_task_recipe(tmp_path / "recipe.toml")
    files = {"seq.in": "fly home\ngo\n", "seq.out": "O B-to\nO\n", "label": "flight\ngo\n"}
    for name, content, message in (
        ("label", "flight\n", "label: 1 line, but seq.in has 2; give each utterance a line in each file"),
        ("label", "flight\n\n", "label, line 2: the intent is empty"),
        ("seq.out", "O B-to\nO O\n", "seq.out, line 2: 1 word but 2 tags"),
    ):
        (tmp_path / "train").mkdir(exist_ok=True)
        for other, good in files.items():
            (tmp_path / "train" / other).write_text(content if other == name else good)
        with pytest.raises(UserError) as error:
            read_splits(tmp_path, recipe)
        assert f"train/{message}" in str(error.value)


def table() -> str:
    """The cases as a table in Markdown, each one run."""
    lines = ["| case | settings | says |", "|---|---|---|"]
    for case in CASES:
        with tempfile.TemporaryDirectory() as folder:
            said = case.run(Path(folder)).replace("|", r"\|")
        settings = f"`{case.settings}`" if case.settings else ""
        lines.append(f"| {case.name} | {settings} | {said} |")
    return "\n".join(lines)


if __name__ == "__main__":
    from tests.tasks import test_bad_verbs

    print(table(), test_bad_verbs.table(), sep="\n\n")
