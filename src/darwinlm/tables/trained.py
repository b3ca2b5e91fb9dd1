"""The end of a post-training."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from darwinlm.runtime.progress import duration
from darwinlm.tables.cells import empty_table, kl_cell


def trained(values: dict[str, Any]) -> Table:
    """The end of `darwinlm train`: held-out text before and after."""
    table = empty_table("Held-out text", "model", "parameters", "perplexity", "KL to teacher")
    for key, label in (("before", "as it was"), ("trained", f"after {values['tokens']:,} tokens")):
        row = values[key]
        table.add_row(label, f"{values['parameters']:,}", f"{row['perplexity']:.2f}", kl_cell(row.get("kl")))
    seconds = sum(values["seconds"].values())
    table.caption = f"{duration(seconds)}; peak memory {values['peak_memory_bytes'] / 1e9:.2f} GB"
    return table
