"""Genome + database -> a really smaller model.

A candidate takes kept rows of q, k, v, gate and up from the dense weights and refitted output matrices from the
database; absent modules are not there at all. Its logits equal those of the dense model with the same parts zeroed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from darwinlm.database.levels import NORM_OF_KIND, OUTPUT_OF_KIND, Ladder
from darwinlm.database.store import Database
from darwinlm.genome import Genome, Space
from darwinlm.models.attention import AttentionLayout, heads_of_columns, lay_out
from darwinlm.models.heterogeneous import build_empty, fill, heterogeneous_config, modeling, one_layer
from darwinlm.models.mapped import MappedTensors
from darwinlm.models.shape import LayerWidths, ModelShape
from darwinlm.models.shrink import shrink_attention, shrink_mlp
from darwinlm.models.source import ModelSource
from darwinlm.runtime.cache import ByteCache


class Assembler:
    """Builds the models of genomes.

    Args:
        source: the checkpoint that is pruned, never changed.
        database: its levels.
        keep_dense: keep the checkpoint's files mapped (a search builds many models), else read them when needed.
        cache_bytes: memory for shrunk modules that were made before: the models of a search differ in few of them.
    """

    def __init__(
        self, source: ModelSource, database: Database, *, keep_dense: bool = False, cache_bytes: int = 0
    ) -> None:
        self.source, self.database = source, database
        self.space = Space(tuple(database.ladders()))
        self._dense = MappedTensors(source.files) if keep_dense else None
        self._modules: ByteCache[dict[str, Tensor]] = ByteCache(cache_bytes, _bytes_of)
        self._layouts: dict[tuple[str, int], AttentionLayout] = {}

    def shape(self, genome: Genome) -> ModelShape:
        """The exact shape of a genome's model."""
        layers = list(self.source.shape.layers)
        for ladder, level in zip(self.space.ladders, genome, strict=True):
            layers[ladder.layer] = self._widths(layers[ladder.layer], ladder, level)
        return self.source.shape.with_layers(layers)

    def module_widths(self, ladder: Ladder, level: int) -> LayerWidths:
        """The exact widths of one module at a level, in an otherwise absent layer."""
        return self._widths(LayerWidths(0, 0, 0), ladder, level)

    def _widths(self, widths: LayerWidths, ladder: Ladder, level: int) -> LayerWidths:
        """A layer's widths with one of its modules at `level`."""
        if ladder.kind == "mlp":
            return replace(widths, intermediate=ladder.columns - ladder.removed[level])
        now = self.source.shape.layers[ladder.layer]
        if level <= ladder.present:  # padding included
            return replace(widths, heads=now.heads, kv_heads=now.kv_heads, padding=now.padding)
        layout = self._layout(ladder, level)
        return replace(widths, heads=layout.heads, kv_heads=layout.kv_heads, padding=layout.padding)

    def config(self, genome: Genome) -> Any:
        """The transformers configuration of a genome's model."""
        return heterogeneous_config(self.source.family, self.source.config, self.shape(genome).layers)

    def tensors(self, genome: Genome) -> Iterator[tuple[str, Tensor]]:
        """(full name, tensor) of a genome's model, layer by layer, in the checkpoint's dtype."""
        yield "model.embed_tokens.weight", self._tensor("model.embed_tokens.weight")
        levels = {(l.layer, l.kind): (l, level) for l, level in zip(self.space.ladders, genome, strict=True)}
        for layer in range(len(self.source.shape.layers)):
            for kind, norm in NORM_OF_KIND.items():
                ladder, level = levels[layer, kind]
                if level == ladder.top:  # its norm goes, too
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

    @torch.no_grad()
    def block(self, genome: Genome, layer: int, device: torch.device, dtype: torch.dtype) -> nn.Module:
        """One layer of a genome's model as a decoder of its own, to be run but not trained: it may share its weights."""
        tensors: dict[str, Tensor] = {}
        widths = self.source.shape.layers[layer]
        for ladder, level in zip(self.space.ladders, genome, strict=True):
            if ladder.layer == layer:
                widths = self._widths(widths, ladder, level)
            if ladder.layer == layer and level < ladder.top:
                norm = f"{NORM_OF_KIND[ladder.kind]}.weight"
                tensors[norm] = self._tensor(f"model.layers.{layer}.{norm}")
                module = ladder.name.removeprefix(f"model.layers.{layer}.")
                tensors |= {f"{module}.{name}": tensor for name, tensor in self._module(ladder, level).items()}
        placed = {name: tensor.to(device, dtype) for name, tensor in tensors.items()}
        return one_layer(self.source.family, self.source.config, widths, layer, placed, device)

    @torch.no_grad()
    def masked_block(self, genome: Genome, layer: int, device: torch.device, dtype: torch.dtype) -> nn.Module:
        """One layer as `block`, but at the widths that it has now, with zeros for what leaves: it computes the same."""
        source, prefix = self.source, f"model.layers.{layer}."
        tensors = dict(self._dense_module(prefix.removesuffix(".")))
        for ladder, level in zip(self.space.ladders, genome, strict=True):
            if ladder.layer != layer or level == ladder.present:
                continue
            output = f"{ladder.name.removeprefix(prefix)}.{OUTPUT_OF_KIND[ladder.kind]}"
            weight = torch.zeros_like(tensors[f"{output}.weight"])
            if level < ladder.top:
                kept = self.database.kept(ladder.name, level)
                weight[:, kept] = self.database.weight(ladder.name, level).to(weight)
            elif f"{output}.bias" in tensors:
                tensors[f"{output}.bias"] = torch.zeros_like(tensors[f"{output}.bias"])
            tensors[f"{output}.weight"] = weight
        placed = {name: tensor.to(device, dtype) for name, tensor in tensors.items()}
        return one_layer(source.family, source.config, source.shape.layers[layer], layer, placed, device)

    def mlp_columns(self, genome: Genome, layer: int) -> Tensor:
        """(k,) columns of a layer's MLP, as it is now, that the genome keeps."""
        (place,) = (i for i, ladder in enumerate(self.space.ladders) if (ladder.layer, ladder.kind) == (layer, "mlp"))
        return self.database.kept(self.space.ladders[place].name, genome[place])

    def _module(self, ladder: Ladder, level: int) -> dict[str, Tensor]:
        if level == ladder.present:
            return self._dense_module(ladder.name)
        return self._modules.get((ladder.name, level), lambda: self._shrunk(ladder, level))

    def output_matrix(self, ladder: Ladder) -> tuple[Tensor, Tensor | None]:
        """Weight (R, C) and bias (R,) of a module's output matrix as they are now."""
        dense, output = self._dense_module(ladder.name), OUTPUT_OF_KIND[ladder.kind]
        return dense[f"{output}.weight"], dense.get(f"{output}.bias")

    def _shrunk(self, ladder: Ladder, level: int) -> dict[str, Tensor]:
        dense = self._dense_module(ladder.name)
        kept = self.database.kept(ladder.name, level)
        output = self.database.weight(ladder.name, level).to(dense[f"{OUTPUT_OF_KIND[ladder.kind]}.weight"])
        if ladder.kind == "mlp":
            return shrink_mlp(dense, kept, output)
        return shrink_attention(dense, self._layout(ladder, level), kept, output, self.source.shape.head_dim)

    def _layout(self, ladder: Ladder, level: int) -> AttentionLayout:
        if (ladder.name, level) not in self._layouts:
            widths = self.source.shape.layers[ladder.layer]
            heads = heads_of_columns(self.database.kept(ladder.name, level).tolist(), self.source.shape.head_dim)
            self._layouts[ladder.name, level] = lay_out(heads, widths.heads, widths.kv_heads)
        return self._layouts[ladder.name, level]

    def _dense_module(self, name: str) -> dict[str, Tensor]:
        if self._dense is None:
            return self.source.module(f"{name}.")
        return {key.removeprefix(f"{name}."): self._dense[key] for key in self._dense if key.startswith(f"{name}.")}

    def _tensor(self, name: str) -> Tensor:
        return self._dense[name] if self._dense is not None else self.source.tensors([name])[name]


def _bytes_of(module: dict[str, Tensor]) -> int:
    return sum(tensor.nbytes for tensor in module.values())
