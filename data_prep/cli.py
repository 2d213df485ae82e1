"""`bert-data`: tokenizer, extend, shards, inspect, stats, pydoc."""

from __future__ import annotations

import argparse
import errno
import math
import os
import shlex
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from bert_jax.errors import UserError

if TYPE_CHECKING:
    from data_prep.run import Job


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status: 0 done, 1 something to mend (told in one line), 2 usage."""
    arguments = _parser().parse_args(argv)
    try:
        return arguments.run(arguments)
    except UserError as error:
        _tell(str(error))
        return 1
    except KeyboardInterrupt:
        print("bert-data: interrupted; run the same command again", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 1
    except OSError as error:  # a full disk or a lost mount, wherever it strikes
        where = f"{error.filename}: " if error.filename else ""
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        _tell(f"{where}{error.strerror or error}" + "; make room and run the same command again" * full)
        return 1


def _tell(sentence: str) -> None:
    """One line, even where the name of a file holds a line break."""
    print("bert-data: " + sentence.replace("\n", "\\n"), file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    from data_prep.clean import FORMS, Cleaning
    from data_prep.extend import ExtendSettings
    from data_prep.layouts import LAYOUTS
    from data_prep.plan import Selection
    from data_prep.shard import Settings
    from data_prep.spool import Reading
    from data_prep.stats import RECORDS
    from data_prep.train_tokenizer import KINDS, SAMPLE_MEGABYTES, TokenizerSettings

    parser = argparse.ArgumentParser(prog="bert-data", description="Raw text to a tokenizer and to shards.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run, text: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=text, description=text)
        made.set_defaults(run=run)
        return made

    def option(to: argparse.ArgumentParser, name: str, default, text: str, **more) -> None:
        readers = {int: _natural, float: _number, str: str}
        more = {"type": readers[type(default)]} | more
        to.add_argument(name, default=default, help=f"{text} (default: {default})", **more)

    def bad_bytes(to: argparse.ArgumentParser, default: str) -> None:
        option(to, "--on-bad-bytes", default, "bytes that are not UTF-8", choices=("fail", "replace"))

    inputs = (
        "files (.txt, .jsonl, .md, .parquet, also .gz, .zst, .bz2), directories, quoted globs, tfds: and hf: data "
        "sets, URLs; - is standard input"
    )

    one = command("tokenizer", _tokenizer, "Train a tokenizer on text.")
    one.add_argument("inputs", nargs="+", type=_named, help=inputs)
    one.add_argument("--out", required=True, type=_named, help="directory to make")
    base = TokenizerSettings()
    option(one, "--kind", base.kind, "algorithm", choices=KINDS)
    option(one, "--vocab", base.vocab_size, "number of pieces", type=_positive)
    one.add_argument("--lower", action="store_true", help="lower-case the text (WordPiece: strip accents too)")
    option(one, "--coverage", base.coverage, "share of the text's characters to keep", type=_share)
    one.add_argument(
        "--sample-megabytes",
        type=_above_zero,
        help="text to train on, held in memory; more is sampled by documents "
        f"(default: {SAMPLE_MEGABYTES:g}; wordpiece counts words of all text)",
    )
    bad_bytes(one, base.on_bad_bytes)
    option(one, "--seed", base.seed, "of the sampling")

    one = command("extend", _extend, "Add words to a WordPiece vocabulary that it cuts into many pieces.")
    one.add_argument("vocabulary", help="tokenizer directory or vocab.txt")
    one.add_argument("inputs", nargs="+", type=_named, help=inputs)
    one.add_argument("--out", required=True, type=_named, help="directory to make")
    one.add_argument("--add", type=_positive, required=True, help="number of words")
    one.add_argument(
        "--use-unused",
        action="store_true",
        help="put them in the place of [unused0], [unused1], ...; the vocabulary keeps its size (default: append)",
    )
    bad_bytes(one, ExtendSettings.on_bad_bytes)
    option(one, "--seed", ExtendSettings.seed, "of the text held out for comparison")

    one = command("shards", _shards, "Make masked sentence-pair shards from text.")
    one.add_argument("inputs", nargs="+", type=_named, help=f"{inputs}; NAME=INPUT names a source")
    one.add_argument("--tokenizer", required=True, help="tokenizer directory or vocab.txt")
    one.add_argument("--out", required=True, type=_named, help="directory to make, local or remote")
    reading, cleaning, selection, base = Reading(), Cleaning(), Selection(), Settings()
    to = one.add_argument_group("rows")
    option(to, "--length", base.length, "tokens a record", type=_positive)
    option(to, "--layout", base.layout, "what a row is made of", choices=LAYOUTS)
    option(to, "--short", base.short, "share of documents cut into shorter rows", type=_fraction)
    option(to, "--duplicates", selection.duplicates, "passes over the text, with other rows and masks", type=_positive)
    option(to, "--language", base.language, "of the sentence splitter; none: a line is a sentence")
    to = one.add_argument_group("masks")
    to.add_argument(
        "--predictions", type=_positive, help="masked slots a record (default: derived, 20 at 128, 76 at 512)"
    )
    option(to, "--rate", base.rate, "share of tokens to choose", type=_part)
    option(to, "--unit", base.unit, "choose tokens, or all tokens of a word", choices=("token", "word"))
    to.add_argument("--segmenter", default=base.segmenter, help="words of Chinese: jieba, or module:function")
    option(to, "--mask-share", base.mask_share, "chosen tokens that become [MASK]", type=_fraction)
    option(to, "--random-share", base.random_share, "chosen tokens that become random", type=_fraction)
    to = one.add_argument_group("documents")
    option(to, "--heldout", selection.heldout, "share of the text held out, by documents", type=_share)
    bad_bytes(to, reading.on_bad_bytes)
    to.add_argument("--normalise", default=cleaning.normalise, choices=FORMS[1:], help="Unicode form of the text")
    to.add_argument("--strip-controls", action="store_true", help="delete control characters")
    to.add_argument("--min-characters", type=_positive, default=0, help="drop shorter documents")
    to.add_argument("--max-characters", type=_positive, default=0, help="drop longer documents")
    to.add_argument("--filter", default="", help="module:function, which says of a text whether to keep it")
    to.add_argument("--drop-copies", action="store_true", help="keep one document of those with the same text")
    to.add_argument("--drop-near-copies", action="store_true", help="keep one document of those with nearly one text")
    to.add_argument(
        "--decontaminate",
        action="append",
        default=[],
        metavar="FILES",
        help="drop what overlaps these texts; repeatable",
    )
    option(to, "--decontaminate-words", cleaning.grams, "words in a row that are an overlap", type=_positive)
    to.add_argument(
        "--weight", action="append", default=[], type=_weight, metavar="NAME=PASSES", help="passes over a source"
    )
    to.add_argument("--smooth", type=_share, default=0.0, help="sources take part by bytes to this power (mBERT: 0.7)")
    to = one.add_argument_group("execution")
    option(to, "--seed", base.seed, "of all that is random")
    to.add_argument("--shards", type=_positive, default=0, help="training shards (default: one for 10 MB of text)")
    to.add_argument("--workers", type=_positive, help="processes; changes no byte (default: all cores)")
    to.add_argument("--dry-run", action="store_true", help="only estimate records, bytes and time, from a sample")
    to.add_argument("--beam", metavar="OPTIONS", help="run through Apache Beam, with these options of Beam's")

    one = command("inspect", _inspect, "Print a record as text, masked words shown as {original → replacement}.")
    one.add_argument("data", help="data set directory, or one shard with --tokenizer")
    one.add_argument("--tokenizer", help="for a shard: tokenizer directory or vocab.txt")
    one.add_argument("--split", default="train", help="train or heldout (default: train)")
    which = one.add_mutually_exclusive_group()
    which.add_argument("--record", type=_whole, help="its number in the split (default: 0)")
    which.add_argument("--random", action="store_true", help="any record")
    option(one, "--count", 1, "how many, from that one on or at random", type=_positive)
    one.add_argument("--seed", type=_natural, help="of --random (default: other records each time)")

    one = command("stats", _stats, "Print the counts of a data set; with --out, also measure and draw its records.")
    one.add_argument("data", type=_named, help="data set directory")
    one.add_argument("--out", type=_named, help="directory for stats.html, a page of its own, and stats.png")
    one.add_argument("--split", default="train", help="to measure: train or heldout (default: train)")
    option(one, "--records", RECORDS, "records to read at most, spread over all shards", type=_positive)
    option(one, "--seed", 0, "of that choice, and of the records shown")

    one = command("pydoc", _pydoc, "Write the demo corpus: Python's own documentation on this machine.")
    one.add_argument("out", help="text file to make")
    option(one, "--max-megabytes", 12.0, "where to stop", type=_above_zero)
    return parser


def _tokenizer(arguments: argparse.Namespace) -> int:
    from data_prep import sources
    from data_prep.train_tokenizer import TokenizerSettings, train

    settings = TokenizerSettings(
        arguments.kind,
        arguments.vocab,
        arguments.lower,
        arguments.coverage,
        arguments.sample_megabytes,
        arguments.on_bad_bytes,
        arguments.seed,
    )
    with sources.kept(arguments.inputs) as inputs:
        tokenizer = train(inputs, arguments.out, settings)
    print(f"{arguments.out}: {tokenizer.kind}, {tokenizer.vocab_size} pieces, {tokenizer.fingerprint[:12]}")
    return 0


def _extend(arguments: argparse.Namespace) -> int:
    from data_prep import sources
    from data_prep.extend import ExtendSettings, extend, table

    settings = ExtendSettings(arguments.add, arguments.use_unused, arguments.on_bad_bytes, arguments.seed)
    with sources.kept(arguments.inputs) as inputs:
        found = extend(arguments.vocabulary, inputs, arguments.out, settings)
    if found:
        made = found.tokenizer
        print(table(found))
        print(f"{arguments.out}: {len(found.added):,} words added, {made.vocab_size} pieces, {made.fingerprint[:12]}")
    return 0


def _shards(arguments: argparse.Namespace) -> int:
    from data_prep import run

    job = _job(arguments)
    given = arguments.inputs, arguments.tokenizer, arguments.out, job
    if arguments.dry_run:
        from data_prep import sources
        from data_prep.estimate import estimate

        with sources.kept(arguments.inputs) as inputs:
            found = estimate(inputs, arguments.tokenizer, job, arguments.workers)
        time = timedelta(seconds=math.ceil(found.seconds))
        print(
            f"from {_megabytes(found.sampled)} looked at: {_megabytes(found.text)} of text in about "
            f"{found.documents:,} documents, {found.records:,} records, {_megabytes(found.bytes)} of shards "
            f"(and {_megabytes(found.text)} while it runs), about {time} (h:mm:ss)"
        )
        return 0
    if arguments.beam is not None:
        from data_prep import beam

        try:
            options = shlex.split(arguments.beam)
        except ValueError as error:
            raise UserError(f"the options are cut ({error})", "--beam", "close what is quoted") from None
        manifest = beam.prepare(*given, options)
    else:
        manifest = run.prepare(*given, arguments.workers)
    for reason, count in manifest.reading.get("dropped", {}).items():
        print(f"dropped {count:,} of {manifest.reading['documents']:,} documents: {reason}")
    found = ", ".join(f"{split.records:,} {name}" for name, split in manifest.splits.items())
    print(f"{arguments.out}: {found} records; see them with: bert-data inspect {arguments.out} --random")
    return 0


def _job(arguments: argparse.Namespace) -> Job:
    """The settings of `bert-data shards` from its command line."""
    from bert_jax.text.corrupt import predictions_for
    from data_prep.clean import Cleaning
    from data_prep.plan import Selection
    from data_prep.run import Job
    from data_prep.shard import Settings
    from data_prep.spool import Reading

    if arguments.length < 8:
        raise UserError(f"rows of {arguments.length} tokens hold no pair of sentences", "--length", "use 8 or more")
    if arguments.mask_share + arguments.random_share > 1:
        raise UserError("they are shares of one whole", "--mask-share, --random-share", "let them sum to 1 at most")
    if arguments.heldout > 0.9:
        raise UserError("hardly anything would be left to train on", "--heldout", "give a share below 0.9")
    if twice := [name for name, count in Counter(name for name, _ in arguments.weight).items() if count > 1]:
        raise UserError(f"{twice[0]} has several weights", "--weight", "give it one")
    cleaning = Cleaning(
        normalise=arguments.normalise,
        controls=arguments.strip_controls,
        minimum=arguments.min_characters,
        maximum=arguments.max_characters,
        filter=arguments.filter,
        exact=arguments.drop_copies,
        near=arguments.drop_near_copies,
        grams=arguments.decontaminate_words,
    )
    reading = Reading(
        on_bad_bytes=arguments.on_bad_bytes,
        cleaning=cleaning,
        evaluation=tuple(arguments.decontaminate),
        seed=arguments.seed,
    )
    selection = Selection(
        heldout=arguments.heldout,
        weights=tuple(arguments.weight),
        smoothing=arguments.smooth,
        duplicates=arguments.duplicates,
        shards=arguments.shards,
    )
    settings = Settings(
        length=arguments.length,
        predictions=arguments.predictions or predictions_for(arguments.length, arguments.rate),
        rate=arguments.rate,
        unit=arguments.unit,
        mask_share=arguments.mask_share,
        random_share=arguments.random_share,
        layout=arguments.layout,
        short=arguments.short,
        language=arguments.language,
        segmenter=arguments.segmenter,
        seed=arguments.seed,
    )
    return Job(reading, selection, settings, arguments.predictions is not None)


def _inspect(arguments: argparse.Namespace) -> int:
    from data_prep.views import inspect

    record = None if arguments.random else arguments.record or 0
    colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    more = {"seed": arguments.seed, "count": arguments.count, "colour": colour}
    print(inspect(arguments.data, arguments.tokenizer, arguments.split, record, **more))
    return 0


def _stats(arguments: argparse.Namespace) -> int:
    from bert_jax.text.manifest import load_manifest
    from data_prep import stats, stats_page

    manifest = load_manifest(arguments.data)
    print(stats.table(manifest))
    if arguments.out:
        found = stats.measure(arguments.data, arguments.split, arguments.records, arguments.seed)
        written = stats_page.write(arguments.data, manifest, found, arguments.out, arguments.seed)
        print("\n" + stats.columns(stats.summary(found, manifest)))
        print("\nwritten: " + ", ".join(map(str, written)))
    return 0


def _pydoc(arguments: argparse.Namespace) -> int:
    from data_prep.pydoc import write

    documents, size = write(arguments.out, arguments.max_megabytes)
    print(f"{arguments.out}: {documents:,} documents, {size:,} bytes")
    return 0


def _megabytes(size: float) -> str:
    return f"{size / 1e6:,.0f} MB" if size >= 1e7 else f"{size / 1e6:.2g} MB"


def _named(text: str) -> str:
    if not text.strip():
        raise argparse.ArgumentTypeError("the name is empty")
    return text


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number")
    return value


def _checked(read: Callable[[str], Any], fits: Callable[[Any], bool], otherwise: str) -> Callable[[str], Any]:
    """A type for argparse: what `read` makes of an argument, refused with "ARGUMENT is `otherwise`" unless it fits."""

    def check(text: str) -> Any:
        value = read(text)
        if not fits(value):
            raise argparse.ArgumentTypeError(f"{text} is {otherwise}")
        return value

    return check


_natural = _checked(_whole, lambda value: value >= 0, "below 0")
_positive = _checked(_whole, lambda value: value >= 1, "below 1")
_above_zero = _checked(_number, lambda value: value > 0, "not above 0")
_share = _checked(_number, lambda value: 0 < value <= 1, "not above 0 and at most 1")
_part = _checked(_number, lambda value: 0 < value < 1, "not above 0 and below 1")
_fraction = _checked(_number, lambda value: 0 <= value <= 1, "not within 0 and 1")


def _weight(text: str) -> tuple[str, float]:
    name, sign, passes = text.rpartition("=")
    if not sign or not name:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=PASSES, as in wiki=2")
    return name, _above_zero(passes)


if __name__ == "__main__":
    sys.exit(main())
