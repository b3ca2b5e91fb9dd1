"""The trained checkpoint: what was trained in its place, all else as it was; stock where the model was stock."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from darwinlm.config import TrainConfig
from darwinlm.export.card import front_matter, title_of
from darwinlm.export.folder import record_of
from darwinlm.export.forms import discard_forms
from darwinlm.export.huggingface import write_checkpoint
from darwinlm.export.words import read_card
from darwinlm.models.experts import spread, stored
from darwinlm.models.sites import EMBEDDING, HEAD
from darwinlm.models.source import ModelSource
from darwinlm.recovery.adapters import merged_weights
from darwinlm.recovery.state import saved_weights

_UNTRAINED = "It has had no training after the search."
_TRAINED = "After the search it was trained: see Post-training."
_TRAINED_STOCK = (
    "`{title}`, trained further by DarwinLM. Layers and widths are those of the model; stock code loads it."
)


def write_result(
    source: ModelSource, state: Path, folder: Path, train: TrainConfig, seed: int, facts: dict[str, Any], made_from: Any
) -> None:
    """Write the checkpoint of a finished training; the folder appears whole or not at all.

    Args:
        source: the checkpoint that was trained.
        state: the training's last state.
        folder: where the result goes.
        train: the settings.
        seed: of the training.
        facts: what the model card says of the training, a line each.
        made_from: kept beside it.
    """
    trained = merged_weights(source, state, train, seed) if train.method == "lora" else saved_weights(state)
    discard_forms(folder)
    write_checkpoint(
        folder, source, source.config, _tensors(source, trained), card=_card(source, facts), made_from=made_from
    )


def _tensors(source: ModelSource, trained: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """(full name, tensor) in the checkpoint's own names, order and dtype; what tied weights leave out stays out."""
    tied = {EMBEDDING: HEAD, HEAD: EMBEDDING}
    trained = dict(stored(spread(trained).items(), source.family.experts))
    for name in source.files:
        found = trained.get(name, trained.get(tied.get(name, "")) if source.shape.tied else None)
        if found is None:
            raise RuntimeError(f"the training has no '{name}'")
        yield name, found.to(source.dtype_of(name))


def _card(source: ModelSource, facts: dict[str, Any]) -> str:
    """The card of a checkpoint of ours and what was done to it; a stock model's tells of other weights, so it gets a new one."""
    card = read_card(source).strip() if record_of(source.folder) is not None else ""
    if not card:
        title = title_of(source)
        card = f"---\n{front_matter(source, 'trained')}---\n# {title}, trained\n\n{_TRAINED_STOCK.format(title=title)}"
    lines = "\n".join(f"- {name}: {value}" for name, value in facts.items())
    return f"{card.replace(_UNTRAINED, _TRAINED)}\n\n## Post-training\n{lines}\n"
