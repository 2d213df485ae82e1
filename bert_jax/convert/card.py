"""The model card of an export: README.md, from what the run and the files themselves record and nothing else."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bert_jax.convert.families import family_of, kind_in
from bert_jax.convert.loaded import Loaded
from bert_jax.convert.names import flatten
from bert_jax.text.manifest import LEVELS

Tree = Mapping[str, Any]

# The last word of a class → what transformers opens it with, and the hub's name of the task.
_OPENED = {
    "ForPreTraining": ("AutoModelForPreTraining", "fill-mask"),
    "ForMaskedLM": ("AutoModelForMaskedLM", "fill-mask"),
    "ForSequenceClassification": ("AutoModelForSequenceClassification", "text-classification"),
    "ForMultipleChoice": ("AutoModelForMultipleChoice", "multiple-choice"),
    "ForTokenClassification": ("AutoModelForTokenClassification", "token-classification"),
    "ForQuestionAnswering": ("AutoModelForQuestionAnswering", "question-answering"),
    "Model": ("AutoModel", "feature-extraction"),
}

# What a fine-tuned model gives, by the family of its task.
_GIVES = {
    "single": "one label of a text",
    "pair": "one label of two texts",
    "multi_label": "which labels a text or two have",
    "regression": "a number of a text or of two",
    "choice": "which of several texts goes with a first one",
    "tagging": "a label a word, of each word's first piece",
    "qa": "where in a text the answer to a question stands",
}


@dataclass(frozen=True)
class Facts:
    """What is known of a model; whatever is empty is left out of the card.

    Attributes:
        name: for the heading and the examples: the directory's.
        loaded: the model as it stands in the files, of their class; its `pooling` for a sentence-transformers one.
        provenance: `provenance.json` of the run or of the import.
        manifests: `manifest.json` of each stage's data.
        recipe: the resolved recipe, parsed.
        tokens: that were trained on, without padding.
        report: `report.json`.
        curves: whether `curves.png` lies beside.
        license: as the hub calls it, if a person said it.
        use: how these files are used, where transformers does not read them.
        task: `task.json` of a fine-tuned model.
    """

    name: str
    loaded: Loaded
    provenance: Tree = field(default_factory=dict)
    manifests: Sequence[Tree] = ()
    recipe: Tree = field(default_factory=dict)
    tokens: int | None = None
    report: Tree = field(default_factory=dict)
    curves: bool = False
    license: str | None = None
    use: str = ""
    task: Tree = field(default_factory=dict)


def card(facts: Facts) -> str:
    """The text of README.md, Markdown below a YAML header as the hub reads it."""
    parts = (_header, _opening, _model, _use, _data, _training, _evaluation, _limits)
    return "\n\n".join(text for part in parts if (text := part(facts))) + "\n"


def languages(facts: Facts) -> list[str]:
    """The languages that the data's sentences were cut as; all that the record says of language."""
    found = (manifest.get("settings", {}).get("language") for manifest in facts.manifests)
    return list(dict.fromkeys(language for language in found if isinstance(language, str) and language))


# ---------------------------------------------------------------------------------------------------- header


def _header(facts: Facts) -> str:
    of = family_of(facts.loaded.architecture).model_type
    lines = [f"library_name: {'sentence-transformers' if facts.loaded.pooling else 'transformers'}"]
    if facts.license:
        lines.append(f"license: {json.dumps(facts.license)}")
    if spoken := [language for language in languages(facts) if language.isalpha() and len(language) in (2, 3)]:
        lines += ["language:", *(f"- {json.dumps(language)}" for language in spoken)]
    lines.append(f"pipeline_tag: {'sentence-similarity' if facts.loaded.pooling else _opened(facts)[1]}")
    return "\n".join(["---", *lines, "tags:", f"- {of}", "- bert_jax", "---"])


def _opened(facts: Facts) -> tuple[str, str]:
    return next(value for end, value in _OPENED.items() if facts.loaded.architecture.endswith(end))


def _opening(facts: Facts) -> str:
    config = facts.loaded.config
    said = f"{facts.loaded.architecture}, {config.layers} layers of {config.width}, {_parameters(facts):,} parameters"
    tuning = _tuning(facts)
    if facts.task:
        begun = f" with bert_jax from `{tuning['encoder']['source']}`" if tuning else ""
        said += f", fine-tuned{begun} to tell {_GIVES[facts.task['family']]}"
    if facts.recipe:
        said += ", pretrained with bert_jax from random weights"
    elif facts.provenance.get("source") and not tuning:
        said += f", converted with bert_jax from `{facts.provenance['source']}`"
    return f"# {facts.name}\n\n{said}."


def _tuning(facts: Facts) -> Tree:
    """What a fine-tuning of ours recorded: `encoder`, `recipe`, `cell`; empty of a model that was tuned elsewhere."""
    record = facts.provenance.get("before") if facts.task else None
    return record if record and {"encoder", "recipe", "cell"} <= record.keys() else {}


def _parameters(facts: Facts) -> int:
    kind = kind_in(family_of(facts.loaded.architecture), facts.loaded.architecture)
    parts = kind.parts if kind else ()
    return sum(leaf.size for path, leaf in flatten(facts.loaded.params) if path.split("/")[0] in parts)


# ----------------------------------------------------------------------------------------------- what it is


def _model(facts: Facts) -> str:
    config, tokenizer, pooling = facts.loaded.config, facts.loaded.tokenizer, facts.loaded.pooling
    rows = [
        ("layers", f"{config.layers}" + (f", {config.groups} distinct" if config.groups else "")),
        ("width", f"{config.width}" + (f", tables {config.embedding}" if config.embedding else "")),
        ("attention heads", f"{config.heads} of {config.width // config.heads}"),
        ("feed-forward", f"{config.feed_forward}, {config.activation}"),
        ("positions", f"{config.positions}"),
        ("segments", f"{config.segments or 'none'}"),
        ("tokenizer", f"{tokenizer.kind}, {tokenizer.vocab_size:,} pieces" + ", lower case" * tokenizer.lowercase),
        ("tokenizer's fingerprint", f"`{tokenizer.fingerprint[:16]}`"),
    ]
    if pooling:
        dense = "".join(f", dense {layer.kernel.shape[1]} {layer.activation}" for layer in pooling.dense)
        rows.append(("one vector a text", f"{pooling.mode}{dense}" + ", length 1" * pooling.normalize))
        rows.append(("tokens read of a text", f"{pooling.length or config.positions}"))
    if labels := facts.loaded.labels:
        shown = ", ".join(labels[:30]) + (f" and {len(labels) - 30:,} more" if len(labels) > 30 else "")
        rows.append((f"{len(labels):,} labels", shown))
    if (threshold := facts.task.get("no_answer")) is not None:
        rows.append(("no answer is given below", f"{threshold:.4g}"))
    if facts.task.get("family") == "multi_label":
        rows.append(("a label is given from", f"{facts.task['task'].get('threshold', 0.5):g}"))
    return "## Model\n\n" + _table(("", ""), rows)


def _use(facts: Facts) -> str:
    if facts.use:
        return f"## Use\n\n{facts.use}"
    ours = [f"model = bert_jax.load({json.dumps(facts.name)})"]
    if facts.loaded.pooling:
        theirs = [
            "from sentence_transformers import SentenceTransformer",
            f'vectors = SentenceTransformer({json.dumps(facts.name)}).encode(["a text", "another"])',
        ]
        ours.append('vectors = model.encode(["a text", "another"])')
    else:
        opened = _opened(facts)[0]
        theirs = [
            f"from transformers import AutoTokenizer, {opened}",
            f"tokenizer = AutoTokenizer.from_pretrained({json.dumps(facts.name)})",
            f"model = {opened}.from_pretrained({json.dumps(facts.name)})",
            f'outputs = model(**tokenizer({_inputs(facts)}, return_tensors="pt"))',
        ]
        if facts.loaded.architecture.endswith("ForMultipleChoice"):
            theirs[-1:] = [
                f'rows = tokenizer({_inputs(facts)}, padding=True, return_tensors="pt")',
                "outputs = model(**{name: row[None] for name, row in rows.items()})  # logits, one a choice",
            ]
        masks = "masked_lm" in facts.loaded.params
        ours.append('model.fill_mask("A text with a [MASK].")' if masks else 'vectors = model.encode(["a text"])')
    text = _code(theirs) + "\n\n" + _code(["import bert_jax", *ours])
    note = (
        'In this tokenizer a literal "[MASK]" in a text is ordinary characters, as it was in training: put '
        "`tokenizer.mask_token_id` where the mask is to be. `bert_jax`'s `fill_mask` does so."
    )
    if facts.task:
        note = "`bert_jax.load` opens the encoder alone; `bert-jax import` keeps the head."
    return f"## Use\n\n{text}" + (f"\n\n{note}" if not facts.loaded.pooling else "")


def _inputs(facts: Facts) -> str:
    """What the tokenizer of an example is given."""
    return {
        "pair": '"a text", "another"',
        "choice": '["a text"] * 2, ["one that may go with it", "another"]',
        "qa": '"a question?", "a text that answers it"',
    }.get(facts.task.get("family", ""), '"a text"')


# --------------------------------------------------------------------------------------- where it comes from


def _data(facts: Facts) -> str:
    if not facts.manifests:
        return ""
    rows, inputs, said = [], [], []
    for manifest in facts.manifests:
        settings, splits = manifest.get("settings", {}), manifest["splits"]
        if "rate" in settings:
            said.append(f"{settings['rate']:.0%} of tokens masked, by {settings['unit']}")
        if "layout" in settings:
            said.append(f"layout {settings['layout']}")
        for name, split in splits.items():
            rates = split.get("rates", {})
            counts = [f"{rates[key]:,}" if key in rates else "" for key in ("documents", "sentences")]
            rows.append(
                (f"{name}, rows of {manifest['length']}", *counts, f"{split['records']:,}", f"{split['tokens']:,}")
            )
        for one in manifest.get("inputs", ()):
            size = f", {one['bytes']:,} bytes" if one.get("bytes") else ""
            digest = f", SHA-256 `{one['sha256'][:16]}`" if one.get("sha256") else ""
            inputs.append(f"- `{one['name']}`{size}{digest}")
    text = "## Data\n\n" + _table(("split", "documents", "sentences", "records", "tokens"), rows)
    said += [f"sentences cut as {', '.join(languages(facts))}"] if languages(facts) else []
    if said:
        text += "\n\nRows: " + "; ".join(dict.fromkeys(said)) + "."
    return text + ("\n\nInputs:\n\n" + "\n".join(dict.fromkeys(inputs)) if inputs else "")


def _training(facts: Facts) -> str:
    rows = []
    if step := facts.loaded.step or facts.report.get("step"):
        rows.append(("steps", f"{step:,}"))
    if facts.tokens:
        rows.append(("tokens trained on", f"{facts.tokens:,}"))
    for number, stage in enumerate(facts.recipe.get("stage", ())):
        said = (
            f"{stage['steps']:,} steps of {stage['batch']:,} rows of {stage['length']}, rate {stage['learning_rate']:g}"
        )
        rows.append((f"stage {number}", said))
    train = facts.recipe.get("train", {})
    if train:
        rows.append(("optimizer", f"{train['optimizer']}, weight decay {train['weight_decay']:g}, {train['dtype']}"))
    if seconds := facts.report.get("seconds"):
        rows.append(
            ("hours", f"{sum(seconds.values()) / 3600:.2f}, of them training {seconds['productive'] / 3600:.2f}")
        )
    if tuning := _tuning(facts):
        recipe = tomllib.loads(tuning["recipe"])
        task, train, read = recipe["task"], recipe["train"], facts.task["readout"]
        rows += [(f"{split} examples", f"`{task[split]}`") for split in ("train", "dev", "test") if task.get(split)]
        chosen = ", the best of dev" if task.get("dev") or task.get("dev_share") else ""
        rows.append(("fit", tuning["cell"] + chosen))
        rows.append(("epochs, at most", f"{train['epochs']}, {train['batch']} examples a step"))
        rows.append(("trained", {"all": "all weights", "head": "the head"}.get(train["what"], train["what"])))
        rows.append(("read", f"layers {read['layers']}, tokens {read['tokens']}"))
        rows += [("trained before", tomllib.loads(one)["task"]["train"]) for one in tuning.get("trained before", ())]
    told = facts.provenance
    if mesh := told.get("mesh"):
        devices = 1
        for size in mesh.values():
            devices *= size
        rows.append(("devices", f"{devices} ({', '.join(f'{name} {size}' for name, size in mesh.items())})"))
    rows += [(name, f"{told[name]}") for name in ("machine", "python", "git") if told.get(name)]
    if packages := told.get("packages"):
        rows.append(("packages", ", ".join(f"{name} {version}" for name, version in sorted(packages.items()))))
    rows += [("note", note) for note in facts.loaded.notes]
    title = "Training" if facts.recipe or _tuning(facts) else "Origin"
    return f"## {title}\n\n" + _table(("", ""), rows) if rows else ""


def _evaluation(facts: Facts) -> str:
    if scores := [(name, f"{value:.4g}") for name, value in _numbers(facts.task.get("scores", {}))]:
        return "## Evaluation\n\n" + _table(("score", "value"), scores)
    rows = []
    heldout, levels = facts.report.get("heldout", ()), (facts.manifests or ({},))[0].get("levels", {})
    for row in heldout:
        at = f"this run, step {row['step']:,}" + (f", {row['set']}" if "set" in row else "")
        rows.append((at, f"{row['masked_lm_loss']:.3f}", f"{row['masked_lm_accuracy']:.3f}"))
        if "next_sentence_loss" in row:
            values = (f"{row['next_sentence_loss']:.3f}", f"{row['next_sentence_accuracy']:.3f}")
            rows.append(("its relation of two segments", *values))
    if not rows:
        return ""
    for level, name in LEVELS.items():
        if level in levels:
            accuracy = f"{levels[level]['accuracy']:.3f}" if "accuracy" in levels[level] else ""
            rows.append((f"to compare: {name}", f"{levels[level]['loss']:.3f}", accuracy))
    text = "## Evaluation\n\nMasked tokens of held-out documents.\n\n" + _table(("", "loss, nats", "accuracy"), rows)
    return text + ("\n\n![learning curves](curves.png)" if facts.curves else "")


def _numbers(tree: Tree, before: str = "") -> Iterator[tuple[str, float]]:
    """The numbers of nested scores, names joined by spaces."""
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{before}{name} ")
        elif isinstance(value, int | float):
            yield before + name, value


def _limits(facts: Facts) -> str:
    pooling = facts.loaded.pooling
    length = (pooling and pooling.length) or facts.loaded.config.positions
    lines = [f"- Of a text it reads {length} tokens at most; the rest is cut."]
    if (trained := facts.task.get("task", {}).get("length", length)) < length:
        lines.append(f"- It was fine-tuned on rows of {trained} tokens at most.")
    if facts.loaded.tokenizer.lowercase:
        lines.append("- It does not tell capitals from small letters.")
    if facts.report.get("heldout"):
        lines.append("- It was measured as the table says and on no task; what it does elsewhere is not known.")
    elif facts.task.get("scores"):
        lines.append("- It was measured as the table says and in no other way.")
    else:
        lines.append("- No measurement of it is on record here.")
    lines.append("- No examination of what errors or prejudice its texts taught it is on record here.")
    return "## Limits\n\n" + "\n".join(lines)


# ------------------------------------------------------------------------------------------------- Markdown


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _code(lines: Sequence[str]) -> str:
    return "\n".join(["```python", *lines, "```"])
