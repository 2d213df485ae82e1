"""The model card: every figure in it is in the record, and what is not in the record is not in it."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np

from bert_jax.convert.card import Facts, card
from bert_jax.convert.loaded import Dense, Loaded, Pooling
from bert_jax.convert.names import flatten
from tests.readable import readable_config, readable_params, readable_tokenizer

LOADED = Loaded(readable_config(), readable_params(readable_config()), readable_tokenizer(), step=1234)
MANIFEST = {
    "length": 32,
    "settings": {"rate": 0.15, "unit": "word", "layout": "pair", "language": "de"},
    "inputs": [{"name": "news.txt", "bytes": 98765, "sha256": "ab" * 32}],
    "splits": {
        "train": {"records": 4321, "tokens": 55555, "rates": {"documents": 77, "sentences": 888}},
        "heldout": {"records": 12, "tokens": 345, "rates": {}},
    },
    "levels": {"uniform": {"loss": 4.1}, "unigram": {"loss": 3.3, "accuracy": 0.11}},
}
REPORT = {
    "step": 1234,
    "seconds": {"productive": 7200.0, "compiling": 1800.0},
    "heldout": [{"step": 1234, "masked_lm_loss": 2.2222, "masked_lm_accuracy": 0.3333, "set": "old|new"}],
}
RECIPE = {
    "train": {"optimizer": "lamb", "weight_decay": 0.01, "dtype": "bfloat16"},
    "stage": [{"steps": 1234, "batch": 64, "length": 32, "learning_rate": 2e-3}],
}
PROVENANCE = {"machine": "A-machine", "python": "3.11", "mesh": {"data": 2, "fsdp": 4}, "packages": {"jax": "0.10"}}
WHOLE = Facts("a-run", LOADED, PROVENANCE, [MANIFEST], RECIPE, 9_876_543, REPORT, True, "apache-2.0")


def test_the_card_of_a_run_says_what_its_record_says() -> None:
    text = card(WHOLE)
    parameters = sum(leaf.size for _, leaf in flatten(LOADED.params))
    for said in (
        'license: "apache-2.0"\nlanguage:\n- "de"\npipeline_tag: fill-mask\n',
        f"{parameters:,} parameters, pretrained with bert_jax",
        "| attention heads | 4 of 6 |",
        "| train, rows of 32 | 77 | 888 | 4,321 | 55,555 |",
        "15% of tokens masked, by word; layout pair; sentences cut as de",
        "`news.txt`, 98,765 bytes, SHA-256 `abababab",
        "| steps | 1,234 |",
        "| tokens trained on | 9,876,543 |",
        "1,234 steps of 64 rows of 32, rate 0.002",
        "lamb, weight decay 0.01, bfloat16",
        "| hours | 2.50, of them training 2.00 |",
        "| devices | 8 (data 2, fsdp 4) |",
        "| this run, step 1,234, old\\|new | 2.222 | 0.333 |",
        "unigram (word frequencies) | 3.300 | 0.110 |",
        "![learning curves](curves.png)",
        "48 tokens at most",
    ):
        assert said in text, said


def test_what_is_not_on_record_is_left_out() -> None:
    loaded = replace(LOADED, step=None, architecture="BertForMaskedLM")
    imported = Facts("x", loaded, {"source": "elsewhere"})
    text = card(imported)
    for absent in ("license", "language:", "## Data", "## Training", "## Evaluation", "curves", "steps", "hours"):
        assert absent not in text, absent
    assert "converted with bert_jax from `elsewhere`" in text and "No measurement of it is on record" in text
    whole, encoder = (
        card(replace(imported, loaded=replace(loaded, architecture=name)))
        for name in ("BertForPreTraining", "BertModel")
    )
    counts = [int(re.findall(r"([\d,]+) parameters", of)[0].replace(",", "")) for of in (whole, text, encoder)]
    assert counts[0] > counts[1] > counts[2]  # of the parts that the class has, and no others


def test_the_examples_are_of_the_library_that_opens_it() -> None:
    pooling = Pooling("mean", normalize=True, length=20, dense=(Dense(np.eye(24, 6, dtype=np.float32)),))
    encoder = replace(LOADED, architecture="BertModel")
    texts = {
        "AutoModelForPreTraining": card(WHOLE),
        "AutoModelForMaskedLM": card(replace(WHOLE, loaded=replace(LOADED, architecture="BertForMaskedLM"))),
        "AutoModel.from": card(replace(WHOLE, loaded=encoder)),
        "SentenceTransformer": card(replace(WHOLE, loaded=replace(encoder, pooling=pooling))),
    }
    for name, text in texts.items():
        blocks = re.findall("```python\n(.*?)```", text, re.S)
        assert len(blocks) == 2 and name in blocks[0] and "bert_jax.load" in blocks[1]
        for block in blocks:
            compile(block, "card", "exec")
    assert "mean, dense 6 identity, length 1" in texts["SentenceTransformer"]
    assert "library_name: sentence-transformers" in texts["SentenceTransformer"]
    assert "20 tokens at most" in texts["SentenceTransformer"]
