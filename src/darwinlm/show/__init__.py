"""What the functions of the API return: data that print themselves."""

from darwinlm.show.checkpoints import Exported, Imported, Trained
from darwinlm.show.measured import Benchmarked, Compared, Evaluated, Latency, Reported
from darwinlm.show.planned import Planned, RecipePlanned, Schema
from darwinlm.show.result import Result
from darwinlm.show.runs import Demonstrated, Family, Found, Levels, Pruned, RecipeRun, Refitted

__all__ = [
    "Benchmarked",
    "Compared",
    "Demonstrated",
    "Evaluated",
    "Exported",
    "Family",
    "Found",
    "Imported",
    "Latency",
    "Levels",
    "Planned",
    "Pruned",
    "RecipePlanned",
    "RecipeRun",
    "Refitted",
    "Reported",
    "Result",
    "Schema",
    "Trained",
]
