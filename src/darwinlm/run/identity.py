"""What each artefact of a run is made from: one that was made from something else is refused, not mixed with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from darwinlm.config import RunConfig, target_identity, to_dict
from darwinlm.data.blocks import settings_of_split
from darwinlm.runtime.files import sha256_of
from darwinlm.target.latency import StageTimes

_MAY_CHANGE = ("generations", "patience", "check_every", "continue_training")
"""Settings of a search that a begun one may be continued with."""
_NOT_IN_OLDER_RUNS = (("training", "cross_entropy"), ("diverse", False))
"""Settings of a search, at values that change nothing, which older runs do not know."""


@dataclass(frozen=True)
class Identities:
    """Of the artefacts of one run, as plain data."""

    config: RunConfig
    fingerprint: str
    """Of the model's weights: a folder belongs to one model."""
    dtype: torch.dtype
    """Arithmetic of the run."""

    def split(self, name: str) -> dict[str, Any]:
        """What a split of the token blocks depends on."""
        return {
            "model": self.fingerprint[:16],
            "data": self.config.data,
            "seed": self.config.seed,
            **settings_of_split(name, self.config.data, self.config.blocks),
        }

    @property
    def database(self) -> dict[str, Any]:
        """What the database depends on."""
        chosen = {key: value for key, value in to_dict(self.config.database).items() if key != "hidden_states"}
        settings = {f"database.{key}": value for key, value in chosen.items()}
        if self.config.database.tensor_parallel == 1:  # changes nothing, and older databases do not know it
            del settings["database.tensor_parallel"]
        return {**self.split("hessian"), "dtype": str(self.dtype), **settings}

    def search(self, times: StageTimes | None, nested_in: Mapping[str, int] | None) -> dict[str, Any]:
        """What the search depends on. Not on what ends it: a finished search can go on.

        Args:
            times: of modules, where a speed-up is asked.
            nested_in: {module name: level} of a larger model that this one's is to be nested in.
        """
        chosen = {key: value for key, value in to_dict(self.config.search).items() if key not in _MAY_CHANGE}
        settings = {f"search.{key}": value for key, value in chosen.items() if (key, value) not in _NOT_IN_OLDER_RUNS}
        target = {f"target.{key}": value for key, value in target_identity(self.config.target).items()}
        if times:
            target["target.latency_table"] = sha256_of(times.as_dict())
        if nested_in is not None:
            target["target.nested_in"] = sha256_of(nested_in)
        return {**self.selection, **target, **settings}

    @property
    def selection(self) -> dict[str, Any]:
        """What every method depends on that trains and scores candidates from the database."""
        return self._beside_database("select")

    @property
    def quality(self) -> dict[str, Any]:
        """What the scores on held-out text depend on, besides the model that is scored."""
        return self._beside_database("held_out")

    def _beside_database(self, split: str) -> dict[str, Any]:
        known = self.database
        more = {name: value for name, value in self.split(split).items() if name not in known}
        return {"database": sha256_of(known), **more}
