"""Genome + database -> a really smaller model.

A candidate takes kept rows of q, k, v, gate and up from the dense weights and refitted output matrices from the
database; absent modules are not there at all. Its logits equal those of the dense model with the same parts zeroed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from darwinlm.database.levels import NORM_OF_KIND, OUTPUT_OF_KIND, Ladder
from darwinlm.database.store import Database
from darwinlm.genome import Genome, Space
from darwinlm.models.attention import AttentionLayout, heads_of_columns, lay_out
from darwinlm.models.heterogeneous import build_empty, fill, heterogeneous_config, modeling
from darwinlm.models.shape import LayerWidths, ModelShape
from darwinlm.models.shrink import shrink_attention, shrink_mlp
from darwinlm.models.source import ModelSource


class Assembler:
    """Builds the models of genomes.

    Args:
        source: the dense checkpoint, never changed.
        database: its levels.
        keep_dense: hold the dense weights in memory (a search builds many models), else read them when needed.
    """

    def __init__(self, source: ModelSource, database: Database, *, keep_dense: bool) -> None:
        self.source, self.database = source, database
        self.space = Space(tuple(database.ladders()))
        self._dense = source.tensors(source.files) if keep_dense else None

    def shape(self, genome: Genome) -> ModelShape:
        """The exact shape of a genome's model."""
        layers = list(self.source.shape.layers)
        for ladder, level in zip(self.space.ladders, genome, strict=True):
            old = layers[ladder.layer]
            if ladder.kind == "mlp":
                kept = ladder.columns - ladder.removed[level]
                layers[ladder.layer] = LayerWidths(old.heads, old.kv_heads, kept)
            else:
                layout = self._layout(ladder, level)
                layers[ladder.layer] = LayerWidths(layout.heads, layout.kv_heads, old.intermediate)
        return self.source.shape.with_layers(layers)

    def config(self, genome: Genome) -> Any:
        """The transformers configuration of a genome's model."""
        return heterogeneous_config(self.source.family, self.source.config, self.shape(genome).layers)

    def tensors(self, genome: Genome) -> Iterator[tuple[str, Tensor]]:
        """(full name, tensor) of a genome's model, layer by layer, in the checkpoint's dtype."""
        yield "model.embed_tokens.weight", self._tensor("model.embed_tokens.weight")
        levels = {(l.layer, l.kind): (l, level) for l, level in zip(self.space.ladders, genome, strict=True)}
        for layer in range(len(self.source.shape.layers)):
            for kind, norm in NORM_OF_KIND.items():
                ladder, level = levels.get((layer, kind), (None, 0))
                if ladder is None or level == ladder.top:  # already absent, or absent now: its norm goes, too
                    continue
                name = f"model.layers.{layer}.{norm}.weight"
                yield name, self._tensor(name)
                for short, tensor in self._module(ladder, level).items():
                    yield f"{ladder.name}.{short}", tensor
        yield "model.norm.weight", self._tensor("model.norm.weight")
        if not self.source.shape.tied:
            yield "lm_head.weight", self._tensor("lm_head.weight")

    def model(self, genome: Genome, device: torch.device, dtype: torch.dtype = torch.float32) -> Any:
        """A genome's model with weights of its own, ready to be trained."""
        model = build_empty(modeling(self.source.family).DarwinLMForCausalLM, self.config(genome), device)
        return fill(model, {name: tensor.to(device, dtype, copy=True) for name, tensor in self.tensors(genome)})

    def _module(self, ladder: Ladder, level: int) -> dict[str, Tensor]:
        dense = self._dense_module(ladder.name)
        if level == 0:
            return dense
        kept = self.database.kept(ladder.name, level)
        output = self.database.weight(ladder.name, level).to(dense[f"{OUTPUT_OF_KIND[ladder.kind]}.weight"])
        if ladder.kind == "mlp":
            return shrink_mlp(dense, kept, output)
        return shrink_attention(dense, self._layout(ladder, level), kept, output, self.source.shape.head_dim)

    def _layout(self, ladder: Ladder, level: int) -> AttentionLayout:
        widths = self.source.shape.layers[ladder.layer]
        kept = self.database.kept(ladder.name, level).tolist()
        return lay_out(heads_of_columns(kept, self.source.shape.head_dim), widths.heads, widths.kv_heads)

    def _dense_module(self, name: str) -> dict[str, Tensor]:
        if self._dense is None:
            return self.source.module(f"{name}.")
        return {key.removeprefix(f"{name}."): t for key, t in self._dense.items() if key.startswith(f"{name}.")}

    def _tensor(self, name: str) -> Tensor:
        return self._dense[name] if self._dense is not None else self.source.tensors([name])[name]
