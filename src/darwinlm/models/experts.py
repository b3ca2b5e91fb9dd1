"""Mixtures of experts: what their configurations call them, and how a layer's experts are stored.

In memory the stock code has two tensors for all experts of a layer; checkpoints hold each expert's matrices, as of an MLP of
its own. Here, as in checkpoints, a layer's tensors are the latter.

Letters: E = experts, I = columns of an expert, H = hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from darwinlm.errors import RequestError

_FRONT, _OUTPUT = "experts.gate_up_proj", "experts.down_proj"


@dataclass(frozen=True)
class Experts:
    """The fields of a family's configuration that say of how many experts of which width a layer is made."""

    count: str
    """As it is written."""
    width: str
    chosen: str = "num_experts_per_tok"
    """Experts that a token passes through."""

    def require_usable(self, config: Any, name: str) -> None:
        """Check what widths alone do not say.

        Raises:
            RequestError: some layers have no experts, or there are fewer than a token takes.
        """
        count, chosen = getattr(config, self.count), getattr(config, self.chosen)
        if getattr(config, "mlp_only_layers", None) or getattr(config, "decoder_sparse_step", 1) != 1:
            raise RequestError(
                f"'{name}' has layers with experts and layers without (mlp_only_layers, decoder_sparse_step in its "
                "config.json), which DarwinLM does not know. Give a model whose layers are alike."
            )
        if not 1 <= chosen <= count:
            raise RequestError(
                f"The config.json of '{name}' cannot be read: {self.chosen} is {chosen}, of {count} experts. Mend it."
            )


def apart(outlines: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Name -> shape of a layer's tensors as checkpoints hold them, of those that the stock code has."""
    return {name: sizes for whole, shape in outlines.items() for name, sizes in _apart(whole, shape)}


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
