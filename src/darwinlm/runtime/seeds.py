"""Randomness from explicit generators only, each named by what it is for."""

import hashlib
import random

import torch


def _seed(seed: int, purpose: str, indices: tuple[int, ...]) -> int:
    text = ":".join([str(seed), purpose, *map(str, indices)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def torch_generator(seed: int, purpose: str, *indices: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A torch generator that depends on (seed, purpose, indices) and on nothing that ran before."""
    return torch.Generator(device).manual_seed(_seed(seed, purpose, indices))


def python_random(seed: int, purpose: str, *indices: int) -> random.Random:
    """A Python generator that depends on (seed, purpose, indices) and on nothing that ran before."""
    return random.Random(_seed(seed, purpose, indices))
