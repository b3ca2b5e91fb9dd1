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
)
from darwinlm.config.settings import (
    BenchConfig,
    BlocksConfig,
    DatabaseConfig,
    RunConfig,
    SearchConfig,
    ShearedConfig,
    Stage,
    TargetConfig,
)

__all__ = [
    "PRESETS",
    "BenchConfig",
    "BlocksConfig",
    "DatabaseConfig",
    "RunConfig",
    "SearchConfig",
    "ShearedConfig",
    "Stage",
    "TargetConfig",
    "faults",
    "merge",
    "preset_values",
    "read_yaml",
    "resolve",
    "settings_parser",
    "to_dict",
]
