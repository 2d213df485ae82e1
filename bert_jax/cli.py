"""`bert-jax`: verb → module, lazily. A `UserError` becomes one line."""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
import threading
from collections.abc import Sequence
from types import FrameType

from bert_jax import heap
from bert_jax.errors import UserError

# Verb → (module, what it does).
VERBS = {
    "pretrain": ("pretrain", "train on shards; the same command continues a run"),
    "plan": ("plan", "what a run will cost and whether it fits, before it begins"),
    "finetune": ("finetune", "fit an encoder to a task, over learning rates and seeds, and measure it"),
    "predict": ("predict", "what a fine-tuned model says of texts: JSON lines in, JSON lines out"),
    "evaluate": ("evaluate", "exact held-out metrics of a checkpoint, or of a fine-tuned model on a file"),
    "replay": ("replay", "compute one step of a run again and show norms by layer"),
    "report": ("report", "curves and closing table of a run"),
    "compare": ("compare", "curves of several runs over each other, and the settings that differ"),
    "import": ("import_model", "read a BERT from elsewhere: transformers, TensorFlow, Flax"),
    "export": ("export", "write a model as other libraries' files"),
    "vocabulary": ("vocabulary", "add words to a model's vocabulary, trim it to texts, or resize its table"),
    "doctor": ("doctor", "look for what would stop or spoil a run, before it begins"),
    "fill-mask": ("fill_mask", "the likeliest pieces for each [MASK] of a text"),
}


class Terminated(KeyboardInterrupt):
    """SIGTERM, with which schedulers and platforms say that a machine is taken away."""


def _terminate(number: int, frame: FrameType | None) -> None:
    raise Terminated


def _heard(unraisable: sys.UnraisableHookArgs) -> None:
    """A signal that comes inside a callback of XLA's, where Python drops what is raised, is sent once more."""
    if not isinstance(unraisable.exc_value, KeyboardInterrupt):
        return sys.__unraisablehook__(unraisable)
    number = signal.SIGTERM if isinstance(unraisable.exc_value, Terminated) else signal.SIGINT
    threading.Timer(0.01, os.kill, (os.getpid(), number)).start()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb.

    Returns:
        The exit status: 0 done, 1 something a person must mend, 2 usage, 75 stopped by notice, and the same command
        goes on; 130 and 143 by Ctrl-C and SIGTERM otherwise.
    """
    own_process = arguments is None
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    # only the verb that is asked for is imported: help and errors cost no JAX
    asked = next((word for word in arguments if not word.startswith("-")), None)
    if own_process and asked in ("pretrain", "finetune") and (tunables := heap.tunables(os.environ)):
        # the same process begins once more, which costs what starting Python does
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | {"GLIBC_TUNABLES": tunables})
    try:
        if own_process and asked != "pretrain":  # which saves first
            signal.signal(signal.SIGTERM, _terminate)
            sys.unraisablehook = _heard
        module = importlib.import_module(f"bert_jax.{VERBS[asked][0]}") if asked in VERBS else None
        parser = argparse.ArgumentParser(prog="bert-jax", description="BERT, whole, in JAX.")
        verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
        for verb, (_, line) in VERBS.items():
            sub = verbs.add_parser(verb, help=line, description=line)
            if module and verb == asked:
                module.add_arguments(sub)
        args = parser.parse_args(arguments)
        assert module is not None  # argparse has refused every other case
        return module.run(args)
    except UserError as error:
        print(f"bert-jax {asked}: {error}", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, RuntimeError) as error:
        # Python 3.11 puts what a descriptor's `__set_name__` raises into a RuntimeError: classes of what is imported
        notice = error.__cause__ if isinstance(error, RuntimeError) else error
        if not isinstance(notice, KeyboardInterrupt):
            raise
        goes_on = asked in ("pretrain", "finetune")
        again = "run the same command again" if goes_on else "files that stand are whole"
        print(f"bert-jax {asked}: interrupted; {again}", file=sys.stderr, flush=True)
        status = 130 if not isinstance(notice, Terminated) else 75 if goes_on else 143
        if own_process and asked != "pretrain":  # whose savers end by themselves
            sys.stdout.flush()
            os._exit(status)  # XLA's threads may still compute, and crash in an interpreter that is taken down
        return status
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


if __name__ == "__main__":
    sys.exit(main())
