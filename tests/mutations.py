# ruff: noqa: E501
"""Checkpoints as nobody should leave them: one or two random mutations of a pico checkpoint's files."""

from __future__ import annotations

import functools
import json
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

import pico

FAMILIES = ("llama_gqa", "llama_tied", "llama_bias", "mistral", "qwen2", "qwen2_tied", "qwen3", "qwen3_tied")
ODD = [0, -1, 1, 2, 3, 4, 6, 7, 8, 16, 32, 48, 100, 264, 10**8, 10**20, None, "8", 2.5, True, [], {}, 1e-5, 1e300, "x"]
SIZES = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "head_dim", "max_position_embeddings", "rms_norm_eps", "sliding_window", "max_window_layers", "pad_token_id",
)  # fmt: skip
FIELDS: dict[str, list[Any]] = {
    "hidden_act": ["gelu", "relu", "silu", "foo", None, 3, "gelu_pytorch_tanh"],
    "layer_types": [
        ["full_attention"] * 3, ["full_attention"] * 4, ["sliding_attention", "full_attention", "sliding_attention"],
        ["sliding_attention"] * 3, ["foo"] * 3, [None] * 3, "full_attention", {}, ["linear_attention"] * 3,
    ],
    "rope_parameters": [
        {"rope_type": "default", "rope_theta": 100.0}, {"rope_type": "foo", "rope_theta": 1e4}, {"rope_theta": 0}, {"rope_theta": -1.0},
        {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}, {"rope_type": "linear", "rope_theta": 1e4}, "x", [], None,
        {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}, {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5},
        {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4, "original_max_position_embeddings": 16},
        {"rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16},
        {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0, 2.0], "long_factor": [1.0, 2.0], "original_max_position_embeddings": 16},
    ],
    "rope_theta": [100.0, 0.0, -5.0, "x", None],
    "rope_scaling": [{"type": "linear", "factor": 2.0}, {"type": "dynamic", "factor": 2.0}, {"rope_type": "foo"}, "x", {"type": "linear"}],
    "attention_bias": [True, False, None, "yes"],
    "mlp_bias": [True, False, None, "yes"],
    "tie_word_embeddings": [True, False, None, "yes"],
    "use_sliding_window": [True, False, None],
    "quantization_config": [{"quant_method": "gptq", "bits": 4}, {"quant_method": "fp8"}, {}, None, "x"],
    "num_local_experts": [8, 0], "num_experts": [8], "n_routed_experts": [4], "text_config": [{"model_type": "llama"}],
    "dtype": ["bfloat16", "float16", "float32", "float99", "int8", 3, None, "torch.bfloat16"],
    "torch_dtype": ["float16", "auto", "float99"],
    "model_type": ["llama", "mistral", "qwen2", "qwen3", "gemma2", "mamba", None, 3, "../llama", ["llama"]],
    "architectures": [["LlamaForSequenceClassification"], [], None, "x"],
    "per_layer_config": [
        {"0": {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48}}, {}, [], {"9": {}}, {"x": {}}, {"0": {"skip": ["mlp"]}},
        {"0": {"skip": "mlp"}}, {"0": {"skip": ["foo"]}}, {"1": {"head_dim": 2}}, {"0": {"intermediate_size": 24}}, {"0": 3}, "x",
        {"1": {"num_key_value_heads": 3}}, {"1": {"hidden_size": 8}}, {"-1": {}}, {"00": {}}, {"1": {"intermediate_size": 0}},
    ],
    "padding_heads": [[0, 0, 0], [1, 0, 0], [0], "x", [-1, 0, 0], [99, 0, 0]],
    "return_dict": [False], "output_hidden_states": [True], "output_attentions": [True], "use_cache": [False], "torchscript": [True],
    "attn_implementation": ["eager", "flash_attention_2", "foo"], "_attn_implementation": ["eager", "flash_attention_2", "foo"],
    "attention_dropout": [0.5, "x"], "pretraining_tp": [2], "is_encoder_decoder": [True], "is_decoder": [False], "is_causal": [False],
    "partial_rotary_factor": [0.5], "auto_map": [{"AutoConfig": "x.Y"}], "transformers_weights": ["other.safetensors", "model.safetensors"],
    "bos_token_id": [None, 9999, -1], "eos_token_id": [[1, 2], 9999, "x"], "chunk_size_feed_forward": [1], "use_bidirectional_attention": [True],
    "attention_chunk_size": [4], "kv_sharing_modes": [["reuse", None, None], "x"], "logits_scaling": [8.0], "embedding_multiplier": [2.0],
    "final_logit_softcapping": [1.0], "num_hidden_layers": [2, 4], "vision_config": [{}], "sub_configs": [{}], "id2label": [{"0": "x"}, "x"],
    "tp_plan": ["x"], "name_or_path": ["x"], "transformers_version": ["4.0.0", 3], "pruned_heads": [{"0": [1]}], "base_model_tp_plan": [3],
}  # fmt: skip


@dataclass
class Draft:
    """A checkpoint before it is written."""

    config: Any
    shards: dict[str, dict[str, Tensor]]
    index: Any = None
    then: list[Callable[[Path], None]] = field(default_factory=list)
    """What is done to the written folder."""

    def holder(self, rng: random.Random) -> tuple[dict[str, Tensor], str]:
        """A file and one of its tensors."""
        shard = rng.choice([shard for shard in self.shards.values() if shard])
        return shard, rng.choice(list(shard))

    def write(self, folder: Path) -> None:
        """Write the files, then spoil them."""
        (folder / "config.json").write_text(json.dumps(self.config))
        for name, tensors in self.shards.items():
            save_file(
                {key: value.contiguous().clone() for key, value in tensors.items()}, folder / name, {"format": "pt"}
            )
        if self.index is not None:
            (folder / "model.safetensors.index.json").write_text(json.dumps(self.index))
        for spoil in self.then:
            spoil(folder)


@functools.cache
def _model(family: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    model = pico.random_model(family)
    values = model.config.to_dict() | {"architectures": [type(model).__name__], "dtype": "float32"}
    tensors = {
        name: tensor
        for name, tensor in model.state_dict().items()
        if not (name == "lm_head.weight" and values["tie_word_embeddings"])
    }
    return json.loads(json.dumps(values, default=str)), tensors


def draft(rng: random.Random) -> Draft:
    """A sound checkpoint in one file or in three."""
    config, tensors = _model(rng.choice(FAMILIES))
    made = Draft(json.loads(json.dumps(config)), {"model.safetensors": dict(tensors)})
    if rng.random() < 0.5:
        names = list(tensors)
        files = {f"model-0000{i + 1}-of-00003.safetensors": names[i::3] for i in range(3)}
        made.shards = {file: {name: tensors[name] for name in held} for file, held in files.items()}
        made.index = {
            "metadata": {"total_size": 1},
            "weight_map": {name: file for file, held in files.items() for name in held},
        }
    return made


def _size(made: Draft, rng: random.Random) -> None:
    made.config[rng.choice(SIZES)] = rng.choice(ODD)


def _field(made: Draft, rng: random.Random) -> None:
    name = rng.choice(list(FIELDS))
    made.config[name] = rng.choice(FIELDS[name])


def _drop_field(made: Draft, rng: random.Random) -> None:
    made.config.pop(rng.choice(list(made.config)), None)


def _widths(made: Draft, rng: random.Random) -> None:
    """Layers of their own widths, right or wrong, with tensors as before."""
    made.config["per_layer_config"] = {str(i): {} for i in range(made.config.get("num_hidden_layers") or 3)}
    made.config["per_layer_config"]["0"] = {
        "intermediate_size": rng.choice([48, 24]),
        "skip": rng.choice([[], ["mlp"], ["attention"]]),
    }


def _rename(made: Draft, rng: random.Random) -> None:
    shard, name = made.holder(rng)
    new = rng.choice(
        [
            name.removeprefix("model."),
            "module." + name,
            name.upper(),
            name + ".x",
            name.replace("weight", "gamma"),
            "\x1b[31m" + name,
        ]
    )
    shard[new] = shard.pop(name)


def _drop(made: Draft, rng: random.Random) -> None:
    shard, name = made.holder(rng)
    del shard[name]


def _double(made: Draft, rng: random.Random) -> None:
    shard, name = made.holder(rng)
    made.shards[rng.choice(list(made.shards))][name] = shard[name] + rng.choice([0, 1])


def _surplus(made: Draft, rng: random.Random) -> None:
    layer = rng.choice([0, 1, 2, 3, 7])
    name, sizes = rng.choice([
        ("v_head.summary.weight", (1, 32)), (f"model.layers.{layer}.self_attn.rotary_emb.inv_freq", (4,)), ("lm_head.bias", (264,)),
        (f"model.layers.{layer}.mlp.gate_proj.bias", (48,)), (f"model.layers.{layer}.self_attn.o_proj.bias", (32,)),
        (f"model.layers.{layer}.self_attn.q_norm.weight", (8,)), (f"model.layers.{layer}.mlp.gate_proj.lora_A.weight", (2, 32)),
        (f"model.layers.{layer}.mlp.down_proj.weight_scale", (1,)), ("lm_head.weight", (264, 32)), ("score.weight", (2, 32)), ("model.norm.bias", (32,)),
        ("model.rotary_emb.inv_freq", (4,)), ("transformer.x", ()), (f"model.layers.{layer}.mlp.experts.0.w1.weight", (4, 4)),
        ("embed_tokens.weight", (264, 32)), ("norm.weight", (32,)), ("model.model.norm.weight", (32,)),
    ])  # fmt: skip
    shard = rng.choice(list(made.shards.values()))
    if name not in {tensor for held in made.shards.values() for tensor in held}:
        shard[name] = torch.randn(sizes, generator=torch.Generator().manual_seed(rng.randrange(99))) * rng.choice(
            [0, 1]
        )


def _reshape(made: Draft, rng: random.Random) -> None:
    shard, name = made.holder(rng)
    tensor = shard[name]
    shard[name] = rng.choice(
        [
            tensor[:-1],
            tensor.t() if tensor.ndim == 2 else tensor[None],
            tensor.flatten(),
            tensor[..., :1],
            tensor[:0],
            tensor.sum(),
        ]
    )


def _dtype(made: Draft, rng: random.Random) -> None:
    kind = rng.choice(
        [torch.float16, torch.bfloat16, torch.float64, torch.int8, torch.bool, torch.float8_e4m3fn, torch.int64]
    )
    names = rng.choice(["norm", "proj", "", "embed"])
    for shard in made.shards.values():
        for name in shard:
            if names in name:
                shard[name] = shard[name].to(kind)


def _head(made: Draft, rng: random.Random) -> None:
    """A head beside the embedding, the same or another."""
    tensors = {name: tensor for shard in made.shards.values() for name, tensor in shard.items()}
    if "model.embed_tokens.weight" in tensors:
        next(iter(made.shards.values()))["lm_head.weight"] = tensors["model.embed_tokens.weight"] * rng.choice(
            [1, 1, 2]
        )


def _zero(made: Draft, rng: random.Random) -> None:
    shard, name = made.holder(rng)
    shard[name] = torch.zeros_like(shard[name]) if rng.random() < 0.7 else torch.full_like(shard[name], torch.nan)


def _index(made: Draft, rng: random.Random) -> None:
    if made.index is None:
        made.index = rng.choice(
            [{"metadata": {}, "weight_map": {"model.norm.weight": "other.safetensors"}}, {}, [], "x"]
        )
        return
    names = list(made.index["weight_map"])
    name = rng.choice([*names, "new.weight"])
    to = rng.choice(
        [
            *made.shards,
            "missing.safetensors",
            "../x.safetensors",
            "/etc/passwd",
            "",
            3,
            None,
            "config.json",
            "a/b.safetensors",
            "x\x00.safetensors",
        ]
    )
    rng.choice([
        lambda: made.index["weight_map"].__setitem__(name, to), lambda: made.index["weight_map"].pop(name, None), lambda: made.index.pop("weight_map"),
        lambda: made.index.pop("metadata"), lambda: made.index.__setitem__("weight_map", {}), lambda: made.index.__setitem__("weight_map", [1]),
    ])()  # fmt: skip


def _files(made: Draft, rng: random.Random) -> None:
    file = rng.choice(
        [*made.shards, "config.json", *(["model.safetensors.index.json"] if made.index is not None else [])]
    )
    cut = rng.randrange(1, 400)
    tensors = {
        name: tensor + 1
        for shard in made.shards.values()
        for name, tensor in shard.items()
        if tensor.is_floating_point()
    }

    def stale(name: str) -> Callable[[Path], None]:
        return lambda folder: save_file(tensors, folder / name, {"format": "pt"})

    def as_link(folder: Path) -> None:
        outside = folder.with_name(f"{folder.name}-outside")
        shutil.rmtree(outside, ignore_errors=True)
        outside.mkdir()
        shutil.move(folder / file, outside / file)
        (folder / file).symlink_to(outside / file)

    def as_folder(folder: Path) -> None:
        (folder / file).unlink()
        (folder / file).mkdir()

    made.then.append(rng.choice([
        lambda folder: (folder / file).unlink(), lambda folder: (folder / file).write_bytes((folder / file).read_bytes()[:-cut]),
        lambda folder: (folder / file).write_bytes((folder / file).read_bytes() + b"x"), lambda folder: (folder / file).write_bytes(b""),
        lambda folder: (folder / file).write_bytes(b"\xff" * 64), stale("model-00009-of-00009.safetensors"), stale("model.safetensors"),
        stale("consolidated.safetensors"), stale("model.fp16.safetensors"), as_link, as_folder,
        lambda folder: (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}'),
        lambda folder: (folder / "config.json").write_text("[" * 100000), lambda folder: (folder / "config.json").write_text('{"a": ' + "9" * 5000 + "}"),
    ]))  # fmt: skip


def _nothing(made: Draft, rng: random.Random) -> None:
    """A sound checkpoint must be read."""


MUTATIONS = (
    _size, _size, _field, _field, _field, _drop_field, _widths, _rename, _drop, _double, _surplus, _surplus, _reshape, _dtype, _head, _zero, _index,
    _files, _nothing,
)  # fmt: skip


def mutated(folder: Path, seed: int) -> str:
    """Write checkpoint number `seed` into an empty folder; returns what was done to it."""
    rng = random.Random(seed)
    made, done = draft(rng), []
    for _ in range(rng.choice([1, 1, 2])):
        mutation = rng.choice(MUTATIONS)
        try:
            mutation(made, rng)
        except (
            KeyError,
            TypeError,
            AttributeError,
            IndexError,
            RuntimeError,
        ):  # the first mutation left nothing to mutate
            continue
        done.append(mutation.__name__)
    try:
        made.write(folder)
    except OSError:  # a file that two mutations took away
        done.append("half")
    return " ".join(done)
