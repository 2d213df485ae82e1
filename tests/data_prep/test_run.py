"""The whole of `bert-data shards`: pure in its inputs, complete, honest about its rates."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from bert_jax.text.features import RecordSpec, check, restore
from bert_jax.text.manifest import load_manifest
from bert_jax.text.records import open_shard
from data_prep.cli import main
from tests.text import tiny


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A corpus in two files and a tokenizer."""
    folder = tmp_path_factory.mktemp("world")
    (folder / "a.txt").write_text(tiny.text(120, seed=1))
    (folder / "b.jsonl").write_text("\n".join(json.dumps({"text": d}) for d in tiny.text(90, 2).split("\n\n")))
    tiny.tokenizer().save(folder / "tok")
    return folder


def _shards(world: Path, out: Path, *more: str) -> int:
    inputs = [str(world / "a.txt"), str(world / "b.jsonl")]
    return main(["shards", *inputs, "--tokenizer", str(world / "tok"), "--out", str(out), "--length", "32", *more])


@pytest.fixture(scope="module")
def made(world, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("made") / "data"
    assert _shards(world, out, "--shards", "3", "--workers", "1", "--heldout", "0.1") == 0
    return out


def _read(out: Path, split: str) -> list[dict]:
    shards = [open_shard(out / info.name) for info in load_manifest(out).splits[split].shards]
    return [shard.read(np.arange(shard.num_records)) for shard in shards]


def test_worker_count_does_not_change_shards(world, made, tmp_path):
    assert _shards(world, tmp_path / "two", "--shards", "3", "--workers", "2", "--heldout", "0.1") == 0
    files = sorted(path.relative_to(made) for path in made.rglob("*") if path.is_file())
    assert files == sorted(
        path.relative_to(tmp_path / "two") for path in (tmp_path / "two").rglob("*") if path.is_file()
    )
    assert len(files) == 1 + 4 + 2 * (3 + 1)
    for name in files:
        assert (made / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name


def test_another_seed_makes_other_shards(world, made, tmp_path):
    assert _shards(world, tmp_path / "x", "--shards", "3", "--workers", "1", "--heldout", "0.1", "--seed", "1") == 0
    name = "train-00000-of-00003.tfrecord"
    assert (made / name).read_bytes() != (tmp_path / "x" / name).read_bytes()


def test_shards_hold_what_the_manifest_says(made):
    manifest = load_manifest(made)
    assert manifest.tokenizer == tiny.tokenizer().fingerprint == (made / "tokenizer/fingerprint").read_text().strip()
    assert [one["name"] for one in manifest.inputs] == ["a.txt", "b.jsonl"]
    for name, split in manifest.splits.items():
        chosen = 0
        for info, records in zip(split.shards, _read(made, name), strict=True):
            check(records, RecordSpec(manifest.length, manifest.predictions), manifest.vocab_size, info.name)
            mask = records["input_mask"]
            assert (info.records, info.tokens) == (len(mask), mask.sum())
            assert info.padding == mask.size - mask.sum()
            chosen += int(records["masked_lm_weights"].sum())
        assert chosen == split.rates["chosen"]
        labels = sum(int(records["next_sentence_labels"].sum()) for records in _read(made, name))
        assert labels == split.rates["random_next"]
        assert split.rates["masked"] + split.rates["kept"] + split.rates["random"] == chosen


def test_held_out_documents_are_never_trained_on(made):
    trained, held_out = (
        {int(n) for records in _read(made, name) for n in records["documents"].ravel()} for name in ("train", "heldout")
    )
    assert not trained & held_out
    assert trained | held_out == set(range(210)), "every document is in one of the splits"
    assert 2 <= len(held_out) <= 60


def test_equal_documents_go_to_the_same_split(tmp_path, world):
    texts = [document.strip() for document in tiny.text(40, 3).split("\n\n")]
    (tmp_path / "a.txt").write_text("\n\n".join(texts * 3))
    command = [
        "shards",
        str(tmp_path / "a.txt"),
        "--tokenizer",
        str(world / "tok"),
        "--out",
        str(tmp_path / "d"),
    ]
    assert main([*command, "--length", "32", "--heldout", "0.2", "--workers", "1"]) == 0
    split_of = {}
    for name in ("train", "heldout"):
        for records in _read(tmp_path / "d", name):
            for number in records["documents"].ravel().tolist():
                assert split_of.setdefault(number % 40, name) == name
    assert Counter(split_of.values())["heldout"] >= 2


def test_original_ids_are_the_documents_own(made, world):
    tokenizer = tiny.tokenizer()
    texts = (world / "a.txt").read_text().split("\n\n")
    texts += [json.loads(line)["text"] for line in (world / "b.jsonl").read_text().split("\n")]
    words = [tokenizer.encode_batch([text]).ids.tolist() for text in texts]
    for records in _read(made, "train"):
        ids = restore(records)
        for row in range(0, len(ids), 5):
            ends = np.flatnonzero(ids[row] == tokenizer.special.sep)
            segments = ids[row, 1 : ends[0]], ids[row, ends[0] + 1 : ends[1]]
            for number, segment in zip(records["documents"][row], segments, strict=True):
                document = ",".join(map(str, words[number]))
                assert ",".join(map(str, segment.tolist())) in document


def test_whole_words_are_masked_whole(world, tmp_path):
    assert _shards(world, tmp_path / "w", "--unit", "word", "--workers", "1", "--rate", "0.3") == 0
    several = 0
    for records in _read(tmp_path / "w", "train"):
        ids, starts = restore(records), records["word_starts"]
        chosen = np.zeros(ids.shape, bool)
        rows, slots = np.nonzero(records["masked_lm_weights"])
        chosen[rows, records["masked_lm_positions"][rows, slots]] = True
        special = ids < 5
        inside = ~starts[:, 1:] & ~special[:, 1:] & ~special[:, :-1]  # goes on with the word before it
        np.testing.assert_array_equal(chosen[:, 1:][inside], chosen[:, :-1][inside])
        several += int(chosen[:, 1:][inside].sum())
    assert several > 20
    rates = load_manifest(tmp_path / "w").splits["train"].rates
    assert abs(rates["chosen_rate"] - 0.3) < 0.02


def test_levels_fall_from_uniform_to_two_sided(made):
    levels = load_manifest(made).levels
    assert levels["uniform"]["loss"] == pytest.approx(np.log(len(tiny.PIECES)))
    assert levels["unigram"]["loss"] < levels["uniform"]["loss"]
    assert set(levels) == {"uniform", "unigram", "left_bigram", "two_sided_bigram"}


def test_the_same_again_is_already_done_and_other_settings_are_refused(world, made, capsys):
    arguments = ("--shards", "3", "--workers", "1", "--heldout", "0.1")
    before = {path: path.stat().st_mtime_ns for path in made.rglob("*")}
    assert _shards(world, made, *arguments) == 0
    assert "already done" in capsys.readouterr().err
    assert _shards(world, made, *arguments, "--rate", "0.2") == 1
    assert "other settings (rate)" in capsys.readouterr().err
    assert before == {path: path.stat().st_mtime_ns for path in made.rglob("*")}


def test_changed_text_is_noticed(world, tmp_path, capsys):
    for name in ("a.txt", "b.jsonl", "tok"):
        (tmp_path / name).symlink_to(world / name)
    assert _shards(tmp_path, tmp_path / "d", "--workers", "1") == 0
    (tmp_path / "a.txt").unlink()
    (tmp_path / "a.txt").write_text(tiny.text(120, seed=9))
    assert _shards(tmp_path, tmp_path / "d", "--workers", "1") == 1
    assert "input files" in capsys.readouterr().err


def _files(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


KILLED = """
import os, signal, sys

left, real = int(sys.argv.pop(1)), os.replace

def replace(*names):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    real(*names)

os.replace = replace
from data_prep.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("moment", [0, 4, 5, 6, 8, 10, 13, 16, 18])
def test_a_killed_run_goes_on_to_the_same_bytes(world, made, tmp_path, moment, capsys):
    # Killed when file number `moment` is about to get its name: files of the tokenizer, the job, the group, the
    # plan, the shards with index and note, the manifest.
    out = tmp_path / "d"
    inputs = [str(world / "a.txt"), str(world / "b.jsonl")]
    command = ["shards", *inputs, "--tokenizer", str(world / "tok"), "--out", str(out), "--length", "32"]
    command += ["--shards", "3", "--heldout", "0.1"]
    killed = subprocess.run([sys.executable, "-c", KILLED, str(moment), *command, "--workers", "1"])
    assert killed.returncode == -9
    assert not (out / "manifest.json").exists()
    standing = {path: path.stat().st_mtime_ns for path in out.glob("*.tfrecord") if _noted(out, path.name)}
    assert main([*command, "--workers", "2"]) == 0
    assert _files(out) == _files(made)
    assert all(path.stat().st_mtime_ns == then for path, then in standing.items()), "a finished shard was made again"


CLEARING = """
import os, shutil, signal, sys

def rmtree(directory):
    os.remove(os.path.join(directory, "group-00000.text"))
    os.kill(os.getpid(), signal.SIGKILL)

shutil.rmtree = rmtree
from data_prep.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("lost", [False, True])
def test_a_run_killed_while_it_clears_up_leaves_nothing(world, made, tmp_path, lost):
    # The manifest stands, the spool is half gone: it must neither stay nor be taken for whole.
    out = tmp_path / "d"
    inputs = [str(world / "a.txt"), str(world / "b.jsonl")]
    command = ["shards", *inputs, "--tokenizer", str(world / "tok"), "--out", str(out), "--length", "32"]
    command += ["--shards", "3", "--heldout", "0.1", "--workers", "1"]
    assert subprocess.run([sys.executable, "-c", CLEARING, *command]).returncode == -9
    assert (out / "manifest.json").exists() and (out / ".work").exists()
    (out / ".train-00001-of-00003.tfrecord.7.tmp").write_bytes(b"half")  # of a lost shard that was being made again
    if lost:
        (out / "train-00001-of-00003.tfrecord").unlink()
    assert main(command) == 0
    assert _files(out) == _files(made)
    assert not (out / ".work").exists()


def _noted(out: Path, name: str) -> bool:
    return (out / ".work" / f"{name}.json").exists()


def test_a_lost_shard_is_made_again_alone(world, made, tmp_path, capsys):
    out = tmp_path / "d"
    shutil.copytree(made, out)
    lost = out / "train-00001-of-00003.tfrecord"
    lost.write_bytes(lost.read_bytes()[:-1])
    kept = out / "train-00000-of-00003.tfrecord"
    before = kept.stat().st_mtime_ns
    assert _shards(world, out, "--shards", "3", "--workers", "1", "--heldout", "0.1") == 0
    assert "train-00001-of-00003.tfrecord" in capsys.readouterr().err
    assert _files(out) == _files(made)
    assert kept.stat().st_mtime_ns == before


def test_an_unfinished_run_of_other_settings_is_refused(world, tmp_path, capsys):
    out = tmp_path / "d"
    inputs = [str(world / "a.txt"), str(world / "b.jsonl")]
    command = ["shards", *inputs, "--tokenizer", str(world / "tok"), "--out", str(out), "--length", "32"]
    killed = subprocess.run([sys.executable, "-c", KILLED, "13", *command, "--workers", "1"])
    assert killed.returncode == -9 and list(out.glob("*.tfrecord"))
    before = _files(out)
    assert main([*command, "--rate", "0.2"]) == 1
    assert "unfinished run with other settings" in capsys.readouterr().err
    assert _files(out) == before


def test_an_unfinished_run_without_a_shard_gives_way_to_other_settings(world, made, tmp_path, capsys):
    out = tmp_path / "d"
    inputs = [str(world / "a.txt"), str(world / "b.jsonl")]
    command = ["shards", *inputs, "--tokenizer", str(world / "tok"), "--out", str(out), "--length", "32"]
    command += ["--workers", "1", "--shards", "3"]
    assert main([*command, "--min-characters", "99999"]) == 1
    assert "0 different documents when others are dropped (210 as short)" in capsys.readouterr().err
    assert main([*command, "--heldout", "0.1"]) == 0
    assert "no shard yet: begun anew" in capsys.readouterr().err
    assert _files(out) == _files(made)


def test_shards_of_another_run_are_not_mixed_in(world, tmp_path, capsys):
    out = tmp_path / "d"
    out.mkdir()
    (out / "train-00001-of-00009.tfrecord").write_bytes(b"precious")
    assert _shards(world, out, "--shards", "3", "--workers", "1") == 1
    assert "train-00001-of-00009" in capsys.readouterr().err
    assert (out / "train-00001-of-00009.tfrecord").read_bytes() == b"precious"


@pytest.mark.parametrize("workers", ["1", "2"])
def test_bad_input_found_by_a_worker_is_one_sentence(world, tmp_path, capsys, workers, monkeypatch):
    # Documents without a single token survive the plan and are found when a shard is made.
    (tmp_path / "a.txt").write_text("\n\n".join("\u200b" * n for n in range(1, 30)))
    command = [
        "shards",
        str(tmp_path / "a.txt"),
        "--tokenizer",
        str(world / "tok"),
        "--out",
        str(tmp_path / "d"),
    ]
    assert main([*command, "--length", "32", "--workers", workers]) == 1
    error = capsys.readouterr().err
    assert "fewer than two documents with text" in error and "Traceback" not in error
    assert not (tmp_path / "d" / "manifest.json").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--shards", "500"], "do not fill 500 shards"),
        (["--length", "7"], "no pair of sentences"),
        (["--mask-share", "0.95"], "one whole"),
        (["--tokenizer", "/nowhere/tok"], "/nowhere/tok: there is no tokenizer here"),
    ],
)
def test_settings_that_cannot_be_are_refused(world, tmp_path, capsys, change, message):
    assert _shards(world, tmp_path / "d", *change) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_full_disk_is_one_sentence_and_leaves_no_half_shard(world, tmp_path, workers):
    # A limit on the size of files stands in for the disk: the write fails in the same place.
    limited = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000));"
        "from data_prep.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [
        "shards",
        str(world / "a.txt"),
        "--tokenizer",
        str(world / "tok"),
        "--out",
        str(tmp_path / "d"),
    ]
    done = subprocess.run(
        [sys.executable, "-c", limited, *command, "--length", "32", "--shards", "2", "--workers", workers],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "-of-00002.tfrecord: the shard cannot be written" in done.stderr  # of two workers either may be first
    assert "Traceback" not in done.stderr
    assert {path.name for path in (tmp_path / "d").iterdir()} - {"heldout-00000-of-00001.tfrecord"} <= {
        "tokenizer",
        ".work",
        "heldout-00000-of-00001.tfrecord.idx",
    }


def test_too_few_documents_are_refused(world, tmp_path, capsys):
    (tmp_path / "a.txt").write_text("one document.\n\nand two.\n\nand three.\n\none document.\n")
    command = [
        "shards",
        str(tmp_path / "a.txt"),
        "--tokenizer",
        str(world / "tok"),
        "--out",
        str(tmp_path / "d"),
    ]
    assert main(command) == 1
    assert "the input holds 3 different documents" in capsys.readouterr().err


def test_four_documents_are_enough(world, tmp_path):
    (tmp_path / "a.txt").write_text(tiny.text(4))
    command = [
        "shards",
        str(tmp_path / "a.txt"),
        "--tokenizer",
        str(world / "tok"),
        "--out",
        str(tmp_path / "d"),
    ]
    assert main([*command, "--length", "32", "--workers", "1"]) == 0
    rates = {name: split.rates["documents"] for name, split in load_manifest(tmp_path / "d").splits.items()}
    assert rates == {"train": 2, "heldout": 2}


def test_a_cap_asked_for_is_a_reason_for_a_low_rate(world, tmp_path, capsys):
    assert _shards(world, tmp_path / "d", "--predictions", "2", "--workers", "1") == 0
    assert "beyond --predictions 2" in capsys.readouterr().err
    assert load_manifest(tmp_path / "d").splits["train"].rates["overflowed"] > 0


def test_usage_errors_exit_with_two(capsys):
    for arguments in ([], ["shards"], ["tokenizer", "x", "--out", "y", "--vocab", "0"], ["nonsense"]):
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
        assert stopped.value.code == 2
    capsys.readouterr()


def test_a_tokenizer_of_another_language_is_told(world, tmp_path, capsys):
    (tmp_path / "a.txt").write_text(tiny.text(40).replace("a", "\uac00"))
    command = ["shards", str(tmp_path / "a.txt"), "--tokenizer", str(world / "tok"), "--out", str(tmp_path / "d")]
    assert main([*command, "--length", "32", "--workers", "1"]) == 0
    assert "of the tokens are unknown to the tokenizer" in capsys.readouterr().err


def test_ctrl_c_while_workers_start_is_one_sentence(world, made, tmp_path):
    out = tmp_path / "d"
    inputs = [str(world / "a.txt"), str(world / "b.jsonl")]
    command = ["shards", *inputs, "--tokenizer", str(world / "tok"), "--out", str(out), "--length", "32"]
    command += ["--shards", "3", "--heldout", "0.1", "--workers", "2"]
    run = subprocess.Popen(
        [sys.executable, "-m", "data_prep.cli", *command], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    while run.poll() is None and not (out / ".work" / "documents").exists():
        pass  # the plan stands: next, processes start
    os.killpg(run.pid, signal.SIGINT)
    error = run.communicate()[1]
    assert "Traceback" not in error and run.returncode in (0, 130)  # 0: it came in the moment that is not heard
    assert run.returncode == 0 or error.splitlines()[-1].endswith("interrupted; run the same command again")
    assert main(command) == 0
    assert _files(out) == _files(made)
