"""Real llama.cpp through the wheel xllamacpp: log-probabilities, tokens and text of a GGUF file."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("gguf", reason="GGUF files cannot be written: pip install gguf")
xllamacpp: Any = pytest.importorskip("xllamacpp", reason="llama.cpp is not installed: pip install xllamacpp")


class Engine:
    """A loaded GGUF file, float32 KV cache, flash attention off, one thread.

    Args:
        path: the file.
        context: tokens that fit.
    """

    def __init__(self, path: Path, context: int = 128) -> None:
        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.n_ctx, params.n_parallel, params.n_predict = context, 1, -1
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
        params.warmup, params.fit_params, params.verbosity = False, False, 0
        params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self._server = xllamacpp.Server(params)
        self._completion(prompt=[0], n_predict=1)  # a server that goes before its first answer never returns
        self.reused = 0  # tokens that the last question took from the KV cache

    def log_probabilities(self, tokens: Sequence[int], vocabulary: int, *, reuse: bool = False) -> Tensor:
        """(vocabulary,): of the token that follows `tokens`; `reuse` takes what the KV cache holds of them."""
        answer = self._completion(
            prompt=list(tokens),
            n_predict=1,
            n_probs=vocabulary,  # before sampling, so that the bias does not count
            logit_bias=[[self.tokenize("a")[-1], 1000]],  # a token that ends no text and is whole UTF-8
            cache_prompt=reuse,
            temperature=0,
        )
        self.reused = answer["timings"]["cache_n"]
        found = torch.full((vocabulary,), torch.nan)
        for entry in answer["completion_probabilities"][0]["top_logprobs"]:
            found[entry["id"]] = entry["logprob"]
        return found

    def tokenize(self, text: str) -> list[int]:
        """Token ids of a text, with the tokens that the model wants around it."""
        return self._post("/tokenize", content=text, add_special=True, parse_special=True)["tokens"]

    def complete(self, text: str, tokens: int) -> str:
        """What greedy decoding writes after a text."""
        return self._completion(prompt=text, n_predict=tokens, temperature=0, cache_prompt=False)["content"]

    def _completion(self, **request: Any) -> Any:
        return self._post("/completion", **request)

    def _post(self, path: str, **request: Any) -> Any:
        body = json.dumps(request).encode()
        header = {"Content-Type": "application/json"}
        with urllib.request.urlopen(
            urllib.request.Request(self._server.listening_address + path, body, header)
        ) as found:
            return json.load(found)
