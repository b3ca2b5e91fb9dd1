"""Train the embedded demo model: a small GQA Llama on the Python source of the machine's standard library.

    python recipes/demo_model/train.py --output src/darwinlm/demo_model

About an hour on 2 CPU cores. Writes float16 safetensors, a byte-level BPE tokenizer, a model card and
`training.jsonl`; the card holds the held-out perplexity that this recipe measured.
"""

import argparse
import json
import math
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from darwinlm.data.stdlib import stdlib_documents

VOCABULARY = 3072
END = "<|endoftext|>"
CARD = """---
license: apache-2.0
language: code
tags: [darwinlm, demo]
---
# DarwinLM demo model

A {parameters:,}-parameter Llama ({layers} layers, hidden size {hidden}, {heads} query heads in {groups} key-value groups,
intermediate size {intermediate}, tied embeddings) trained from scratch on the Python source of CPython {python}'s
standard library, for demonstrations and tests. It knows nothing else and must not be used for anything else.

- Files: the library and its tests, without encoding tables; one file in sixteen (by a hash of its path) is held out.
- Training: {tokens:,} tokens in {minutes:.0f} minutes on 2 CPU cores, AdamW, peak learning rate {lr}, cosine, windows of
  {window} tokens. `recipes/demo_model/train.py` makes it again.
- Held-out perplexity: {perplexity:.2f} per token, {bits:.3f} bits per byte, over {held_out:,} tokens.
"""


def train_tokenizer(documents: list[str]) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=END, eos_token=END)


def windows(tokenizer: PreTrainedTokenizerFast, documents: list[str], length: int) -> torch.Tensor:
    """(windows, length) int64: all documents joined by the end token and cut."""
    end = tokenizer.eos_token_id
    stream = [token for ids in tokenizer(documents)["input_ids"] for token in (*ids, end)]
    count = len(stream) // length
    return torch.tensor(stream[: count * length]).view(count, length)


@torch.no_grad()
def held_out_nll(model: PreTrainedModel, blocks: torch.Tensor) -> float:
    """Mean next-token negative log-likelihood in nats."""
    total = 0.0
    for batch in blocks.split(16):
        logits = model(batch).logits[:, :-1]
        total += cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="sum").item()
    return total / (blocks.shape[0] * (blocks.shape[1] - 1))


def learning_rate(step: int, steps: int, peak: float, warmup: int = 100) -> float:
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return peak * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))


def small_llama(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=640,
        num_hidden_layers=6,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=16,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return LlamaForCausalLM(config)


def cross_entropy_of(model: PreTrainedModel, batch: torch.Tensor) -> torch.Tensor:
    logits = model(batch).logits[:, :-1]
    return cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())


def fit(
    model: PreTrainedModel,
    train: torch.Tensor,
    args: argparse.Namespace,
    history: TextIO,
    loss_of: Callable[[PreTrainedModel, torch.Tensor], torch.Tensor] = cross_entropy_of,
) -> float:
    """Train in place; returns the seconds that it took."""
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.95), fused=True)

    order, started = torch.empty(0, dtype=torch.int64), time.perf_counter()
    for step in range(args.steps):
        if len(order) < args.batch:
            order = torch.cat([order, torch.randperm(len(train))])
        batch, order = train[order[: args.batch]], order[args.batch :]
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, args.steps, args.lr)
        loss = loss_of(model, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 50 == 0:
            seconds = time.perf_counter() - started
            record = {"step": step, "loss": round(loss.item(), 4), "seconds": round(seconds, 1)}
            print(json.dumps(record), file=history, flush=True)
    return time.perf_counter() - started


def asked(words: str | None, steps: int, lr: float) -> argparse.Namespace:
    """The flags of a training; from here on its random numbers are those of the seed."""
    parser = argparse.ArgumentParser(description=words, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--batch", type=int, default=8, help="windows a step")
    parser.add_argument("--window", type=int, default=256, help="tokens a window")
    parser.add_argument("--lr", type=float, default=lr)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    return args


def main() -> None:
    args = asked(__doc__, steps=4800, lr=2e-3)

    fitted = list(stdlib_documents(held_out=False, tests=True))
    held_out = list(stdlib_documents(held_out=True))
    tokenizer = train_tokenizer(list(stdlib_documents(held_out=False)))
    train, valid = windows(tokenizer, fitted, args.window), windows(tokenizer, held_out, args.window)
    print(f"{train.numel():,} tokens to fit, {valid.numel():,} held out", flush=True)

    model = small_llama(tokenizer)
    config = model.config
    args.output.mkdir(parents=True, exist_ok=True)
    history = (args.output / "training.jsonl").open("w")
    seconds = fit(model, train, args, history)
    model = model.half().float().eval()
    nll = held_out_nll(model, valid)
    held_out_bytes = sum(len(text.encode()) for text in held_out)
    record = {"held_out_perplexity": math.exp(nll), "bits_per_byte": nll / math.log(2) * valid.numel() / held_out_bytes}
    print(json.dumps(record), file=history, flush=True)
    model.half().save_pretrained(args.output)
    tokenizer.save_pretrained(args.output)
    card = CARD.format(
        parameters=model.num_parameters(),
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        heads=config.num_attention_heads,
        groups=config.num_key_value_heads,
        intermediate=config.intermediate_size,
        python=platform.python_version(),
        tokens=args.steps * args.batch * args.window,
        minutes=seconds / 60,
        lr=args.lr,
        window=args.window,
        perplexity=record["held_out_perplexity"],
        bits=record["bits_per_byte"],
        held_out=valid.numel(),
    )
    (args.output / "README.md").write_text(card)
    print(card)


if __name__ == "__main__":
    main()
