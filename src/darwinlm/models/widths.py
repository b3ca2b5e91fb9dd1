"""Widths of one decoder layer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from darwinlm.models.sites import KINDS, Kind, Part

PADDING = "padding_heads"
"""Field of a pruned model's configuration: padding query heads of every layer, where there are any."""
LINEAR = "linear_attention"
"""What `layer_types` of a configuration calls a layer with linear attention."""


@dataclass(frozen=True)
class LayerWidths:
    """Widths of one decoder layer; 0 says that the module is absent."""

    heads: int
    kv_heads: int
    intermediate: int
    padding: int = 0
    """Those of the query heads that came in as zeros, to make uneven groups even; they do not count in levels."""
    experts: int = 0
    """Experts, each `intermediate` wide; 0 where the MLP is one, or absent."""
    linear: bool = False
    """Whether linear attention is in place of heads. No site prunes it: it stays with its norm, whatever else goes."""

    @property
    def counts(self) -> dict[Part, int]:
        """Units of every part."""
        heads, keys, columns = self.heads, self.kv_heads, self.columns
        return {"query": heads, "key": keys, "value": keys, "gate": columns, "up": columns, "expert": self.experts}

    @property
    def columns(self) -> int:
        """Of the MLP, those of all experts together."""
        return self.intermediate * max(self.experts, 1)

    def has(self, kind: Kind) -> bool:
        """Whether the layer has a module of this kind."""
        return bool(self.heads if kind == "attention" else self.intermediate)

    @property
    def gone(self) -> list[Kind]:
        """Kinds of the modules that pruning has taken from it."""
        return [kind for kind in KINDS if not self.has(kind) and not (self.linear and kind == "attention")]

    @property
    def empty(self) -> bool:
        """Whether nothing of the layer is left."""
        return len(self.gone) == len(KINDS)

    def as_in(self, other: LayerWidths) -> LayerWidths:
        """These widths in a layer like another one: without heads where that has linear attention."""
        return replace(self.without({"attention"}) if other.linear else self, linear=other.linear)

    def having(self, kind: Kind, module: LayerWidths) -> LayerWidths:
        """The same with the module of a kind as another layer has it."""
        if kind == "mlp":
            return replace(self, intermediate=module.intermediate, experts=module.experts)
        return replace(self, heads=module.heads, kv_heads=module.kv_heads, padding=module.padding)

    def without(self, kinds: Iterable[Kind]) -> LayerWidths:
        """The same without modules of these kinds."""
        kinds = set(kinds)
        found = replace(self, heads=0, kv_heads=0, padding=0) if "attention" in kinds else self
        return replace(found, intermediate=0, experts=0) if "mlp" in kinds else found
