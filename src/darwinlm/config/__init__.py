"""Settings: one frozen dataclass per stage, their checks, and how they are read."""

from darwinlm.config.checks import faults
from darwinlm.config.reading import (
    PRESETS,
    merge,
    preset_values,
    read_yaml,
    resolve,
    settled,
    to_dict,
)
from darwinlm.config.settings import (
    BenchConfig,
    BlocksConfig,
    DatabaseConfig,
    RefitConfig,
    RunConfig,
    SearchConfig,
    ShearedConfig,
    Stage,
    TargetConfig,
)
from darwinlm.config.training import Tokens, TrainConfig
from darwinlm.config.wishes import as_flags, asked_quantities, described, is_hard, wish_identity, written

__all__ = [
    "PRESETS",
    "BenchConfig",
    "BlocksConfig",
    "DatabaseConfig",
    "RefitConfig",
    "RunConfig",
    "SearchConfig",
    "ShearedConfig",
    "Stage",
    "TargetConfig",
    "Tokens",
    "TrainConfig",
    "as_flags",
    "asked_quantities",
    "described",
    "faults",
    "is_hard",
    "merge",
    "preset_values",
    "read_yaml",
    "resolve",
    "settled",
    "to_dict",
    "wish_identity",
    "written",
]
