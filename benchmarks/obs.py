"""All levels of one MLP by blocked OBS, against the plain loop that updates W and H^-1 column by column, in one run.

    python benchmarks/obs.py [--sizes 256x704 1024x2816 4096x11008] [--device cpu] [--full 3000]

Prints a table and writes benchmarks/results/obs.json. Where C is larger than --full, the plain loop is timed on its
first 300 columns, and the rest is extrapolated: a plain step costs the same for every column.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from torch import Tensor

from darwinlm.database.obs import prune_groups

HERE = Path(__file__).parent
SAMPLE = 300


def problem(rows: int, columns: int, device: str) -> tuple[Tensor, Tensor]:
    """A random layer with correlated inputs: (R, C) weight and (C, C) damped Hessian."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(columns, columns, generator=generator) / columns**0.5 + 0.3 * torch.eye(columns)
    x = torch.randn(2 * columns, columns, generator=generator) @ mixing * torch.rand(columns, generator=generator) * 2
    hessian = x.T @ x / len(x)
    hessian.diagonal().add_(0.01 * hessian.diagonal().mean())
    return (torch.randn(rows, columns, generator=generator) * 0.05).to(device), hessian.to(device)


def plain_loop(weight: Tensor, hessian: Tensor, counts: list[int], steps: int) -> tuple[list[int], dict[int, Tensor]]:
    """Equations 3 and 4 as printed, on the full matrices: the order of removal, and the weights at each count."""
    weight, inverse = weight.clone(), torch.linalg.inv(hessian)
    gone = torch.zeros(weight.shape[1], dtype=torch.bool, device=weight.device)
    order: list[int] = []
    levels: dict[int, Tensor] = {}
    for step in range(steps):
        score = weight.square().sum(0) / inverse.diagonal()
        score[gone] = torch.inf
        j = int(score.argmin())
        row = inverse[j].clone()
        weight -= torch.outer(weight[:, j] / row[j], row)
        gone[j] = True
        weight[:, gone] = 0
        row /= row[j].sqrt()
        inverse -= torch.outer(row, row)
        order.append(j)
        if step + 1 in counts:
            levels[step + 1] = weight.clone()
    return order, levels


def synchronized() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def measure(rows: int, columns: int, device: str, full: int) -> dict:
    weight, hessian = problem(rows, columns, device)
    list(prune_groups(weight[:, :256], hessian[:256, :256], group_size=1, counts=[128]))  # libraries set themselves up
    step = columns // 10 // 32 * 32 or columns // 10
    counts = [step * i for i in range(1, 10)]
    began = synchronized()
    levels = list(prune_groups(weight, hessian, group_size=1, counts=counts))
    ours = synchronized() - began
    extrapolated = columns > full
    plain_steps = SAMPLE if extrapolated else counts[-1]
    began = synchronized()
    inverse_only = torch.linalg.inv(hessian)
    inverting = synchronized() - began
    del inverse_only
    began = synchronized()
    order, plain = plain_loop(weight, hessian, counts, plain_steps)
    plain_seconds = synchronized() - began
    if extrapolated:
        plain_seconds = inverting + (plain_seconds - inverting) / SAMPLE * counts[-1]
    same = sum(a == b for a, b in zip(order, levels[-1].removed))
    worst = max(
        (relative_gap(weight, hessian, plain[n], level) for n, level in zip(counts, levels) if n in plain), default=None
    )
    return {
        "rows": rows,
        "columns": columns,
        "ours_seconds": ours,
        "plain_seconds": plain_seconds,
        "extrapolated": extrapolated,
        "speedup": plain_seconds / ours,
        "same_choices": f"{same} of {len(order)}",
        "worst_error_gap": worst,
    }


def relative_gap(weight: Tensor, hessian: Tensor, plain: Tensor, level) -> float:
    """How much larger our error is than the plain loop's, both in float64; negative where ours is smaller."""
    refitted = torch.zeros_like(weight)
    refitted[:, level.kept.to(weight.device)] = level.weight

    def error(other: Tensor) -> float:
        difference = (weight - other).double()
        return (difference @ hessian.double() * difference).sum().item()

    return error(refitted) / error(plain) - 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["256x704", "1024x2816", "4096x11008"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--full", type=int, default=3000, help="largest C for which the plain loop runs to its end")
    args = parser.parse_args()
    rows = []
    print(f"{args.device}, {torch.get_num_threads()} threads, torch {torch.__version__}, float32")
    print("| R x C | ours, s | plain loop, s | speed-up | same choices | error against the plain loop |")
    print("|---|---|---|---|---|---|")
    for size in args.sizes:
        row = measure(*map(int, size.split("x")), args.device, args.full)
        rows.append(row)
        gap = "-" if row["worst_error_gap"] is None else f"{row['worst_error_gap']:+.1e}"
        mark = " (extrapolated)" if row["extrapolated"] else ""
        print(
            f"| {size} | {row['ours_seconds']:.2f} | {row['plain_seconds']:.1f}{mark} | {row['speedup']:.1f}x "
            f"| {row['same_choices']} | {gap} |",
            flush=True,
        )
    (HERE / "results").mkdir(exist_ok=True)
    (HERE / "results/obs.json").write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
