"""The recipe of a task: what is read, how, and how it is trained. Standard library only.

[task]      what is learned, and from which files
[columns]   which column or key is which part of an example
[readout]   which states of the encoder the head sees
[train]     how long, how fast, and what keeps small data steady
[[before]]  tasks to train first, from which the encoder is kept
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bert_jax.errors import UserError
from bert_jax.settings import assign, build, in_range, one_of, positive, read_toml

RATES, HEAD_RATES = (2e-5, 3e-5, 5e-5), (1e-3, 3e-3, 1e-2)  # the first: Devlin et al. 2019, A.3
HEAD_RATE = {"tagging": 5e-3, "intent_slots": 5e-3}  # of many labels, few have an example in each of few steps
FAMILIES = ("single", "pair", "multi_label", "regression", "choice", "tagging", "qa", "intent_slots", "embedding")
FORMATS = ("auto", "tsv", "csv", "jsonl", "conll", "conllu", "squad", "utterances", "label_text", "word_tag")


@dataclass(frozen=True)
class TaskSettings:
    """`[task]`: a family, and the files of its splits, named from the data directory on.

    `family` is one of
        single, pair: one label of a text or of two;
        multi_label: any number of labels of a text or of two, or none;
        regression: a number of a text or of two;
        choice: which of several texts goes with the first;
        tagging: a label a word;
        qa: where in a text the answer to a question stands, if anywhere;
        intent_slots: one label of a text and one a word of it;
        embedding: vectors, near each other for the two texts of an example and far for those of different ones.
    A file may be there as it is named or with `.gz` behind it. `format` is one of `tsv`, `csv`, `jsonl`, `conll`
    (columns, a blank line between sentences), `conllu`, `squad` (json), `utterances` (a directory of seq.in, seq.out
    and label), `label_text` (a label, a blank and a text a line) and `word_tag` (a sentence a line, each word as
    word##TAG); "auto" goes by the name. `header` says whether the first line of tsv and csv names columns. `delimiter`
    stands between the fields of a csv. `quotes` is whether fields of a tsv may be in double quotes; those of a csv
    always may.

    `dev_share` above 0 holds so much of the training file out where there is no dev file. `train_limit`, `dev_limit`
    and `test_limit` keep so many examples, drawn with `sample_seed` (0: all).
    `unseen` is what becomes of labels in dev and test that train lacks: an "error", or they count as "wrong".
    `metric` chooses the best epoch and rate; empty: the family's own. `length` is of rows in tokens, `stride` how many
    tokens a window of a long text begins before the end of the one before, `question` the most tokens of a question.
    `threshold` is the probability from which on multi_label gives a label.
    `scheme` is how tags of spans are written: "IOB1", "BIO", "IOBES" or "BMES"; empty where each word has a label of
    its own.
    """

    family: str = "single"
    train: str = ""
    dev: str = ""
    test: str = ""
    format: str = "auto"
    header: bool = True
    delimiter: str = ","
    quotes: bool = False
    metric: str = ""
    length: int = 128
    stride: int = 64
    question: int = 64
    answer: int = 30  # the most tokens of an answer
    threshold: float = 0.5
    scheme: str = ""
    dev_share: float = 0.0
    train_limit: int = 0
    dev_limit: int = 0
    test_limit: int = 0
    sample_seed: int = 0
    unseen: str = "error"

    def __post_init__(self) -> None:
        one_of(self, "task", "family", FAMILIES)
        one_of(self, "task", "format", FORMATS)
        one_of(self, "task", "unseen", ("error", "wrong"))
        if self.scheme == "IOB2":
            raise UserError("scheme = 'IOB2' is called BIO here", "task", 'give scheme = "BIO"')
        one_of(self, "task", "scheme", ("", "IOB1", "BIO", "IOBES", "BMES"))
        if len(self.delimiter) != 1 or self.delimiter in '"\r\n':
            raise UserError(f"delimiter = {self.delimiter!r} is not one character", "task", 'give one such as ";"')
        in_range(self, "task", length=(8, 1e6), stride=(0, 1e6), question=(1, 1e6), answer=(1, 1e6))
        in_range(self, "task", dev_share=(0, 0.9), threshold=(0, 1))
        in_range(self, "task", train_limit=(0, 1e12), dev_limit=(0, 1e12), test_limit=(0, 1e12))
        if self.family in ("tagging", "qa") and self.stride >= self.length:  # the others cut long texts
            raise UserError(
                f"stride = {self.stride} leaves nothing new in a row of {self.length}", "task", "give a smaller stride"
            )


@dataclass(frozen=True)
class ColumnSettings:
    """`[columns]`: names of columns (or keys of JSON objects, dots for those inside others), or numbers from 0 on.

    Empty: the family's usual names, as `sentence`, `text_a`, `label`; columns.py lists them. `choices` are the columns
    of the texts to choose from, or the one key that holds a list of them, as `choices` or `question.choices.text`; in
    that family `text_b`, where it is given, goes on after `text_a`. Several labels of a text are a list, or stand in
    one field with `label_split` between them; or `flags` names a column of 0 or 1 for each label. `labels` rewrites
    labels and tags as they are read: {"0" = "negative"}; before that, `label_until` keeps what stands before it: with
    ":", NUM of NUM:dist. `word_cut` takes so many characters off the end of each word, as the digits of 科0 技1.
    `span_a` and `span_b` hold FROM:TO in characters of the text, for `readout.tokens = "span"`: both of the one text,
    or one of each of two.
    """

    id: str = ""
    text_a: str = ""
    text_b: str = ""
    label: str = ""
    label_until: str = ""
    label_split: str = ","
    flags: tuple[str, ...] = ()
    word: str = ""
    word_cut: int = 0
    tag: str = ""
    choices: tuple[str, ...] = ()
    span_a: str = ""
    span_b: str = ""
    labels: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        in_range(self, "columns", word_cut=(0, 100))
        if not self.label_split.strip(" "):
            raise UserError("label_split is empty", "columns", 'give what stands between labels, as ","')


@dataclass(frozen=True)
class ReadoutSettings:
    """`[readout]`: which states the head sees.

    `layers`: "last", a number (0 the embeddings, negative from the last), "mean" of all, "cat4" (the last four beside
    each other), "mix" (a learned average, Peters et al. 2018, equation 1), "attention" (weights that depend on the
    states); empty: as usual for the family.
    `tokens`, of a text or of a word: "pooled" ([CLS] through the pooler), "first" ([CLS], or a word's first piece),
    "mean" (all of its pieces), "first_last" (both beside each other), "span" (means of the marked spans); empty: as
    usual for the family.
    `layer_dropout` leaves each layer out of "mix" with this probability while training, `dropout` is on what the head
    reads.
    """

    layers: str = ""
    tokens: str = ""
    layer_dropout: float = 0.0
    dropout: float = 0.1

    def __post_init__(self) -> None:
        names = ("", "last", "mean", "cat4", "mix", "attention")
        if not self.layers.removeprefix("-").isdigit():
            one_of(self, "readout", "layers", names)
        one_of(self, "readout", "tokens", ("", "pooled", "first", "mean", "first_last", "span"))
        in_range(self, "readout", layer_dropout=(0, 0.99), dropout=(0, 0.99))


@dataclass(frozen=True)
class FineTuneSettings:
    """`[train]`: one fit, and the sweep over `learning_rates` × `seeds`.

    Without `learning_rates` they are `RATES`, or `HEAD_RATES` where the head alone is trained. `head_rate` is the rate
    of what is no encoder, beside whichever of them; 0: theirs, or the one in `HEAD_RATE` where that is higher.
    `what` is "all", "head" (the encoder stays bit for bit, its features are computed once) or "top:K" (the K last
    layers and the head). Rates fall by `layer_decay` from each layer to the one below. `reset_layers` gives the last K
    layers and the pooler fresh weights (Zhang et al. 2020). `mixout` puts each weight back to its pretrained value with
    this probability while training (Lee et al. 2020). `adversarial` is the weight of a smoothness term: how far outputs
    move when the embeddings are moved against them by `adversarial_step` (Jiang et al. 2020, SMART).
    `class_weights = "balanced"` lets each class of single, pair, tagging and intent_slots count the same, however few
    examples it has.
    `patience` ends a fit after so many epochs without a better dev score (0: never); the best epoch is what is kept.
    `temperature` divides cosines of the embedding family.
    """

    epochs: int = 3
    batch: int = 32
    learning_rates: tuple[float, ...] = ()
    seeds: tuple[int, ...] = (0, 1, 2)
    head_rate: float = 0.0
    warmup: float = 0.1  # share of all steps
    decay: str = "polynomial"
    what: str = "all"
    layer_decay: float = 1.0
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    reset_layers: int = 0
    mixout: float = 0.0
    adversarial: float = 0.0
    adversarial_step: float = 1e-3
    class_weights: str = ""
    patience: int = 0
    temperature: float = 0.05
    hidden_dropout: float = -1.0  # -1: as the model has it
    attention_dropout: float = -1.0
    dtype: str = "float32"

    def __post_init__(self) -> None:
        positive(self, "train", "epochs", "batch", "layer_decay", "temperature", "adversarial_step")
        one_of(self, "train", "decay", ("polynomial", "cosine"))
        one_of(self, "train", "dtype", ("float32", "bfloat16"))
        one_of(self, "train", "class_weights", ("", "balanced"))
        in_range(self, "train", warmup=(0, 1), layer_decay=(0, 1), weight_decay=(0, 100), clip_norm=(0, 1e9))
        in_range(self, "train", reset_layers=(0, 1e4), mixout=(0, 0.99), adversarial=(0, 1e6), patience=(0, 1e6))
        in_range(self, "train", head_rate=(0, 100), hidden_dropout=(-1, 0.99), attention_dropout=(-1, 0.99))
        if self.what not in ("all", "head") and self.top is None:
            raise UserError(f"what = {self.what!r} is unknown", "train", 'choose "all", "head" or "top:K"')
        if self.head_rate and self.what == "head":
            what = f"head_rate = {self.head_rate:g} beside the rates of a head that is trained alone"
            raise UserError(what, "train", "give it as learning_rates")
        if not self.learning_rates:
            object.__setattr__(self, "learning_rates", HEAD_RATES if self.what == "head" else RATES)
        asked = {
            "learning_rates": (lambda rate: 0 < rate < math.inf, "give numbers above 0 that all differ"),
            "seeds": (lambda seed: 0 <= seed < 2**31, "give numbers from 0 to 2147483647 that all differ"),
        }
        for name, (fine, remedy) in asked.items():
            values = getattr(self, name)
            if not values or len(set(values)) < len(values) or not all(map(fine, values)):
                raise UserError(f"{name} = {list(values)} is no sweep", "train", remedy)

    @property
    def top(self) -> int | None:
        """K of "top:K"."""
        name, _, number = self.what.partition(":")
        return int(number) if name == "top" and number.isdigit() and int(number) > 0 else None


@dataclass(frozen=True)
class Before:
    """`[[before]]`: another recipe whose task is trained first, at its own first learning rate."""

    recipe: str = ""


@dataclass(frozen=True)
class TaskRecipe:
    """All that a task is made of but its data and the encoder."""

    task: TaskSettings = field(default_factory=TaskSettings)
    columns: ColumnSettings = field(default_factory=ColumnSettings)
    readout: ReadoutSettings = field(default_factory=ReadoutSettings)
    train: FineTuneSettings = field(default_factory=FineTuneSettings)
    before: tuple[Before, ...] = ()


def load_task_recipe(path: str | Path, settings: Sequence[str] = ()) -> TaskRecipe:
    """Read a TOML recipe and apply `--set` texts such as `train.epochs=5` to it.

    Raises:
        UserError: the file is missing or no recipe of a task, a key does not exist, a value cannot be.
    """
    tree = read_toml(Path(path))
    if "stage" in tree:
        raise UserError("this is a recipe of pretraining", str(path), "give it to `bert-jax pretrain`")
    if "task" not in tree:
        raise UserError("no [task] says what to learn", str(path), "begin with a copy of a recipe in configs/tasks/")
    for setting in settings:
        assign(tree, setting)
    return build(TaskRecipe, tree, "")
