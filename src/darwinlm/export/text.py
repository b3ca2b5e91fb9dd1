"""The text that says what rounding costs, where a checkpoint is stored in fewer bits.

Letters: S = sequences, T = tokens of each.
"""

from __future__ import annotations

from torch import Tensor

from darwinlm.config import RunConfig
from darwinlm.data.lineage import Lineage
from darwinlm.data.sources import documents
from darwinlm.data.tokens import read_pool
from darwinlm.errors import RequestError
from darwinlm.models.source import ModelSource

TOKENS = 131_072
"""Of a text that are passed through the model, at most."""


def some_text(config: RunConfig, source: ModelSource) -> Tensor:
    """(S, T) tokens from the beginning of `config.data`, without what runs behind the checkpoint hold out.

    Raises:
        RequestError: the text cannot be read, or is too short.
    """
    source.require_context(length := config.blocks.sequence_length)
    texts, held_out = documents(config.data, config.blocks.text_field), Lineage(config.model).ranges
    blocks = read_pool(texts, source.tokenizer, length, max(length, TOKENS), held_out).blocks
    if not len(blocks):
        raise RequestError(
            f"'{config.data}' has fewer than {length} tokens (blocks.sequence_length). Give more text, or lower it."
        )
    return blocks


def beginning(tokens: Tensor, source: ModelSource) -> Tensor:
    """The first sequences of (S, T) tokens, as far as they are read, each as the model wants it begun."""
    return source.begun(tokens[: max(2, TOKENS // tokens.shape[1])])
