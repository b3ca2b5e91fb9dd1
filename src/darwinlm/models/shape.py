"""Widths of a model, dense or already pruned, and its size, from its configuration and the stock code alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from darwinlm.models.family import Family
from darwinlm.models.sites import EMBEDDING, HEAD, KINDS, NORM, layer_prefix
from darwinlm.models.stock import Outlines, Stock
from darwinlm.models.widths import LINEAR, PADDING, LayerWidths


@dataclass(frozen=True)
class ModelShape:
    """All that decides how many parameters a model has."""

    family: Family
    hidden: int
    head_dim: int
    vocabulary: int
    tied: bool
    layers: tuple[LayerWidths, ...]
    chosen: int
    """Experts of a layer that a token passes through; 1 where there are none."""
    original: LayerWidths
    """A layer of the model before any pruning: what levels are counted from."""
    stock: Stock = field(compare=False, repr=False)

    @classmethod
    def of(cls, family: Family, config: Any) -> ModelShape:
        """Read the widths from a transformers configuration."""
        count = config.num_hidden_layers
        padding = getattr(config, PADDING, None) or [0] * count
        own = config.per_layer_config or [config] * count  # None of equal layers in older transformers
        types = getattr(config, "layer_types", None) or [""] * count
        layers = [_layer_widths(family, own[i], padding[i], types[i] == LINEAR) for i in range(count)]
        whole = config.to_dict()  # a pruned model's layers have widths of their own; these are still those of before
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return cls(
            family=family,
            hidden=config.hidden_size,
            head_dim=head_dim,
            vocabulary=config.vocab_size,
            tied=bool(config.tie_word_embeddings),
            layers=tuple(layers),
            chosen=getattr(config, family.experts.chosen) if family.experts else 1,
            original=LayerWidths(**{own: whole[field] for own, field in family.width_fields.items()}),
            stock=Stock(family, config),
        )

    @property
    def whole(self) -> ModelShape:
        """The model before any pruning."""
        return self.with_layers([self.original.as_in(widths) for widths in self.layers])

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
        """Parameters of layers that belong to no module alone: norms that modules share, and linear attention."""
        return self.layer_parameters - sum(map(self.module_parameters, self.layers))

    @property
    def active_layer_parameters(self) -> int:
        """Those of `layer_parameters` that a token passes through."""
        return self.layer_parameters - sum(self._idle(w) for w in self.layers if w.experts)

    def _idle(self, widths: LayerWidths) -> int:
        """Parameters of the experts of a layer that a token leaves out."""
        alone = LayerWidths(0, 0, widths.intermediate, experts=widths.experts)
        sizes = [math.prod(s) for n, s in self.stock.outlines(0, alone).items() if ".experts." in n]
        return sum(sizes) // widths.experts * (widths.experts - self.chosen)

    def module_parameters(self, widths: LayerWidths) -> int:
        """Parameters of the modules of a layer, each with its own norms; of none where it is absent."""
        index = self._with_heads
        widths = widths.as_in(self.layers[index])
        if not any(map(widths.has, KINDS)):
            return 0
        held = self.stock.outlines(index, widths)
        shared = sum(math.prod(held[f"{norm}.weight"]) for norm in self.family.shared_norms)
        return self.stock.parameters(index, widths) - self.stock.parameters(index, widths.without(KINDS)) - shared

    @property
    def _with_heads(self) -> int:
        """A layer that can have modules of all kinds, if there is one."""
        return min(range(len(self.layers)), key=lambda index: self.layers[index].linear)

    def outlines(self) -> Outlines:
        """Full name -> shape of every tensor of the model, in the order of `sites.framed`; a tied head is none."""
        found = {EMBEDDING: self.stock.outside[EMBEDDING]}
        for index, widths in enumerate(self.layers):
            held = self.stock.outlines(index, widths)
            found |= {layer_prefix(index) + name: sizes for name, sizes in held.items()}
        found[NORM] = self.stock.outside[NORM]
        return found if self.tied else found | {HEAD: (self.vocabulary, self.hidden)}

    @property
    def biases(self) -> tuple[bool, bool, bool]:
        """Whether the first matrix of an attention, its output matrix, and the matrices of an MLP have biases."""
        index, (attention, mlp) = self._with_heads, map(self.family.site, KINDS)
        names = self.stock.outlines(index, self.original.as_in(self.layers[index]))
        matrices = (attention.cuts[0].matrix, attention.output, mlp.output)
        return tuple(f"{matrix}.bias" in names for matrix in matrices)  # type: ignore[return-value]

    @property
    def kv_cache_values_per_token(self) -> int:
        """Numbers that the KV cache holds for each token."""
        return sum(2 * widths.kv_heads * self.head_dim for widths in self.layers)

    @property
    def states(self) -> int:
        """Numbers that linear attention keeps of a sequence, however long it is."""
        return sum(widths.linear for widths in self.layers) * self.stock.linear.sequence


def _layer_widths(family: Family, config: Any, padding: int, linear: bool) -> LayerWidths:
    whole = {own: getattr(config, field) for own, field in family.width_fields.items()}
    gone = [*getattr(config, "skip", ()), *(["attention"] if linear else [])]
    return LayerWidths(padding=padding, linear=linear, **whole).without(gone)
