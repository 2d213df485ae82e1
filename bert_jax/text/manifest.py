"""What a set of shards is and how it came to be: manifest.json, written last. No manifest, no data set."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path

from bert_jax.errors import UserError
from bert_jax.text.tokenizer import Special

SCHEMA = 1
NAME = "manifest.json"

# How many labels the relation of a row's two segments has, by layout (data_prep/layouts.py); 0: one segment.
RELATIONS = {"pair": 2, "order": 2, "three": 3, "full": 0, "document": 0}

# The held-out levels of a manifest (data_prep/levels.py), as every table and curve names them.
LEVELS = {
    "uniform": "every piece alike (ln V)",
    "unigram": "unigram (word frequencies)",
    "left_bigram": "bigram (left neighbour)",
    "two_sided_bigram": "bigrams (both neighbours)",
}


@dataclass(frozen=True)
class ShardInfo:
    """One shard file: records, bytes and checksum of the file, tokens that are and that are not padding."""

    name: str
    records: int
    bytes: int
    sha256: str
    tokens: int
    padding: int


@dataclass(frozen=True)
class Split:
    """The shards of "train" or "heldout", their totals, and the realised counts and rates."""

    shards: tuple[ShardInfo, ...]
    records: int
    tokens: int
    padding: int
    rates: dict[str, float]


@dataclass(frozen=True)
class Manifest:
    """A data set: what made it (tokenizer, settings, inputs, seed) and what it holds.

    `reading` counts documents read, dropped by reason, and of each named source (data_prep/plan.py).
    `levels` are reference losses (nats) and accuracies on the held-out masked tokens, see
    data_prep/levels.py.
    """

    tokenizer: str
    vocab_size: int
    special: Special
    length: int
    predictions: int
    settings: dict
    inputs: list
    seed: int
    splits: dict[str, Split]
    levels: dict[str, dict[str, float]] = field(default_factory=dict)
    reading: dict = field(default_factory=dict)
    schema: int = SCHEMA

    @property
    def relations(self) -> int:
        """How many labels the relation of the segments has, see `RELATIONS`. Without a word, the layout is "pair".

        Raises:
            UserError: a layout that this version does not know.
        """
        layout = self.settings.get("layout", "pair")
        if layout not in RELATIONS:
            raise UserError(
                f"the layout {layout!r} is unknown", NAME, f"this version reads {', '.join(RELATIONS)}: get a newer one"
            )
        return RELATIONS[layout]


def load_manifest(directory: str | os.PathLike) -> Manifest:
    """Reads `directory`/manifest.json.

    Raises:
        UserError: no manifest there (the preparation did not finish), not JSON, or another schema.
    """
    path = Path(directory) / NAME
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            "there is no manifest.json, so this is not a finished data set",
            str(directory),
            "give the directory that bert-data shards wrote, or run it again to finish",
        ) from None
    except NotADirectoryError:
        raise UserError("this is a file", str(directory), "give the directory of the data set") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"the manifest is not JSON ({error})", str(path), "prepare the data again") from None
    if not isinstance(raw, dict) or raw.get("schema") != SCHEMA:
        found = raw.get("schema") if isinstance(raw, dict) else None
        raise UserError(
            f"the manifest has schema {found}, this version reads {SCHEMA}",
            str(path),
            "prepare the data again",
        )
    try:
        splits = {
            name: Split(**split | {"shards": tuple(ShardInfo(**shard) for shard in split["shards"])})
            for name, split in raw["splits"].items()
        }
        return Manifest(**raw | {"splits": splits, "special": Special(**raw["special"])})
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"the manifest lacks something ({error})", str(path), "prepare the data again") from None


def write_manifest(directory: str | os.PathLike, manifest: Manifest) -> None:
    """Writes manifest.json atomically. Call it last: its presence says that the data set is whole."""
    path = Path(directory) / NAME
    temporary = path.with_name(f".{NAME}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(asdict(manifest), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(temporary, path)
