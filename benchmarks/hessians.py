"""Rate of the Hessian accumulation, counted as 2 C^2 operations a token, against the machine's product rate.

    python benchmarks/hessians.py [--columns 2816 11008] [--tokens 8192] [--device cpu]

The product rate is that of a square float32 product of C x C matrices, measured alternately in the same run; medians of
five. The accumulation uses the symmetry of X X^T, so that it may exceed the product rate. Prints a table and writes
benchmarks/results/hessians.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from darwinlm.database.columns import mirror, update_lower

HERE = Path(__file__).parent
REPEATS = 5


def seconds(work: Callable[[], object], device: torch.device) -> float:
    began = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def measure(columns: int, tokens: int, device: torch.device) -> dict:
    generator = torch.Generator(device).manual_seed(0)
    x = torch.randn(tokens, columns, generator=generator, device=device)
    hessian = torch.zeros(columns, columns, device=device)
    a, product = torch.randn(columns, columns, generator=generator, device=device), torch.empty_like(hessian)
    update_lower(hessian, x[:64], x[:64], 0.0)
    torch.mm(a[:64], a, out=product[:64])
    ours, plain = [], []
    for _ in range(REPEATS):
        ours.append(seconds(lambda: update_lower(hessian, x, x, 1 / tokens), device))
        plain.append(seconds(lambda: torch.mm(a, a, out=product), device))
    closing = seconds(lambda: mirror(hessian), device)
    truth = x[:, :64].double().T @ x.double() * REPEATS / tokens
    rate = 2 * columns**2 * tokens / statistics.median(ours)
    product_rate = 2 * columns**3 / statistics.median(plain)
    return {
        "columns": columns,
        "tokens": tokens,
        "accumulation_gflops": rate / 1e9,
        "product_gflops": product_rate / 1e9,
        "share": rate / product_rate,
        "mirror_seconds": closing,
        "error": ((hessian[:64] - truth).abs().max() / truth.abs().max()).item(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--columns", type=int, nargs="+", default=[2816, 11008])
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    device = torch.device(args.device)
    print(f"{device}, {torch.get_num_threads()} threads, torch {torch.__version__}, float32")
    print("| C | accumulation, GF/s at 2 C^2 a token | product, GF/s | share | largest error to float64 |")
    print("|---|---|---|---|---|")
    rows = []
    for columns in args.columns:
        row = measure(columns, args.tokens, device)
        rows.append(row)
        print(
            f"| {columns} | {row['accumulation_gflops']:.0f} | {row['product_gflops']:.0f} | {row['share']:.0%} "
            f"| {row['error']:.1e} |",
            flush=True,
        )
    (HERE / "results").mkdir(exist_ok=True)
    (HERE / "results/hessians.json").write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
