"""Bad inputs, options and places: one sentence each, an exit status, and nothing lost.

`python -m tests.data_prep.test_bad_input` prints the table as Markdown. What each kind of file can have wrong with it
is told line by line in test_sources.py; here whole commands run, as from a terminal.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import random
import shlex
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from data_prep.cli import main
from tests.text import tiny

Make = Callable[[Path], object]


@dataclass(frozen=True)
class Case:
    """A command that cannot succeed, or only seems as if it could not.

    `make` prepares what is bad in a directory that holds a.txt, the tokenizers tok and other, and the data set data.
    `status` is the exit status; a command that ends with 0 must say what it did, on standard error or output.
    """

    name: str
    command: str
    message: str
    status: int = 1
    make: Make = lambda folder: None
    tokenizer: str = "tok"

    def run(self, folder: Path) -> tuple[int, str, str]:
        """Exit status, standard error, standard output."""
        self.make(folder)
        arguments = shlex.split(self.command)
        if arguments[0] == "shards":
            arguments[1:1] = ["--tokenizer", self.tokenizer, "--length", "32", "--workers", "1"]
            if "--out" not in arguments:
                arguments += ["--out", "out"]
        error, output = io.StringIO(), io.StringIO()
        with contextlib.chdir(folder), contextlib.redirect_stderr(error), contextlib.redirect_stdout(output):
            try:
                status = main(arguments)
            except SystemExit as left:
                assert isinstance(left.code, int)
                status = left.code
        return status, error.getvalue(), output.getvalue()


def world(folder: Path) -> None:
    """What every case finds."""
    (folder / "a.txt").write_text(tiny.text(60, seed=1))
    tiny.tokenizer().save(folder / "tok")
    (folder / "other").mkdir()
    (folder / "other" / "vocab.txt").write_text("\n".join([*tiny.PIECES, "more"]))
    with contextlib.redirect_stdout(io.StringIO()), contextlib.chdir(folder):
        assert main("shards a.txt --tokenizer tok --length 32 --workers 1 --out data --shards 2".split()) == 0


def file(name: str, content: bytes | Callable[[], bytes]) -> Make:
    """Makes a file."""

    def make(folder: Path) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content() if callable(content) else content)

    return make


def changed(name: str, old: str, new: str) -> Make:
    """Changes a file of text."""

    def make(folder: Path) -> None:
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new))

    return make


def pipe(folder: Path) -> None:
    """A named pipe that nobody writes to."""
    os.mkfifo(folder / "pipe.txt")


def no_permission(folder: Path) -> None:
    """A file that may not be read; for root, who may read all, one that a link in a ring stands for."""
    (folder / "locked.txt").write_text("x")
    (folder / "locked.txt").chmod(0)
    if os.access(folder / "locked.txt", os.R_OK):
        (folder / "locked.txt").unlink()
        (folder / "locked.txt").symlink_to("locked.txt")


def ring(folder: Path) -> None:
    """A directory that holds itself, and one text."""
    (folder / "ring").mkdir()
    (folder / "ring" / "again").symlink_to("..")
    (folder / "ring" / "a.txt").symlink_to("../a.txt")


def no_directory(folder: Path) -> None:
    """A name whose directory is a link to nowhere: nothing can be made there, not even by root."""
    (folder / "away").symlink_to("/nowhere/at/all")


TEXT = tiny.text(60, seed=1)
DOCUMENTS = TEXT.strip().split("\n\n")
NOISE = random.Random(0).randbytes(20_000)
ENGLISH = "The cat sat. A dog ran.\n"

INPUTS = [
    Case("an empty file", "shards e.txt", "e.txt: the input holds no text", make=file("e.txt", b"")),
    Case("one empty file of two", "shards a.txt e.txt", "e.txt: the input holds no text", make=file("e.txt", b" \n\n")),
    Case("a binary file", "shards b.txt", "b.txt: line 1 is not UTF-8", make=file("b.txt", b"\xff" + NOISE)),
    Case("NUL bytes", "shards n.txt", "n.txt: the file is binary: line 2", make=file("n.txt", b"good\nba\0d\n")),
    Case("UTF-16", "shards u.txt", "the file is UTF-16, not UTF-8", make=file("u.txt", TEXT.encode("utf-16"))),
    Case("invalid UTF-8", "shards u.txt", "line 2 is not UTF-8 at byte 8", make=file("u.txt", b"good\nbad\xe4\n")),
    Case(
        "half a gzip",
        "shards h.txt.gz",
        "the gzip stream is cut; copy or make it again",
        make=file("h.txt.gz", lambda: gzip.compress(TEXT.encode())[:900]),
    ),
    Case(
        "half a gzip, only estimated",
        "shards h.txt.gz --dry-run",
        "the gzip stream is cut",
        make=file("h.txt.gz", lambda: gzip.compress(TEXT.encode())[:900]),
    ),
    *(
        Case(
            f"text named {suffix}, only estimated",
            f"shards h.txt{suffix} --dry-run",
            f"the {stream} stream is damaged",
            make=file(f"h.txt{suffix}", TEXT.encode()),
        )
        for suffix, stream in ((".gz", "gzip"), (".zst", "zstd"), (".bz2", "bzip2"))
    ),
    Case(
        "one line of 200 MB",
        "shards long.txt",
        "holds 1 different document, at least 4 are needed",
        make=file("long.txt", lambda: b"The cat sat. " * 15_400_000),
    ),
    Case(
        "documents without a blank line between",
        "shards o.txt",
        "holds 1 different document, at least 4 are needed (2 of them held out); give more text, or end documents",
        make=file("o.txt", TEXT.replace("\n\n", "\n").encode()),
    ),
    Case(
        "documents without a word",
        "shards z.txt",
        "fewer than two documents with text",
        make=file("z.txt", "\n\n".join("\u200b" * n for n in range(1, 30)).encode()),
    ),
    Case("a directory of nothing", "shards nothing", "this directory is empty", make=lambda f: (f / "nothing").mkdir()),
    Case(
        "a directory of pictures",
        "shards p",
        "none of the 1 files in this directory is text",
        make=file("p/a.png", b"x"),
    ),
    Case("a name that matches nothing", "shards 'x*.txt'", "x*.txt: no file matches; check the path"),
    Case("an empty name", "shards ''", "argument inputs: the name is empty", 2),
    Case("a file that may not be read", "shards locked.txt", "locked.txt: ", make=no_permission),
    Case("a pipe, which can be read once", "shards pipe.txt", "this is a pipe, and inputs are read twice", make=pipe),
    Case(
        "a line break in a file's name",
        "shards 'a*b.txt'",
        r"a\nb.txt: the input holds no text",
        make=file("a\nb.txt", b""),
    ),
    Case(
        "JSON that is cut", "shards j.jsonl", "j.jsonl, line 1: this is not JSON", make=file("j.jsonl", b'{"text": "a')
    ),
    Case("one input under two names of a source", "shards x=a.txt y=./a.txt", 'two sources, "x" and "y"'),
    Case("a remote place without its library", "shards foo://b/a.txt", "this kind of URL cannot be opened"),
    Case("too few documents after cleaning", "shards a.txt --min-characters 9999", "others are dropped (60 as short)"),
]
FINE = [
    Case(
        "Windows newlines",
        "shards w.txt",
        "out: ",
        0,
        make=file("w.txt", TEXT.replace("\n", "\r\n").encode()),
    ),
    Case(
        "ids that are there twice",
        "shards d.jsonl",
        "out: ",
        0,
        make=file("d.jsonl", "\n".join(json.dumps({"id": 1, "text": d}) for d in DOCUMENTS).encode()),
    ),
    Case("one file by two names", "shards a.txt ./a.txt", "out: ", 0),
    Case("a directory that holds itself", "shards ring", "out: ", 0, make=ring),
    Case("a cap far below the rate", "shards a.txt --predictions 1", "beyond --predictions 1", 0),
    Case("the same command again", "shards a.txt --out data --shards 2", "already done: data", 0),
]
OPTIONS = [
    Case("all text held out", "shards a.txt --heldout 1", "--heldout: hardly anything would be left"),
    Case("no text held out", "shards a.txt --heldout 0", "argument --heldout: 0 is not above 0", 2),
    Case("every token chosen", "shards a.txt --rate 1", "argument --rate: 1 is not above 0 and below 1", 2),
    Case("a negative seed", "shards a.txt --seed -1", "argument --seed: -1 is below 0", 2),
    Case("no worker", "shards a.txt --workers 0", "argument --workers: 0 is below 1", 2),
    Case("rows of 7 tokens", "shards a.txt --length 7", "--length: rows of 7 tokens hold no pair"),
    Case("a thousand shards", "shards a.txt --shards 1000", "documents do not fill 1000 shards"),
    Case("a language nobody knows", "shards a.txt --language klingon", "no sentence rules are known for the language"),
    Case("no such segmenter", "shards a.txt --segmenter nonsense", "'nonsense' is no segmenter; give jieba"),
    Case("a segmenter that fails", "shards a.txt --segmenter os:listdir", "os:listdir: the segmenter failed on '"),
    Case(
        "a segmenter that gives no words", "shards a.txt --segmenter builtins:len", "builtins:len: the segmenter failed"
    ),
    Case("no such filter", "shards a.txt --filter nonsense:x", "there is no module nonsense"),
    Case("a filter that fails", "shards a.txt --filter os:listdir", "os:listdir: the filter failed on"),
    Case(
        "a weight for no source", "shards en=a.txt --weight fr=2", "--weight: no input is named fr; name it: fr=PATTERN"
    ),
    Case("two weights for a source", "shards en=a.txt --weight en=2 --weight en=3", "--weight: en has several weights"),
    Case("weights and smoothing", "shards en=a.txt --weight en=2 --smooth 0.7", "either weights or smoothing"),
    Case("evaluation texts that are not there", "shards a.txt --decontaminate x.txt", "x.txt: no file matches"),
    Case(
        "evaluation texts that are too short",
        "shards a.txt --decontaminate s.txt",
        "s.txt: no text has 13 words in a row",
        make=file("s.txt", ENGLISH.encode()),
    ),
    Case("options of Beam's that are cut", 'shards a.txt --beam "\'"', "--beam: the options are cut"),
    Case(
        "SentencePiece with a coverage it refuses",
        "tokenizer a.txt --out out --kind bpe --coverage 0.5",
        "--coverage: SentencePiece trains no tokenizer",
    ),
    Case(
        "more pieces than the text has",
        "tokenizer a.txt --out out --vocab 9999",
        "the text is too little for 9,999 pieces",
    ),
    Case("a record that is not there", "inspect data --record 99999", "data: there is no record 99999"),
    Case("pictures without a place", "stats data --out ''", "argument --out: the name is empty", 2),
]
PLACES = [
    Case("an output that is a file", "shards a.txt --out a.txt", "a.txt: this is a file"),
    Case("an output below a file", "tokenizer a.txt --out a.txt/x --vocab 60", "the directory cannot be written"),
    Case(
        "an output where nothing can be made",
        "shards a.txt --out away/x",
        "away/x: the directory cannot be written",
        make=no_directory,
    ),
    Case("an output without a name", "shards a.txt --out ''", "argument --out: the name is empty", 2),
    Case("an output among the inputs", "shards . --out new", "new: the output would lie in ., among the inputs"),
    Case("an output with other settings", "shards a.txt --out data", "with other settings (shards)"),
    Case(
        "an output from other text",
        "shards e.txt --shards 2 --out data",
        "with other settings (input files)",
        make=file("e.txt", TEXT.replace("cat", "dog").encode()),
    ),
    Case(
        "an output from another tokenizer",
        "shards a.txt --shards 2 --out data",
        "with other settings (tokenizer)",
        tokenizer="other",
    ),
    Case(
        "a manifest from another schema",
        "shards a.txt --shards 2 --out data",
        "the manifest has schema 99, this version reads 1",
        make=changed("data/manifest.json", '"schema": 1', '"schema": 99'),
    ),
    Case(
        "a manifest that is cut",
        "stats data",
        "data/manifest.json: the manifest is not JSON",
        make=file("data/manifest.json", b'{"tokenizer"'),
    ),
    Case(
        "shards of another run",
        "shards a.txt --out f",
        "no manifest but shards of another run; remove them",
        make=file("f/train-00000-of-00009.tfrecord", b"precious"),
    ),
    Case(
        "a tokenizer changed by hand",
        "shards a.txt",
        "changed after it was saved",
        make=lambda folder: (folder / "tok" / "vocab.txt").write_text("\n".join([*tiny.PIECES, "zebra"])),
    ),
    Case(
        "a tokenizer that is none",
        "shards a.txt",
        "p: the directory holds no tokenizer",
        tokenizer="p",
        make=file("p/a.png", b"x"),
    ),
    Case("a place for a tokenizer that is taken", "tokenizer a.txt --out tok", "tok: there is already a tokenizer"),
    Case("pictures where a file is", "stats data --out a.txt", "a.txt: the page cannot be written"),
]
CASES = [*INPUTS, *FINE, *OPTIONS, *PLACES]


def _standing(folder: Path) -> dict[str, bytes]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.stat().st_size < 1e8)
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def origin(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("origin")
    world(folder)
    return folder


@pytest.mark.parametrize("case", CASES, ids=[case.name.replace(" ", "_") for case in CASES])
def test_bad_input_is_one_sentence_and_nothing_is_lost(origin, tmp_path, case):
    _copy(origin, tmp_path)
    before = {}
    make = case.make

    def made(folder: Path) -> None:
        make(folder)
        before.update(_standing(folder))

    status, error, output = Case(case.name, case.command, case.message, case.status, made, case.tokenizer).run(tmp_path)
    assert status == case.status, error
    assert case.message in error + output
    if case.status == 1:
        last = error.removesuffix("\n").split("\n")[-1]
        assert case.message in last and last.startswith("bert-data: "), "one sentence, at the end"
        assert "Traceback" not in error and error.count("bert-data: ") == 1
    after = _standing(tmp_path)
    assert {name: after.get(name) for name in before} == before
    if case.status:
        made_anew = after.keys() - before.keys()
        assert not [name for name in made_anew if name.endswith((".tmp", "manifest.json", ".tfrecord"))]
        texts = {name for name in made_anew if name.endswith(".text")}
        assert {name.replace(".text", ".json") for name in texts} <= made_anew, "half of a text is of no use"
        assert case.status == 1 or not made_anew, "a wrong command line makes nothing"


@pytest.mark.parametrize("case", [case for case in OPTIONS if case.command.startswith("shards")][-9:])
def test_a_mended_command_is_not_held_up_by_the_refused_one(origin, tmp_path, case):
    _copy(origin, tmp_path)
    assert case.run(tmp_path)[0] == case.status
    assert Case("", "shards a.txt", "", 0).run(tmp_path)[0] == 0


def _copy(origin: Path, folder: Path) -> None:
    for path in sorted(origin.rglob("*")):
        target = folder / path.relative_to(origin)
        target.mkdir() if path.is_dir() else target.write_bytes(path.read_bytes())


def table() -> str:
    """The cases as a table in Markdown, each one run."""
    lines = ["| case | command | says | exit status |", "|---|---|---|---|"]
    with tempfile.TemporaryDirectory() as origin:
        world(Path(origin))
        for case in CASES:
            with tempfile.TemporaryDirectory() as folder:
                _copy(Path(origin), Path(folder))
                status, error, output = case.run(Path(folder))
            said = (error.strip() or output.strip()).split("\n")[-1].replace("|", r"\|")
            lines.append(f"| {case.name} | `{case.command}` | {said} | {status} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
