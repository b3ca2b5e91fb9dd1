"""Widths of a model, dense or already pruned, and its size, from its configuration alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from darwinlm.models.family import Family

PADDING = "padding_heads"
"""Field of a pruned model's configuration: padding query heads of every layer, where there are any."""


@dataclass(frozen=True)
class LayerWidths:
    """Widths of one decoder layer; 0 says that the module is absent."""

    heads: int
    kv_heads: int
    intermediate: int
    padding: int = 0
    """Those of the query heads that came in as zeros, to make uneven groups even; they do not count in levels."""


@dataclass(frozen=True)
class ModelShape:
    """All that decides how many parameters a model has."""

    family: Family
    hidden: int
    head_dim: int
    vocabulary: int
    tied: bool
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    layers: tuple[LayerWidths, ...]
    original: LayerWidths
    """A layer of the model before any pruning: what levels are counted from."""

    @classmethod
    def of(cls, family: Family, config: Any) -> ModelShape:
        """Read the widths from a transformers configuration."""
        count = config.num_hidden_layers
        padding = getattr(config, PADDING, None) or [0] * count
        layers = [_layer_widths(config.per_layer_config[i], padding[i]) for i in range(count)]
        whole = (
            config.to_dict()
        )  # a pruned model's layers have widths of their own; the others are still those of before
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return cls(
            family=family,
            hidden=config.hidden_size,
            head_dim=head_dim,
            vocabulary=config.vocab_size,
            tied=bool(config.tie_word_embeddings),
            qkv_bias=bool(family.qkv_bias(config)),
            o_bias=bool(family.o_bias(config)),
            mlp_bias=bool(family.mlp_bias(config)),
            layers=tuple(layers),
            original=LayerWidths(
                whole["num_attention_heads"], whole["num_key_value_heads"], whole["intermediate_size"]
            ),
        )

    @property
    def whole(self) -> ModelShape:
        """The model before any pruning."""
        return self.with_layers([self.original] * len(self.layers))

    def with_layers(self, layers: Sequence[LayerWidths]) -> ModelShape:
        """The same model with other widths."""
        return replace(self, layers=tuple(layers))

    @property
    def parameters(self) -> int:
        """Parameters of the whole model; tied embeddings count once."""
        embeddings = self.vocabulary * self.hidden * (1 if self.tied else 2)
        return embeddings + self.hidden + self.layer_parameters

    @property
    def layer_parameters(self) -> int:
        """Parameters of the decoder layers alone."""
        return sum(
            self.attention_parameters(w.heads, w.kv_heads) + self.mlp_parameters(w.intermediate) for w in self.layers
        )

    def attention_parameters(self, heads: int, kv_heads: int) -> int:
        """Parameters of an attention module of this width with its norm; 0 where it is absent."""
        if heads == 0:
            return 0
        rows = (heads + 2 * kv_heads) * self.head_dim
        columns = heads * self.head_dim
        weights = (rows + columns) * self.hidden + self.hidden
        biases = rows * self.qkv_bias + self.hidden * self.o_bias
        return weights + biases + 2 * self.head_dim * self.family.qk_norm

    def mlp_parameters(self, intermediate: int) -> int:
        """Parameters of an MLP of this width with its norm; 0 where it is absent."""
        if intermediate == 0:
            return 0
        biases = (2 * intermediate + self.hidden) * self.mlp_bias
        return 3 * intermediate * self.hidden + self.hidden + biases

    def outlines(self) -> dict[str, tuple[int, ...]]:
        """Full name -> shape of every tensor of the model; a tied head is none."""
        found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocabulary, self.hidden)}
        for index, widths in enumerate(self.layers):
            tensors = {}
            if widths.heads:
                tensors |= self._attention_outlines(widths)
            if widths.intermediate:
                tensors |= self._mlp_outlines(widths.intermediate)
            found |= {f"model.layers.{index}.{name}": sizes for name, sizes in tensors.items()}
        found["model.norm.weight"] = (self.hidden,)
        return found if self.tied else found | {"lm_head.weight": (self.vocabulary, self.hidden)}

    def _attention_outlines(self, widths: LayerWidths) -> dict[str, tuple[int, ...]]:
        found: dict[str, tuple[int, ...]] = {"input_layernorm.weight": (self.hidden,)}
        for part, heads in (("q", widths.heads), ("k", widths.kv_heads), ("v", widths.kv_heads)):
            found |= _linear(f"self_attn.{part}_proj", heads * self.head_dim, self.hidden, self.qkv_bias)
        found |= _linear("self_attn.o_proj", self.hidden, widths.heads * self.head_dim, self.o_bias)
        if self.family.qk_norm:
            found |= {f"self_attn.{part}_norm.weight": (self.head_dim,) for part in "qk"}
        return found

    def _mlp_outlines(self, intermediate: int) -> dict[str, tuple[int, ...]]:
        found: dict[str, tuple[int, ...]] = {"post_attention_layernorm.weight": (self.hidden,)}
        for part in ("gate", "up"):
            found |= _linear(f"mlp.{part}_proj", intermediate, self.hidden, self.mlp_bias)
        return found | _linear("mlp.down_proj", self.hidden, intermediate, self.mlp_bias)

    @property
    def kv_cache_values_per_token(self) -> int:
        """Numbers that the KV cache holds for each token."""
        return sum(2 * widths.kv_heads * self.head_dim for widths in self.layers)


def _linear(name: str, rows: int, columns: int, bias: bool) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (rows, columns), **({f"{name}.bias": (rows,)} if bias else {})}


def _layer_widths(config: Any, padding: int) -> LayerWidths:
    skip = getattr(config, "skip", ())
    attention = "attention" not in skip
    return LayerWidths(
        heads=config.num_attention_heads if attention else 0,
        kv_heads=config.num_key_value_heads if attention else 0,
        intermediate=config.intermediate_size if "mlp" not in skip else 0,
        padding=padding,
    )
