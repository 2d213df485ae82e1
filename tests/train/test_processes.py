"""Processes that miss, fail, die or hang: real ones on this machine, and what the others say before they end."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from bert_jax.errors import UserError
from bert_jax.train.processes import StepWatch, call_roll, last_steps, numbered
from tests.several import finish, free_port, start

HOST = socket.gethostname()


def several(count: int, body: str, step_timeout: float = 0) -> list[tuple[int, str, str]]:
    """Run a body in so many joined processes, where it knows `me` and `watch`: status, output and errors of each."""
    code = "import os, signal, sys, threading, jax\nfrom bert_jax.errors import UserError\n"
    code += "from bert_jax.train import processes\n"
    code += f"with processes.joined(True, 300, {step_timeout}, silence=6) as watch:\n"
    code += "    me = processes.process_index()\n" + "".join(f"    {line}\n" for line in body.splitlines())
    port = free_port()
    return finish([start(count, number, port, "-c", code) for number in range(count)])


# ------------------------------------------------------------------------------------------------------- joining


def test_a_roll_call_lets_all_go_when_all_have_come() -> None:
    port = free_port()
    with ThreadPoolExecutor() as threads:
        for done in [threads.submit(call_roll, f"127.0.0.1:{port}", 4, number, 30.0) for number in (3, 1, 0, 2)]:
            done.result()


def test_whoever_does_not_come_is_named_on_every_process_that_did() -> None:
    port = free_port()
    with ThreadPoolExecutor() as threads:
        for done in [threads.submit(call_roll, f"127.0.0.1:{port}", 4, number, 1.0) for number in (0, 2)]:
            with pytest.raises(UserError, match="2 of 4 processes came within 1 s, missing process 1, process 3;"):
                done.result()


def test_a_first_process_that_does_not_answer_is_named_with_its_address() -> None:
    address = f"127.0.0.1:{free_port()}"
    with pytest.raises(UserError, match=f"process 2 of 4 on {HOST}: the first process did not answer at {address}"):
        call_roll(address, 4, 2, 0.5)


def test_strangers_at_the_port_are_not_counted() -> None:
    port = free_port()
    with ThreadPoolExecutor() as threads:
        counting = threads.submit(call_roll, f"127.0.0.1:{port}", 2, 0, 30.0)
        for line in (b"GET / HTTP/1.1\n", b"bert_jax 7\n", b"bert_jax 0\n"):
            while True:
                try:
                    with socket.create_connection(("127.0.0.1", port)) as stranger:
                        stranger.sendall(line)
                        assert stranger.recv(1) == b""  # shown the door
                    break
                except ConnectionRefusedError:
                    continue
        assert not counting.done()
        call_roll(f"127.0.0.1:{port}", 2, 1, 30.0)
        counting.result()


# -------------------------------------------------------------------------------------------- waiting and telling


def test_a_barrier_passes_when_all_come_and_names_who_does_not() -> None:
    body = """
processes.barrier("all", 60)
print(processes.gather("square", me * me, 60))
if me == 1: threading.Event().wait()
processes.barrier("two of three", 5)
"""
    missing = f"two of three: process 1 ({HOST}) did not come within 5 s; see the log of that host"
    for status, out, errors in (ended := several(3, body)):
        assert "{0: 0, 1: 1, 2: 4}" in out and missing in errors and status == 1, ended


def test_a_run_that_goes_well_ends_well() -> None:
    assert [status for status, _, _ in several(2, "watch.done(7)")] == [0, 0]


# ------------------------------------------------------------------------------------------------ ending together


@pytest.mark.parametrize("culprit", [0, 1])
def test_an_error_on_one_process_ends_the_other_at_once(culprit: int) -> None:
    """JAX alone would let it wait for five minutes."""
    body = f'if me == {culprit}: raise UserError("the disk is full", "/run", "make room")\nthreading.Event().wait()'
    ended = several(2, body)
    assert [status for status, _, _ in ended] == [1, 1], ended
    assert f"bert-jax, process {culprit}: /run: the disk is full; make room\n" == ended[culprit][2]
    assert f"process {culprit} ({HOST}) ended: /run: the disk is full; make room" in ended[1 - culprit][2]


def test_a_bug_on_one_process_keeps_its_traceback_there() -> None:
    ended = several(2, "if me == 1: 1 / 0\nthreading.Event().wait()")
    assert [status for status, _, _ in ended] == [1, 1], ended
    assert "Traceback" in ended[1][2] and "Traceback" not in ended[0][2]
    assert f"process 1 ({HOST}) ended: ZeroDivisionError: division by zero" in ended[0][2]


@pytest.mark.parametrize(
    "waiting", ["threading.Event().wait()", "jax.experimental.multihost_utils.sync_global_devices('x')"]
)
def test_a_process_that_dies_is_named_with_its_last_step(waiting: str) -> None:
    """The survivor waits in Python or in a collective of the devices."""
    body = f"""
from jax.experimental.multihost_utils import sync_global_devices
sync_global_devices("both")
watch.done(812 + me)
processes.gather("told", watch._tell(), 60)
if me == 1: os.kill(os.getpid(), signal.SIGKILL)
{waiting}
"""
    (status, _, errors), (killed, _, _) = several(2, body)
    assert (status, killed) == (75, -signal.SIGKILL), errors
    assert f"no sign of life for 6 s from process 1 ({HOST})" in errors
    assert f"last steps: step 812: process 0 ({HOST}); step 813: process 1 ({HOST})" in errors
    assert "the same command goes on from the newest checkpoint" in errors


def test_steps_that_stop_end_the_run_with_every_process_s_last_step() -> None:
    ended = several(2, "watch.done(5 - me)\nthreading.Event().wait()", step_timeout=2)
    assert {status for status, _, _ in ended} == {75}, ended
    said = (
        f"no step was finished for 2 s (train.step_timeout); last steps: step 4: process 1 ({HOST}); step 5: process 0"
    )
    assert said in ended[0][2] or said in ended[1][2], ended


def test_steps_that_never_begin_are_for_a_person_to_mend() -> None:
    code = "import threading\nfrom bert_jax.train.processes import joined\n"
    code += "with joined(False, step_timeout=0.2, silence=0.6): threading.Event().wait()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and done.stderr.startswith("bert-jax: no step was finished for 1 s"), done.stderr
    assert f"none yet: process 0 ({HOST})" in done.stderr


def test_a_watch_that_is_left_has_no_thread() -> None:
    with StepWatch(seconds=100, silence=0.06) as watch:
        watch.compiling()
        watch.done(1)
        assert any(thread.name == "StepWatch" for thread in threading.enumerate())
    assert not any(thread.name == "StepWatch" for thread in threading.enumerate())


def test_many_processes_are_told_in_few_words() -> None:
    assert numbered(list(range(2, 12))).endswith("process 9 and 2 more")
    assert last_steps({}) == ""
