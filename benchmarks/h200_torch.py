"""The same training steps in PyTorch, on the same device: transformers' BERT, SDPA, compiled, bfloat16, fused AdamW.

    python -m benchmarks.h200_torch            # beside benchmarks/h200.py: the same cases and the same batches
    python -m benchmarks.h200_torch --tiny     # on a CPU

A JSON line a result. Masked positions are gathered before the vocabulary, as our step does it. Rows "mask": padded
ones as transformers takes them, packed ones by a boolean mask of every pair; "full": every row as one sequence without
a mask, which lets PyTorch use its fastest kernel and is no training of these batches: a bound. AdamW in all cases.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from typing import Any

from benchmarks.cases import CASES, TINY, Case, make_batch
from benchmarks.h200_parts import attempt
from bert_jax import cost


def make_step(case: Case, masked: bool, compiled: bool, device: str) -> tuple[Any, Any]:
    """A function that trains one step and returns its loss, and the work of a batch."""
    import torch
    import transformers

    config = case.config()
    settings = transformers.BertConfig(
        vocab_size=case.vocabulary,
        hidden_size=config.width,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        intermediate_size=config.feed_forward,
        max_position_embeddings=config.positions,
        hidden_act="gelu_pytorch_tanh",
        attention_probs_dropout_prob=0.0,
        attn_implementation="sdpa",
    )
    model = transformers.BertForPreTraining(settings).to(device).train()
    arrays, work = make_batch(case)
    batch = {name: torch.as_tensor(x, device=device) for name, x in arrays.items()}
    ids = {name: batch[name].long() for name in ("input_ids", "segment_ids", "position_ids", "mlm_labels")}
    mask = None
    if masked and case.packed:
        mask = (batch["sequence_ids"][:, :, None] == batch["sequence_ids"][:, None, :])[:, None]
    elif masked:
        mask = batch["sequence_ids"].long()
    rows = torch.arange(case.rows, device=device)[:, None]
    places, starts = batch["mlm_positions"].long(), batch["cls_positions"].long()

    def loss() -> Any:
        with torch.autocast(device, dtype=torch.bfloat16):
            hidden = model.bert(
                input_ids=ids["input_ids"],
                attention_mask=mask,
                token_type_ids=ids["segment_ids"],
                position_ids=ids["position_ids"],
            ).last_hidden_state
            logits = model.cls.predictions(hidden[rows, places])
            pooled = model.bert.pooler.activation(model.bert.pooler.dense(hidden[rows, starts]))
            pairs = model.cls.seq_relationship(pooled)
        total = torch.zeros((), device=device)
        for scores, labels, weights in (
            (logits, ids["mlm_labels"], batch["mlm_weights"]),
            (pairs, batch["nsp_labels"].long(), batch["nsp_weights"]),
        ):
            entropy = torch.nn.functional.cross_entropy(
                scores.float().flatten(0, 1), labels.flatten(), reduction="none"
            )
            total = total + (entropy * weights.flatten()).sum() / weights.sum()
        return total

    forward = torch.compile(loss) if compiled else loss
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step() -> Any:
        optimizer.zero_grad(set_to_none=True)
        value = forward()
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return value.detach()

    return step, work


def measure(case: Case, masked: bool, compiled: bool, device: str, steps: int) -> dict[str, Any]:
    import torch

    def drain() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    torch.manual_seed(0)
    step, work = make_step(case, masked, compiled, device)
    start = time.perf_counter()
    value = step()
    drain()
    first = time.perf_counter() - start
    for _ in range(2):
        step()
    blocks = []
    for _ in range(3):
        drain()
        start = time.perf_counter()
        for _ in range(max(steps // 3, 1)):
            value = step()
        drain()
        blocks.append((time.perf_counter() - start) / max(steps // 3, 1))
    took = statistics.median(blocks)
    kind = cost.of_kind(torch.cuda.get_device_name()) if device == "cuda" else None
    flops = cost.train_flops(case.config(), work) / took
    return {
        "first_s": round(first, 2),
        "ms": round(took * 1e3, 3),
        "sequences_s": round(work.sequences / took, 1),
        "useful_tokens_s": round(work.tokens / took),
        "MFU": round(cost.mfu(flops, 1, kind.tflops), 4) if kind else None,
        "peak_GB": round(torch.cuda.max_memory_allocated() / 1e9, 3) if device == "cuda" else None,
        "loss": round(float(value), 4),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tiny", action="store_true", help="small sizes, for a CPU")
    parser.add_argument("--only", default="", metavar="CASE", help="the cases whose names begin so, such as base@128")
    parser.add_argument("--eager", action="store_true", help="without torch.compile too")
    args = parser.parse_args()
    try:
        import torch
        import transformers
    except ImportError as error:
        print(f"PyTorch's side cannot run here: {error}", file=sys.stderr)
        return 1
    device = "cuda" if torch.cuda.is_available() else "cpu"
    name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    versions = {"torch": torch.__version__, "transformers": transformers.__version__, "device": name}
    print(json.dumps({"part": "torch", **versions}), flush=True)
    failed = 0
    for case in (TINY if args.tiny else CASES).values():
        if not case.name.startswith(args.only):
            continue
        for masked in (True, False):
            for compiled in (True, False) if args.eager else (True,):
                about = {
                    "part": "torch",
                    "case": case.name,
                    "rows": "mask" if masked else "full",
                    "compiled": compiled,
                }

                def one(case: Case = case, masked: bool = masked, compiled: bool = compiled) -> dict[str, Any]:
                    return measure(case, masked, compiled, device, 3 if args.tiny else 30)

                line = attempt(about, one)
                failed += "error" in line
                print(json.dumps(line), flush=True)
                torch.compiler.reset()
                if device == "cuda":
                    torch.cuda.empty_cache()
    return 1 if failed and args.tiny else 0


if __name__ == "__main__":
    sys.exit(main())
