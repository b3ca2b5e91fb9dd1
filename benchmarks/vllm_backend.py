"""A pruned checkpoint in vLLM by the plugin and by vLLM's Transformers backend, beside the dense model, in turn.

    DARWINLM_VLLM=.venv-engines/bin/python python benchmarks/vllm_backend.py MODEL --against DENSE [--requests 1 8]
                                                                            [--read 128] [--written 32] [--repeats 7]

The dense model runs by vLLM's own class. Each has an engine of its own; they take turns at every piece of work. Prints medians and
quartiles of the speed-ups within a round. Needs an idle machine.
"""

from __future__ import annotations

import argparse
import functools

from darwinlm.config import resolve
from darwinlm.measure.in_vllm import VllmRival, Worker
from darwinlm.measure.rival import Workload
from darwinlm.measure.timing import Spread, interleaved
from darwinlm.runtime.progress import show_log

BACKEND = {"model_impl": "transformers", "trust_remote_code": True}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--against", required=True)
    parser.add_argument("--requests", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--read", type=int, default=128)
    parser.add_argument("--written", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    show_log()
    bench = {"batch_sizes": args.requests, "context_lengths": [args.read], "decode_tokens": args.written}
    config = resolve({"bench": bench})
    dense, plugin = VllmRival(args.against, config), VllmRival(args.model, config)
    backend = VllmRival(args.model, config, Worker(config, **BACKEND))
    smaller = dense.facts.layer_parameters / plugin.facts.layer_parameters
    print(f"{plugin.facts.engine}; layers' parameters {smaller:.2f} times fewer")
    print("| requests x tokens read | by | prefill | decode |\n|---|---|---|---|")
    for requests in args.requests:
        work = Workload(requests, args.read, args.written)
        calls = [functools.partial(rival.run, work) for rival in (dense, plugin, backend)]
        first, *others = interleaved(calls, repeats=args.repeats)
        for title, taken in zip(("plugin", "backend"), others):
            ratios = [[a / b for a, b in zip(first[stage], taken[stage])] for stage in ("prefill", "decode")]
            cells = " | ".join(f"{s.median:.2f}x ({s.low:.2f}-{s.high:.2f})" for s in map(Spread.of, ratios))
            print(f"| {requests} x {args.read} | {title} | {cells} |")


if __name__ == "__main__":
    main()
