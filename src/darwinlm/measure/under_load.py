"""A server that gets several requests at once, each answered token by token as they come.

Letters: S = requests at once, T = tokens of a prompt.
"""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from darwinlm.measure.rival import Workload
from darwinlm.runtime.seeds import python_random

_SECONDS = 3600
"""An answer that takes longer is none."""


def random_prompts(work: Workload, vocabulary: int, seed: int) -> list[list[int]]:
    """S prompts of T random token ids."""
    rng = python_random(seed, "bench", work.tokens)
    return [[rng.randrange(vocabulary) for _ in range(work.tokens)] for _ in range(work.sequences)]


def under_load(url: str, prompts: Sequence[Sequence[int]], asked: Mapping[str, Any]) -> dict[str, float]:
    """Send all prompts at once and wait for all answers.

    Args:
        url: of the server, for completions.
        prompts: token ids.
        asked: what else each request says.

    Returns:
        Seconds until all first tokens were there (`prefill`), and from then to the last token of all (`decode`).
    """
    began = time.perf_counter()
    with ThreadPoolExecutor(len(prompts)) as pool:
        answers = list(pool.map(lambda prompt: _answer(url, {**asked, "prompt": prompt, "stream": True}), prompts))
    first = max(first for first, _ in answers)
    return {"prefill": first - began, "decode": max(last for _, last in answers) - first}


def posted(url: str, body: Mapping[str, Any]) -> Any:
    """A server's answer, to be read."""
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    return urllib.request.urlopen(request, timeout=_SECONDS)


def _answer(url: str, body: Mapping[str, Any]) -> tuple[float, float]:
    """When the first and the last token of an answer came."""
    first = last = 0.0
    with posted(url, body) as lines:
        for line in lines:
            if line.startswith(b"data: ") and b"[DONE]" not in line:
                last = time.perf_counter()
                first = first or last
    if not first:
        raise RuntimeError(f"'{url}' gave no answer")
    return first, last
