"""Pico models: a random checkpoint of every family, its level database, and the truth its candidates are held to."""

from __future__ import annotations

import functools
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from darwinlm.config import DatabaseConfig
from darwinlm.database.build import build_database
from darwinlm.database.levels import ladders
from darwinlm.database.store import Database
from darwinlm.models.blocks import BlockStream
from darwinlm.models.source import ModelSource

END = "<|end|>"
BYTES = 256  # the tokenizer: one token per byte, then END
VOCABULARY = 264  # a few rows more than tokens, as in real models

COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": BYTES,
    "eos_token_id": BYTES,
    "tie_word_embeddings": False,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama_mha": {"model_type": "llama", "num_attention_heads": 4, "num_key_value_heads": 4},
    "llama_gqa": {"model_type": "llama", "head_dim": 6},
    "llama_bias": {"model_type": "llama", "num_key_value_heads": 4, "attention_bias": True, "mlp_bias": True},
    "llama_tied": {"model_type": "llama", "head_dim": 8, "tie_word_embeddings": True},
    "mistral": {"model_type": "mistral", "head_dim": 8, "sliding_window": None},
    "qwen2": {"model_type": "qwen2", "num_key_value_heads": 4},
    "qwen2_tied": {"model_type": "qwen2", "tie_word_embeddings": True},
    "qwen3": {"model_type": "qwen3", "head_dim": 8},
    "qwen3_tied": {"model_type": "qwen3", "head_dim": 8, "tie_word_embeddings": True},
    "qwen3_bias": {"model_type": "qwen3", "head_dim": 8, "attention_bias": True, "tie_word_embeddings": True},
}
"""Name -> what differs from `COMMON`. A new model family is one line."""
_SLIDING = {"sliding_window": 5, "layer_types": ["sliding_attention", "sliding_attention", "full_attention"]}
_GEMMA = {"head_dim": 8, "query_pre_attn_scalar": 12, "tie_word_embeddings": True, "pad_token_id": 0, **_SLIDING}
_LINEAR = {
    "num_hidden_layers": 4,
    "layer_types": ["linear_attention", "full_attention"] * 2,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 4,
}
_GRANITE = {"embedding_multiplier": 3.0, "residual_multiplier": 0.4, "attention_multiplier": 0.3, "logits_scaling": 4.0}
MORE: dict[str, dict[str, Any]] = {
    "ministral": {"model_type": "ministral", "head_dim": 8, **_SLIDING},
    "ministral3": {"model_type": "ministral3", "head_dim": 8},
    "seed_oss": {"model_type": "seed_oss", "head_dim": 8, "attention_bias": True, "attention_out_bias": False},
    "helium": {"model_type": "helium", "head_dim": 4, "num_key_value_heads": 8},
    "ernie4_5": {"model_type": "ernie4_5", "head_dim": 8, "use_bias": False, "tie_word_embeddings": True},
    "smollm3": {"model_type": "smollm3", "no_rope_layers": [1, 0, 1], "pad_token_id": 0},
    "hunyuan_v1_dense": {"model_type": "hunyuan_v1_dense", "head_dim": 8, "pad_token_id": 0},
    "granite": {"model_type": "granite", "tie_word_embeddings": True, **_GRANITE},
    "arcee": {"model_type": "arcee", "num_key_value_heads": 4},
    "gemma": {"model_type": "gemma", "head_dim": 8, "tie_word_embeddings": True, "pad_token_id": 0},
    "gemma2": {"model_type": "gemma2", "final_logit_softcapping": 3.0, "attn_logit_softcapping": 4.0, **_GEMMA},
    "gemma3_text": {"model_type": "gemma3_text", **_GEMMA},
    "phi3": {"model_type": "phi3", "pad_token_id": 0},
    "olmo2": {"model_type": "olmo2", "pad_token_id": 0},
    "olmo3": {"model_type": "olmo3", "pad_token_id": 0, **_SLIDING},
    "exaone4": {"model_type": "exaone4", **_SLIDING},
    "glm": {"model_type": "glm", "head_dim": 8, "attention_bias": True, "pad_token_id": 0},
    "glm4": {"model_type": "glm4", "head_dim": 8, "attention_bias": True, "pad_token_id": 0},
    "cohere": {"model_type": "cohere", "use_qk_norm": True, "logit_scale": 0.3, "pad_token_id": 0},
    "cohere2": {
        "model_type": "cohere2",
        "logit_scale": 0.3,
        "tie_word_embeddings": True,
        "pad_token_id": 0,
        **_SLIDING,
    },
    "apertus": {"model_type": "apertus", "pad_token_id": 0},
    "qwen3_5_text": {"model_type": "qwen3_5_text", "head_dim": 8, **_LINEAR},
}
"""The same of families that `test_families.py` alone goes through."""
EXPERTS: dict[str, dict[str, Any]] = {
    "qwen3_moe": {"model_type": "qwen3_moe", "head_dim": 8, "moe_intermediate_size": 16, "num_experts": 4},
    "qwen3_moe_normed": {
        "model_type": "qwen3_moe",
        "moe_intermediate_size": 16,
        "num_experts": 6,
        "norm_topk_prob": True,
    },
    "mixtral": {"model_type": "mixtral", "intermediate_size": 16, "num_local_experts": 4},
    "olmoe": {"model_type": "olmoe", "intermediate_size": 16, "num_experts": 4, "pad_token_id": 0},
}
"""The same of mixtures of experts, two for each token."""
for _values in EXPERTS.values():
    _values["num_experts_per_tok"] = 2
EVERY = FAMILIES | MORE | EXPERTS
UNITS = ("kv_group", "balanced", "query_head")
CPU = torch.device("cpu")


def is_grouped(family: str) -> bool:
    """Whether query heads share KV heads; else all attention units are the same."""
    values = COMMON | EVERY[family]
    return values["num_attention_heads"] != values["num_key_value_heads"]


FAMILIES_AND_UNITS = [(family, unit) for family in FAMILIES for unit in (UNITS if is_grouped(family) else ["auto"])]


def config(family: str, **overrides: Any) -> Any:
    """The stock configuration of a pico model."""
    return AutoConfig.for_model(**{**COMMON, **EVERY[family], **overrides})


def random_model(family: str, seed: int = 0, **overrides: Any) -> Any:
    """A stock model in which no weight, norm or bias is trivially zero or one."""
    model = AutoModelForCausalLM.from_config(config(family, **overrides), dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise * 1.4 * parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else noise * 0.3 + 0.7)
    return model


def make_checkpoint(
    folder: Path, family: str, seed: int = 0, dtype: torch.dtype = torch.float32, **overrides: Any
) -> Path:
    """Write a random pico model and its tokenizer into `folder`."""
    random_model(family, seed, **overrides).to(dtype).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def tokenizer() -> PreTrainedTokenizerFast:
    """Bytes as tokens 0 to 255, then the end token: any text can be tokenized."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    fast = Tokenizer(models.BPE(vocab={byte: i for i, byte in enumerate(alphabet)}, merges=[]))
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    fast.add_special_tokens([AddedToken(END, special=True)])
    return PreTrainedTokenizerFast(tokenizer_object=fast, eos_token=END)


def random_tokens(sequences: int, length: int, seed: int = 0) -> Tensor:
    """(sequences, length) token ids without the end token."""
    return torch.randint(BYTES, (sequences, length), generator=torch.Generator().manual_seed(seed))


def stream(source: ModelSource) -> BlockStream:
    """The blocks of a checkpoint on the CPU in float32."""
    return BlockStream(source, CPU, torch.float32)


def make_database(
    folder: Path, source: ModelSource, unit: str = "auto", start: Database | None = None, **settings: Any
) -> Database:
    """The levels of a pico checkpoint, calibrated on random tokens; the MLP has 6 steps by default.

    `start` is a database to complete; by default an empty one in `folder`.
    """
    config = DatabaseConfig(**{"attention_unit": unit, "levels": 6, "multiple_of": 8, **settings})
    database = start or Database(folder, {"model": source.fingerprint, "attention_unit": unit})
    build_database(database, ladders(source.shape, config), stream(source), random_tokens(8, 32), config)
    return database


def random_genome(database: Database, seed: int) -> tuple[int, ...]:
    """An open level for every module, absent ones included."""
    rng = random.Random(seed)
    return tuple(rng.randint(ladder.present, ladder.top) for ladder in database.ladders())


def zero_masked(checkpoint: Path, database: Database, genome: Sequence[int]) -> Any:
    """What a genome means: the stock dense model, masked."""
    return mask(AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval(), database, genome)


@torch.no_grad()
def mask(model: Any, database: Database, genome: Sequence[int]) -> Any:
    """Put refitted output columns into the model that is pruned, and zeros where columns are gone."""
    for ladder, level in zip(database.ladders(), genome, strict=True):
        if level == ladder.present:
            continue
        if ladder.rungs:
            mask_experts(model.get_submodule(ladder.name), ladder, database, level)
            continue
        output = model.get_submodule(ladder.name + {"attention": ".o_proj", "mlp": ".down_proj"}[ladder.kind])
        output.weight.zero_()
        if level < ladder.top:
            output.weight[:, database.kept(ladder.name, level)] = database.weight(ladder.name, level).float()
        elif output.bias is not None:
            output.bias.zero_()
    return model


def mask_experts(mixture: Any, ladder: Any, database: Database, level: int) -> None:
    """Refitted columns, zeros, and a router that gives absent experts minus infinity."""
    down = mixture.experts.down_proj  # (E, H, I)
    count, width = down.shape[0], down.shape[2]
    whole = torch.zeros(down.shape[1], count * width)
    if level < ladder.top:
        kept = database.kept(ladder.name, level)
        whole[:, kept] = database.weight(ladder.name, level).float()
        absent = [expert for expert in range(count) if not (kept // width == expert).any()]
        assert count - len(absent) == ladder.rungs[level][0]
        mixture.gate.forward = functools.partial(_closed, mixture.gate, absent)
    down.copy_(whole.unflatten(1, (count, width)).transpose(0, 1))


def _closed(router: Any, absent: list[int], hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    logits = torch.nn.functional.linear(hidden.flatten(0, -2), router.weight)
    logits = logits.index_fill(1, torch.tensor(absent, dtype=torch.int64), -torch.inf)
    weights, chosen = logits.softmax(-1).topk(router.top_k)
    normed = getattr(router, "norm_topk_prob", True)
    return logits, weights / weights.sum(-1, keepdim=True) if normed else weights, chosen


RUN: dict[str, Any] = {
    "blocks": {"sequence_length": 32, "hessian": 24, "train": 8, "select": 8, "held_out": 8},
    "database": {"levels": 4, "multiple_of": 4, "attention_unit": "kv_group"},
    "target": {"level": 2},
    "search": {
        "generations": 4,
        "offspring": 4,
        "survivors": [2, 1],
        "train_tokens": [64, 128],
        "select_tokens": [64, 128],
        "learning_rate": 1e-3,
    },
}
"""Settings of a whole run in seconds."""
