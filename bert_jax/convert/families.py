"""BERT and its relatives in transformers: which class has which parts, which setting has which name.

A family is the table of its names, its classes, and what its `config.json` says. All of them are one network here,
whose `BertConfig` tells them apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bert_jax.config import BertConfig
from bert_jax.convert.names import ALBERT, DISTILBERT, ELECTRA, FINE_TUNED, HUGGING_FACE, Row, of_parts
from bert_jax.errors import UserError

MULTI_LABEL = "multi_label_classification"  # config.json's problem_type
# transformers' activation names. "gelu_new" and "gelu_pytorch_tanh" are one formula, written twice there.
ACTIVATIONS = {"gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh"}


@dataclass(frozen=True)
class Kind:
    """A transformers class: which parts of our tree it has, whether its encoder's names begin with the family's
    prefix, and which of the parts may be absent."""

    name: str
    architecture: str
    parts: tuple[str, ...]
    prefixed: bool = True
    optional: tuple[str, ...] = ()

    def fits(self, parts: Iterable[str]) -> bool:
        """Whether a model of these parts has all that this class needs."""
        return set(self.parts) - set(self.optional) <= set(parts)


@dataclass(frozen=True)
class Family:
    """One `model_type`.

    Attributes:
        prefix: of the encoder's names in classes with heads.
        rows: the table of names, as in classes with heads.
        kinds: its classes of pretraining, those with more parts first.
        tasks: its classes with a fine-tuned head.
        fields: our field, transformers' key, and its default for keys that a config.json leaves out (None: it must be
            there).
        fixed: what a config.json may say of things that our network does in one way only.
        constants: fields that the family has no key for.
        copies: tensors that repeat another one, and which.
    """

    model_type: str
    prefix: str
    rows: tuple[Row, ...]
    kinds: tuple[Kind, ...]
    tasks: tuple[Kind, ...]
    fields: tuple[tuple[str, str, Any], ...]
    fixed: tuple[tuple[str, Any], ...]
    constants: Mapping[str, Any]
    copies: Mapping[str, str]

    def rows_of(self, config: BertConfig, parts: Iterable[str], prefixed: bool = True) -> tuple[Row, ...]:
        """The rows of these parts for this network, under the names of a class that has them."""
        absent = {"embeddings/segment"} if not config.segments else set()
        rows = [row for row in of_parts((*self.rows, *FINE_TUNED), parts) if row.path not in absent]
        if not config.embedding:
            rows = [row for row in rows if not row.path.startswith("embeddings/project/")]
        return tuple(row if prefixed else replace(row, foreign=row.foreign.removeprefix(self.prefix)) for row in rows)

    def richest(self, parts: Iterable[str]) -> Kind:
        """The class of pretraining that holds most of these parts."""
        parts = set(parts)
        return max((kind for kind in self.kinds if kind.fits(parts)), key=lambda kind: len(parts & set(kind.parts)))


_BERT_FIELDS: tuple[tuple[str, str, Any], ...] = (
    ("vocab_size", "vocab_size", None),
    ("width", "hidden_size", None),
    ("layers", "num_hidden_layers", None),
    ("heads", "num_attention_heads", None),
    ("feed_forward", "intermediate_size", None),
    ("positions", "max_position_embeddings", 512),
    ("segments", "type_vocab_size", 2),
    ("activation", "hidden_act", "gelu"),
    ("norm_epsilon", "layer_norm_eps", 1e-12),
    ("hidden_dropout", "hidden_dropout_prob", 0.1),
    ("attention_dropout", "attention_probs_dropout_prob", 0.1),
    ("init_std", "initializer_range", 0.02),
)
_ENCODER = ("embeddings", "layers")


def _of_tokens(name: str) -> tuple[Kind, ...]:
    """Classes whose head reads every token's last state; `name` is transformers' of the family."""
    return (
        Kind("token-classification", f"{name}ForTokenClassification", (*_ENCODER, "classifier")),
        Kind("question-answering", f"{name}ForQuestionAnswering", (*_ENCODER, "qa_outputs")),
    )


def _of_rows(name: str) -> tuple[Kind, ...]:
    """Classes whose head reads [CLS] through the pooler."""
    parts = (*_ENCODER, "pooler", "classifier")
    return (
        Kind("sequence-classification", f"{name}ForSequenceClassification", parts),
        Kind("multiple-choice", f"{name}ForMultipleChoice", parts),
    )


_TIED = (("tie_word_embeddings", True),)
_BERT_FIXED = (
    ("position_embedding_type", "absolute"),
    ("is_decoder", False),
    ("add_cross_attention", False),
    *_TIED,
)

BERT = Family(
    "bert",
    "bert.",
    HUGGING_FACE,
    (
        Kind("pretraining", "BertForPreTraining", (*_ENCODER, "pooler", "masked_lm", "next_sentence")),
        Kind("masked-lm", "BertForMaskedLM", (*_ENCODER, "masked_lm")),
        Kind("encoder", "BertModel", (*_ENCODER, "pooler"), prefixed=False, optional=("pooler",)),
    ),
    (*_of_rows("Bert"), *_of_tokens("Bert")),
    _BERT_FIELDS,
    _BERT_FIXED,
    {"embedding": 0, "groups": 0},
    {
        "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    },
)

_ALBERTS = {"hidden_act": "gelu_new", "hidden_dropout_prob": 0, "attention_probs_dropout_prob": 0}  # its own defaults

_ALBERT = Family(
    "albert",
    "albert.",
    ALBERT,
    (
        Kind("pretraining", "AlbertForPreTraining", (*_ENCODER, "pooler", "masked_lm", "next_sentence")),
        Kind("masked-lm", "AlbertForMaskedLM", (*_ENCODER, "masked_lm")),
        Kind("encoder", "AlbertModel", (*_ENCODER, "pooler"), prefixed=False, optional=("pooler",)),
    ),
    (*_of_rows("Albert"), *_of_tokens("Albert")),
    (
        *((field, key, _ALBERTS.get(key, default)) for field, key, default in _BERT_FIELDS),
        ("embedding", "embedding_size", 128),
        ("groups", "num_hidden_groups", 1),
    ),
    (("position_embedding_type", "absolute"), ("inner_group_num", 1), *_TIED),
    {},
    {
        "predictions.decoder.weight": "albert.embeddings.word_embeddings.weight",
        "predictions.decoder.bias": "predictions.bias",
    },
)

_ELECTRA = Family(
    "electra",
    "electra.",
    ELECTRA,
    (
        Kind("pretraining", "ElectraForPreTraining", (*_ENCODER, "replaced_token")),
        Kind("masked-lm", "ElectraForMaskedLM", (*_ENCODER, "masked_lm")),
        Kind("encoder", "ElectraModel", _ENCODER, prefixed=False),
    ),
    _of_tokens("Electra"),
    (*_BERT_FIELDS, ("embedding", "embedding_size", 128)),
    (*_BERT_FIXED, ("hidden_act", "gelu")),  # the generator's head takes this one whatever the layers take
    {"groups": 0},
    {
        "generator_lm_head.weight": "electra.embeddings.word_embeddings.weight",
    },
)

_DISTILBERT = Family(
    "distilbert",
    "distilbert.",
    DISTILBERT,
    (
        Kind("masked-lm", "DistilBertForMaskedLM", (*_ENCODER, "masked_lm")),
        Kind("encoder", "DistilBertModel", _ENCODER, prefixed=False),
    ),
    _of_tokens("DistilBert"),
    (
        ("vocab_size", "vocab_size", None),
        ("width", "dim", None),
        ("layers", "n_layers", None),
        ("heads", "n_heads", None),
        ("feed_forward", "hidden_dim", None),
        ("positions", "max_position_embeddings", 512),
        ("activation", "activation", "gelu"),
        ("hidden_dropout", "dropout", 0.1),
        ("attention_dropout", "attention_dropout", 0.1),
        ("init_std", "initializer_range", 0.02),
    ),
    _TIED,
    {"embedding": 0, "groups": 0, "segments": 0, "norm_epsilon": 1e-12},
    {
        "vocab_projector.weight": "distilbert.embeddings.word_embeddings.weight",
    },
)

FAMILIES = (BERT, _ALBERT, _ELECTRA, _DISTILBERT)


def family_of(architecture: str) -> Family:
    """The family of a transformers class; `architecture` is one that a reader here returned."""
    return next(family for family in FAMILIES if kind_in(family, architecture) is not None)


def kind_in(family: Family, architecture: Any) -> Kind | None:
    """The class of this name, if the family has it here."""
    return next((kind for kind in (*family.kinds, *family.tasks) if kind.architecture == architecture), None)


def family_named(model_type: Any, where: str) -> Family:
    """The family of a config.json's `model_type`.

    Raises:
        UserError: it is none of ours.
    """
    for family in FAMILIES:
        if family.model_type == model_type:
            return family
    known = ", ".join(family.model_type for family in FAMILIES)
    raise UserError(f"model_type = {model_type!r} is not read", where, f"give a model of one of the types {known}")


def config_to_json(
    config: BertConfig, architecture: str, pad: int, labels: Sequence[str] = (), multi_label: bool = False
) -> dict[str, Any]:
    """`config.json` as transformers writes it for this class.

    Args:
        labels: names of the outputs of a fine-tuned head.
        multi_label: whether each of these is given or not by itself.

    Raises:
        UserError: the family cannot say what the config says.
    """
    family = family_of(architecture)
    for field, constant in family.constants.items():
        if getattr(config, field) != constant:
            raise UserError(
                f"{field} = {getattr(config, field)} is nothing that {architecture} can have",
                "export",
                f"there it is always {constant}",
            )
    theirs = {ours: name for name, ours in reversed(ACTIVATIONS.items())}
    tree = {key: getattr(config, field) for field, key, _ in family.fields}
    tree |= {key: theirs[config.activation] for field, key, _ in family.fields if field == "activation"}
    tree |= {key: config.embedding_width for field, key, _ in family.fields if field == "embedding"}
    tree |= {key: config.distinct_layers for field, key, _ in family.fields if field == "groups"}
    if family.model_type == "albert":
        tree["inner_group_num"] = 1
    return {
        **tree,
        "architectures": [architecture],
        "model_type": family.model_type,
        "pad_token_id": pad,
        "tie_word_embeddings": True,
        "dtype": "float32",
        **_outputs(kind_in(family, architecture), config.classes, labels, multi_label),
    }


def _outputs(kind: Kind | None, classes: int, labels: Sequence[str], multi_label: bool) -> dict[str, Any]:
    """What config.json says of a head: how many outputs follows from their names there."""
    if kind is None or kind.name not in ("sequence-classification", "token-classification"):
        return {}
    names = list(labels) or [f"LABEL_{number}" for number in range(classes)]
    tree: dict[str, Any] = {
        "id2label": {str(number): name for number, name in enumerate(names)},
        "label2id": {name: number for number, name in enumerate(names)},
    }
    if kind.name == "sequence-classification":
        usual = "regression" if classes == 1 else "single_label_classification"
        tree["problem_type"] = MULTI_LABEL if multi_label else usual
    return tree


def config_from_json(tree: Any, where: str) -> tuple[BertConfig, Family]:
    """Our config, and the family, from transformers' `config.json`.

    Raises:
        UserError: it is of no family of ours, or has settings that our network does not have.
    """
    if not isinstance(tree, dict):
        raise UserError("an object is needed", where, "give transformers' config.json")
    family = family_named(tree.get("model_type", "bert"), where)
    for key, allowed in family.fixed:
        if tree.get(key, allowed) != allowed:
            raise UserError(f"{key} = {tree[key]!r} is not read", where, f"{key} must be {allowed!r}")
    values = dict(family.constants)
    for field, key, default in family.fields:
        value = tree.get(key, default)
        if value is None:
            raise UserError(f"{key} is missing", where, "give a complete config.json")
        kind = BertConfig.__annotations__[field]
        if not isinstance(value, {"int": int, "float": int | float, "str": str}[kind]) or isinstance(value, bool):
            raise UserError(f"{key} = {value!r} is no {kind}", where, "give a complete config.json")
        values[field] = value
    if values["activation"] not in ACTIVATIONS:
        raise UserError(
            f"the activation {values['activation']!r} is not read", where, f"it must be one of {', '.join(ACTIVATIONS)}"
        )
    if family is _ELECTRA and values["embedding"] == values["width"]:
        values["embedding"] = 0  # there, tables as wide as the layers have no product behind them
    try:
        return BertConfig(**{**values, "activation": ACTIVATIONS[values["activation"]]}), family
    except UserError as error:
        raise UserError(error.what, where, "give the config.json of these weights") from None
