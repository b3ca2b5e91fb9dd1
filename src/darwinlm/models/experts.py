"""Mixtures of experts as one wide MLP: what configurations call them, and how their tensors are stored, computed and counted.

Here the experts of a layer are an MLP whose columns are those of all experts, expert by expert, and whose output matrix is
that of all side by side; a column carries the router's weight of its expert, and is zero where the token does not take it.
Checkpoints hold each expert's matrices by themselves; the stock code has two tensors for all experts of a layer.

Letters: E = experts, k = those that a token takes, I = columns of an expert, H = hidden size, S = sequences, T = tokens in a
sequence, N = tokens.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from darwinlm.errors import RequestError
from darwinlm.models.sites import layer_of

GROUPED = 8
"""Columns of an expert are a multiple of it: matrix products of all experts at once want 16 bytes."""
_FRONT, _OUTPUT, _ROUTER = "experts.gate_up_proj", "experts.down_proj", "gate.weight"
_ONE = re.compile(r"(.*)experts\.(\d+)\.(gate_proj|up_proj|down_proj)\.weight")
_PARTS = {"gate_proj": 0, "up_proj": 0, "down_proj": 1}
"""Matrix of an expert -> along which axis those of all lie side by side."""


@dataclass(frozen=True)
class Experts:
    """The fields of a family's configuration that say of how many experts of which width a layer is made."""

    count: str
    """As it is written."""
    width: str
    chosen: str = "num_experts_per_tok"
    """Experts that a token passes through."""
    words: tuple[tuple[str, str], ...] = ()
    """(word within a name here, in checkpoints), where they differ."""

    def stored_name(self, name: str) -> str:
        """A tensor's name in checkpoints."""
        return ".".join(dict(self.words).get(word, word) for word in name.split("."))

    def own_name(self, name: str) -> str:
        """The name here of a tensor of a checkpoint."""
        words = {theirs: ours for ours, theirs in self.words}
        return ".".join(words.get(word, word) for word in name.split("."))

    def require_usable(self, config: Any, name: str) -> None:
        """Check what widths alone do not say.

        Raises:
            RequestError: some layers have no experts, or there are fewer than a token takes.
        """
        own = config.per_layer_config or [config]
        count, chosen = min(getattr(layer, self.count) for layer in own), getattr(config, self.chosen)
        if getattr(config, "mlp_only_layers", None) or getattr(config, "decoder_sparse_step", 1) != 1:
            raise RequestError(
                f"'{name}' has layers with experts and layers without (mlp_only_layers, decoder_sparse_step in its "
                "config.json), which DarwinLM does not know. Give a model whose layers are alike."
            )
        if not 1 <= chosen <= count:
            raise RequestError(
                f"The config.json of '{name}' cannot be read: {self.chosen} is {chosen}, of {count} experts. Mend it."
            )


def apart(outlines: Mapping[str, tuple[int, ...]], experts: Experts | None) -> dict[str, tuple[int, ...]]:
    """Name -> shape of a layer's tensors as checkpoints hold them, of those that the stock code has."""
    named = experts.stored_name if experts else str
    return {named(name): sizes for whole, shape in outlines.items() for name, sizes in _apart(whole, shape)}


def _apart(name: str, sizes: tuple[int, ...]) -> Iterator[tuple[str, tuple[int, ...]]]:
    before = name.removesuffix(_FRONT).removesuffix(_OUTPUT)
    if name.endswith(_OUTPUT):
        for expert in range(sizes[0]):
            yield f"{before}experts.{expert}.down_proj.weight", sizes[1:]
    elif name.endswith(_FRONT):  # (E, 2 I, H)
        for expert in range(sizes[0]):
            for part in ("gate", "up"):
                yield f"{before}experts.{expert}.{part}_proj.weight", (sizes[1] // 2, sizes[2])
    else:
        yield name, sizes


def joined(tensors: Mapping[str, Tensor], experts: Experts | None) -> dict[str, Tensor]:
    """The tensors of a layer as one wide MLP, of those that a checkpoint holds; others as they are."""
    found: dict[str, Tensor] = {}
    parts: dict[str, dict[int, Tensor]] = {}
    for stored_name, tensor in tensors.items():
        name = experts.own_name(stored_name) if experts else stored_name
        if one := _ONE.fullmatch(name):
            parts.setdefault(f"{one[1]}{one[3]}", {})[int(one[2])] = tensor
        else:
            found[name] = tensor
    for name, each in parts.items():
        axis = _PARTS[name.rpartition(".")[2]]
        found[f"{name}.weight"] = torch.cat([each[expert] for expert in range(len(each))], axis)
    return found


def stored(tensors: Iterable[tuple[str, Tensor]], experts: Experts | None) -> Iterator[tuple[str, Tensor]]:
    """(full name, tensor) as a checkpoint holds them; those of a layer follow each other."""
    if experts is None:
        yield from tensors
        return
    for _, named in groupby(tensors, lambda pair: layer_of(pair[0])):
        layer = dict(named)
        counts = _experts(layer)
        for name, tensor in layer.items():
            before, _, matrix = name.removesuffix(".weight").rpartition(".")
            if f"{before}." in counts and matrix in _PARTS:
                for expert, part in enumerate(tensor.chunk(counts[f"{before}."], _PARTS[matrix])):
                    yield experts.stored_name(f"{before}.experts.{expert}.{matrix}.weight"), part.contiguous()
            else:
                yield experts.stored_name(name), tensor


def fused(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of layers or of a model as the stock code has them, of one wide MLP; others as they are."""
    found, counts = dict(tensors), _experts(tensors)
    for before, count in counts.items():
        gate, up, down = (found.pop(f"{before}{matrix}.weight") for matrix in _PARTS)
        found[before + _FRONT] = torch.cat([gate.unflatten(0, (count, -1)), up.unflatten(0, (count, -1))], 1)
        found[before + _OUTPUT] = down.unflatten(1, (count, -1)).transpose(0, 1).contiguous()
    return found


def spread(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The reverse of `fused`."""
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        before = name.removesuffix(_FRONT).removesuffix(_OUTPUT)
        if name.endswith(_OUTPUT):
            found[f"{before}down_proj.weight"] = tensor.transpose(0, 1).flatten(1)
        elif name.endswith(_FRONT):
            gate, up = tensor.chunk(2, 1)
            found |= {f"{before}gate_proj.weight": gate.flatten(0, 1), f"{before}up_proj.weight": up.flatten(0, 1)}
        else:
            found[name] = tensor
    return found


def put(model: nn.Module, name: str, tensor: Tensor) -> None:
    """Write numbers into a parameter of a model, of an output matrix of experts as of one wide MLP's."""
    before = name.removesuffix("down_proj.weight")
    held = dict(model.named_parameters())
    if (whole := held.get(before + _OUTPUT)) is not None and before != name:
        tensor = tensor.unflatten(1, (len(whole), -1)).transpose(0, 1)
    else:
        whole = held[name]
    whole.data.copy_(tensor)


def has_fused(model: nn.Module) -> bool:
    """Whether a model is made of the stock code of experts."""
    return any(name.endswith(_FRONT) for name, _ in model.named_parameters())


def _experts(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """What the names of a mixture's tensors begin with -> its experts."""
    routers = {name.removesuffix(_ROUTER): len(tensor) for name, tensor in tensors.items() if name.endswith(_ROUTER)}
    return {before: count for before, count in routers.items() if f"{before}gate_proj.weight" in tensors}


def experts_of(kept: Tensor, width: int) -> Tensor:
    """Experts (k,), ascending, that have some of the columns `kept`, where each is `width` wide."""
    return torch.unique(kept // width)


class WideMLP(nn.Module):
    """The mixture of experts of a block as one wide MLP: it computes the same, and its output matrix is one.

    Args:
        block: the stock code's, without numbers.
    """

    def __init__(self, block: Any) -> None:
        super().__init__()
        experts = block.experts
        self.count, double, hidden = experts.gate_up_proj.shape
        columns = self.count * double // 2
        self.gate, self.act_fn = block.gate, experts.act_fn
        self.gate_proj, self.up_proj = (nn.Linear(hidden, columns, bias=False) for _ in range(2))
        self.down_proj = nn.Linear(columns, hidden, bias=False)
        self.open: Tensor | None = None
        """The experts that the router's rows stand for, where some are closed."""

    def route(self, experts: Tensor) -> None:
        """Let tokens take these experts (k,) alone."""
        self.open = experts.to(self.gate.weight.device)
        self.gate.weight = nn.Parameter(self.gate.weight[self.open], requires_grad=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """(S, T, H) -> (S, T, H)."""
        inputs = hidden.flatten(0, 1)
        _, weights, chosen = self.gate(inputs)
        chosen = chosen if self.open is None else self.open[chosen]
        columns = inputs.new_zeros(len(inputs), self.count, self.down_proj.in_features // self.count)
        for expert in chosen.unique().tolist():
            token, place = torch.where(chosen == expert)
            inner = self._inner(inputs[token], expert)
            columns[token, expert] = inner * weights[token, place, None].to(inner)
        return self.down_proj(columns.flatten(1).unflatten(0, hidden.shape[:2]))

    def _inner(self, inputs: Tensor, expert: int) -> Tensor:
        gate, up = (part.weight.unflatten(0, (self.count, -1))[expert] for part in (self.gate_proj, self.up_proj))
        return self.act_fn(inputs @ gate.T) * (inputs @ up.T)

    def logits(self, inputs: Tensor) -> Tensor:
        """(N, H) -> (N, E): the router's."""
        return self.gate(inputs)[0]

    def taken(self, logits: Tensor, experts: Tensor) -> tuple[Tensor, Tensor]:
        """Router's weights (N, k) and experts (N, k) of tokens with `logits` (N, E) that may take `experts` (m,) alone."""
        router, every = copy.copy(self.gate), torch.eye(self.count, dtype=logits.dtype, device=logits.device)
        router._parameters = {**self.gate._parameters, "weight": nn.Parameter(every[experts], requires_grad=False)}
        router.hidden_dim = self.count  # its inputs are the logits themselves
        _, weights, chosen = router(logits)
        return weights, experts[chosen]

    def outputs(self, inputs: Tensor) -> Tensor:
        """(N, H) -> (N, E, H): what every expert makes of every token, without the router's weight."""
        downs = self.down_proj.weight.unflatten(1, (self.count, -1))
        return torch.stack([self._inner(inputs, expert) @ downs[:, expert].T for expert in range(self.count)], 1)
