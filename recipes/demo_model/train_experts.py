"""Train a small mixture of experts on the text and with the tokenizer of the embedded demo model, for benchmarks.

    python recipes/demo_model/train_experts.py --output /tmp/experts

Minutes on one CPU core. A Qwen3-MoE of 4 layers: 16 experts of 64 columns each, of which a token takes 2.
"""

import json
import math
from pathlib import Path

import torch
from train import asked, fit, held_out_nll, windows
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast, Qwen3MoeConfig, Qwen3MoeForCausalLM

import darwinlm
from darwinlm.data.stdlib import stdlib_documents


def small_mixture(tokenizer: PreTrainedTokenizerFast) -> Qwen3MoeForCausalLM:
    config = Qwen3MoeConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        moe_intermediate_size=64,
        num_experts=16,
        num_experts_per_tok=2,
        norm_topk_prob=True,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=16,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        router_aux_loss_coef=0.01,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return Qwen3MoeForCausalLM(config)


def balanced_loss(model: PreTrainedModel, batch: torch.Tensor) -> torch.Tensor:
    """Cross entropy, and what keeps the router from taking few experts alone."""
    return model(batch, labels=batch, output_router_logits=True).loss


def main() -> None:
    args = asked(__doc__, steps=2400, lr=3e-3)
    tokenizer = AutoTokenizer.from_pretrained(Path(darwinlm.__file__).parent / "demo_model")
    fitted, held_out = (list(stdlib_documents(held_out=held, tests=not held)) for held in (False, True))
    train, valid = windows(tokenizer, fitted, args.window), windows(tokenizer, held_out, args.window)
    model = small_mixture(tokenizer)
    args.output.mkdir(parents=True, exist_ok=True)
    with (args.output / "training.jsonl").open("w") as history:
        seconds = fit(model, train, args, history, balanced_loss)
        nll = held_out_nll(model.eval(), valid)
        facts = {"parameters": model.num_parameters(), "seconds": round(seconds), "perplexity": round(math.exp(nll), 2)}
        print(json.dumps(facts), file=history)
    model.save_pretrained(args.output)
    tokenizer.save_pretrained(args.output)
    print(facts)


if __name__ == "__main__":
    main()
