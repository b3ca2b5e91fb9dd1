"""What vLLM makes of checkpoints, asked in vLLM's own environment: `python vllm_answers.py QUESTIONS ANSWERS`, both JSON."""

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path
from typing import Any


def answer(folder: str, sequences: list[list[int]], prompts: list[int], options: dict[str, Any]) -> dict[str, Any]:
    """Log-probabilities by vLLM in float32.

    Args:
        folder: the checkpoint.
        sequences: of token ids.
        prompts: how many tokens of each are its prompt.
        options: more arguments of `vllm.LLM`.

    Returns:
        `scored` (of each token of a sequence given those before), `cold` and `warm` (greedy tokens after the prompts and
        theirs, without and with a cache that holds the prompt), `reused` tokens of that cache, the model's class, the
        attentions that have pages in the cache, and the modules of DarwinLM that were imported.
    """
    from vllm import LLM, SamplingParams  # type: ignore[import-not-found]

    limits = {"max_model_len": 128, "max_num_seqs": 4, "block_size": 32}
    engine = LLM(
        folder, **{"dtype": "float32", "enforce_eager": True, "enable_prefix_caching": True, **limits, **options}
    )

    def ask(tokens: list[list[int]], **settings: Any) -> Any:
        asked = SamplingParams(temperature=0, ignore_eos=True, **settings)
        return engine.generate([{"prompt_token_ids": row} for row in tokens], asked, use_tqdm=False)

    def written() -> tuple[list[Any], list[int]]:
        count = len(sequences[0]) - prompts[0]
        found = ask([row[:length] for row, length in zip(sequences, prompts)], max_tokens=count, logprobs=0)
        steps = [[(token, step[token].logprob) for token, step in zip(x.token_ids, x.logprobs)] for x in outputs(found)]
        return steps, [each.num_cached_tokens for each in found]

    cold, _ = written()
    warm, reused = written()
    scored = [
        [step[token].logprob for token, step in zip(row[1:], each.prompt_logprobs[1:])]
        for row, each in zip(sequences, ask(sequences, max_tokens=1, prompt_logprobs=0))
    ]
    executor = engine.llm_engine.engine_core.engine_core.model_executor
    worker = getattr(executor, "driver_worker", None)  # where it runs in this process
    return {
        "scored": scored,
        "cold": cold,
        "warm": warm,
        "reused": reused,
        "model": worker and type(worker.worker.model_runner.model).__name__,
        "pages": sorted(engine.llm_engine.vllm_config.compilation_config.static_forward_context),
        "ours": sorted(name for name in sys.modules if name.split(".")[0] == "darwinlm"),
    }


def outputs(found: Any) -> list[Any]:
    return [each.outputs[0] for each in found]


def main() -> None:
    questions, answers = map(Path, sys.argv[1:])
    given = []
    for question in json.loads(questions.read_text()):
        given.append(answer(**question))
        answers.write_text(json.dumps(given))
        gc.collect()
        from vllm.distributed.parallel_state import cleanup_dist_env_and_memory  # type: ignore[import-not-found]

        cleanup_dist_env_and_memory()


if __name__ == "__main__":
    main()
