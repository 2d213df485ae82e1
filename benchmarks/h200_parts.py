"""What is measured on an accelerator, part by part; h200.py runs the parts.

A part yields a line a result. Every measurement inside it is guarded: a failure is a line with "error", and the rest
goes on. Times are medians.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.cases import CASES, TINY, VOCABULARY, Case, make_batch

Line = dict[str, Any]


@dataclass(frozen=True)
class Setting:
    """How large everything is, and where traces go."""

    tiny: bool
    out: Path | None

    @property
    def cases(self) -> dict[str, Case]:
        return TINY if self.tiny else CASES

    @property
    def repeats(self) -> int:
        return 2 if self.tiny else 10

    def size(self, full: int, tiny: int) -> int:
        return tiny if self.tiny else full


# -------------------------------------------------------------------------------------------------- one measurement


def attempt(item: Line, measure: Callable[[], Line]) -> Line:
    """The item with its figures, or with the first line of what went wrong."""
    try:
        return item | measure()
    except Exception as error:  # whatever a compiler or kernel may raise: the other lines are still wanted
        text = f"{type(error).__name__}: {error}".strip().splitlines()[0]
        return item | {"error": text[:400]}


def seconds(function: Callable[..., Any], *args: Any, repeats: int, calls: int = 5) -> float:
    """Median seconds a call: so many repeats of some calls in a row, the device drained before and after."""
    import jax

    jax.block_until_ready(function(*args))  # compiles
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        result = None
        for _ in range(calls):
            result = function(*args)
        jax.block_until_ready(result)
        times.append((time.perf_counter() - start) / calls)
    return statistics.median(times)


def normal(seed: int, *shape: int, dtype: str = "bfloat16") -> Any:
    """Random values: products of zeros run faster than any training does."""
    import jax

    return jax.jit(lambda: jax.random.normal(jax.random.key(seed), shape, dtype))()


def pulled(function: Callable[..., Any]) -> Callable[..., Any]:
    """(cotangent, first, *others) → gradients of all but the first argument, compiled: forward and backward pass.

    Nothing is closed over: what XLA sees as a constant it works out beforehand."""
    import jax

    return jax.jit(lambda back, first, *others: jax.vjp(partial(function, first), *others)[1](back))


# --------------------------------------------------------------------------------------------------------- the parts


def versions(setting: Setting) -> Iterator[Line]:
    import importlib.metadata

    import jax

    names = ("jax", "jaxlib", "flax", "optax", "tokamax", "nvidia-cudnn-cu12", "nvidia-cudnn-cu13")
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    device = jax.devices()[0]
    yield {"device": device.device_kind, "devices": jax.device_count(), "platform": device.platform}
    yield {"python": sys.version.split()[0], **found, "backend": device.client.platform_version.split("\n")[0]}
    yield {"XLA_FLAGS": os.environ.get("XLA_FLAGS", ""), "cores": os.cpu_count()}
    if device.platform == "gpu":
        query = "name,driver_version,clocks.sm,clocks.mem,power.limit,temperature.gpu"
        command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"]
        yield attempt({}, lambda: {"nvidia-smi": subprocess.check_output(command, text=True).strip()})

        def cudnn() -> Line:
            from jax._src.lib import cuda_versions

            return {"cudnn": cuda_versions.cudnn_get_version(), "cuda": cuda_versions.cuda_runtime_get_version()}

        yield attempt({}, cudnn)


def ceilings(setting: Setting) -> Iterator[Line]:
    """What this device does at best: a copy, a square product, and the products of our shapes, all three ways."""
    import jax
    import jax.numpy as jnp

    elements = setting.size(2**30, 2**16)
    x = normal(0, elements)
    copy = seconds(jax.jit(lambda x: x * jnp.bfloat16(1.01)), x, repeats=setting.repeats)
    yield {"item": "copy", "TB_s": float(f"{4 * elements / copy / 1e12:.4g}")}
    del x
    side, tokens = setting.size(8192, 128), setting.size(65536, 128)
    predictions = setting.size(10240, 32)
    pairs = ((768, 768), (768, 2304), (768, 3072), (3072, 768), (1024, 4096), (4096, 1024))
    shapes = [("square", side, side, side)]
    shapes += [("layer", tokens, *pair) for pair in pairs[: setting.size(len(pairs), 1)]]
    shapes += [("head", predictions, 768, wide) for wide in ((1100,) if setting.tiny else (VOCABULARY, 30592))]
    product = jax.jit(lambda a, b: jnp.matmul(a, b, preferred_element_type=jnp.bfloat16))
    for name, m, k, n in shapes:
        for way, left, right in (("forward", (m, k), (k, n)), ("dX", (m, n), (n, k)), ("dW", (k, m), (m, n))):
            if name == "square" and way != "forward":
                continue

            def measure(left: Any = left, right: Any = right, flops: float = 2.0 * m * k * n) -> Line:
                took = seconds(product, normal(1, *left), normal(2, *right), repeats=setting.repeats)
                return {"ms": round(took * 1e3, 4), "TFLOP_s": round(flops / took / 1e12, 2)}

            yield attempt({"item": name, "way": way, "shape": [m, k, n]}, measure)


def attention(setting: Setting) -> Iterator[Line]:
    """Each path: does it work at all, how fast, how exact, and the same bits every time?"""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from bert_jax.config import ATTENTION_PATHS, Execution
    from bert_jax.model import attention as paths

    platform = jax.default_backend()
    here = {"gpu": ("xla", "cudnn_lengths", "cudnn_offsets", "tokamax", "pallas"), "tpu": ("xla", "splash")}
    names = here.get(platform, ("xla", "pallas") if setting.tiny else ATTENTION_PATHS)

    def both_lengths(q: Any, k: Any, v: Any, lengths: Any, *_: Any) -> Any:
        return jax.nn.dot_product_attention(
            q, k, v, query_seq_lengths=lengths, key_value_seq_lengths=lengths, implementation="cudnn"
        )

    def by_mask(q: Any, k: Any, v: Any, mask: Any, *_: Any) -> Any:
        return jax.nn.dot_product_attention(q, k, v, mask=mask, implementation="cudnn")

    ways: dict[str, tuple[Any, bool, bool]] = {}  # name: (path, for padded rows, for packed rows)
    for name in names:
        ways[name] = (
            paths.path(Execution(attention=name, sequences=8)),
            name != "cudnn_offsets",
            name != "cudnn_lengths",
        )
    if platform == "gpu":
        same = lambda ids: (ids[:, :, None] == ids[:, None, :])[:, None]  # noqa: E731
        ways["cudnn, lengths of queries too"] = (paths.Path(paths.row_lengths, both_lengths), True, False)
        ways["cudnn, boolean mask"] = (paths.Path(same, by_mask), False, True)

    small = setting.size(128, 32)
    for name, (way, _, packed) in ways.items():  # first of all: does it work here at all?
        execution = Execution(dtype="bfloat16", sequences=8 if packed else 1)
        yield attempt(
            {"item": "works", "path": name},
            lambda way=way, execution=execution: {
                "error_share": round(paths.trial_error(way, execution, setting.size(64, 32), small), 5)
            },
        )

    shapes = ((512, 128, 12), (128, 512, 12), (96, 512, 16)) if not setting.tiny else ((2, 32, 2),)
    for rows, length, heads in shapes:
        for packed in (False, True):
            ids = jnp.asarray(make_batch(Case("base", length, rows, packed))[0]["sequence_ids"])
            shape = (rows, length, heads, setting.size(64, 32))
            real = (ids > 0)[:, :, None, None]
            operands = [normal(seed, *shape) for seed in range(3)]
            back = normal(3, *shape) * real.astype(jnp.bfloat16)

            def function(way: Any, ids: Any, q: Any, k: Any, v: Any) -> Any:
                return way.attend(q, k, v, way.prepare(ids), 0.0, None)

            plain = partial(function, paths.Path(paths.attention_bias, paths.attend_xla))
            wide = [x.astype(jnp.float32) for x in operands]
            reference = [jax.jit(plain)(ids, *wide), *pulled(plain)(back.astype(jnp.float32), ids, *wide)]
            for name, (way, for_padded, for_packed) in ways.items():
                if not (for_packed if packed else for_padded):
                    continue

                def measure(way: Any = way) -> Line:
                    inputs = (ids, *operands)  # noqa: B023
                    forward, both = jax.jit(partial(function, way)), pulled(partial(function, way))  # noqa: B023
                    one = seconds(forward, *inputs, repeats=setting.repeats)
                    two = seconds(both, back, *inputs, repeats=setting.repeats)  # noqa: B023
                    runs = [jax.device_get(both(back, *inputs)) for _ in range(3)]  # noqa: B023
                    mine = [forward(*inputs), *both(back, *inputs)]  # noqa: B023
                    errors = {
                        label: round(float(jnp.max(jnp.abs((x.astype(jnp.float32) - y) * real))), 5)  # noqa: B023
                        for label, x, y in zip(("out", "dq", "dk", "dv"), mine, reference, strict=True)  # noqa: B023
                    }
                    flops = 4.0 * rows * length * length * heads * shape[-1]  # noqa: B023
                    same = all(np.array_equal(a, b) for run in runs[1:] for a, b in zip(runs[0], run, strict=True))
                    return {
                        "forward_ms": round(one * 1e3, 4),
                        "both_ms": round(two * 1e3, 4),
                        "TFLOP_s": round(3 * flops / two / 1e12, 2),
                        "errors": errors,
                        "equal_bits": same,
                    }

                rows_are = "packed" if packed else "padded"
                yield attempt({"item": "speed", "path": name, "rows": rows_are, "shape": list(shape)}, measure)


def fusion(setting: Setting) -> Iterator[Line]:
    """Elementwise work: dropout + residual + norm by where the bits come from, GELU, and QKV in one product or three.

    `units` are reads and writes of the array that cannot be avoided; GB/s counts those only."""
    import jax
    import jax.numpy as jnp

    from bert_jax.model.dropout import dropout

    tokens, width, wide = setting.size(65536, 64), setting.size(768, 64), setting.size(3072, 128)
    y, residual, back = (normal(seed, tokens, width) for seed in range(3))
    scale, shift = jnp.ones(width), jnp.zeros(width)

    def bernoulli(x: Any, key: Any) -> Any:
        return jnp.where(jax.random.bernoulli(key, 0.9, x.shape), x / jnp.bfloat16(0.9), jnp.zeros((), x.dtype))

    drops = {
        "none": (lambda x, key: x, "threefry2x32"),
        "threefry, bernoulli": (bernoulli, "threefry2x32"),
        "threefry, 8 bits": (lambda x, key: dropout(x, 0.1, key), "threefry2x32"),
        "rbg, 8 bits": (lambda x, key: dropout(x, 0.1, key), "rbg"),
    }
    for name, (drop, generator) in drops.items():
        key = jax.random.key(0, impl=generator)

        def block(key: Any, y: Any, residual: Any, scale: Any, shift: Any, drop: Any = drop) -> Any:
            x = (residual + drop(y, key)).astype(jnp.float32)
            x -= x.mean(-1, keepdims=True)
            x *= jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-12)
            return (x * scale[None] + shift[None]).astype(jnp.bfloat16)

        def measure(block: Any = block, key: Any = key) -> Line:
            inputs = (key, y, residual, scale, shift)
            forward = seconds(jax.jit(block), *inputs, repeats=setting.repeats)
            both = seconds(pulled(block), back, *inputs, repeats=setting.repeats)
            return _elementwise(forward, both, 2 * tokens * width, (3, 7))

        yield attempt({"item": "dropout + residual + norm", "bits": name}, measure)

    x, dx, bias = normal(4, tokens, wide), normal(5, tokens, wide), normal(6, wide)
    for name, tanh in (("erf", False), ("tanh", True)):

        def gelu(_: None, x: Any, bias: Any, tanh: bool = tanh) -> Any:
            return jax.nn.gelu(x + bias[None], approximate=tanh)

        def measure(gelu: Any = gelu) -> Line:
            forward = seconds(jax.jit(gelu), None, x, bias, repeats=setting.repeats)
            both = seconds(pulled(gelu), dx, None, x, bias, repeats=setting.repeats)
            return _elementwise(forward, both, 2 * tokens * wide, (2, 3))

        yield attempt({"item": "bias + GELU", "way": name}, measure)

    kernels = [normal(7 + number, width, width) for number in range(3)]
    backs = tuple(normal(11 + number, tokens, width) for number in range(3))

    def three(_: None, y: Any, *kernels: Any) -> Any:
        return tuple(y @ kernel for kernel in kernels)

    def one(_: None, y: Any, kernel: Any) -> Any:
        return tuple(jnp.split(y @ kernel, 3, axis=1))

    for name, product, weights in (("three", three, kernels), ("one", one, [jnp.concatenate(kernels, 1)])):

        def measure(product: Any = product, weights: Any = weights) -> Line:
            forward = seconds(jax.jit(product), None, y, *weights, repeats=setting.repeats)
            both = seconds(pulled(product), backs, None, y, *weights, repeats=setting.repeats)
            return {"forward_ms": round(forward * 1e3, 4), "both_ms": round(both * 1e3, 4)}

        yield attempt({"item": "QKV", "products": name}, measure)


def _elementwise(forward: float, both: float, unit: int, units: tuple[int, int]) -> Line:
    return {
        "forward_ms": round(forward * 1e3, 4),
        "both_ms": round(both * 1e3, 4),
        "units": list(units),
        "forward_GB_s": round(units[0] * unit / forward / 1e9, 1),
        "both_GB_s": round(units[1] * unit / both / 1e9, 1),
    }


def head(setting: Setting) -> Iterator[Line]:
    """Gather, transform, vocabulary and loss, forward and backward; and one update of all parameters."""
    import jax
    import jax.numpy as jnp
    import optax

    from bert_jax import cost
    from bert_jax.config import TrainSettings
    from bert_jax.model import bert
    from bert_jax.train.loss import cross_entropy
    from bert_jax.train.optimizer import make_optimizer

    case = Case("tiny" if setting.tiny else "base", setting.size(128, 32), setting.size(512, 4))
    rows, length, places = setting.size(512, 4), setting.size(128, 32), setting.size(20, 4)
    for multiple in (1, 128):
        config = case.config(vocab_multiple=multiple)
        params = jax.jit(partial(bert.init, config))(jax.random.key(0))
        hidden = normal(1, rows, length, config.width)
        positions = jax.random.randint(jax.random.key(2), (rows, places), 0, length)
        labels = jax.random.randint(jax.random.key(3), (rows, places), 0, config.vocab_size)
        for logits_dtype in ("float32", "bfloat16"):

            def loss(
                params: Any, hidden: Any, where: Any, labels: Any, config: Any = config, dtype: str = logits_dtype
            ) -> Any:
                logits = bert.predict(config, params, hidden, where, jnp.bfloat16).astype(dtype)
                return jnp.mean(cross_entropy(logits.astype(jnp.float32), labels)[0])

            inputs = (params, hidden, positions, labels)

            def measure(loss: Any = loss, inputs: Any = inputs) -> Line:
                took = seconds(jax.jit(jax.grad(loss, (0, 1))), *inputs, repeats=setting.repeats)
                return {"both_ms": round(took * 1e3, 4)}

            yield attempt({"item": "head", "rows": config.vocab_rows, "logits": logits_dtype}, measure)
        del params, hidden, inputs

    for size, optimizer in (("tiny", "lamb"),) if setting.tiny else (("base", "adamw"), ("large", "lamb")):
        config = Case(size, 128, 1).config()

        def measure(config: Any = config, optimizer: str = optimizer) -> Line:
            tx = make_optimizer(TrainSettings(optimizer=optimizer))
            params = jax.jit(partial(bert.init, config))(jax.random.key(0))
            state, grads = jax.jit(tx.init)(params), jax.tree.map(jnp.ones_like, params)

            def update(params: Any, state: Any, grads: Any) -> Any:
                norm = optax.tree.norm(grads)
                told = {"rate": jnp.float32(1e-4), "norm": norm, "finite": jnp.isfinite(norm)}
                updates, state = tx.update(grads, state, params, **told)
                return optax.apply_updates(params, updates), state

            compiled = jax.jit(update, donate_argnums=(0, 1)).lower(params, state, grads).compile()
            times = []
            for _ in range(setting.repeats):
                jax.block_until_ready(params)
                start = time.perf_counter()
                for _ in range(3):
                    params, state = compiled(params, state, grads)
                jax.block_until_ready(params)
                times.append((time.perf_counter() - start) / 3)
            count, took = cost.parameters(config), statistics.median(times)
            analysis = compiled.cost_analysis() or {}
            return {
                "ms": round(took * 1e3, 4),
                "bytes_a_parameter": round(analysis.get("bytes accessed", 0) / count, 1),
                "GB_s_at_28_bytes": round(28 * count / took / 1e9, 1),  # Adam's least traffic
            }

        yield attempt({"item": "optimizer", "preset": size, "optimizer": optimizer}, measure)


# -------------------------------------------------------------------------------------------------------- full steps


@dataclass
class Trainer:
    """A compiled training step of the project's own, its state and a batch."""

    compiled: Any
    state: Any
    batch: Any
    about: Line
    work: Any

    def run(self, steps: int) -> Any:
        """So many steps; returns the metrics of the last."""
        metrics = None
        for _ in range(steps):
            self.state, metrics = self.compiled(self.state, self.batch)
        return metrics


def make_trainer(case: Case, execution: Any = None, attention_path: str = "auto", **overrides: Any) -> Trainer:
    import jax

    from bert_jax import cost
    from bert_jax.config import Execution, Stage, TrainSettings
    from bert_jax.model import attention
    from bert_jax.train.loss import make_pretraining_loss, weigh
    from bert_jax.train.optimizer import make_optimizer, make_schedule
    from bert_jax.train.state import fresh_state
    from bert_jax.train.step import make_train_step

    config = case.config(**overrides)
    asked = execution or Execution(dtype="bfloat16")
    chosen, notes = attention.choose(attention_path, config, asked, lengths=[case.length], sequences=case.sequences)
    optimizer = "lamb" if case.preset == "large" else "adamw"
    tx = make_optimizer(TrainSettings(optimizer=optimizer))
    schedule = make_schedule([Stage(steps=10_000, warmup=100, learning_rate=1e-4)])
    step = make_train_step(make_pretraining_loss(config, chosen), weigh, tx, schedule, seed=0)
    state = jax.jit(partial(fresh_state, config, 0, tx))()
    arrays, work = make_batch(case)
    batch = jax.device_put(arrays)
    start = time.perf_counter()
    lowered = jax.jit(step, donate_argnums=0).lower(state, batch)
    traced = time.perf_counter()
    compiled = lowered.compile()
    memory = compiled.memory_analysis()
    about = {
        "attention": chosen.attention,
        "optimizer": optimizer,
        "notes": notes,
        "trace_s": round(traced - start, 2),
        "compile_s": round(time.perf_counter() - traced, 2),
        "temp_GB": round(memory.temp_size_in_bytes / 1e9, 3) if memory else None,
        "parameters": cost.parameters(config),
        "GFLOP_a_step": round(cost.train_flops(config, work) / 1e9, 3),
    }
    return Trainer(compiled, state, batch, about, work)


def time_step(trainer: Trainer, steps: int) -> Line:
    """Speed of so many steps after three, in three blocks."""
    import jax
    import numpy as np

    from bert_jax import cost

    trainer.run(3)
    jax.block_until_ready(trainer.state)
    blocks = []
    for _ in range(3):
        start = time.perf_counter()
        metrics = trainer.run(max(steps // 3, 1))
        jax.block_until_ready((trainer.state, metrics))
        blocks.append((time.perf_counter() - start) / max(steps // 3, 1))
    took = statistics.median(blocks)
    device = jax.devices()[0]
    kind = cost.of_kind(device.device_kind)
    rate = trainer.about["GFLOP_a_step"] * 1e9 / took
    peak = (device.memory_stats() or {}).get("peak_bytes_in_use")
    return {
        "ms": round(took * 1e3, 3),
        "blocks_ms": [round(block * 1e3, 3) for block in blocks],
        "sequences_s": round(trainer.work.sequences / took, 1),
        "useful_tokens_s": round(trainer.work.tokens / took),
        "useful_TFLOP_s": round(rate / 1e12, 3),
        "MFU": round(cost.mfu(rate, 1, kind.tflops), 4) if kind else None,
        "peak_GB": round(peak / 1e9, 3) if peak else None,
        "loss": round(float(np.asarray(metrics["loss"][0])), 4),
    }


def steps(setting: Setting, name: str) -> Iterator[Line]:
    """The whole step of one case: the project's own loss, optimizer and step, layers unrolled, hidden dropout 0.1."""
    case = setting.cases[name]

    def measure() -> Line:
        trainer = make_trainer(case)
        return trainer.about | time_step(trainer, setting.size(30, 3))

    yield attempt({"item": "step", "case": name, "rows": case.rows}, measure)


def variants(setting: Setting) -> Iterator[Line]:
    """The first case otherwise: no dropout, layers in a loop, plain attention, the other GELU."""
    from bert_jax.config import Execution

    name, case = next(iter(setting.cases.items()))
    ways: dict[str, Callable[[], Trainer]] = {
        "no dropout": lambda: make_trainer(case, hidden_dropout=0.0),
        "scan": lambda: make_trainer(case, Execution(dtype="bfloat16", scan="on")),
        "plain attention": lambda: make_trainer(case, attention_path="xla"),
        "GELU by erf": lambda: make_trainer(case, activation="gelu"),
        "scan, remat": lambda: make_trainer(case, Execution(dtype="bfloat16", scan="on", remat="names")),
    }
    for way, make in list(ways.items())[: setting.size(len(ways), 2)]:

        def measure(make: Callable[[], Trainer] = make) -> Line:
            trainer = make()
            return trainer.about | time_step(trainer, setting.size(30, 3))

        yield attempt({"item": "variant", "case": name, "way": way}, measure)


def where(setting: Setting) -> Iterator[Line]:
    """Three traced steps of two cases: time by kind of kernel, and the ten longest kernels."""
    import shutil
    import tempfile

    import jax

    from benchmarks.kernels import kernel_times, summarise

    for name, case in list(setting.cases.items())[: setting.size(2, 1)]:

        def measure(name: str = name, case: Case = case) -> Line:
            trainer = make_trainer(case)
            jax.block_until_ready(trainer.run(2))
            with tempfile.TemporaryDirectory() as directory:
                start = time.perf_counter()
                with jax.profiler.trace(directory):
                    jax.block_until_ready((trainer.run(3), trainer.state))
                span = time.perf_counter() - start
                (trace,) = Path(directory).rglob("*.xplane.pb")
                if setting.out:
                    shutil.copy(trace, setting.out / f"{name.replace('/', '-')}.xplane.pb")
                return summarise(kernel_times(trace), steps=3) | {"wall_ms": round(span / 3 * 1e3, 3)}

        yield attempt({"item": "where", "case": name}, measure)


def truth(setting: Setting) -> Iterator[Line]:
    """Twenty steps twice from one state, bit by bit; fifty steps in bfloat16 beside float32."""
    import jax
    import jax.numpy as jnp

    from bert_jax.config import Execution

    first = next(iter(setting.cases.values()))
    case = Case(first.preset, first.length, setting.size(64, 4))

    def equal_bits() -> Line:
        trainer = make_trainer(case)
        copy = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))
        begin, ends = copy(trainer.state), []
        for _ in range(2):
            trainer.state = copy(begin)
            trainer.run(setting.size(20, 3))
            ends.append(trainer.state.params)
        same = jax.tree.map(lambda a, b: jnp.array_equal(a, b), *ends)
        leaves = [bool(x) for x in jax.tree.leaves(same)]
        return {"attention": trainer.about["attention"], "equal_leaves": f"{sum(leaves)} of {len(leaves)}"}

    def curves() -> Line:
        count, losses = setting.size(50, 4), {}
        for dtype in ("float32", "bfloat16"):
            trainer = make_trainer(case, Execution(dtype=dtype), hidden_dropout=0.0)
            losses[dtype] = [float(trainer.run(1)["loss"][0]) for _ in range(count)]
        apart = [abs(a - b) for a, b in zip(*losses.values(), strict=True)]
        ends = {name: round(values[-1], 5) for name, values in losses.items()}
        return {"steps": count, "begin": round(losses["float32"][0], 5), "ends": ends, "largest": round(max(apart), 5)}

    yield attempt({"item": "same bits twice"}, equal_bits)
    yield attempt({"item": "bfloat16 beside float32"}, curves)
