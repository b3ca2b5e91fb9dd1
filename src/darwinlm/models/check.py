"""Whether what is streamed and shipped computes what transformers computes, tried before a run relies on it.

Two trials, so that neither a new transformers nor a setting or a checkpoint that nobody has met can make a run silently
wrong: a small model of random weights with all that a configuration says of its layers, and the checkpoint itself up to its
first whole layer, in the dtype of its weights.
"""

from __future__ import annotations

import functools
import json
import math
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor

from darwinlm.errors import RequestError, first_line
from darwinlm.models.blocks import BlockStream
from darwinlm.models.experts import spread
from darwinlm.models.family import Family
from darwinlm.models.head import Head
from darwinlm.models.heterogeneous import build_empty, fill, heterogeneous_config, modeling
from darwinlm.models.shape import ModelShape
from darwinlm.models.sites import EMBEDDING, HEAD, KINDS, NORM, Kind, layer_prefix
from darwinlm.models.source import ModelSource
from darwinlm.models.whole import load_beginning

_TOKENS, _VOCABULARY, _COLUMNS, _WINDOW = 12, 96, 24, 5
_TOLERANCE = 1e-4  # of the largest logit, in float32
_REFUSALS = (AttributeError, LookupError, TypeError, ValueError, RuntimeError, ArithmeticError)


def check_streamed(source: ModelSource) -> None:
    """Compare streamed blocks, and the modeling file with modules that are gone, with what transformers computes of a few tokens.

    Raises:
        RequestError: they differ, or the model cannot be built; says by how much.
    """
    values = {key: value for key, value in source.config.to_dict().items() if key != "per_layer_config"}
    if fault := _fault(source.family, json.dumps(values, sort_keys=True, default=str)) or _fault_of_weights(source):
        raise RequestError(
            f"'{source.name}' is not computed by transformers {transformers.__version__} as DarwinLM takes it: {fault}. Nothing "
            "was begun. Install a transformers from 5.14 to 5.24, or leave out what is unusual in its config.json."
        )


@functools.lru_cache(maxsize=64)
def _fault(family: Family, values: str) -> str:
    """What differs; empty where nothing does."""
    try:
        config = _small(family, json.loads(values))
        stock = _random(family, config)
        head = Head(stock.get_output_embeddings().weight, *family.head(config))
        small = _Small(family, config, ModelShape.of(family, config), stock.state_dict(), head)
        tokens = torch.randint(_VOCABULARY, (2, _TOKENS), generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            ours, truth = _streamed(small, tokens, len(small.shape.layers)), stock(input_ids=tokens).logits  # type: ignore[arg-type]
            if told := _difference(ours, truth):
                return f"streamed layer by layer, {told}"
            pruned = _without_modules(small, stock)
            told = _difference(pruned(input_ids=tokens).logits, stock(input_ids=tokens).logits)
            return f"without some of its modules, {told}" if told else ""
    except _REFUSALS as fault:
        return f"{type(fault).__name__}: {first_line(fault):.200}"


@torch.no_grad()
def _fault_of_weights(source: ModelSource) -> str:
    """What differs in the first layers of a checkpoint and its head; empty where nothing does."""
    whole = (index for index, widths in enumerate(source.shape.layers) if all(map(widths.has, KINDS)))
    count = next(whole, 0) + 1
    tokens = torch.randint(source.shape.vocabulary, (1, _TOKENS), generator=torch.Generator().manual_seed(2))
    ours = _streamed(source, tokens, count)
    try:
        told = _difference(ours, load_beginning(source, count)(input_ids=tokens).logits)
    except _REFUSALS as fault:
        return f"loaded with its weights, {type(fault).__name__}: {first_line(fault):.200}"
    return f"with its weights, after layer {count - 1}, {told}" if told else ""


def _streamed(source: ModelSource, tokens: Tensor, count: int) -> Tensor:
    """(S, T) token ids -> (S, T, V) logits of the model of the first `count` layers, in the dtype of most weights."""
    stream = BlockStream(source, torch.device("cpu"), source.dtype)
    hidden = stream.embed(tokens)
    for block in stream.blocks(count):
        stream.forward(block, hidden, len(tokens))
    head = source.head()
    return head.to(hidden.dtype).logits(stream.final_norm(hidden))


@dataclass(frozen=True)
class _Small:
    """A small model in memory, as a checkpoint that is streamed."""

    family: Family
    config: Any
    shape: ModelShape
    state: dict[str, Tensor]
    own_head: Head
    dtype: torch.dtype = torch.float32

    def layer(self, index: int) -> dict[str, Tensor]:
        prefix = layer_prefix(index)
        return spread({n.removeprefix(prefix): t.clone() for n, t in self.state.items() if n.startswith(prefix)})

    def embedding(self) -> Tensor:
        return self.state[EMBEDDING]

    def final_norm(self) -> Tensor:
        return self.state[NORM]

    def head(self) -> Head:
        return self.own_head


def _small(family: Family, values: dict[str, Any]) -> Any:
    """The configuration with few heads, columns and tokens, and short windows."""
    group = min(2, values["num_attention_heads"] // values["num_key_value_heads"])
    head_dim = values.get("head_dim") or values["hidden_size"] // values["num_attention_heads"]
    heads = max(2, group)
    changed = {
        "num_attention_heads": heads,
        "num_key_value_heads": heads // group,
        "head_dim": head_dim,
        "hidden_size": heads * head_dim,  # which some take for granted
        family.width_fields["intermediate"]: _COLUMNS,
        "vocab_size": _VOCABULARY,
        "dtype": "float32",
        "pad_token_id": None,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    if family.experts:
        chosen = min(2, values[family.experts.chosen])
        changed |= {family.experts.chosen: chosen, family.experts.count: chosen + 2}
    counts = [values[field] for field in family.linear_heads]
    changed |= {field: count // math.gcd(*counts) for field, count in zip(family.linear_heads, counts)}
    if values.get("sliding_window") is not None:
        changed["sliding_window"] = _WINDOW
    config_class = modeling(family)._Config
    dropped = ("transformers_version", "architectures", "_name_or_path", "model_type", "padding_heads")
    return config_class(**{key: value for key, value in {**values, **changed}.items() if key not in dropped})


def _random(family: Family, config: Any) -> Any:
    """A stock model whose weights, norms and biases are all neither zero nor one."""
    stock, generator = build_empty(modeling(family)._CausalLM, config), torch.Generator().manual_seed(0)
    tensors = {}
    for name, tensor in stock.state_dict().items():
        noise = torch.randn(tensor.shape, generator=generator)
        if tensor.is_meta:
            tensor = noise / math.sqrt(tensor.shape[-1]) if tensor.ndim > 1 else 0.3 * noise + 0.8
        tensors[name] = tensor
    if config.tie_word_embeddings:
        tensors.pop("lm_head.weight", None)
    return fill(stock, tensors)


def _without_modules(small: _Small, stock: Any) -> Any:
    """The modeling file's model, in which every third layer lacks attention and every third an MLP; the stock one, masked."""
    turns: list[set[Kind]] = [{"attention"}, {"mlp"}, {"attention", "mlp"}, set()]
    layers = small.shape.layers
    places = [sum(other.linear == own.linear for other in layers[:index]) for index, own in enumerate(layers)]
    gone: list[set[Kind]] = [{kind for kind in turns[place % 4] if own.has(kind)} for place, own in zip(places, layers)]
    widths = [layer.without(kinds) for layer, kinds in zip(layers, gone)]
    for index, kinds in enumerate(gone):
        for site in small.family.sites:
            module, output = layer_prefix(index) + site.module, site.output.rpartition(".")[2]
            for name, parameter in stock.get_submodule(module).named_parameters() if site.kind in kinds else ():
                if output in name.split("."):
                    parameter.zero_()
    config = heterogeneous_config(small.family, small.config, widths)
    pruned, whole = build_empty(modeling(small.family).DarwinLMForCausalLM, config), stock.state_dict()
    names = set(pruned.state_dict()) - ({HEAD} if small.shape.tied else set())
    return fill(pruned, {name: whole[name].clone() for name in whole if name in names})


def _difference(ours: Tensor, truth: Tensor) -> str:
    largest, apart = truth.abs().max().item(), (ours.float() - truth.float()).abs().max().item()
    if math.isfinite(largest) and apart <= max(_TOLERANCE, 8 * torch.finfo(truth.dtype).eps) * max(largest, 1e-3):
        return ""
    return f"its logits differ by {apart:.2g} where the largest is {largest:.2g}"
