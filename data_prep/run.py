"""From text to a data set: the inputs read once, a plan, shards by worker processes, reference levels, manifest.

What is done stays done: the spool of a group, the plan, every shard with its note. A run that was killed goes on
after the last of them and ends with the same bytes, with any number of workers.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from math import sqrt

from tqdm import tqdm

from bert_jax.errors import UserError
from bert_jax.text.manifest import NAME, Manifest, Split, load_manifest, write_manifest
from bert_jax.text.tokenizer import Tokenizer
from data_prep import clean, levels, paths, plan, sentences, shard, sources, spool

_UNKNOWN = 0.05  # share of unknown tokens that is told: ordinary text has below one in a hundred


@dataclass(frozen=True)
class Job:
    """All that decides a data set, besides its inputs and the tokenizer."""

    reading: spool.Reading = field(default_factory=spool.Reading)
    selection: plan.Selection = field(default_factory=plan.Selection)
    settings: shard.Settings = field(default_factory=shard.Settings)
    explicit_predictions: bool = False  # the number was asked for: a rate that it holds down is no error

    def record(self) -> dict:
        """The job as the manifest records it: one flat table."""
        reading = asdict(self.reading)
        flat = reading.pop("cleaning") | reading | asdict(self.selection) | asdict(self.settings)
        return json.loads(json.dumps(flat))  # tuples to lists, as a manifest read back has them


def prepare(
    patterns: Sequence[str], tokenizer_path: str, directory: str, job: Job, workers: int | None = None
) -> Manifest:
    """Makes a data set in `directory`, or goes on where an earlier run of the same job ended.

    Args:
        patterns: inputs, see sources.py; NAME=PATTERN names a source.
        tokenizer_path: anything that `Tokenizer.load` opens; a copy goes into `directory`/tokenizer.
        directory: local or remote.
        job: all other settings.
        workers: processes; None takes all cores. Changes nothing in the files.

    Raises:
        UserError: bad input, another data set in the directory, or masks that missed their rate.
    """
    begun = begin(patterns, tokenizer_path, directory, job)
    if begun.done is not None:
        return begun.done
    with _Pool(workers or os.cpu_count() or 1) as pool:
        planned, made = make_all(begun, pool.map)
    # The workers are gone, and what they held, before the levels are counted.
    return finish(begun, planned, made)


def make_all(
    begun: Begun, map_: Callable[[Callable, Begun, Sequence, str], list]
) -> tuple[plan.Plan, list[shard.Made]]:
    """What is left of a job's shards: the first pass, the plan, the shards.

    Args:
        begun: from `begin`, with something left to do.
        map_: map_(function, begun, tasks, what) gives function(begun, task, progress) of every task, in order.
    """
    summaries = map_(read_group, begun, begun.groups, "reading")
    planned = plan_shards(begun, summaries)
    tasks = [task for task in planned.tasks if begun.manifest is None or task.name in begun.missing]
    return planned, map_(make_shard, begun, tasks, "shards")


# ------------------------------------------------------------------------------------------------------------
# The steps. Each is a function of what stands in the directory, and leaves its result there, so that beam.py can
# have them called in processes of its own.


@dataclass(frozen=True)
class Begun:
    """A job whose directory was looked at.

    `manifest` is there if the data set was finished before; `missing` then names the shards that are lost or cut.
    """

    job: Job
    out: str
    inputs: tuple[dict, ...]
    names: tuple[str, ...]
    groups: tuple[spool.Group, ...]
    fingerprint: str
    manifest: Manifest | None = None
    missing: tuple[str, ...] = ()

    @property
    def done(self) -> Manifest | None:
        """The manifest, if there is nothing left to do."""
        return None if self.missing else self.manifest

    @property
    def work(self) -> str:
        return spool.working_directory(self.out)


def begin(patterns: Sequence[str], tokenizer_path: str, directory: str, job: Job) -> Begun:
    """Looks at inputs, tokenizer and directory; makes the directory and its tokenizer."""
    tokenizer = Tokenizer.load(tokenizer_path)
    check_settings(job)
    sources.check_apart(patterns, directory)
    if os.path.isfile(directory):
        raise UserError("this is a file", directory, "give a directory for the data set")
    done = paths.exists(paths.join(directory, NAME))
    if done:  # a run that was killed while it cleared up left half of its work
        paths.remove_tree(spool.working_directory(directory))
    patterns = sources.captured(patterns, spool.working_directory(directory))
    named = sources.named(patterns)
    described = [asdict(sources.describe(name)) for _, name in named]
    names = tuple(dict.fromkeys(source for source, _ in named))
    unknown = sorted(set(dict(job.selection.weights)) - set(names))
    if unknown:
        raise UserError(f"no input is named {unknown[0]}", "--weight", f"name it: {unknown[0]}=PATTERN")
    groups = spool.groups([(names.index(source), name) for source, name in named], [one["bytes"] for one in described])
    begun = Begun(
        job,
        directory,
        tuple(described),
        names,
        tuple(groups),
        tokenizer.fingerprint,
    )
    if done:
        try:
            begun = _already_done(begun)
        finally:
            if not begun.missing:
                paths.remove_tree(begun.work)  # standard input, if it was kept
        if not begun.missing:
            print(f"already done: {begun.out}", file=sys.stderr)
        return begun
    _check_leftovers(begun)
    _remove_halves(directory)
    try:
        with paths.staging(paths.join(directory, "tokenizer")) as folder:
            tokenizer.save(folder)
        paths.write_bytes(paths.join(begun.work, "job.json"), _identity(begun))
    except OSError as error:
        with contextlib.suppress(OSError):
            _remove_halves(directory)
        raise UserError(f"the directory cannot be written ({paths.reason(error)})", directory) from None
    return begun


def check_settings(job: Job) -> None:
    """What names something that may not be there is looked up before anything is made or read."""
    clean.Cleaner(job.reading.cleaning)
    if job.reading.evaluation:
        sources.expand(job.reading.evaluation)
    sentences.splitter(job.settings.language)
    if job.settings.segmenter:
        sentences.segmenter(job.settings.segmenter)
    if job.selection.weights and job.selection.smoothing:
        raise UserError("sources have either weights or smoothing", "--weight, --smooth", "leave one of them out")


def _remove_halves(directory: str) -> None:
    """Temporary files of a run that was killed while it wrote them."""
    for folder in (directory, paths.join(directory, "tokenizer")):
        for half in paths.glob(paths.join(folder, ".*.tmp")):
            paths.remove(half)


def read_group(begun: Begun, group: spool.Group, progress: Callable[[int], None]) -> spool.Summary:
    """The first pass over a group of inputs."""
    try:
        return spool.read(group, begun.job.reading, begun.work, progress)
    except (OSError, UserError) as error:
        with contextlib.suppress(OSError):
            paths.remove(paths.join(begun.work, group.name + ".text"))  # half of it, and perhaps on a full disk
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"the text cannot be laid down ({paths.reason(error)})", begun.work, "make room, run it again"
        ) from None


def plan_shards(begun: Begun, summaries: Sequence[spool.Summary]) -> plan.Plan:
    """Which documents go into which shard."""
    job = begun.job
    return plan.make(begun.groups, summaries, begun.names, job.reading.cleaning, job.selection, begun.work)


def make_shard(begun: Begun, task: plan.Task, progress: Callable[[int], None]) -> shard.Made:
    """One shard, unless it stands already."""
    made = shard.finished(task, begun.work, begun.out)
    if made is not None:
        progress(task.bytes)
        return made
    tokenizer = _tokenizer(begun.out, begun.fingerprint)
    return shard.make(task, begun.job.settings, tokenizer, begun.work, begun.out, progress)


def finish(begun: Begun, planned: plan.Plan, made: Sequence[shard.Made]) -> Manifest:
    """Checks the realised rates, measures the reference levels, writes the manifest, clears the work away.

    Where only lost shards were made again, compares them with the manifest instead.
    """
    if begun.manifest is not None:
        known = {info.name: info for split in begun.manifest.splits.values() for info in split.shards}
        other = [one.info.name for one in made if one.info != known[one.info.name]]
        if other:
            raise UserError(
                "the shard made again is not the one that the manifest describes (other library versions?)",
                paths.join(begun.out, other[0]),
                "remove the data set and make it anew",
            )
        paths.remove_tree(begun.work)
        return begun.manifest
    settings, tokenizer = begun.job.settings, _tokenizer(begun.out, begun.fingerprint)
    splits = {name: _split([one for one in made if one.split == name]) for name in ("train", "heldout")}
    for name, split in splits.items():
        _check_rate(name, split, begun.job)
        if split.rates["unknown_rate"] > _UNKNOWN:
            print(
                f"bert-data: note: {name}: {split.rates['unknown_rate']:.0%} of the tokens are unknown "
                "to the tokenizer: is it one for this language and case?",
                file=sys.stderr,
            )
    counted = [paths.read_bytes(shard.pairs_of(begun.work, task)) for task in planned.tasks if task.counted]
    heldout = [info.name for info in splits["heldout"].shards]
    with paths.fetched(begun.out, heldout) as folder:
        local = [folder / name for name in heldout]
        measured = levels.measure(counted, local, tokenizer.vocab_size, tokenizer.special)
    manifest = Manifest(
        tokenizer=tokenizer.fingerprint,
        vocab_size=tokenizer.vocab_size,
        special=tokenizer.special,
        length=settings.length,
        predictions=settings.predictions,
        settings=begun.job.record(),
        inputs=list(begun.inputs),
        seed=settings.seed,
        splits=splits,
        levels=measured,
        reading=planned.counts,
    )
    with paths.staging(begun.out) as folder:
        write_manifest(folder, manifest)
    paths.remove_tree(begun.work)
    return manifest


# ------------------------------------------------------------------------------------------------------------
# Worker processes


@lru_cache(maxsize=1)
def _tokenizer(out: str, fingerprint: str) -> Tokenizer:
    """The data set's own tokenizer, once a process. The fingerprint makes another one another entry."""
    with paths.fetched(paths.join(out, "tokenizer")) as folder:
        tokenizer = Tokenizer.load(folder)
    if tokenizer.fingerprint != fingerprint:
        raise UserError("the tokenizer was changed while the shards were made", out, "run it again")
    return tokenizer


_worker: dict = {}  # what a worker process was started with; set once, before its first task


class _Pool:
    """Runs tasks in this process or in several, with one progress bar for all.

    Processes are spawned, so that nothing of the parent (threads of a library above all) is inherited half alive.
    """

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._executor: ProcessPoolExecutor | None = None
        self._context = multiprocessing.get_context("spawn")
        self._done = self._context.Value("q", 0)

    def __enter__(self) -> _Pool:
        return self

    def __exit__(self, *error) -> None:
        if self._executor is not None:
            self._executor.shutdown(wait=True, cancel_futures=True)

    def map(self, function: Callable, begun: Begun, tasks: Sequence, what: str) -> list:
        """function(begun, task, progress) of every task, in the order of the tasks."""
        total = sum(task.bytes for task in tasks)
        with tqdm(total=total, desc=what, unit="B", unit_scale=True, disable=None) as bar:
            if min(self._workers, len(tasks)) <= 1:
                return [function(begun, task, bar.update) for task in tasks]
            if self._executor is None:
                self._executor = ProcessPoolExecutor(self._workers, self._context, _start, (begun, self._done))
            self._done.value = 0
            with _uninterrupted():  # while processes start: they inherit it, and would tell of Ctrl-C at length
                futures = [self._executor.submit(_work, function, task) for task in tasks]
            pending = set(futures)
            try:
                while pending:
                    ready, pending = wait(pending, timeout=0.5, return_when=FIRST_COMPLETED)
                    bar.update(self._done.value - bar.n)
                    for future in ready:
                        future.result()
            except BrokenProcessPool:
                raise UserError(
                    "a worker process was ended from outside, most often for want of memory",
                    begun.out,
                    "run it again with fewer --workers",
                ) from None
            return [future.result() for future in futures]


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Ctrl-C is not heard for a moment; only the main thread may say so."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _start(begun: Begun, done) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends a worker at once; the parent says so
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one process a core already
    _worker.update(begun=begun, done=done)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for tasks for ever, or write beside the run that goes on."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work(function: Callable, task):
    def progress(size: int) -> None:
        with _worker["done"].get_lock():
            _worker["done"].value += size

    return function(_worker["begun"], task, progress)


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
        **{f"{name}_rate": totals[name] / max(records, 1) for name in shard.LABELS if name in totals},  # of the records
        "truncated_rate": totals["truncated_tokens"] / max(tokens + totals["truncated_tokens"], 1),
        "unknown_rate": totals["unknown_tokens"] / max(totals["corpus_tokens"], 1),
    }
    return Split(infos, records, tokens, sum(info.padding for info in infos), totals)


def _check_rate(name: str, split: Split, job: Job) -> None:
    """Refuses masks more than 5 % off their rate without a known reason: the cap asked for, whole words."""
    settings, rates = job.settings, split.rates
    expected = settings.rate * rates["eligible"]
    off = rates["chosen"] / max(expected, 1) - 1
    if abs(off) <= 0.05 + 3 / sqrt(max(expected, 1)):
        return
    reasons = []
    if job.explicit_predictions and rates["overflowed"]:
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


def _identity(begun: Begun) -> bytes:
    """What an unfinished directory belongs to."""
    mine = {"settings": begun.job.record(), "inputs": begun.inputs, "tokenizer": begun.fingerprint}
    return json.dumps(mine, sort_keys=True).encode()


def _check_leftovers(begun: Begun) -> None:
    """An unfinished run of the same job goes on; whatever else lies there is in the way."""
    note = paths.join(begun.work, "job.json")
    foreign = paths.glob(paths.join(begun.out, "*.tfrecord"))
    if paths.exists(note):
        same = paths.read_bytes(note) == _identity(begun)
        if same:
            print(f"going on with the unfinished run in {begun.out}", file=sys.stderr)
        elif foreign:
            raise UserError(
                "the directory holds an unfinished run with other settings, text or tokenizer",
                begun.out,
                "give another --out, or remove this one",
            )
        else:  # a command that was refused, most often, and is now mended
            print(f"{begun.out}: an unfinished run with other settings had no shard yet: begun anew", file=sys.stderr)
            for old in paths.glob(paths.join(begun.work, "*")):
                if not old.endswith("standard-input"):
                    paths.remove(old)
        return
    if foreign:
        raise UserError(
            "the directory has no manifest but shards of another run",
            foreign[0],
            "remove them, or give another --out",
        )


def _already_done(begun: Begun) -> Begun:
    """The finished data set of the same job, with the shards that it lacks."""
    with paths.fetched(begun.out, [NAME]) as folder:
        manifest = load_manifest(folder)
    recorded = begun.job.record()
    differing = [key for key in recorded if recorded[key] != manifest.settings.get(key)]
    if manifest.inputs != list(begun.inputs):
        differing.append("input files")
    if manifest.tokenizer != begun.fingerprint:
        differing.append("tokenizer")
    if differing:
        raise UserError(
            f"there is already a data set with other settings ({', '.join(differing)})",
            begun.out,
            "give another --out, or remove this one",
        )
    _remove_halves(begun.out)
    missing = []
    for split in manifest.splits.values():
        for info in split.shards:
            path = paths.join(begun.out, info.name)
            if not paths.exists(path) or paths.size(path) != info.bytes:
                missing.append(info.name)
    if missing:
        print(f"missing or cut, made again: {' '.join(missing)}", file=sys.stderr)
    return replace(begun, manifest=manifest, missing=tuple(missing))
