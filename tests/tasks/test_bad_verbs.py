"""Bad input as the verbs of fine-tuning meet it: what is printed, and the exit status; beside it what is no fault.

`python -m tests.tasks.test_bad_tasks` prints the table as Markdown, behind that of the readers.
"""

from __future__ import annotations

import contextlib
import io
import json
import shlex
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

from bert_jax.cli import main
from tests.tasks.written import toy, write_encoder, write_lines, write_recipe, write_task
from tests.world import WORDS

LONG = 100_000  # tokens
Spoil = Callable[[Path], object]


@dataclass(frozen=True)
class Case:
    """One thing that is wrong, or looks so.

    `spoil` changes the files of a task that could be trained: FAMILY.toml, FAMILY/train, dev and test, and `encoder`.
    `settings` are those of `--set`. `message` is a part of what is said; with status 0 a part of what is printed.
    """

    name: str
    spoil: Spoil
    message: str
    settings: str = ""
    family: str = "single"
    ending: str = "tsv"
    status: int = 1

    def run(self, folder: Path) -> tuple[int, str]:
        """Exit status, and what is said: the errors, or where there are none what is printed."""
        write_task(folder, self.family, self.ending)
        write_encoder(folder / "encoder")
        self.spoil(folder)
        once = ["train.epochs=1", *shlex.split(self.settings)]
        arguments = ["finetune", f"{self.family}.toml", "--model", "encoder", "--data", ".", "--run", "run"]
        arguments += ["--no-random-twin", *(f"--set={setting}" for setting in once)]
        out, err = io.StringIO(), io.StringIO()
        with contextlib.chdir(folder), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = main(arguments)
        return status, err.getvalue().strip() if status else out.getvalue()


def content(path: str, text: str | bytes) -> Spoil:
    """Put something else into a file."""
    return lambda folder: (folder / path).write_bytes(text.encode() if isinstance(text, str) else text)


def replaced(path: str, old: str, new: str) -> Spoil:
    """Change a file where it says something, once."""

    def change(folder: Path) -> None:
        text = (folder / path).read_text(encoding="utf-8")
        assert old in text
        (folder / path).write_text(text.replace(old, new, 1), encoding="utf-8")

    return change


def first_line(path: str, **changes: object) -> Spoil:
    """Change keys of the first object of JSON lines."""

    def change(folder: Path) -> None:
        lines = [json.loads(one) for one in (folder / path).read_text().splitlines()]
        write_lines(folder / path, [{**lines[0], **changes}, *lines[1:]])

    return change


def nothing(folder: Path) -> None: ...


def as_csv(folder: Path) -> None:
    """Texts with quotes, commas and line breaks."""
    for split, seed, count in (("train", 0, 24), ("dev", 1, 12), ("test", 2, 12)):
        rows = ["text,label"]
        examples = toy.examples("single", count, seed)
        rows += [f'"{" ".join(e.texts[0].split()[:2])}, ""said""\nban",{e.label}' for e in examples]
        (folder / "single" / f"{split}.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    write_recipe(folder / "single.toml", "single", "csv")


def with_mark(folder: Path) -> None:
    """A byte order mark before each table, and lines that end as on Windows."""
    for path in (folder / "single").iterdir():
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))


def long_document(folder: Path) -> None:
    path = folder / "single" / "train.tsv"
    lines = path.read_text(encoding="utf-8").splitlines()
    lines[1] = " ".join(WORDS * (LONG // len(WORDS))) + "\tyes"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def larger_vocabulary(folder: Path) -> None:
    """The tokenizer of another model beside the weights, with its own fingerprint on record."""
    from bert_jax.text.tokenizer import from_vocab
    from tests.world import VOCABULARY

    tokenizer = from_vocab([*VOCABULARY, "other"], lowercase=True)
    tokenizer.save(folder / "encoder" / "tokenizer")
    path = folder / "encoder" / "model.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "tokenizer": tokenizer.fingerprint}))


def other_tokenizer(folder: Path) -> None:
    from bert_jax.text.tokenizer import from_vocab
    from tests.world import VOCABULARY

    from_vocab([*VOCABULARY[:-1], "other"], lowercase=True).save(folder / "encoder" / "tokenizer")


def without_layers(folder: Path) -> None:
    path = folder / "encoder" / "weights.safetensors"
    tensors = load_file(path)
    save_file({name: tensor for name, tensor in tensors.items() if name != "layers/mlp/up/kernel"}, path)


def unfinished_run(folder: Path) -> None:
    """The run of another fine-tuning, before its model stands."""
    (folder / "encoder").rename(folder / "tuned")
    (folder / "encoder").mkdir()
    for name in ("task.toml", "inputs.json"):
        (folder / "encoder" / name).write_text("{}")


TABLES = [
    Case(
        "a wrong column",
        nothing,
        "single/train.tsv: there is no column 'review'; set text_a in [columns]; there are 'sentence', 'label'",
        "columns.text_a=review",
    ),
    Case(
        "a label that is missing",
        replaced("single/train.tsv", "\tyes\n", "\t\n"),
        ": the label is empty; give each row one, or drop it",
    ),
    Case(
        "weights of classes that are none",
        nothing,
        "train.class_weights: regression has no classes of which one holds; leave it out",
        "train.class_weights=balanced",
        family="regression",
        ending="jsonl",
    ),
    Case(
        "a rate for a head that is trained alone",
        nothing,
        "train: head_rate = 0.01 beside the rates of a head that is trained alone; give it as learning_rates",
        "train.what=head train.head_rate=0.01",
    ),
    Case(
        "no labels at all, where there may be several",
        content("multi_label/train.jsonl", '{"text": "ban", "labels": []}\n{"text": "ker", "labels": []}\n'),
        "multi_label/train.jsonl: no example has a label; name their column with label or flags in [columns]",
        family="multi_label",
        ending="jsonl",
    ),
    Case(
        "a label that train lacks",
        replaced("single/test.tsv", "\tyes\n", "\tnever\n"),
        "test has 1 label that train lacks: 'never' (single/test.tsv, line ",
    ),
    Case(
        "a label that train lacks, which counts as wrong",
        replaced("single/test.tsv", "\tyes\n", "\tnever\n"),
        "test has 1 label that train lacks: they count as wrong",
        "task.unseen=wrong",
        status=0,
    ),
    Case(
        "an empty sentence",
        lambda folder: (folder / "single/dev.tsv").write_text("sentence\tlabel\n  \tyes\n"),
        "single/dev.tsv, line 2: the text is empty; drop the row, or name another column in [columns]",
    ),
    Case("a document of 100,000 tokens", long_document, "train 24, dev 12, test 12", status=0),
    Case("CSV with quotes, commas and line breaks", as_csv, "train 24, dev 12, test 12", status=0),
    Case("UTF-8 with a byte order mark, and CRLF", with_mark, "train 24, dev 12, test 12", status=0),
    Case(
        "one label alone",
        content("single/train.tsv", "sentence\tlabel\n" + "ban ker\tyes\n" * 24),
        "dev has 2 labels that train lacks: ",
    ),
    Case(
        "semicolons for commas",
        content("single/train.csv", "sentence;label\nban ker;yes\n"),
        'there are \'sentence;label\', or their numbers from 0 on; or is it format = "csv" and delimiter = ";" in',
        "task.train=single/train.csv columns.text_a=sentence",
    ),
    Case("a directory for a file", nothing, "single: this is a directory; name a file in it", "task.train=single"),
    Case(
        "a rate that is no number", nothing, "train: learning_rates = [nan] is no sweep", "train.learning_rates=[nan]"
    ),
    Case("a rate without end", nothing, "train: learning_rates = [inf] is no sweep", "train.learning_rates=[inf]"),
    Case("a rate that moves nothing", nothing, "give numbers above 0 that all differ", "train.learning_rates=[0]"),
    Case(
        "steps that bfloat16 cannot tell",
        nothing,
        "train.adversarial: steps of 0.001 are lost in bfloat16's eight bits; set train.dtype=",
        "train.adversarial=1 train.dtype=bfloat16",
    ),
    Case(
        "a file that is not there",
        lambda folder: (folder / "single/dev.tsv").unlink(),
        "single/dev.tsv: there is no such file, nor one with .gz behind it; its directory holds test.tsv, train.tsv",
    ),
]
WORDS_AND_ANSWERS = [
    Case(
        "an answer that is not in the context",
        first_line("qa/train.jsonl", answers=[{"text": "Rome", "answer_start": 0}]),
        "qa/train.jsonl, line 1: the answer 'Rome' is not at character 0 of the context; it stands nowhere in it",
        family="qa",
        ending="jsonl",
    ),
    Case(
        "a question that leaves no room",
        first_line("qa/train.jsonl", question=" ".join(WORDS)),
        "qa/train.jsonl, line 1: a question of 40 tokens leaves no room for its text in 32; give a larger task.length",
        "task.question=40",
        family="qa",
        ending="jsonl",
    ),
    Case(
        "more words than tags",
        first_line("tagging/train.jsonl", words=["ban", "ker", "lir"], tags=["O", "O"]),
        "tagging/train.jsonl, line 1: 3 words but 2 tags; give each word a tag",
        family="tagging",
        ending="jsonl",
    ),
    Case(
        "a score that is no number",
        first_line("regression/train.jsonl", label="much"),
        "regression/train.jsonl, line 1: the label 'much' is no finite number",
        family="regression",
        ending="jsonl",
    ),
]
MODELS = [
    Case(
        "an encoder with another vocabulary",
        larger_vocabulary,
        "encoder: the tokenizer has 46 pieces, the model 45; put the tokenizer there that the model was trained with",
    ),
    Case(
        "a tokenizer that is not the encoder's",
        other_tokenizer,
        "encoder/tokenizer: this is not the tokenizer that came with the weights; import the model anew",
    ),
    Case(
        "an encoder without some of its weights",
        without_layers,
        "encoder/model.json: layers/mlp/up/kernel is missing; import it anew",
    ),
    Case(
        "weights that are cut",
        lambda folder: (folder / "encoder/weights.safetensors").write_bytes(b"\0" * 9),
        "encoder/weights.safetensors: not a whole safetensors file",
    ),
    Case("no encoder", lambda folder: (folder / "encoder").rename(folder / "moved"), "encoder: this does not exist"),
    Case(
        "a fine-tuning without its model",
        unfinished_run,
        "encoder: this fine-tuning is not finished; run the same `bert-jax finetune` again",
    ),
]
RECIPES = [
    Case(
        "rows longer than the encoder's positions",
        nothing,
        "task.length: length = 65, where the position table has 64; give --set task.length=64",
        "task.length=65",
    ),
    Case("a layer that is not there", nothing, "readout.layers: there is no layer 2; choose", "readout.layers=2"),
    Case(
        "four layers of one",
        nothing,
        "readout.layers: cat4 needs four layers, the encoder has 1",
        "readout.layers=cat4",
    ),
    Case(
        "the pooler on a mix",
        nothing,
        "readout.tokens: the pooler reads the last layer",
        "readout.layers=mix readout.tokens=pooled",
    ),
    Case("spans that nobody marks", nothing, "line 2: no span is marked; name columns.span_a", "readout.tokens=span"),
    Case(
        "more layers than there are",
        nothing,
        "train.what: top:2 cannot be, the encoder has 1 layer",
        "train.what=top:2",
    ),
    Case(
        "more fresh layers than there are",
        nothing,
        "train.reset_layers: 2 layers cannot be reset, the encoder has 1 layer; ",
        "train.reset_layers=2",
    ),
    Case(
        "a head where there is none",
        nothing,
        "train.what: vectors have no head to train; choose",
        "train.what=head",
        family="embedding",
        ending="jsonl",
    ),
    Case(
        "several rates and nothing to choose by",
        nothing,
        "task.dev: several learning rates need a dev split to choose by",
        "task.dev='' train.learning_rates=[1e-3,2e-3]",
    ),
    Case("another metric's name", nothing, "task: metric = 'bleu' is none of single", "task.metric=bleu"),
    Case("no such setting", nothing, "train.epoch: there is no such setting; did you mean 'epochs'?", "train.epoch=3"),
    Case(
        "a directory of something else",
        lambda folder: ((folder / "run").mkdir(), (folder / "run/thesis.tex").touch()),
        "run: this is there already, and no fine-tuning of ours; choose another --run",
    ),
]
CASES = [*TABLES, *WORDS_AND_ANSWERS, *MODELS, *RECIPES]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_verb_says_in_one_sentence_what_is_wrong_and_takes_what_is_not(case: Case, tmp_path: Path) -> None:
    status, said = case.run(tmp_path)
    assert status == case.status, said
    assert case.message in said
    if status:
        assert said.startswith("bert-jax finetune: ") and "\n" not in said and "; " in said
        assert not (tmp_path / "run" / "inputs.json").exists(), "the mended recipe would be another one's"
    else:
        assert (tmp_path / "run" / "table.md").is_file()


def table() -> str:
    """The cases as a table in Markdown, each one run."""
    lines = ["| case | settings | exit status | says |", "|---|---|---|---|"]
    for case in CASES:
        with tempfile.TemporaryDirectory() as folder:
            status, said = case.run(Path(folder))
        said = said.replace("|", r"\|") if status else f"{case.message}, …: it is trained"
        settings = f"`{case.settings}`" if case.settings else ""
        lines.append(f"| {case.name} | {settings} | {status} | {said} |")
    return "\n".join(lines)
