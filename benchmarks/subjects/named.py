"""Flags of a benchmark that runs on the embedded model, or on another one with its text."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from darwinlm.run.demonstration import DEMO_MODEL

BLOCKS = ("sequence_length", "hessian", "train", "select", "held_out")


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Model, text, preset, blocks, and where the run is kept."""
    parser.add_argument("--name", default="demo")
    parser.add_argument("--model", default=str(DEMO_MODEL))
    parser.add_argument("--data")
    parser.add_argument("--held-out-data")
    parser.add_argument("--preset", default="demo")
    parser.add_argument("--blocks", type=int, nargs=5, help=f"{', '.join(BLOCKS)}; by default the preset's")
    parser.add_argument("--runs", type=Path, help="where the run is kept; by default nowhere")


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    """What these flags say, as settings of a run."""
    blocks: dict[str, Any] = {"held_out_data": args.held_out_data} if args.held_out_data else {}
    if args.blocks:
        blocks |= zip(BLOCKS, args.blocks)
    return {"model": args.model, "blocks": blocks, **({"data": args.data} if args.data else {})}
