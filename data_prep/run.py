"""From text files to a data set: plan, shards by worker processes, reference levels, manifest last."""

from __future__ import annotations

import multiprocessing
import os
import sys
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from math import sqrt
from pathlib import Path

import numpy as np
from tqdm import tqdm

from bert_jax.errors import UserError
from bert_jax.text.features import RecordSpec
from bert_jax.text.manifest import NAME, Manifest, Split, load_manifest, write_manifest
from bert_jax.text.tokenizer import Tokenizer
from data_prep import levels, shard, sources

_SHARD_BYTES = 4_000_000  # of text; decides the number of shards, so that it does not hang on the machine


@dataclass(frozen=True)
class Plan:
    """What the first pass over the text found: shards to make, documents and bytes of text."""

    tasks: tuple[shard.Task, ...]
    documents: int
    bytes: int


def prepare(
    patterns: list[str],
    tokenizer_path: str,
    directory: str,
    settings: shard.Settings,
    *,
    explicit_predictions: bool = False,
    shards: int | None = None,
    workers: int | None = None,
) -> Manifest:
    """Makes a data set in `directory`; if it is already there with the same settings, only says so.

    Args:
        patterns: input files and globs.
        tokenizer_path: anything that `Tokenizer.load` opens; a copy goes into `directory`/tokenizer.
        settings: all that decides the content.
        explicit_predictions: the number of predictions was asked for, so a rate that it holds down is no
            error.
        shards: number of training shards; None takes one for every 4 MB of text.
        workers: processes; None takes all cores. Changes nothing in the files.

    Raises:
        UserError: bad input, another data set in the directory, or masks that missed their rate.
    """
    out = Path(directory)
    tokenizer = Tokenizer.load(tokenizer_path)
    paths = sources.expand(patterns)
    inputs = [asdict(sources.describe(path)) for path in paths]
    recorded = asdict(settings) | {"shards": shards}
    if (out / NAME).exists():
        return _already_done(out, recorded, inputs, tokenizer)
    if out.exists() and not out.is_dir():
        raise UserError("this is a file", directory, "give a directory for the data set")
    plan = make_plan(paths, settings, shards)
    _check_leftovers(out, plan)
    try:
        tokenizer.save(out / "tokenizer")
    except OSError as error:
        raise UserError(f"the directory cannot be written ({error.strerror})", directory) from None
    workers = min(workers or os.cpu_count() or 1, len(plan.tasks))
    made = _make_all(plan, settings, out, workers)
    splits = {name: _split([one for one in made if one.split == name]) for name in ("train", "heldout")}
    for name, split in splits.items():
        _check_rate(name, split, settings, explicit_predictions)
    special, spec = tokenizer.special, RecordSpec(settings.length, settings.predictions)
    names = {name: [out / info.name for info in split.shards] for name, split in splits.items()}
    manifest = Manifest(
        tokenizer=tokenizer.fingerprint,
        vocab_size=tokenizer.vocab_size,
        special=special,
        length=spec.length,
        predictions=spec.predictions,
        settings=recorded,
        inputs=inputs,
        seed=settings.seed,
        splits=splits,
        levels=levels.measure(names["train"], names["heldout"], tokenizer.vocab_size, special),
    )
    write_manifest(out, manifest)
    return manifest


def make_plan(paths: list[str], settings: shard.Settings, shards: int | None = None) -> Plan:
    """The first pass: counts documents, draws the border of the held-out ones, cuts the rest into shards.

    Raises:
        UserError: unreadable input, or too few documents.
    """
    sizes, hashes, files = [], [], []
    with tqdm(desc="reading", unit="B", unit_scale=True, leave=False, disable=None) as bar:
        for path in paths:
            files.append((path, len(sizes)))
            for document in sources.documents(path, settings.on_bad_bytes):
                hashes.append(shard.document_hash(document, settings.seed))
                sizes.append(len(document.encode()))
                bar.update(sizes[-1])
    weights, keys = np.array(sizes, np.int64), np.array(hashes, np.uint64)
    distinct = np.unique(keys)
    if len(distinct) < 4:
        raise UserError(
            f"there are {len(distinct)} different documents, at least 4 are needed (2 of them held out)",
            paths[0] if len(paths) == 1 else f"{len(paths)} files",
            "give more text, or end documents with a blank line",
        )
    # The border is the hash at which the held-out documents reach their share of the text, two at least.
    order = np.argsort(keys, kind="stable")
    reached = int(np.searchsorted(np.cumsum(weights[order]), settings.heldout * weights.sum()))
    border = int(min(max(keys[order[min(reached, len(order) - 1)]], distinct[2]), distinct[-2]))
    held_out = keys < border
    cut = _cut(weights * ~held_out, ~held_out, shards)
    tasks = []
    for split, ranges in (("train", cut), ("heldout", _cut(weights * held_out, held_out, None))):
        for number, (first, last) in enumerate(ranges):
            inside = [
                file
                for file, (_, end) in zip(files, [*files[1:], (None, len(sizes))], strict=True)
                if file[1] < last and end > first
            ]
            tasks.append(shard.Task(split, number, len(ranges), first, last, tuple(inside), border))
    return Plan(tuple(tasks), len(sizes), int(weights.sum()))


def _cut(weights: np.ndarray, chosen: np.ndarray, shards: int | None) -> list[tuple[int, int]]:
    """Ranges of documents of about equal bytes, with at least two chosen documents each."""
    places = np.flatnonzero(chosen)
    wanted = shards or max(1, round(int(weights.sum()) / _SHARD_BYTES))
    if wanted > len(places) // 2:
        raise UserError(
            f"{len(places)} documents do not fill {wanted} shards with two each", "--shards", "ask for fewer"
        )
    total, ends = np.cumsum(weights[places]), []
    for number in range(1, wanted):
        end = int(np.searchsorted(total, total[-1] * number / wanted)) + 1
        low = (ends[-1] if ends else 0) + 2
        ends.append(min(max(end, low), len(places) - 2 * (wanted - number)))
    borders = [0, *(int(places[end]) for end in ends), len(weights)]
    return list(zip(borders[:-1], borders[1:], strict=True))


# ------------------------------------------------------------------------------------------------------------
# Worker processes

_worker: dict = {}  # what a worker process was started with; set once, before its first shard


def _make_all(plan: Plan, settings: shard.Settings, out: Path, workers: int) -> list[shard.Made]:
    """All shards, in the order of the plan."""
    bar = tqdm(total=plan.bytes, desc="shards", unit="B", unit_scale=True, disable=None)
    with bar:
        if workers == 1:
            tokenizer = Tokenizer.load(out / "tokenizer")
            return [shard.make(task, settings, tokenizer, out, bar.update) for task in plan.tasks]
        # Spawned, so that nothing of the parent (threads of a library above all) is inherited half alive.
        context = multiprocessing.get_context("spawn")
        done = context.Value("q", 0)
        pool = ProcessPoolExecutor(workers, context, _start, (str(out), settings, done))
        try:
            futures = [pool.submit(_work, task) for task in plan.tasks]
            pending = set(futures)
            while pending:
                ready, pending = wait(pending, timeout=0.5, return_when=FIRST_COMPLETED)
                bar.update(done.value - bar.n)
                for future in ready:
                    future.result()
            return [future.result() for future in futures]
        except BrokenProcessPool:
            raise UserError(
                "a worker process was ended from outside, most often for want of memory",
                str(out),
                "run it again with fewer --workers",
            ) from None
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _start(out: str, settings: shard.Settings, done) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one process a core already
    _worker.update(out=Path(out), settings=settings, done=done, tokenizer=Tokenizer.load(Path(out) / "tokenizer"))


def _work(task: shard.Task) -> shard.Made:
    def progress(size: int) -> None:
        with _worker["done"].get_lock():
            _worker["done"].value += size

    return shard.make(task, _worker["settings"], _worker["tokenizer"], _worker["out"], progress)


# ------------------------------------------------------------------------------------------------------------
# Totals and checks


def _split(made: list[shard.Made]) -> Split:
    """Totals of a split. `rates` holds the counts, and shares named `*_rate` of what their comment says."""
    infos = tuple(one.info for one in made)
    totals: dict[str, float] = {key: sum(one.counts[key] for one in made) for key in made[0].counts}
    records, tokens = sum(info.records for info in infos), sum(info.tokens for info in infos)
    chosen = max(totals["chosen"], 1)
    totals |= {
        "chosen_rate": totals["chosen"] / max(totals["eligible"], 1),  # of the tokens that may be chosen
        "masked_rate": totals["masked"] / chosen,  # of the chosen ones, as the next two
        "kept_rate": totals["kept"] / chosen,
        "random_rate": totals["random"] / chosen,
        "overflowed_rate": totals["overflowed"] / max(totals["wanted"], 1),  # of the predictions asked for
        "random_next_rate": totals["random_next"] / max(records, 1),  # of the records
        "truncated_rate": totals["truncated_tokens"] / max(tokens + totals["truncated_tokens"], 1),
        "unknown_rate": totals["unknown_tokens"] / max(totals["corpus_tokens"], 1),
    }
    return Split(infos, records, tokens, sum(info.padding for info in infos), totals)


def _check_rate(name: str, split: Split, settings: shard.Settings, explicit: bool) -> None:
    """Refuses masks more than 5 % off their rate without a known reason: the cap asked for, whole words."""
    rates = split.rates
    expected = settings.rate * rates["eligible"]
    off = rates["chosen"] / max(expected, 1) - 1
    if abs(off) <= 0.05 + 3 / sqrt(max(expected, 1)):
        return
    reasons = []
    if explicit and rates["overflowed"]:
        reasons.append(f"{rates['overflowed']:.0f} were beyond --predictions {settings.predictions}")
    if rates["unfilled"]:
        reasons.append(f"{rates['unfilled']:.0f} were left since no word was short enough")
    # Rows of fewer than 1/rate tokens ask for one prediction nevertheless.
    if rates["wanted"] > 1.05 * expected:
        reasons.append("many rows are so short that one prediction is more than their share")
    message = f"the realised masking rate is {rates['chosen_rate']:.4f} where {settings.rate} was asked for"
    if not reasons:
        raise UserError(message, f"the {name} split", f"raise --predictions (now {settings.predictions})")
    print(f"bert-data: note: {name}: {message}: {'; '.join(reasons)}", file=sys.stderr)


def _check_leftovers(out: Path, plan: Plan) -> None:
    """Shards of an unfinished run: the same names are written again, others are in the way."""
    known = {task.name for task in plan.tasks}
    for path in sorted(out.glob("*.tfrecord")) if out.exists() else []:
        if path.name not in known:
            raise UserError(
                "the directory has no manifest but shards of another run",
                str(path),
                "remove them, or give another --out",
            )
    for path in sorted(out.glob(".*.tmp")) if out.exists() else []:
        path.unlink(missing_ok=True)


def _already_done(out: Path, recorded: dict, inputs: list, tokenizer: Tokenizer) -> Manifest:
    manifest = load_manifest(out)
    differing = [key for key in recorded if recorded[key] != manifest.settings.get(key)]
    if manifest.inputs != inputs:
        differing.append("input files")
    if manifest.tokenizer != tokenizer.fingerprint:
        differing.append("tokenizer")
    if differing:
        raise UserError(
            f"there is already a data set with other settings ({', '.join(differing)})",
            str(out),
            "give another --out, or remove this one",
        )
    for split in manifest.splits.values():
        for info in split.shards:
            path = out / info.name
            if not path.exists() or path.stat().st_size != info.bytes:
                raise UserError(
                    "a shard of this finished data set is missing or cut",
                    str(path),
                    "remove manifest.json, run again",
                )
    print(f"already done: {out}", file=sys.stderr)
    return manifest
