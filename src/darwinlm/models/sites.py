"""Where the layers of a family can lose units, as a table; and the tensors that stand outside of its layers.

Names are those of tensors within a layer, such as `self_attn.q_proj.weight`, unless they are said to be full.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

Kind = Literal["attention", "mlp"]
Part = Literal["query", "key", "value", "gate", "up", "expert"]
KINDS: tuple[Kind, ...] = ("attention", "mlp")
TITLES: dict[Kind, str] = {"attention": "attention", "mlp": "MLP"}
EMBEDDING, NORM, HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"
_LAYERS = "model.layers"


@dataclass(frozen=True)
class Cut:
    """Rows of a matrix (and of its bias), or entries of a norm, that leave with units of a part.

    Several cuts of one matrix are parts that follow each other in it. How many rows a unit has is read off the tensor.
    """

    matrix: str
    """Such as `self_attn.q_proj`."""
    part: Part
    """query: a unit is a query head; key, value: a KV head; gate, up: a column of the MLP, of all its
    experts; expert: an expert."""
    norm: bool = False
    """Whether it is the weight of a norm with a row for every head, and multiplies no vectors."""


@dataclass(frozen=True)
class Site:
    """One prunable module of a layer."""

    kind: Kind
    module: str
    """Such as `self_attn`."""
    output: str
    """Its output matrix, whose input columns are pruned, such as `self_attn.o_proj`."""
    cuts: tuple[Cut, ...]
    """What leaves with these columns; everything else of the module stays whole."""
    norms: tuple[str, ...] = ()
    """Norms of the layer that go when the module goes."""
    shared_norms: tuple[str, ...] = ()
    """Norms that go when all modules that share them are gone."""
    post_norm: str | None = None
    """That of `norms` which the module's output passes through before it joins the residual stream."""
    saved: int = 4
    """Numbers that a backward pass needs for each of its columns, of those between its matrices."""
    whole: str | None = None
    """Why the module stays or goes as a whole; None where single units may leave."""

    def holds(self, name: str) -> bool:
        """Whether a tensor of the layer is one of this module, or of a norm that goes with it."""
        return name.startswith(f"{self.module}.") or name.rpartition(".")[0] in self.norms

    def matrices(self, layer: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Those of a layer's tensors that are this module's matrices, the output matrix among them, by their names within it."""
        norms = {f"{cut.matrix}.weight" for cut in self.cuts if cut.norm}
        return {n: tensor for n, tensor in layer.items() if self.holds(n) and tensor.ndim == 2 and n not in norms}

    def split(self, name: str, tensor: Tensor, counts: Mapping[Part, int]) -> dict[Part, Tensor]:
        """The parts of a tensor of this module, each (units, rows of a unit, ...); empty where it stays whole.

        Args:
            name: of the tensor.
            tensor: with rows of all parts.
            counts: units of each part that it has.
        """
        cuts = [cut for cut in self.cuts if cut.matrix == name.rpartition(".")[0]]
        if not cuts:
            return {}
        units = [counts[cut.part] for cut in cuts]
        rows = tensor.unflatten(0, (sum(units), -1))
        return {cut.part: part for cut, part in zip(cuts, rows.split(units))}

    def part(self, part: Part, tensors: Mapping[str, Tensor], counts: Mapping[Part, int]) -> dict[str, Tensor]:
        """Weight and bias of one part of a module (rows, ...), by `weight` and `bias`, also where it is fused with others."""
        matrix = next(cut.matrix for cut in self.cuts if cut.part == part)
        found = {kind: f"{matrix}.{kind}" for kind in ("weight", "bias") if f"{matrix}.{kind}" in tensors}
        return {kind: self.split(name, tensors[name], counts)[part].flatten(0, 1) for kind, name in found.items()}


def attention(
    *,
    queries: str = "q_proj",
    keys: str = "k_proj",
    values: str = "v_proj",
    norms: tuple[str, ...] = ("input_layernorm",),
    head_norms: tuple[str, ...] = (),
    **facts: str | tuple[str, ...] | None,
) -> Site:
    """An attention `self_attn` with the output matrix `o_proj`; the same name for several parts says that they are fused.

    Args:
        queries: name of the matrix, as are `keys` and `values`.
        keys: of the keys.
        values: of the values.
        norms: as in `Site`.
        head_norms: norms of queries and of keys that have a row for every head.
        facts: further fields of `Site`.
    """
    parts: tuple[Part, ...] = ("query", "key", "value")
    cuts = tuple(Cut(f"self_attn.{name}", part) for name, part in zip((queries, keys, values), parts))
    cuts += tuple(Cut(f"self_attn.{name}", part, norm=True) for name, part in zip(head_norms, parts))
    return Site("attention", "self_attn", "self_attn.o_proj", cuts, norms, **facts)  # type: ignore[arg-type]


def mlp(
    *,
    gate: str | None = "gate_proj",
    up: str = "up_proj",
    norms: tuple[str, ...] = ("post_attention_layernorm",),
    router: str | None = None,
    saved: int | None = None,
    **facts: str | tuple[str, ...] | None,
) -> Site:
    """An `mlp` with the output matrix `down_proj`; without a gate it has one matrix in front, with a router experts."""
    parts: list[tuple[str | None, Part]] = [(gate, "gate"), (up, "up")]
    cuts = tuple(Cut(f"mlp.{name}", part) for name, part in parts if name)
    routed = (Cut(f"mlp.{router}", "expert"),) if router else ()
    each = saved or 2 * len(cuts)  # what every matrix puts out; the activation of one; with two their product
    return Site("mlp", "mlp", "mlp.down_proj", cuts + routed, norms, saved=each, **facts)  # type: ignore[arg-type]


def held(site: Site, layer: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those of a layer's tensors that are a module's, its norms among them."""
    return {name: tensor for name, tensor in layer.items() if site.holds(name)}


def layer_prefix(layer: int) -> str:
    """What full names of a layer's tensors begin with."""
    return f"{_LAYERS}.{layer}."


def layer_of(name: str) -> int | None:
    """The layer that a full name of a tensor or module belongs to; None outside of the layers."""
    return int(name.split(".")[2]) if name.startswith(f"{_LAYERS}.") else None


def framed(
    read: Callable[[str], Tensor], tied: bool, layers: Iterable[Mapping[str, Tensor]]
) -> Iterator[tuple[str, Tensor]]:
    """(full name, tensor) of a model with these layers; embedding, last norm and head are read as they are needed."""
    yield EMBEDDING, read(EMBEDDING)
    for layer, tensors in enumerate(layers):
        yield from ((layer_prefix(layer) + name, tensor) for name, tensor in tensors.items())
    yield NORM, read(NORM)
    if not tied:
        yield HEAD, read(HEAD)
