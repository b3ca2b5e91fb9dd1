"""The stock code of a model around its layers, and one layer at a time: to be counted, and to be run alone."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from transformers import DynamicCache

from darwinlm.models.experts import WideMLP, apart
from darwinlm.models.family import Family
from darwinlm.models.heterogeneous import build_empty, empty, fill, heterogeneous_config, modeling, placed
from darwinlm.models.sites import EMBEDDING, NORM, Kind
from darwinlm.models.widths import LINEAR, LayerWidths

Outlines = dict[str, tuple[int, ...]]
_TOKENS = 512
"""Of a dry run: several of the chunks that linear attention takes them in."""


class Kept(NamedTuple):
    """Numbers that a layer's linear attention keeps."""

    token: int = 0
    """Of a token for the backward pass, in float32 and without a package of fast kernels, which keep less."""
    sequence: int = 0
    """Of a sequence for its next token, however long it is."""


class Stock:
    """A decoder without its layers, and layers of any width.

    Args:
        family: of the model.
        config: of the model, dense or pruned.
    """

    def __init__(self, family: Family, config: Any) -> None:
        self.family, self.config = family, heterogeneous_config(family, config, None)
        self._types: Sequence[str] = getattr(config, "layer_types", None) or ()
        self._frames: dict[str, Any] = {}
        decoder = self.decoder(torch.device("cpu"))
        self.outside: Outlines = {
            EMBEDDING: tuple(decoder.embed_tokens.weight.shape),
            NORM: tuple(decoder.norm.weight.shape),
        }
        """Full name -> shape of what stands around the layers."""
        self._known: dict[tuple[Any, ...], tuple[Outlines, int]] = {}

    def decoder(self, device: torch.device) -> Any:
        """The decoder with layers that pass on what they are given; what stands around them has no numbers, but all that is
        computed is there. Its modules may be replaced."""
        key, count = str(device), self.config.num_hidden_layers
        if key not in self._frames:
            self.config.num_hidden_layers = 0
            try:
                self._frames[key] = build_empty(modeling(self.family).DarwinLMModel, self.config, device).eval()
            finally:
                self.config.num_hidden_layers = count
            self._frames[key].layers = nn.ModuleList([Pass()] * count)
        twin = copy.copy(self._frames[key])
        twin._modules = {**twin._modules, "layers": copy.copy(twin.layers)}
        twin.layers._modules = dict(twin.layers._modules)
        return twin

    def layer(self, index: int, widths: LayerWidths, device: torch.device | str = "cpu") -> nn.Module:
        """A layer without numbers."""
        config = copy.copy(self.config)
        for own, field in self.family.width_fields.items():
            setattr(config, field, getattr(widths, own) or getattr(config, field))
        config.skip = widths.gone
        with empty():
            return placed(modeling(self.family)._layer(self.config, index, config), device)

    def outlines(self, index: int, widths: LayerWidths) -> Outlines:
        """Name within the layer -> shape of all that a layer stores."""
        return self._counted(index, widths)[0]

    def parameters(self, index: int, widths: LayerWidths) -> int:
        """Parameters of a layer."""
        return self._counted(index, widths)[1]

    def _counted(self, index: int, widths: LayerWidths) -> tuple[Outlines, int]:
        key = (self._types[index] if self._types else "", *(getattr(widths, own) for own in self.family.width_fields))
        if key not in self._known:
            layer = self.layer(index, widths)
            held = {name: tuple(tensor.shape) for name, tensor in layer.state_dict().items()}
            self._known[key] = (
                apart(held, self.family.experts),
                sum(math.prod(parameter.shape) for parameter in layer.parameters()),
            )
        return self._known[key]

    def dry_run(self, index: int, widths: LayerWidths, tokens: int) -> DynamicCache:
        """Run layer `index` without numbers, as transformers would; the cache as it leaves it."""
        tensors = {name: torch.empty(sizes, device="meta") for name, sizes in self.outlines(index, widths).items()}
        block = Stock(self.family, self.config).block(index, widths, tensors, torch.device("cpu"))
        rotary = copy.deepcopy(block.decoder.rotary_emb)
        block.to("meta").decoder.rotary_emb.forward = functools.partial(_turned, rotary)
        cache, hidden = DynamicCache(config=self.config), self.config.hidden_size
        block(torch.empty(1, tokens, hidden, device="meta", requires_grad=True), past_key_values=cache)
        return cache

    @functools.cached_property
    def linear(self) -> Kept:
        """What a layer's linear attention keeps; nothing where no layer has any."""
        if LINEAR not in self._types:
            return Kept()
        index, alone = self._types.index(LINEAR), LayerWidths(0, 0, 0, linear=True)
        saved: dict[int, Tensor] = {}
        with torch.enable_grad(), saved_tensors_hooks(functools.partial(_note, saved), lambda tensor: tensor):
            cache = self.dry_run(index, alone, _TOKENS)
        states = [
            state for held in vars(cache.layers[index]).values() if isinstance(held, dict) for state in held.values()
        ]
        return Kept(
            token=sum(tensor.untyped_storage().nbytes() for tensor in saved.values()) // 4 // _TOKENS,
            sequence=sum(state.numel() for state in states if isinstance(state, Tensor)),
        )

    def block(self, index: int, widths: LayerWidths, tensors: dict[str, Tensor], device: torch.device) -> Block:
        """Layer `index`, to be run alone.

        Args:
            index: its place: some families tell layers apart by it.
            widths: of this layer.
            tensors: its weights by their names within the layer; they become parameters without a copy.
            device: where its computed buffers lie.
        """
        layer = self.layer(index, widths, device)
        if widths.experts:
            module = self.family.site("mlp").module
            with empty():
                layer.set_submodule(module, WideMLP(layer.get_submodule(module)))
        fill(layer, tensors)
        return Block(self.family, self.decoder(device), layer, index, widths)


def _note(saved: dict[int, Tensor], tensor: Tensor) -> Tensor:
    """Keep one tensor of each memory, but for parameters."""
    if not isinstance(tensor._base if tensor._is_view() else tensor, nn.Parameter):
        saved[tensor.untyped_storage()._cdata] = tensor
    return tensor


def _turned(rotary: Any, inputs: Tensor, position_ids: Tensor, *options: Any, **more: Any) -> tuple[Tensor, ...]:
    """What a rotary embedding gives, by numbers, for a run without any."""
    turns = rotary(torch.zeros(1), torch.arange(position_ids.shape[-1])[None], *options, **more)
    if not all(torch.isfinite(turn).all() for turn in turns):
        raise ValueError("its rotary embedding is not finite")
    return tuple(turn.to("meta", inputs.dtype) for turn in turns)


class Pass(nn.Module):
    """In place of a layer: passes on what it is given."""

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """(S, T, H) as they are."""
        return hidden_states


class _Here(nn.Module):
    """A layer that is given its inputs themselves, whatever the decoder makes of those that it is called with."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.hidden: Tensor | None = None

    def forward(self, _: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return self.layer(self.hidden, *args, **kwargs)


class Block(nn.Module):
    """One layer in its own place in a decoder whose other layers pass on what they are given.

    Args:
        family: of the model.
        decoder: from `Stock.decoder`.
        layer: the layer.
        index: its place.
        widths: of the layer.
    """

    def __init__(self, family: Family, decoder: Any, layer: nn.Module, index: int, widths: LayerWidths) -> None:
        super().__init__()
        self.family, self.layer, self.widths = family, layer, widths
        self.kinds: list[Kind] = [site.kind for site in family.sites if widths.has(site.kind)]
        """Of the modules that it has."""
        self._here = _Here(layer)
        decoder.norm, decoder.embed_tokens = nn.Identity(), nn.Identity()
        decoder.layers[index] = self._here
        self.decoder = decoder
        self.eval()

    def forward(self, hidden: Tensor, **kwargs: Any) -> Tensor:
        """(S, T, H) inputs of the layer -> (S, T, H) its outputs; keywords are those of the decoder."""
        self._here.hidden = hidden
        try:
            return self.decoder(inputs_embeds=hidden, **{"use_cache": False, **kwargs}).last_hidden_state
        finally:
            self._here.hidden = None

    @contextmanager
    def telling_attention(self) -> Iterator[None]:
        """Within, attention goes step by step, and its modules put out its weights (S, heads, T, T), too."""
        owners = (self.decoder, *self.layer.modules())
        configs: dict[int, Any] = {id(owner.config): owner.config for owner in owners if hasattr(owner, "config")}
        before = {key: config._attn_implementation for key, config in configs.items()}
        try:
            for config in configs.values():
                config._attn_implementation = "eager"
            yield
        finally:
            for key, config in configs.items():
                config._attn_implementation = before[key]

    def output_matrix(self, kind: Kind) -> nn.Linear:
        """The matrix of a module whose input columns are pruned."""
        matrix = self.layer.get_submodule(self.family.site(kind).output)
        if not isinstance(matrix, nn.Linear):
            raise TypeError(f"the output matrix of {kind} is a {type(matrix).__name__}, not a Linear")
        return matrix

    def parts(self, kind: Kind) -> int:
        """Parts of equally many columns that an output matrix has, which are pruned apart: experts."""
        return max(self.widths.experts, 1) if kind == "mlp" else 1

    @property
    def mixture(self) -> WideMLP:
        """Its mixture of experts."""
        mixture = self.layer.get_submodule(self.family.site("mlp").module)
        if not isinstance(mixture, WideMLP):
            raise TypeError(f"an MLP is a {type(mixture).__name__}, not a mixture of experts")
        return mixture
