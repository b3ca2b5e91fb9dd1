"""Genome + database -> a really smaller model.

A candidate takes kept rows of the matrices in front from the dense weights and refitted output matrices from the
database; absent modules are not there at all. Its logits equal those of the dense model with the same parts zeroed. A module
in a format has what an engine reads back of it, as `rounding` made it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from darwinlm.database.levels import Ladder
from darwinlm.database.rounded import RoundedLevels
from darwinlm.database.store import Database
from darwinlm.genome import Genome, Space
from darwinlm.models.attention import AttentionLayout, heads_of_columns, lay_out
from darwinlm.models.blocks import BlockStream
from darwinlm.models.experts import experts_of, joined
from darwinlm.models.head import Head
from darwinlm.models.heterogeneous import build_empty, fill, heterogeneous_config, modeling
from darwinlm.models.mapped import MappedTensors
from darwinlm.models.shape import LayerWidths, ModelShape
from darwinlm.models.shrink import shrink_attention, shrink_mlp
from darwinlm.models.sites import Kind, Site, framed, held, layer_of, layer_prefix
from darwinlm.models.source import ModelSource
from darwinlm.models.stock import Block
from darwinlm.runtime.cache import ByteCache


class Assembler:
    """Builds the models of genomes.

    Args:
        source: the checkpoint that is pruned, never changed.
        database: its levels.
        cache_bytes: memory for shrunk modules that were made before: the models of a search differ in few of them.
        formats: types of ggml that modules can be in, beside the checkpoint's own.
        embedding_format: of embedding and head; empty for the checkpoint's own.
    """

    def __init__(
        self,
        source: ModelSource,
        database: Database,
        *,
        cache_bytes: int = 0,
        formats: Sequence[str] = (),
        embedding_format: str = "",
    ) -> None:
        self.source, self.database = source, database
        self.embedded = source.embedded_in(embedding_format)
        """The checkpoint with embedding and head as candidates have them."""
        self.space = Space.of(database.ladders(), formats)
        self._rounded = RoundedLevels(database) if formats else None
        self._names: list[dict[str, str]] = [{} for _ in source.shape.layers]
        for full in source.files:
            if (layer := layer_of(full)) is not None:
                self._names[layer][full.removeprefix(layer_prefix(layer))] = full
        self._modules: ByteCache[dict[str, Tensor]] = ByteCache(cache_bytes, _bytes_of)
        self._layouts: dict[tuple[str, int], AttentionLayout] = {}

    def shape(self, genome: Genome) -> ModelShape:
        """The exact shape of a genome's model."""
        layers = list(self.source.shape.layers)
        for ladder, level in zip(self.space.ladders, genome, strict=True):
            layers[ladder.layer] = layers[ladder.layer].having(ladder.kind, self.module_widths(ladder, level))
        return self.source.shape.with_layers(layers)

    def module_widths(self, ladder: Ladder, level: int) -> LayerWidths:
        """The exact widths of one module at a level, in an otherwise absent layer."""
        if ladder.kind == "mlp":
            return ladder.mlp(level)
        if ladder.level(level) <= ladder.level(ladder.present):  # padding included
            return self.source.shape.layers[ladder.layer].without({"mlp"})
        layout = self._layout(ladder, level)
        return LayerWidths(layout.heads, layout.kv_heads, 0, layout.padding)

    def config(self, genome: Genome) -> Any:
        """The transformers configuration of a genome's model."""
        return heterogeneous_config(self.source.family, self.source.config, self.shape(genome).layers)

    def tensors(self, genome: Genome) -> Iterator[tuple[str, Tensor]]:
        """(full name, tensor) of a genome's model, layer by layer, in the checkpoint's dtype."""
        layers = (self.layer(genome, layer) for layer in range(len(self.source.shape.layers)))
        read = self._dense.__getitem__ if self.embedded is self.source else self.embedded.outside
        return framed(read, self.source.shape.tied, layers)

    def head(self, dense: Head) -> Head:
        """The head of candidates, where the dense one is `dense`."""
        if self.embedded is self.source:
            return dense
        return self.embedded.head().to(dense.device, torch.float32)

    def model(self, genome: Genome, device: torch.device, dtype: torch.dtype = torch.float32) -> Any:
        """A genome's model with weights of its own, ready to be trained."""
        model = build_empty(modeling(self.source.family).DarwinLMForCausalLM, self.config(genome), device)
        return fill(model, {name: tensor.to(device, dtype, copy=True) for name, tensor in self.tensors(genome)})

    def stream(self, genome: Genome, device: torch.device, dtype: torch.dtype) -> GenomeStream:
        """A genome's model, block by block, never whole in memory."""
        return GenomeStream(self, genome, device, dtype)

    @torch.no_grad()
    def masked_block(self, genome: Genome, layer: int, device: torch.device, dtype: torch.dtype) -> Block:
        """One layer as `stream` gives it, but at the widths that it has now, with zeros for what leaves: it computes the same."""
        tensors, now, routed = self._dense_layer(layer), self.source.shape.layers[layer], None
        for ladder, level in self._of_layer(genome, layer):
            if level == ladder.present:
                continue
            output = self._site(ladder).output
            dense, bias = tensors[f"{output}.weight"], f"{output}.bias"
            weight = torch.zeros_like(dense)
            if level < ladder.top:
                tensors |= self.in_front(ladder, ladder.format(level))
                found, kept = self.output(ladder, level)
                routed = experts_of(kept, now.intermediate) if ladder.rungs else routed
                weight = weight.to(found.dtype)
                weight[:, kept] = found
            elif bias in tensors:
                tensors[bias] = torch.zeros_like(tensors[bias])
            tensors[f"{output}.weight"] = weight
        placed = {name: tensor.to(device, dtype) for name, tensor in tensors.items()}
        block = self.source.shape.stock.block(layer, now, placed, device)
        if routed is not None:
            block.mixture.route(routed)
        return block

    def mlp_columns(self, genome: Genome, layer: int) -> Tensor:
        """(k,) columns of a layer's MLP, as it is now, that the genome keeps."""
        ladder, rung = self._module_of(genome, layer, "mlp")
        return self.database.kept(ladder.name, ladder.level(rung))

    def before_rounding(self, ladder: Ladder, rung: int) -> dict[str, Tensor]:
        """The matrices of a module at the level of a rung, as they are before they are stored in a format, by their names within
        the layer."""
        return self._site(ladder).matrices(self._module(ladder, ladder.rung(ladder.level(rung), "")))

    def output_name(self, ladder: Ladder) -> str:
        """Name within its layer of a module's output matrix."""
        return f"{self._site(ladder).output}.weight"

    def in_format(self, genome: Genome, layer: int, kind: Kind) -> tuple[str, dict[str, Tensor]]:
        """The format of a module, and its matrices as they were before they were stored in that, by their names within the
        layer."""
        ladder, rung = self._module_of(genome, layer, kind)
        return ladder.format(rung), self.before_rounding(ladder, rung)

    def _module_of(self, genome: Genome, layer: int, kind: Kind) -> tuple[Ladder, int]:
        return next((ladder, rung) for ladder, rung in self._of_layer(genome, layer) if ladder.kind == kind)

    def in_front(self, ladder: Ladder, format_: str) -> dict[str, Tensor]:
        """The matrices of a module but the output matrix, whole, in a format, by their names within the layer."""
        found = self._site(ladder).matrices(self._dense_layer(ladder.layer))
        del found[self.output_name(ladder)]
        if not format_:
            return found
        return self._modules.get(
            (ladder.name, format_),
            lambda: {n: self.rounded.matrix(ladder, format_, n, t.shape[1]) for n, t in found.items()},
        )

    @property
    def rounded(self) -> RoundedLevels:
        """The levels in formats.

        Raises:
            ValueError: no formats were given.
        """
        if self._rounded is None:
            raise ValueError("an assembler without formats has no rounded levels")
        return self._rounded

    def output(self, ladder: Ladder, rung: int) -> tuple[Tensor, Tensor]:
        """(R, k) and (k,): the output matrix of a rung that is not gone, in its format, and the columns that it keeps."""
        level = ladder.level(rung)
        kept = self.database.kept(ladder.name, level)
        if ladder.format(rung):
            return self._rounded_output(ladder, rung)[:, self.places(ladder, rung)], kept
        weight, _ = self.output_matrix(ladder)
        if level != ladder.level(ladder.present):
            weight = self.database.weight(ladder.name, level).to(weight)
        return weight, kept

    def _rounded_output(self, ladder: Ladder, rung: int) -> Tensor:
        """The output matrix of a rung in a format, with padding."""
        level, format_ = ladder.level(rung), ladder.format(rung)
        widths = self.module_widths(ladder, rung)
        columns = widths.columns if ladder.kind == "mlp" else widths.heads * self.source.shape.head_dim
        return self._modules.get(
            (ladder.name, "output", rung),
            lambda: {"": self.rounded.matrix(ladder, format_, f"level.{level}", columns)},
        )[""]

    def places(self, ladder: Ladder, rung: int) -> Tensor:
        """(k,) where the columns that a rung keeps are in its output matrix, which may have padding between them."""
        if ladder.kind == "mlp" or ladder.level(rung) <= ladder.level(ladder.present):
            return torch.arange(len(self.database.kept(ladder.name, ladder.level(rung))))
        heads = [place for place, head in enumerate(self._layout(ladder, rung).queries) if head is not None]
        head_dim = self.source.shape.head_dim
        return (torch.tensor(heads)[:, None] * head_dim + torch.arange(head_dim)).flatten()

    def output_matrix(self, ladder: Ladder) -> tuple[Tensor, Tensor | None]:
        """Weight (R, C) and bias (R,) of a module's output matrix as they are now."""
        dense, output = self._dense_layer(ladder.layer), self._site(ladder).output
        return dense[f"{output}.weight"], dense.get(f"{output}.bias")

    def _of_layer(self, genome: Genome, layer: int) -> list[tuple[Ladder, int]]:
        pairs = zip(self.space.ladders, genome, strict=True)
        return [(ladder, level) for ladder, level in pairs if ladder.layer == layer]

    def layer(self, genome: Genome, layer: int) -> dict[str, Tensor]:
        """All tensors of a genome's layer, by their names within it."""
        found: dict[str, Tensor] = {}
        for ladder, level in self._of_layer(genome, layer):
            if level < ladder.top:  # its norms go with it
                found |= self._module(ladder, level)
        if found or self.source.shape.layers[layer].linear:
            found |= self.source.family.beside(self._dense_layer(layer), self.source.shape.layers[layer])
        return found

    def _module(self, ladder: Ladder, level: int) -> dict[str, Tensor]:
        if level == ladder.present:
            return held(self._site(ladder), self._dense_layer(ladder.layer))
        return self._modules.get((ladder.name, level), lambda: self._shrunk(ladder, level))

    def _shrunk(self, ladder: Ladder, rung: int) -> dict[str, Tensor]:
        site, before = self._site(ladder), self.source.shape.layers[ladder.layer]
        level, format_ = ladder.level(rung), ladder.format(rung)
        dense = held(site, self._dense_layer(ladder.layer)) | self.in_front(ladder, format_)
        found = dense
        if level > ladder.level(ladder.present):
            output, kept = self.output(ladder, rung)
            if ladder.kind == "mlp":
                found = shrink_mlp(site, dense, before, kept, output)
            else:
                found = shrink_attention(site, dense, before, self._layout(ladder, rung), kept, output)
        return found | {self.output_name(ladder): self._rounded_output(ladder, rung)} if format_ else found

    def _layout(self, ladder: Ladder, rung: int) -> AttentionLayout:
        level = ladder.level(rung)
        if (ladder.name, level) not in self._layouts:
            widths = self.source.shape.layers[ladder.layer]
            heads = heads_of_columns(self.database.kept(ladder.name, level).tolist(), self.source.shape.head_dim)
            self._layouts[ladder.name, level] = lay_out(heads, widths.heads, widths.kv_heads)
        return self._layouts[ladder.name, level]

    def _site(self, ladder: Ladder) -> Site:
        return self.source.family.site(ladder.kind)

    @functools.cached_property
    def _dense(self) -> MappedTensors:
        return MappedTensors(self.source.files)

    def _dense_layer(self, layer: int) -> dict[str, Tensor]:
        names = self._names[layer]
        return joined({name: self._dense[full] for name, full in names.items()}, self.source.family.experts)


class GenomeStream(BlockStream):
    """The blocks of a genome's model, each assembled when it is asked for; they may share its weights.

    Args:
        assembler: makes them.
        genome: the levels.
        device: where a block computes.
        dtype: what it computes in.
    """

    def __init__(self, assembler: Assembler, genome: Genome, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__(assembler.embedded, device, dtype)
        self.assembler, self.genome = assembler, genome
        self.shape = assembler.shape(genome)

    def weights(self, index: int) -> dict[str, Tensor]:
        """The tensors of a block as a checkpoint holds them, by their names within the layer."""
        return self.assembler.layer(self.genome, index)


def _bytes_of(module: dict[str, Tensor]) -> int:
    return sum(tensor.nbytes for tensor in module.values())
