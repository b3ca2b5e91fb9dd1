"""What the commands print at their end."""

from darwinlm.tables.latency import latency, predictions
from darwinlm.tables.measured import bench, comparison, qualities
from darwinlm.tables.planned import plan
from darwinlm.tables.runs import database, demo, family, forms, genome, imported, summary

__all__ = [
    "bench",
    "comparison",
    "database",
    "demo",
    "family",
    "forms",
    "genome",
    "imported",
    "latency",
    "plan",
    "predictions",
    "qualities",
    "summary",
]
