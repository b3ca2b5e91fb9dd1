"""Settings: one frozen dataclass per stage, their checks, and how they are read."""

from darwinlm.config.checks import faults
from darwinlm.config.reading import (
    PRESETS,
    merge,
    preset_values,
    read_yaml,
    resolve,
    settings_parser,
    to_dict,
    with_shortcuts,
)
from darwinlm.config.settings import (
    BenchConfig,
    BlocksConfig,
    DatabaseConfig,
    RunConfig,
    SearchConfig,
    Stage,
    TargetConfig,
)
from darwinlm.config.training import Tokens, TrainConfig

__all__ = [
    "PRESETS",
    "BenchConfig",
    "BlocksConfig",
    "DatabaseConfig",
    "RunConfig",
    "SearchConfig",
    "Stage",
    "TargetConfig",
    "Tokens",
    "TrainConfig",
    "faults",
    "merge",
    "preset_values",
    "read_yaml",
    "resolve",
    "settings_parser",
    "to_dict",
    "with_shortcuts",
]
