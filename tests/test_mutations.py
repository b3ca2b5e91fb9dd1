"""Whatever lies in a checkpoint's folder: the numbers of stock transformers on it, or one message before any work."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from transformers.utils import logging

import mutations
import pico
from darwinlm.errors import DamagedFileError, RequestError
from darwinlm.models.source import ModelSource
from darwinlm.models.whole import load_whole

COUNT = int(os.environ.get("DARWINLM_MUTATIONS", "150"))
"""Checkpoints of the counted loop."""
UNKNOWN_HERE = {
    "attn_implementation",
    "_attn_implementation",
    "kv_sharing_modes",
    "tp_plan",
    "base_model_tp_plan",
    "return_dict",
    "torchscript",
}
TOKENS = pico.random_tokens(2, 12)


@torch.no_grad()
def verdict(folder: Path) -> str:
    """`refused` or `read`; fails where anything else happens."""
    try:
        source = ModelSource(str(folder))
    except RequestError as fault:
        if len(fault.faults) != 1 or "\n" in str(fault) or len(str(fault)) > 1500:
            raise AssertionError("not one message of a readable length") from fault
        return "refused"
    files = [load_file(path) for path in set(source.files.values())]
    if not all(held[name].isfinite().all() for held in files for name in held.keys() & source.files.keys()):
        with pytest.raises(DamagedFileError, match="no numbers"):
            source.head().detached().logits(pico.stream(source).final_hidden(TOKENS))
        return "refused"
    ours = source.head().detached().logits(pico.stream(source).final_hidden(TOKENS))
    assert source.fingerprint
    stock = loaded_by_transformers(folder, source)
    torch.testing.assert_close(ours, stock(TOKENS, return_dict=True).logits, rtol=1e-4, atol=2e-4, equal_nan=True)
    return "read"


def loaded_by_transformers(folder: Path, source: ModelSource) -> Any:
    """Stock transformers on the folder; with settings of how it runs that this machine cannot fulfil, as it is for us."""
    values = json.loads((folder / "config.json").read_text())
    unknown = values.keys() & UNKNOWN_HERE or values.get("head_dim", 0) is None
    if values.get("per_layer_config") is None and not unknown:
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return load_whole(source, pico.CPU, torch.float32)


def attempt(folder: Path, seed: int) -> tuple[str, str]:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    done = mutations.mutated(folder, seed)
    return done, verdict(folder)


@settings(max_examples=60)
@given(seed=st.integers(0, 2**32))
def test_a_mutated_checkpoint(tmp_path_factory, seed: int) -> None:
    attempt(tmp_path_factory.mktemp("mutated"), seed)


def test_many_mutated_checkpoints(tmp_path: Path) -> None:
    logging.set_verbosity(logging.CRITICAL)
    counts: Counter[tuple[str, str]] = Counter()
    faults = []
    for seed in range(COUNT):
        try:
            counts[attempt(tmp_path / "checkpoint", seed)] += 1
        except Exception as fault:
            faults.append(f"{seed}: {type(fault).__name__}: {str(fault)[:300]}")
    logging.set_verbosity_warning()
    assert not faults, f"{len(faults)} of {COUNT}:\n" + "\n".join(faults[:40])
    ends = Counter(end for (_, end), number in counts.items() for _ in range(number))
    assert min(ends["read"], ends["refused"]) > COUNT // 5
