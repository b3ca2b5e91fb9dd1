"""Settings: one frozen dataclass per stage, their checks, and how they are read."""

from darwinlm.config.checks import NEEDED, missing, violations
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
    RunConfig,
    SearchConfig,
    ShearedConfig,
    Stage,
    TargetConfig,
)
from darwinlm.config.target import ROUNDED, as_flags, asked_quantities, described, target_identity, written
from darwinlm.config.training import Tokens, TrainConfig
