"""A checkpoint in transformers, measured by its own forward passes: no sampling, no text."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import Tensor

from darwinlm.config import RunConfig
from darwinlm.measure.rival import Facts, Workload
from darwinlm.measure.timing import now
from darwinlm.models.head import head_of
from darwinlm.models.heterogeneous import modeling
from darwinlm.models.source import ModelSource
from darwinlm.models.whole import load_whole
from darwinlm.runtime.device import choose_device, choose_dtype
from darwinlm.runtime.seeds import torch_generator


class Loaded:
    """A model of transformers that is there already.

    Args:
        model: a causal language model.
        vocabulary: ids that are read are below it.
        seed: of these ids.
    """

    def __init__(self, model: Any, vocabulary: int, seed: int) -> None:
        self.model, self.vocabulary, self.seed = model, vocabulary, seed
        self.device: torch.device = head_of(model).device

    @torch.no_grad()
    def run(self, work: Workload) -> dict[str, float]:
        """Read random tokens, then write greedily; only the forward passes and the choice of tokens are timed."""
        tokens = self._tokens(work)
        began = now(self.device)
        token, cache = self._step(tokens, None)
        first = now(self.device)
        for _ in range(work.written):
            token, cache = self._step(token, cache)
        return {"prefill": first - began, "decode": now(self.device) - first}

    @torch.no_grad()
    def cache_bytes_per_token(self, work: Workload) -> float:
        """By the size of the tensors that one forward pass leaves in the cache."""
        _, cache = self._step(self._tokens(work), None)
        held = [layer for layer in cache.layers if getattr(layer, "keys", None) is not None]
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in held) / work.prefill_tokens

    def _tokens(self, work: Workload) -> Tensor:
        generator = torch_generator(self.seed, "bench", work.sequences, work.tokens)
        tokens = torch.randint(self.vocabulary, (work.sequences, work.tokens), generator=generator)
        return tokens.to(self.device)

    def _step(self, tokens: Tensor, cache: Any) -> tuple[Tensor, Any]:
        """(S, t) ids -> (S, 1) most likely next ids, and the cache that now holds them all."""
        output = self.model(input_ids=tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return output.logits.argmax(-1), output.past_key_values


class TransformersRival(Loaded):
    """A checkpoint, loaded.

    Args:
        name: folder or hub id.
        config: device and dtype count.
    """

    def __init__(self, name: str, config: RunConfig) -> None:
        source = ModelSource(name)
        device = choose_device(config.device)
        dtype = choose_dtype(config.dtype, device)
        super().__init__(load_whole(source, device, dtype), source.shape.vocabulary, config.seed)
        engine = f"transformers {transformers.__version__}, torch {torch.__version__}, {str(dtype).split('.')[-1]}"
        self.facts = Facts(name, engine, source.shape.parameters, source.shape.layer_parameters)


def load_engine(name: str, config: RunConfig) -> None:
    """Import the code of a checkpoint's family, and let torch load its kernels."""
    modeling(ModelSource(name, weights=False).family)
    square = torch.ones(64, 64)
    (square @ square).sum().item()
