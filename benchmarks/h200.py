"""One accelerator in ten minutes: where the time of a training step goes, a JSON line a result.

    python -m benchmarks.h200 --out OUT --cache CACHE      # ten minutes on one H100 or H200
    python -m benchmarks.h200 --tiny                       # every line of it, on a CPU, in a minute or two
    python -m benchmarks.h200 --only versions,steps:base   # some parts, by what their names begin with

Each part runs in a process of its own (one after the other, since a crashed kernel takes its process along) and every
measurement inside a part is guarded: a failure is a line with "error", and the rest goes on. Parts that do not fit
into `--seconds` are skipped with a line that says so. `--out` keeps `results.jsonl` and the trace, `--cache` the
compiled programs, so that a second slot of time compiles nothing. Times are medians.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from benchmarks.cases import CASES, TINY
from benchmarks.h200_parts import (
    Line,
    Setting,
    attention,
    ceilings,
    fusion,
    head,
    steps,
    truth,
    variants,
    versions,
    where,
)

# Each alone against the preset that has none; reasons in bert_jax/flags.py and the XLA guide.
FLAGS = (
    "",
    "--xla_gpu_enable_triton_gemm=false",
    "--xla_gpu_enable_command_buffer=",
    "--xla_gpu_enable_cudnn_layer_norm=true",
    "--xla_gpu_exclude_nondeterministic_ops=true",
)


PARTS: dict[str, Callable[[Setting], Iterator[Line]]] = {
    "versions": versions,
    "ceilings": ceilings,
    "attention": attention,
    **{f"steps:{name}": partial(steps, name=name) for name in list(CASES)[:4]},
    "fusion": fusion,
    "head": head,
    "where": where,
    "truth": truth,
    **{f"steps:{name}": partial(steps, name=name) for name in list(CASES)[4:]},
    "variants": variants,
}


# ---------------------------------------------------------------------------------------------------- the command


def parts(setting: Setting) -> dict[str, Callable[[Setting], Iterator[Line]]]:
    """All parts in their order, `flags` apart: it starts processes of its own."""
    if not setting.tiny:
        return PARTS
    tiny = {name: part for name, part in PARTS.items() if not name.startswith("steps:")}
    return tiny | {f"steps:{name}": partial(steps, name=name) for name in TINY}


def run_part(name: str, setting: Setting) -> Iterator[Line]:
    """The lines of one part, in this process."""
    start = time.perf_counter()
    try:
        for line in parts(setting)[name](setting):
            yield {"part": name, **line, "at_s": round(time.perf_counter() - start, 1)}
    except Exception as error:  # a part that could not even begin
        yield {"part": name, "error": f"{type(error).__name__}: {error}".splitlines()[0][:400]}


def run_apart(command: list[str], about: Line, environment: dict[str, str], limit: float) -> Iterator[Line]:
    """The JSON lines of a process, as they come; a line that tells how it ended unless it ended well."""
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1
    )
    assert process.stdout is not None and process.stderr is not None
    said: list[str] = []
    listener = threading.Thread(target=said.extend, args=(process.stderr,), daemon=True)
    listener.start()
    killer = threading.Timer(limit, process.kill)
    killer.start()
    try:
        for line in process.stdout:
            try:
                yield json.loads(line) | about
            except ValueError:
                said.append(line)
        status = process.wait()
    finally:
        late = not killer.is_alive()
        killer.cancel()
        process.kill()
    listener.join(5)
    process.stdout.close()
    process.stderr.close()
    if late:
        yield about | {"error": f"killed after {limit:.0f} s"}
    elif status:
        yield about | {"error": f"ended with {status}", "said": "".join(said[-5:])[-600:]}


def run_all(args: argparse.Namespace, setting: Setting) -> Iterator[Line]:
    """Every part that was asked for and fits into the time."""
    deadline = time.monotonic() + args.seconds
    begin = time.monotonic()

    def apart(name: str, about: Line, flags: str = "") -> Iterator[Line]:
        left = deadline - time.monotonic()
        if left < 15:
            yield about | {"skipped": "no time left"}
            return
        command = [sys.executable, "-m", "benchmarks.h200", "--part", name]
        command += ["--tiny"] if setting.tiny else []
        command += ["--out", str(args.out)] if args.out else []
        command += ["--cache", str(args.cache)] if args.cache else []
        environment = {**os.environ, "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip()}
        environment.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.92")
        yield from run_apart(command, about, environment, left)

    prefixes = tuple(args.only.split(","))
    wanted = [name for name in parts(setting) if name.startswith(prefixes)]
    for name in wanted:
        if args.one_process:
            lines = run_part(name, setting)
        else:
            lines = apart(name, {"part": name})
        for line in lines:
            yield line | {"total_s": round(time.monotonic() - begin, 1)}
    if "flags".startswith(prefixes):
        step = next(name for name in parts(setting) if name.startswith("steps:"))
        for flags in FLAGS[1:2] if setting.tiny else FLAGS:
            for line in apart(step, {"part": "flags", "flags": flags}, flags):
                yield line | {"total_s": round(time.monotonic() - begin, 1)}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tiny", action="store_true", help="small sizes and one process: to see that every line works")
    parser.add_argument("--only", default="", metavar="NAMES", help="parts whose names begin so, by commas")
    parser.add_argument("--seconds", type=float, default=600, help="parts that would begin later are skipped")
    parser.add_argument("--out", type=Path, help="a folder for results.jsonl and the traces")
    parser.add_argument("--cache", type=Path, help="a folder for compiled programs, used again by the next run")
    parser.add_argument("--one-process", action="store_true", help="run the parts here, not in processes of their own")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.one_process |= args.tiny
    setting = Setting(args.tiny, args.out)
    try:
        import jax
    except ImportError as error:
        print(f"JAX cannot be imported here ({error}); install jax[cuda12] or jax[cuda13] first", file=sys.stderr)
        return 1
    if args.cache:
        jax.config.update("jax_compilation_cache_dir", str(args.cache.absolute()))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    lines = run_part(args.part, setting) if args.part else run_all(args, setting)
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
    kept = args.out and not args.part and (args.out / "results.jsonl").open("a", encoding="utf-8")
    failed = 0
    for line in lines:
        text = json.dumps(line)
        print(text, flush=True)
        failed += "error" in line
        if kept:
            kept.write(text + "\n")
            kept.flush()
    return 1 if failed and args.tiny else 0


if __name__ == "__main__":
    sys.exit(main())
