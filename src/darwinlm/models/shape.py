"""Widths of a model, dense or already pruned, and its size, from its configuration and the stock code alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from darwinlm.models.family import Family
from darwinlm.models.sites import EMBEDDING, HEAD, KINDS, NORM, layer_prefix
from darwinlm.models.stock import Outlines, Stock
from darwinlm.models.widths import PADDING, LayerWidths


@dataclass(frozen=True)
class ModelShape:
    """All that decides how many parameters a model has."""

    family: Family
    hidden: int
    head_dim: int
    vocabulary: int
    tied: bool
    layers: tuple[LayerWidths, ...]
    original: LayerWidths
    """A layer of the model before any pruning: what levels are counted from."""
    stock: Stock = field(compare=False, repr=False)

    @classmethod
    def of(cls, family: Family, config: Any) -> ModelShape:
        """Read the widths from a transformers configuration."""
        count = config.num_hidden_layers
        padding = getattr(config, PADDING, None) or [0] * count
        own = config.per_layer_config or [config] * count  # None of equal layers in older transformers
        layers = [_layer_widths(own[i], padding[i]) for i in range(count)]
        whole = config.to_dict()  # a pruned model's layers have widths of their own; these are still those of before
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return cls(
            family=family,
            hidden=config.hidden_size,
            head_dim=head_dim,
            vocabulary=config.vocab_size,
            tied=bool(config.tie_word_embeddings),
            layers=tuple(layers),
            original=LayerWidths(
                whole["num_attention_heads"], whole["num_key_value_heads"], whole["intermediate_size"]
            ),
            stock=Stock(family, config),
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
        head = 0 if self.tied else self.vocabulary * self.hidden
        return sum(map(math.prod, self.stock.outside.values())) + head + self.layer_parameters

    @property
    def layer_parameters(self) -> int:
        """Parameters of the decoder layers alone."""
        return sum(self.stock.parameters(index, widths) for index, widths in enumerate(self.layers))

    @property
    def shared_parameters(self) -> int:
        """Parameters of layers that belong to no module alone: norms that modules share."""
        parts = (
            self.attention_parameters(w.heads, w.kv_heads) + self.mlp_parameters(w.intermediate) for w in self.layers
        )
        return self.layer_parameters - sum(parts)

    def attention_parameters(self, heads: int, kv_heads: int) -> int:
        """Parameters of an attention module of this width with its norms; 0 where it is absent."""
        return self._alone(LayerWidths(heads, kv_heads, 0))

    def mlp_parameters(self, intermediate: int) -> int:
        """Parameters of an MLP of this width with its norms; 0 where it is absent."""
        return self._alone(LayerWidths(0, 0, intermediate))

    def _alone(self, widths: LayerWidths) -> int:
        if not any(map(widths.has, KINDS)):
            return 0
        shared = sum(math.prod(self.stock.outlines(0, widths)[f"{norm}.weight"]) for norm in self.family.shared_norms)
        return self.stock.parameters(0, widths) - shared

    def layer_outlines(self, index: int) -> Outlines:
        """Name within a layer -> shape of its tensors."""
        return self.stock.outlines(index, self.layers[index])

    def outlines(self) -> Outlines:
        """Full name -> shape of every tensor of the model, in the order of `sites.framed`; a tied head is none."""
        found = {EMBEDDING: self.stock.outside[EMBEDDING]}
        for index in range(len(self.layers)):
            found |= {layer_prefix(index) + name: sizes for name, sizes in self.layer_outlines(index).items()}
        found[NORM] = self.stock.outside[NORM]
        return found if self.tied else found | {HEAD: (self.vocabulary, self.hidden)}

    @property
    def biases(self) -> tuple[bool, bool, bool]:
        """Whether the first matrix of an attention, its output matrix, and the matrices of an MLP have biases."""
        names, (attention, mlp) = self.stock.outlines(0, self.original), map(self.family.site, KINDS)
        matrices = (attention.cuts[0].matrix, attention.output, mlp.output)
        return tuple(f"{matrix}.bias" in names for matrix in matrices)  # type: ignore[return-value]

    @property
    def kv_cache_values_per_token(self) -> int:
        """Numbers that the KV cache holds for each token."""
        return sum(2 * widths.kv_heads * self.head_dim for widths in self.layers)


def _layer_widths(config: Any, padding: int) -> LayerWidths:
    skip = getattr(config, "skip", ())
    whole = LayerWidths(config.num_attention_heads, config.num_key_value_heads, config.intermediate_size, padding)
    return whole.without(skip)
