"""The settings of a network and of its pretraining: frozen dataclasses, read from TOML by `settings.py`.

A default stands in its dataclass and nowhere else. Standard library only, so that every room may import it.
"""

from __future__ import annotations

import typing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bert_jax.errors import UserError
from bert_jax.settings import assign, build, in_range, one_of, positive, read_toml

# ---------------------------------------------------------------------------------------------- the network


@dataclass(frozen=True)
class BertConfig:
    """The shape of a network: what has to be known to read its weights.

    Letters as everywhere: V vocabulary, D width, L layers, N heads, F feed-forward.

    Other families differ from BERT in three numbers. `embedding` is E, the width of the tables, with a product up to D
    behind them (ALBERT, Lan et al. 2019, section 3.1; ELECTRA, Clark et al. 2020); 0: they are D wide and nothing
    stands behind them. `groups` is how many different layers the L share, each computed L / groups times in a row
    (ALBERT); 0: every layer has weights of its own. `segments` = 0 leaves the segment table out (DistilBERT).
    """

    vocab_size: int
    width: int = 768
    layers: int = 12
    heads: int = 12
    feed_forward: int = 3072
    positions: int = 512
    segments: int = 2
    activation: str = "gelu"  # "gelu" with erf (Hugging Face), "gelu_tanh" (google-research/bert)
    norm_epsilon: float = 1e-12
    hidden_dropout: float = 0.1
    attention_dropout: float = 0.1
    init_std: float = 0.02
    position_init: str = "normal"  # or "sinusoid": learned all the same, but neighbours are found within a short run
    relations: int = 2  # labels of what a second segment is to the first; the data's layout says how many
    embedding: int = 0
    groups: int = 0
    classes: int = 0  # outputs of a fine-tuned head on its way between formats; 0: there is none
    vocab_multiple: int = 1  # word table and masked-LM bias have rows up to the next multiple; those from V on stay 0

    def __post_init__(self) -> None:
        positive(self, "model", "vocab_size", "width", "layers", "heads", "feed_forward", "positions")
        in_range(self, "model", vocab_multiple=(1, 1e5))
        in_range(self, "model", segments=(0, 1e6), embedding=(0, 1e9), groups=(0, 1e9), classes=(0, 1e9))
        if self.layers % self.distinct_layers:
            raise UserError(
                f"{self.layers} layers do not divide into {self.groups} groups",
                "model",
                "choose layers as a multiple of groups",
            )
        if self.width % self.heads:
            raise UserError(
                f"a width of {self.width} does not divide into {self.heads} heads",
                "model",
                "choose a width that is a multiple of heads",
            )
        if self.relations < 2:
            raise UserError(f"relations = {self.relations} leave nothing to tell apart", "model", "give 2 or more")
        one_of(self, "model", "activation", ("gelu", "gelu_tanh"))
        one_of(self, "model", "position_init", ("normal", "sinusoid"))
        in_range(self, "model", init_std=(0, 100), norm_epsilon=(0, 1))
        for name in ("hidden_dropout", "attention_dropout"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise UserError(
                    f"{name} = {getattr(self, name)} is no rate",
                    "model",
                    "give a number from 0 up to, not including, 1",
                )

    @property
    def vocab_rows(self) -> int:
        """Rows of the word table: V, rounded up to a multiple of `vocab_multiple`."""
        return -(-self.vocab_size // self.vocab_multiple) * self.vocab_multiple

    @property
    def embedding_width(self) -> int:
        """E: the width of the tables of tokens, positions and segments."""
        return self.embedding or self.width

    @property
    def distinct_layers(self) -> int:
        """G: how many layers have weights of their own."""
        return self.groups or self.layers


SCAN = ("auto", "on", "off")
REMAT = ("none", "names", "all")
ATTENTION_PATHS = ("xla", "cudnn_lengths", "cudnn_offsets", "tokamax", "pallas", "splash")


@dataclass(frozen=True)
class Execution:
    """How a network is computed; never changes what it is.

    `dtype` is that of the products and activations ("float32" or "bfloat16"); parameters, their moments, softmax,
    norms and losses stay float32. `scan` "on" compiles one layer and loops over it, "off" unrolls the layers, "auto"
    does what is faster where it runs: on a TPU and for more than 24 layers it loops. `remat` says what a layer forgets
    until the backward pass: nothing ("none"), all but the results of its products ("names"), or all but its input
    ("all"); XLA on a CPU heeds it where layers are looped over. `attention` names a path of
    `bert_jax.model.attention`, `sequences` the most sequences that are packed into a row (1: rows are padded).
    """

    dtype: str = "float32"
    scan: str = "auto"
    remat: str = "none"
    attention: str = "xla"
    sequences: int = 1

    def __post_init__(self) -> None:
        one_of(self, "execution", "dtype", ("float32", "bfloat16"))
        one_of(self, "execution", "scan", SCAN)
        one_of(self, "execution", "remat", REMAT)
        one_of(self, "execution", "attention", ATTENTION_PATHS)
        positive(self, "execution", "sequences")


# Turc et al. 2019 (https://arxiv.org/abs/1908.08962) for tiny to medium; Devlin et al. 2018 for base and large.
PRESETS: dict[str, dict[str, int]] = {
    name: {"layers": layers, "width": width, "heads": heads, "feed_forward": 4 * width}
    for name, (layers, width, heads) in {
        "tiny": (2, 128, 2),
        "mini": (4, 256, 4),
        "small": (4, 512, 8),
        "medium": (8, 512, 8),
        "base": (12, 768, 12),
        "large": (24, 1024, 16),
    }.items()
}


def preset(name: str, vocab_size: int, **overrides: Any) -> BertConfig:
    """The published size `name` for a vocabulary; overrides are fields of `BertConfig`.

    Example:
        >>> preset("tiny", 30522).width
        128
    """
    if name not in PRESETS:
        raise UserError(f"there is no preset {name!r}", "model.preset", f"choose one of {', '.join(PRESETS)}")
    return BertConfig(vocab_size=vocab_size, **{**PRESETS[name], **overrides})


# ----------------------------------------------------------------------------------------------- the recipe


@dataclass(frozen=True)
class ModelSettings:
    """`[model]`: a preset, and what differs from it (0 means: as the preset has it).

    `init_checkpoint` is a model of this shape to begin with, whatever `bert_jax.load` takes; empty: at random.
    """

    preset: str = "base"
    init_checkpoint: str = ""
    layers: int = 0
    width: int = 0
    heads: int = 0
    feed_forward: int = 0
    positions: int = 512
    activation: str = "gelu"
    norm_epsilon: float = 1e-12
    hidden_dropout: float = 0.1
    attention_dropout: float = 0.1
    init_std: float = 0.02
    position_init: str = "normal"
    # Tensor cores want sides of products that divide by 8 to 128, and only rows that divide can be spread over a mesh
    # axis, where 30,522 is 2 × 3 × 5,087. 128 rows more cost at most 0.4 % of the product; exports leave them out.
    vocab_multiple: int = 128

    def bert(self, vocab_size: int, relations: int = 2) -> BertConfig:
        """The network for a vocabulary of this size and so many relations of the segments."""
        sizes = {name: getattr(self, name) for name in ("layers", "width", "heads", "feed_forward")}
        if self.width and not self.feed_forward:
            sizes["feed_forward"] = 4 * self.width
        overrides = {name: size for name, size in sizes.items() if size}
        return preset(
            self.preset,
            vocab_size,
            positions=self.positions,
            activation=self.activation,
            norm_epsilon=self.norm_epsilon,
            hidden_dropout=self.hidden_dropout,
            attention_dropout=self.attention_dropout,
            init_std=self.init_std,
            position_init=self.position_init,
            relations=relations,
            vocab_multiple=self.vocab_multiple,
            **overrides,
        )


@dataclass(frozen=True)
class DataSettings:
    """`[data]`: where the shards are, whether masks are those written or drawn anew each epoch, and how records
    become rows.

    `batching` is "padded" (one record a row of the shards' length), "bucketed" (one record a row, batches of three
    lengths and equally many tokens) or "packed" (up to `sequences` records a row).
    """

    path: str = ""
    masking: str = "static"
    batching: str = "padded"
    sequences: int = 8

    def __post_init__(self) -> None:
        one_of(self, "data", "masking", ("static", "dynamic"))
        one_of(self, "data", "batching", ("padded", "bucketed", "packed"))
        positive(self, "data", "sequences")


@dataclass(frozen=True)
class TrainSettings:
    """`[train]`: what holds for all stages."""

    seed: int = 0
    optimizer: str = "adamw"
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-6
    weight_decay: float = 0.01
    clip_norm: float = 1.0  # 0 switches clipping off
    dtype: str = "float32"
    scan: str = "auto"  # compile one layer and loop over it: "on", "off"
    remat: str = "none"  # activations computed again in the backward pass: "none", "names", "all"
    xla_preset: str = "auto"  # bert_jax/flags.py; "none" leaves XLA as it comes
    deterministic: bool = False  # a GPU adds in one order, so that two runs give the same bits
    mesh_data: int = 0  # 0: all devices that mesh_fsdp and mesh_tensor leave
    mesh_fsdp: int = 1
    mesh_tensor: int = 1
    shard_optimizer: bool = False  # moments and the update are spread over mesh_data too
    evaluate_every: int = 1000
    evaluate_batch: int = 0  # 0: as the stage trains, a piece of it where it accumulates
    attention: str = "auto"  # the fastest path that works here, or one of ATTENTION_PATHS
    skip_limit: int = 20  # this many non-finite steps in a row end the run
    step_timeout: float = 1800.0  # seconds without a finished step that end it; 0: never
    silence: float = 60.0  # seconds without a sign of life from another process that end it

    def __post_init__(self) -> None:
        one_of(self, "train", "optimizer", ("adamw", "lamb"))
        one_of(self, "train", "dtype", ("float32", "bfloat16"))
        one_of(self, "train", "scan", SCAN)
        one_of(self, "train", "remat", REMAT)
        one_of(self, "train", "attention", ("auto", *ATTENTION_PATHS))
        one_of(self, "train", "xla_preset", ("auto", "none"))
        positive(self, "train", "mesh_fsdp", "mesh_tensor", "evaluate_every", "skip_limit")
        in_range(self, "train", beta1=(0, 0.99999), beta2=(0, 0.9999999), epsilon=(1e-30, 1), weight_decay=(0, 100))
        in_range(self, "train", clip_norm=(0, 1e9), mesh_data=(0, 1e7), evaluate_batch=(0, 1e9))
        in_range(self, "train", step_timeout=(0, 1e9), silence=(1, 1e9))

    @property
    def execution(self) -> Execution:
        return Execution(dtype=self.dtype, scan=self.scan, remat=self.remat)


@dataclass(frozen=True)
class CheckpointSettings:
    """`[checkpoint]`: how often the state is saved, how many saves are kept, and who says that the machine goes.

    Saved every so many steps, and so many minutes after the last save (0: by steps alone). `notice` is "signal", or
    "gce" to ask Google's metadata server too.
    """

    every: int = 1000
    minutes: float = 30.0
    keep: int = 3
    failures: int = 3  # this many failed saves in a row end the run
    notice: str = "signal"

    def __post_init__(self) -> None:
        positive(self, "checkpoint", "every", "keep", "failures")
        in_range(self, "checkpoint", minutes=(0, 1e9))
        one_of(self, "checkpoint", "notice", ("signal", "gce"))


@dataclass(frozen=True)
class ReportSettings:
    """`[report]`: a progress line every so many seconds, TensorBoard events or none, a window for the profiler."""

    seconds: float = 10.0
    tensorboard: bool = True
    profile_step: int = 0  # the first step that is profiled; 0: none is
    profile_steps: int = 3

    def __post_init__(self) -> None:
        positive(self, "report", "profile_steps")
        in_range(self, "report", seconds=(0, 1e9), profile_step=(0, 1e12))


@dataclass(frozen=True)
class Stage:
    """`[[stage]]`: a stretch of training at one length and batch, with a learning-rate curve of its own.

    `data` is a folder below `data.path` (empty: that path itself), `length` must be the shards' (0: whatever it is).
    The rate climbs linearly over `warmup` steps and falls to `end_fraction` of the peak by the stage's last step:
    "polynomial" with `power` (1 is a straight line) or "cosine". `restart` forgets the optimizer's moments.

    `tokens` above 0 says how long instead of `steps`: as many steps as hold so many useful tokens.
    The first `ramp_steps` steps have fewer rows: `ramp_from`, then twice as many and so on up to `batch`, each for as
    long. `replay_data` is a folder as `data` is: its held-out records are measured beside the stage's own, and `replay`
    is the share of all rows that comes from it.
    """

    steps: int = 1000
    tokens: int = 0
    batch: int = 256
    data: str = ""
    length: int = 0
    accumulate: int = 1
    learning_rate: float = 1e-4
    warmup: int = 0
    decay: str = "polynomial"
    power: float = 1.0
    end_fraction: float = 0.0
    restart: bool = False
    ramp_from: int = 0
    ramp_steps: int = 0
    replay: float = 0.0
    replay_data: str = ""

    def __post_init__(self) -> None:
        in_range(self, "stage", tokens=(0, 1e18), power=(0, 100), end_fraction=(0, 1), warmup=(0, 1e12))
        positive(self, "stage", "steps", "batch", "accumulate", "learning_rate")
        in_range(self, "stage", learning_rate=(0, 1e30))
        one_of(self, "stage", "decay", ("polynomial", "cosine"))
        self._check_ramp()
        if not 0.0 <= self.replay < 1.0 or (self.replay and not self.replay_data):
            raise UserError(
                f"replay = {self.replay} of {self.replay_data or 'nothing'} is no share of a batch",
                "stage",
                "give a number from 0 up to, not including, 1, and name the folder in replay_data",
            )
        if not self.tokens and not 0 <= self.warmup <= self.steps:
            raise UserError(
                f"warmup = {self.warmup} does not fit into {self.steps} steps",
                "stage",
                "give fewer warm-up steps, as by --set stage.0.warmup=10",
            )
        if self.batch % self.accumulate:
            raise UserError(
                f"a batch of {self.batch} does not divide into {self.accumulate} accumulation pieces",
                "stage",
                "choose a batch that is a multiple of accumulate",
            )

    def _check_ramp(self) -> None:
        times, rest = divmod(self.batch, self.ramp_from or self.batch)
        if self.ramp_from < 0 or rest or not times or times & (times - 1):
            raise UserError(
                f"a batch of {self.batch} is not reached by doubling ramp_from = {self.ramp_from}",
                "stage",
                "choose ramp_from as a half, a quarter, an eighth, … of batch",
            )
        if (self.ramp_from > 0) != (self.ramp_steps > 0):
            raise UserError(
                f"ramp_from = {self.ramp_from} and ramp_steps = {self.ramp_steps} make no ramp",
                "stage",
                "give both, or neither",
            )


@dataclass(frozen=True)
class Recipe:
    """Everything a run is made of but the data itself."""

    model: ModelSettings = field(default_factory=ModelSettings)
    data: DataSettings = field(default_factory=DataSettings)
    train: TrainSettings = field(default_factory=TrainSettings)
    checkpoint: CheckpointSettings = field(default_factory=CheckpointSettings)
    report: ReportSettings = field(default_factory=ReportSettings)
    stage: tuple[Stage, ...] = field(default_factory=lambda: (Stage(),))

    def __post_init__(self) -> None:
        if not self.stage:
            raise UserError("a recipe needs at least one [[stage]]", "stage", "add one")
        for number, stage in enumerate(self.stage):
            if self.data.batching == "bucketed" and (stage.ramp_from or stage.replay):
                raise UserError(
                    "buckets go with neither a ramp nor replay",
                    f"stage.{number}",
                    'set data.batching="packed", or leave ramp_from and replay out',
                )

    @property
    def steps(self) -> int:
        """Optimizer steps of all stages together."""
        return sum(stage.steps for stage in self.stage)


def load_recipe(path: str | Path, settings: typing.Sequence[str] = ()) -> Recipe:
    """Read a TOML recipe and apply `--set` texts such as `stage.0.batch=64` to it.

    Raises:
        UserError: the file is missing or no TOML, a key does not exist, a value has the wrong type or cannot be.
    """
    tree = read_toml(Path(path))
    if "task" in tree:
        raise UserError("this is the recipe of a task", str(path), "give it to `bert-jax finetune`")
    if not tree.get("stage"):
        raise UserError("no [[stage]] says what to train", str(path), "begin with a copy of a recipe in configs/")
    for setting in settings:
        assign(tree, setting)
    return build(Recipe, tree, "")


def with_data(recipe: Recipe, path: str) -> Recipe:
    """The recipe reading its shards from `path`."""
    return replace(recipe, data=replace(recipe.data, path=path))


def with_steps(recipe: Recipe, steps: typing.Sequence[int]) -> Recipe:
    """The recipe with so many steps in each stage, for stages that say `tokens`.

    Raises:
        UserError: a stage's warm-up is longer.
    """
    for number, (stage, count) in enumerate(zip(recipe.stage, steps, strict=True)):
        if stage.warmup > count:
            raise UserError(
                f"warmup = {stage.warmup} does not fit into {count} steps, which hold {stage.tokens:,} tokens",
                f"stage.{number}",
                f"give fewer warm-up steps, as by --set stage.{number}.warmup={count // 10}",
            )
    return replace(recipe, stage=tuple(replace(s, steps=n) for s, n in zip(recipe.stage, steps, strict=True)))
