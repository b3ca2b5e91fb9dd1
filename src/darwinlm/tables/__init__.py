"""What the commands print at their end."""

from darwinlm.tables.latency import latency, predictions
from darwinlm.tables.measured import bench, comparison, qualities
from darwinlm.tables.planned import plan
from darwinlm.tables.recipes import hours, hours_here, recipe_plan, recipe_results
from darwinlm.tables.runs import database, demo, family, forms, genome, imported, imported_gguf, refits, summary
from darwinlm.tables.scored import tasks
from darwinlm.tables.trained import trained

__all__ = [
    "bench",
    "comparison",
    "database",
    "demo",
    "family",
    "forms",
    "genome",
    "hours",
    "hours_here",
    "imported",
    "imported_gguf",
    "latency",
    "plan",
    "predictions",
    "qualities",
    "recipe_plan",
    "recipe_results",
    "refits",
    "summary",
    "tasks",
    "trained",
]
