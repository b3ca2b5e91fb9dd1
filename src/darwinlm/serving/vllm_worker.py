"""vLLM offline, asked over pipes: a line of JSON for each piece of work, a line of JSON for what it took.

Runs in vLLM's own environment, so it imports nothing of ours. One engine is open at a time.
"""

# pyright: reportMissingImports=false

from __future__ import annotations

import gc
import json
import os
import sys
import time
from typing import Any


def opened(model: str, options: dict[str, Any]) -> Any:
    """An engine with a model."""
    from vllm import LLM
    from vllm.platforms import current_platform

    alone = {"enforce_eager": True, "distributed_executor_backend": "uni"} if current_platform.is_cpu() else {}
    return LLM(model, enable_prefix_caching=False, disable_log_stats=False, **alone, **options)


def facts(engine: Any) -> dict[str, Any]:
    """What it is."""
    import vllm
    from vllm.platforms import current_platform

    config = engine.llm_engine.model_config
    dtype = str(config.dtype).removeprefix("torch.")
    return {"version": vllm.__version__, "dtype": dtype, "device": current_platform.get_device_name()}


def seconds(engine: Any, prompts: list[list[int]], written: int) -> dict[str, float]:
    """Until all first tokens are there (`prefill`), and from then to the last token (`decode`)."""
    from vllm import SamplingParams

    asked = SamplingParams(temperature=0, ignore_eos=True, max_tokens=1 + written, detokenize=False)
    began = time.perf_counter()
    found = engine.generate([{"prompt_token_ids": prompt} for prompt in prompts], asked, use_tqdm=False)
    whole = time.perf_counter() - began
    times = [each.metrics for each in found]
    decode = max(each.last_token_ts for each in times) - max(each.first_token_ts for each in times)
    return {"prefill": whole - decode, "decode": decode}


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # vLLM's log
    engine, model = None, ""
    for line in sys.stdin:
        asked = json.loads(line)
        if asked["model"] != model:
            if engine is not None:
                del engine
                gc.collect()
                from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

                cleanup_dist_env_and_memory()
            engine, model = opened(asked["model"], asked["options"]), asked["model"]
            if asked["prompts"]:
                seconds(engine, asked["prompts"], asked["written"])  # to get warm
        answer = seconds(engine, asked["prompts"], asked["written"]) if asked["prompts"] else facts(engine)
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
