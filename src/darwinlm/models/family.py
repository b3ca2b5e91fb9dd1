"""What a model family must say about itself; the registry of those we know."""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from darwinlm.errors import RequestError
from darwinlm.models import families
from darwinlm.models.experts import Experts
from darwinlm.models.obstacles import obstacle
from darwinlm.models.sites import Kind, Site, attention, layer_of, layer_prefix, mlp
from darwinlm.models.widths import LayerWidths


@dataclass(frozen=True)
class Family:
    """A decoder family of transformers."""

    model_type: str
    """transformers' `model_type`."""
    prefix: str
    """What the family's class names begin with, such as `Llama`."""
    sites: tuple[Site, ...] = (attention(), mlp())
    """The prunable modules of every layer; Llama's by default."""
    package: str = ""
    """Its package under `transformers.models`, where that is not named like `model_type`."""
    config_class: str = ""
    """Where that is not prefix + `Config`."""
    model_class: str = ""
    """Where that is not prefix + `Model`."""
    head: Callable[[Any], tuple[float, float | None]] = lambda config: (1.0, None)
    """Scale and cap of the logits, asked of the model's configuration."""
    branch: Callable[[Any], float] = lambda config: 1.0
    """What the outputs of modules are multiplied by on their way into the residual stream."""
    begins: bool = False
    """Whether the model goes wrong on text that does not begin with the begin token."""
    graph: Literal["deci", "openelm"] | None = None
    """The graph of llama.cpp that computes it with layers of different widths."""
    no_graph: str = ""
    """Why there is none: the end of "it ..."."""
    stock_graph: str = ""
    """The one that computes it with layers that are alike; of `deci` always `llama`."""
    experts: Experts | None = None
    """What its configuration calls them; None where every layer has one MLP."""
    linear_heads: tuple[str, ...] = ()
    """Fields of its configuration that count the heads of linear attention; empty where no layer has any."""
    rope_pairs: bool = False
    """Whether neighbouring rows of a head are rotated together, and not those half a head apart."""

    def __str__(self) -> str:
        return self.model_type

    @property
    def classes(self) -> dict[str, str]:
        """Package and class names of the stock code."""
        return {
            "package": self.package or self.model_type,
            "config": self.config_class or f"{self.prefix}Config",
            "layer": f"{self.prefix}DecoderLayer",
            "model": self.model_class or f"{self.prefix}Model",
            "causal": f"{self.prefix}ForCausalLM",
        }

    @property
    def width_fields(self) -> dict[str, str]:
        """Field of `LayerWidths` -> that of the configuration."""
        fields = {
            "heads": "num_attention_heads",
            "kv_heads": "num_key_value_heads",
            "intermediate": "intermediate_size",
        }
        return fields | ({"intermediate": self.experts.width, "experts": self.experts.count} if self.experts else {})

    def site(self, kind: Kind) -> Site:
        """The one of a kind."""
        return next(site for site in self.sites if site.kind == kind)

    def module(self, layer: int, kind: Kind) -> str:
        """Full name of a module."""
        return layer_prefix(layer) + self.site(kind).module

    def output(self, layer: int, kind: Kind) -> str:
        """Full name of the weight of a module's output matrix."""
        return f"{layer_prefix(layer)}{self.site(kind).output}.weight"

    def beside(self, layer: Mapping[str, Tensor], widths: LayerWidths) -> dict[str, Tensor]:
        """Those of a layer's tensors that belong to no module alone, and go with the last one: norms that modules share;
        linear attention, which stays."""
        sites = [site for site in self.sites if not (widths.linear and site.kind == "attention")]
        return {name: tensor for name, tensor in layer.items() if not any(site.holds(name) for site in sites)}

    @property
    def shared_norms(self) -> tuple[str, ...]:
        """Norms that go only with all modules of a layer."""
        return tuple(dict.fromkeys(norm for site in self.sites for norm in site.shared_norms))


@functools.cache
def known_families() -> dict[str, Family]:
    """The families by `model_type`: those of the files in `families/`."""
    names = (f"{families.__name__}.{found.name}" for found in pkgutil.iter_modules(families.__path__))
    return {family.model_type: family for name in names for family in importlib.import_module(name).FAMILIES}


def place_of(module: str) -> tuple[int, Kind]:
    """Layer and kind of a prunable module, by its full name.

    Raises:
        ValueError: it is none.
    """
    layer = layer_of(module)
    sites = (site for family in known_families().values() for site in family.sites)
    kind: Kind | None = next((site.kind for site in sites if module.endswith(f".{site.module}")), None)
    if layer is None or kind is None:
        raise ValueError(f"'{module}' is no module of a layer")
    return layer, kind


def family_of(values: Mapping[str, Any], name: str) -> Family:
    """The family of a model by the fields of its config.json.

    Raises:
        RequestError: we do not know it; says what stands in the way where that can be seen, and lists those we do.
    """
    known, model_type = known_families(), str(values.get("model_type"))
    if model_type in known:
        return known[model_type]
    raise RequestError(
        f"'{name}' is of the family {model_type!r:.60}, which DarwinLM does not know{obstacle(values, known)}. It knows: "
        f"{', '.join(sorted(known))}. What a family must be: docs/architecture.md, Models."
    )
