"""A model whose kept layers have one shape as a checkpoint of the family's stock class: its configuration, and what
that class cannot say."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from darwinlm.errors import first_line
from darwinlm.models.experts import apart
from darwinlm.models.shape import ModelShape
from darwinlm.models.sites import HEAD, layer_of, layer_prefix
from darwinlm.models.widths import LayerWidths

DEPTH = "num_hidden_layers"
"""Field of a configuration that says, with those of the widths, all of a stock shape."""
OF_EACH_LAYER = ("layer_types", "no_rope_layers")
"""Fields that hold a value for every layer."""
_FIRST_LAYERS = "max_window_layers"
"""Field that counts layers without a window from the first one on."""
_NOT_STOCK = ("head_dim", "logit_scale", "per_layer_config")
"""Fields that our configurations have, and stock ones only where their class says so."""


def stock_config(shape: ModelShape, widths: LayerWidths, kept: Sequence[int]) -> Any:
    """The stock configuration of a model with some of its layers, all of one width.

    Args:
        shape: of the model.
        widths: of every layer that is kept.
        kept: these layers, rising.

    Raises:
        ValueError: the stock class cannot say that.
    """
    stock, values = CONFIG_MAPPING[shape.family.model_type], shape.stock.config.to_dict()
    own = [key for key in ("head_dim", "logit_scale") if key in stock.__dataclass_fields__]
    if shape.head_dim * shape.original.heads != shape.hidden:  # the configuration says it then, field or not
        own.append("head_dim")
    if "head_dim" not in own and widths.heads != shape.original.heads:
        raise ValueError(
            f"{stock.__name__} has no head_dim, so that engines take other head counts for other widths of a head"
        )
    values = {key: value for key, value in values.items() if key in own or key not in _NOT_STOCK}
    values["architectures"] = [shape.family.classes["causal"]]
    values |= {field: getattr(widths, own) for own, field in shape.family.width_fields.items()} | {DEPTH: len(kept)}
    for key in OF_EACH_LAYER:
        if values.get(key) is not None:
            values[key] = [values[key][layer] for layer in kept]
    if values.get(_FIRST_LAYERS) is not None:
        values[_FIRST_LAYERS] = sum(layer < values[_FIRST_LAYERS] for layer in kept)
    try:
        return stock.from_dict(values)
    except Exception as fault:  # checks of the stock class
        raise ValueError(first_line(fault.__cause__ or fault)) from fault


def kept_layers(shape: ModelShape) -> list[int]:
    """Layers of which something is left."""
    return [layer for layer, widths in enumerate(shape.layers) if not widths.empty]


def renumbered(tensors: Iterable[tuple[str, Tensor]], kept: Sequence[int]) -> Iterator[tuple[str, Tensor]]:
    """Tensors by the full names that they have where these layers alone are left."""
    places = {layer: place for place, layer in enumerate(kept)}
    for name, tensor in tensors:
        layer = layer_of(name)
        yield name if layer is None else layer_prefix(places[layer]) + name.removeprefix(layer_prefix(layer)), tensor


@functools.cache
def stock_fault(shape: ModelShape, widths: LayerWidths) -> str:
    """Why the stock class cannot hold layers of a width; empty where it can."""
    try:
        said = stock_config(shape, widths, [0])
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(said)
    except Exception as fault:  # whatever stock code makes of it
        return first_line(fault).rstrip(".")
    held = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = apart(held, shape.family.experts)
    wanted = shape.with_layers([widths]).outlines()
    wrong = [name for name in wanted if found.get(name) != wanted[name]] + list(set(found) - {*wanted, HEAD})
    return f"{type(model).__name__} makes {wrong[0]} of another size" if wrong else ""
