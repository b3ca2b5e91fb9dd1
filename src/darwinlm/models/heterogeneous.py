"""The shipped modeling file, written for one family and loaded here: searches run the code that users will run."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from darwinlm.models.experts import fused, has_fused
from darwinlm.models.family import Family
from darwinlm.models.widths import PADDING, LayerWidths
from darwinlm.version import __version__

MODELING_FILE = Path(__file__).parent / "modeling_darwinlm.py"
_FAMILY_LINE = "FAMILY = {}"
_VERSION_LINE = 'WRITTEN_BY = "DarwinLM"'


def modeling_source(family: Family) -> str:
    """The text of the modeling file for one family."""
    source = MODELING_FILE.read_text(encoding="utf-8")
    modules = {site.kind: (site.module, site.output, site.norms) for site in family.sites}
    widths = {field: "attention" if "heads" in own else "mlp" for own, field in family.width_fields.items()}
    facts = {**family.classes, "modules": modules, "widths": widths, "shared_norms": family.shared_norms}
    for line, written in (
        (_FAMILY_LINE, f"FAMILY = {facts!r}"),
        (_VERSION_LINE, f'WRITTEN_BY = "DarwinLM {__version__}"'),
    ):
        if source.count(line) != 1:
            raise RuntimeError(f"{MODELING_FILE} must hold this line exactly once: {line}")
        source = source.replace(line, written)
    return source


@functools.cache
def modeling(family: Family) -> ModuleType:
    """The modeling file of one family as a module."""
    module = ModuleType(f"darwinlm.models.modeling_darwinlm_{family.model_type}")
    module.__file__ = str(MODELING_FILE)
    sys.modules[module.__name__] = module  # decorators look classes' modules up by name
    exec(compile(modeling_source(family), str(MODELING_FILE), "exec"), module.__dict__)
    if family.linear_heads:
        stock = vars(module._modeling)
        stock.update({name: where_it_can(fast) for name, fast in stock.items() if hasattr(fast, "__wrapped__")})
    return module


def where_it_can(fast: Callable[..., Any]) -> Callable[..., Any]:
    """A function for which the stock code takes a package's, where one is installed. Those want a GPU, and refuse float32:
    there the stock code's own stands in."""

    @functools.wraps(fast)
    def chosen(inputs: Tensor, *args: Any, **kwargs: Any) -> Any:
        able = inputs.is_cuda and inputs.dtype != torch.float32
        return (fast if able else fast.__wrapped__)(inputs, *args, **kwargs)

    return chosen


def heterogeneous_config(family: Family, dense_config: Any, widths: Sequence[LayerWidths] | None) -> Any:
    """A configuration of `dense_config`'s model with layers of the given widths, or, by None, of those of the whole model.

    The fields of the whole model keep the widths from before any pruning, also where `dense_config` is pruned already.
    """
    values = dense_config.to_dict()
    dropped = ("architectures", "auto_map", "kv_sharing_modes", "transformers_version", "_name_or_path", PADDING)
    for key in (*dropped, "per_layer_config"):
        values.pop(key, None)
    values["head_dim"] = (
        getattr(dense_config, "head_dim", None) or dense_config.hidden_size // dense_config.num_attention_heads
    )
    scale, _ = family.head(dense_config)
    if scale != 1.0:
        values["logit_scale"] = scale  # what vLLM reads, whatever the family calls it
    if widths is not None:
        values["per_layer_config"] = {str(i): _overrides(family, layer, values) for i, layer in enumerate(widths)}
        if any(layer.padding for layer in widths):
            values[PADDING] = [layer.padding for layer in widths]
    return modeling(family).DarwinLMConfig(**values)


def _overrides(family: Family, widths: LayerWidths, whole: dict[str, Any]) -> dict[str, Any]:
    """One layer's entry of `per_layer_config`. Skipped modules still override a width, with one that is not the whole
    model's, so that stock code, which does not know `skip`, refuses the checkpoint instead of filling the layer with
    random weights. It is not the head count: Llama's stock configuration reads that one, which tokenizers need."""
    skip = widths.gone
    values = {field: getattr(widths, own) or whole[field] for own, field in family.width_fields.items()}
    heads, keys, columns = (family.width_fields[own] for own in ("heads", "kv_heads", "intermediate"))
    if "attention" in skip:
        values |= {heads: max(whole[heads], 2), keys: 1 if whole[keys] > 1 else max(whole[heads], 2)}
    if "mlp" in skip:
        values[columns] = 1 if whole[columns] > 1 else 2
    return {**values, "skip": skip} if skip else values


@contextmanager
def empty() -> Iterator[None]:
    """Modules that are made here have no numbers in their parameters (meta device); what they compute is real."""
    with register_module_parameter_registration_hook(
        lambda module, name, parameter: _without_numbers(parameter)  # type: ignore[arg-type]
    ):
        yield


def _without_numbers(parameter: nn.Parameter | None) -> nn.Parameter | None:
    if parameter is None or parameter.is_meta:
        return None
    return nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)


def build_empty(model_class: Callable[[Any], nn.Module], config: Any, device: torch.device | str = "cpu") -> nn.Module:
    """A model without weights (on the meta device) but with its computed buffers on `device`."""
    with empty():
        model = model_class(config)
    return placed(model, device)


def placed(model: nn.Module, device: torch.device | str) -> nn.Module:
    """A model with its computed buffers on a device; parameters stay where they are."""
    for module in model.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = buffer.to(device)
    return model


def fill(model: nn.Module, tensors: dict[str, Tensor]) -> nn.Module:
    """Give an empty model its weights, without a copy; each tensor becomes a parameter as it is.

    Tied weights may be left out. Any other missing or surplus name is an error.
    """
    tensors = fused(tensors) if has_fused(model) else tensors
    missing, unexpected = model.load_state_dict(tensors, strict=False, assign=True)
    if getattr(model, "lm_head", None) is not None and "lm_head.weight" in missing:
        model.tie_weights()  # type: ignore[operator]
        missing.remove("lm_head.weight")
    if missing or unexpected:
        raise RuntimeError(f"weights do not fit the model: missing {missing}, unexpected {unexpected}")
    return model.eval()
