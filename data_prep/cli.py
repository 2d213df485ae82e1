"""`bert-data`: tokenizer, shards, inspect, stats, pydoc."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from bert_jax.errors import UserError


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status: 0 done, 1 something to mend (told in one line), 2 usage."""
    arguments = _parser().parse_args(argv)
    try:
        return arguments.run(arguments)
    except UserError as error:
        print(f"bert-data: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("bert-data: interrupted; run the same command again", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 1
    except OSError as error:  # a full disk or a lost mount, wherever it strikes
        where = f"{error.filename}: " if error.filename else ""
        print(f"bert-data: {where}{error.strerror}; make room and run the same command again", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    from data_prep.shard import Settings
    from data_prep.stats import RECORDS
    from data_prep.train_tokenizer import KINDS, TokenizerSettings

    parser = argparse.ArgumentParser(prog="bert-data", description="Raw text to a tokenizer and to shards.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run, text: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=text, description=text)
        made.set_defaults(run=run)
        return made

    def option(to: argparse.ArgumentParser, name: str, default, text: str, **more) -> None:
        to.add_argument(name, default=default, help=f"{text} (default: {default})", **({"type": type(default)} | more))

    def bad_bytes(to: argparse.ArgumentParser, default: str) -> None:
        option(to, "--on-bad-bytes", default, "bytes that are not UTF-8", choices=("fail", "replace"))

    inputs = "text files (.txt, .jsonl, also .gz or .zst) or quoted globs"

    one = command("tokenizer", _tokenizer, "Train a tokenizer on text.")
    one.add_argument("inputs", nargs="+", help=inputs)
    one.add_argument("--out", required=True, help="directory to make")
    base = TokenizerSettings()
    option(one, "--kind", base.kind, "algorithm", choices=KINDS)
    option(one, "--vocab", base.vocab_size, "number of pieces", type=_positive)
    one.add_argument("--lower", action="store_true", help="lower-case the text (WordPiece: strip accents too)")
    option(one, "--coverage", base.coverage, "share of the text's characters to keep", type=_share)
    option(one, "--sample-megabytes", base.sample_megabytes, "text to train on; more is sampled by documents")
    bad_bytes(one, base.on_bad_bytes)
    option(one, "--seed", base.seed, "of the sampling")

    one = command("shards", _shards, "Make masked sentence-pair shards from text.")
    one.add_argument("inputs", nargs="+", help=inputs)
    one.add_argument("--tokenizer", required=True, help="tokenizer directory or vocab.txt")
    one.add_argument("--out", required=True, help="directory to make")
    base = Settings()
    option(one, "--length", base.length, "tokens a record", type=_positive)
    one.add_argument(
        "--predictions", type=_positive, help="masked slots a record (default: derived, 20 at 128, 76 at 512)"
    )
    option(one, "--rate", base.rate, "share of tokens to choose", type=_share)
    option(one, "--unit", base.unit, "choose tokens, or all tokens of a word", choices=("token", "word"))
    option(one, "--mask-share", base.mask_share, "chosen tokens that become [MASK]", type=_fraction)
    option(one, "--random-share", base.random_share, "chosen tokens that become random", type=_fraction)
    option(
        one,
        "--duplicates",
        base.duplicates,
        "passes over the text, with other pairs and masks",
        type=_positive,
    )
    option(one, "--short", base.short, "share of documents cut into shorter rows", type=_fraction)
    option(one, "--heldout", base.heldout, "share of the text held out, by documents", type=_share)
    option(one, "--language", base.language, "of the sentence splitter; none: a line is a sentence")
    bad_bytes(one, base.on_bad_bytes)
    option(one, "--seed", base.seed, "of all that is random")
    one.add_argument("--shards", type=_positive, help="training shards (default: one for every 4 MB of text)")
    one.add_argument("--workers", type=_positive, help="processes; changes no byte (default: all cores)")

    one = command("inspect", _inspect, "Print a record as text, masked words shown as {original → replacement}.")
    one.add_argument("data", help="data set directory, or one shard with --tokenizer")
    one.add_argument("--tokenizer", help="for a shard: tokenizer directory or vocab.txt")
    one.add_argument("--split", default="train", help="train or heldout (default: train)")
    which = one.add_mutually_exclusive_group()
    which.add_argument("--record", type=int, help="its number in the split (default: 0)")
    which.add_argument("--random", action="store_true", help="any record")
    option(one, "--count", 1, "how many, from that one on or at random", type=_positive)
    one.add_argument("--seed", type=int, help="of --random (default: other records each time)")

    one = command("stats", _stats, "Print the counts of a data set; with --out, also measure and draw its records.")
    one.add_argument("data", help="data set directory")
    one.add_argument("--out", help="directory for stats.html, a page of its own, and stats.png")
    one.add_argument("--split", default="train", help="to measure: train or heldout (default: train)")
    option(one, "--records", RECORDS, "records to read at most, spread over all shards", type=_positive)
    option(one, "--seed", 0, "of that choice, and of the records shown")

    one = command("pydoc", _pydoc, "Write the demo corpus: Python's own documentation on this machine.")
    one.add_argument("out", help="text file to make")
    option(one, "--max-megabytes", 12.0, "where to stop")
    return parser


def _tokenizer(arguments: argparse.Namespace) -> int:
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
    tokenizer = train(arguments.inputs, arguments.out, settings)
    print(f"{arguments.out}: {tokenizer.kind}, {tokenizer.vocab_size} pieces, {tokenizer.fingerprint[:12]}")
    return 0


def _shards(arguments: argparse.Namespace) -> int:
    from bert_jax.text.corrupt import predictions_for
    from data_prep.run import prepare
    from data_prep.shard import Settings

    if arguments.length < 8:
        raise UserError(f"rows of {arguments.length} tokens hold no pair of sentences", "--length", "use 8 or more")
    if arguments.mask_share + arguments.random_share > 1:
        raise UserError("they are shares of one whole", "--mask-share, --random-share", "let them sum to 1 at most")
    settings = Settings(
        length=arguments.length,
        predictions=arguments.predictions or predictions_for(arguments.length, arguments.rate),
        rate=arguments.rate,
        unit=arguments.unit,
        mask_share=arguments.mask_share,
        random_share=arguments.random_share,
        duplicates=arguments.duplicates,
        short=arguments.short,
        heldout=arguments.heldout,
        language=arguments.language,
        on_bad_bytes=arguments.on_bad_bytes,
        seed=arguments.seed,
    )
    manifest = prepare(
        arguments.inputs,
        arguments.tokenizer,
        arguments.out,
        settings,
        explicit_predictions=arguments.predictions is not None,
        shards=arguments.shards,
        workers=arguments.workers,
    )
    found = ", ".join(f"{split.records:,} {name}" for name, split in manifest.splits.items())
    print(f"{arguments.out}: {found} records; see them with: bert-data inspect {arguments.out} --random")
    return 0


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


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is below 1")
    return value


def _share(text: str) -> float:
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0 and at most 1")
    return value


def _fraction(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not within 0 and 1")
    return value


if __name__ == "__main__":
    sys.exit(main())
