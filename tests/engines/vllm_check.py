"""Compare vLLM with transformers on a checkpoint folder: log-probabilities of the same tokens. Needs vLLM, so no test runs it.

    pip install vllm
    python tests/engines/vllm_check.py runs/llama/model-portable [--text FILE] [--tokens 256] [--dtype float32]
    python tests/engines/vllm_check.py runs/llama/model --tensor-parallel 2

The checkpoint has an architecture name of its own, so vLLM takes its Transformers backend for it. That backend loads
layers of different widths and absent MLPs; where attention is absent, give the portable form. Exits with 0 where all
log-probabilities agree within --tolerance, with 1 where they do not, with 2 where the checkpoint cannot be checked.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

TEXT = (
    "The quick brown fox jumps over the lazy dog. def close(self):\n    self.file.close()\n\n"
    "In 1969 people walked on the moon; they came back with 21.5 kilograms of rock. "
)


def transformers_log_probabilities(folder: Path, text: str, count: int, dtype: str) -> tuple[list[int], list[float]]:
    """The first `count` tokens of the text, and the log-probability of each but the first given those before."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    tokens = tokenizer(text)["input_ids"][:count]
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype=getattr(torch, dtype))
    model = model.eval().to("cuda" if torch.cuda.is_available() else "cpu")
    with torch.no_grad():
        logits = model(torch.tensor([tokens], device=model.device)).logits[0, :-1].float()
    following = torch.tensor(tokens[1:], device=logits.device)[:, None]
    return tokens, logits.log_softmax(-1).gather(1, following)[:, 0].tolist()


def vllm_log_probabilities(folder: Path, tokens: list[int], dtype: str, devices: int) -> list[float]:
    """The same of vLLM."""
    from vllm import LLM, SamplingParams  # type: ignore[import-not-found]

    engine = LLM(str(folder), trust_remote_code=True, dtype=dtype, tensor_parallel_size=devices, enforce_eager=True)
    asked = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0)
    (answer,) = engine.generate([{"prompt_token_ids": tokens}], asked)
    return [found[token].logprob for token, found in zip(tokens[1:], answer.prompt_logprobs[1:])]


def unfit(folder: Path) -> str | None:
    """Why vLLM cannot take the folder; None where it can."""
    if not (folder / "config.json").is_file():
        return f"'{folder}' is no checkpoint folder"
    layers = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("per_layer_config", {})
    if any("attention" in layer.get("skip", ()) for layer in layers.values()):
        return f"'{folder}' has layers without attention: run `darwinlm export {folder} --portable` and check that form"
    return None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="folder that darwinlm export has written")
    parser.add_argument("--text", type=Path, help="file with a text; by default two sentences, repeated")
    parser.add_argument("--tokens", type=int, default=256, help="tokens that are compared")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--tolerance", type=float, help="by default 1e-3 in float32, 0.25 else")
    parser.add_argument("--tensor-parallel", type=int, default=1, help="devices that vLLM splits the model over")
    args = parser.parse_args()
    if reason := unfit(args.checkpoint):
        print(reason, file=sys.stderr)
        return 2
    text = args.text.read_text(encoding="utf-8") if args.text else TEXT * 20
    tokens, ours = transformers_log_probabilities(args.checkpoint, text, args.tokens, args.dtype)
    theirs = vllm_log_probabilities(args.checkpoint, tokens, args.dtype, args.tensor_parallel)
    gaps = [abs(a - b) for a, b in zip(ours, theirs, strict=True)]
    tolerance = args.tolerance or (1e-3 if args.dtype == "float32" else 0.25)
    agree = max(gaps) <= tolerance
    print(
        f"{len(gaps)} tokens: largest difference {max(gaps):.2e}, mean {sum(gaps) / len(gaps):.2e}, allowed {tolerance:g}"
    )
    print("vLLM and transformers agree." if agree else "vLLM and transformers DIFFER.")
    return 0 if agree else 1


if __name__ == "__main__":
    sys.exit(main())
