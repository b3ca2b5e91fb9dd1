"""Speed and memory: turns are fair, what is counted is what is there, and impossible requests are refused at once."""

from __future__ import annotations

import json
import math
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import darwinlm
import pico
from darwinlm.assemble import Assembler
from darwinlm.cli import main
from darwinlm.config import RunConfig
from darwinlm.errors import RequestError
from darwinlm.export.huggingface import export_checkpoint
from darwinlm.measure.in_transformers import TransformersRival
from darwinlm.measure.memory import peak_memory
from darwinlm.measure.rival import Workload
from darwinlm.measure.timing import Spread, interleaved, ratios, timed
from darwinlm.measure.under_load import random_prompts, under_load
from darwinlm.models.source import ModelSource
from darwinlm.models.whole import load_whole

FAST = {"context_lengths": [8, 16], "decode_tokens": 3, "repeats": 2, "warmups": 1}
FAST_FLAGS = [word for name, value in FAST.items() for word in (f"--bench.{name}", str(value))]


@pytest.fixture(scope="module")
def pruned(source, database, tmp_path_factory):
    """Family -> a checkpoint whose first layer has neither module."""

    def make(family: str):
        levels = database(family, "auto")
        genome = tuple(ladder.top if ladder.layer == 0 else 1 for ladder in levels.ladders())
        folder = tmp_path_factory.mktemp("pruned") / family
        export_checkpoint(Assembler(source(family), levels), genome, folder, {}, {})
        return folder

    return make


def test_rivals_take_turns_and_warm_ups_do_not_count():
    order: list[str] = []

    def rival(name: str):
        def run() -> dict[str, float]:
            order.append(name)
            return {"seconds": float(len(order))}

        return run

    taken = interleaved([rival("A"), rival("B")], repeats=2, warmups=1)
    assert order == ["A", "B"] * 3
    assert taken == [{"seconds": [3.0, 5.0]}, {"seconds": [4.0, 6.0]}]


def test_a_call_is_timed():
    def busy() -> None:
        end = torch.zeros(())
        while end < 2000:
            end += 1

    short, long = (interleaved([timed(call, pico.CPU)], repeats=3)[0]["seconds"] for call in (lambda: None, busy))
    assert max(short) < min(long)


def test_spread_is_median_and_quartiles():
    assert Spread.of([5, 1, 2, 4, 3]) == Spread(3, 2, 4)
    assert Spread.of([7.0]) == Spread(7, 7, 7)


def test_what_slows_both_rivals_down_cancels_out():
    drift = [1.0, 3.0, 10.0, 2.0]
    assert ratios([2 * seconds for seconds in drift], drift) == Spread(2, 2, 2)


@pytest.mark.parametrize("family", ["llama_gqa", "mistral", "qwen2", "qwen3"])
def test_dense_and_pruned_are_loaded_as_users_load_them(family, checkpoint, pruned):
    tokens = pico.random_tokens(2, 12)
    for folder, name in ((checkpoint(family), "ForCausalLM"), (pruned(family), "DarwinLMForCausalLM")):
        ours = load_whole(ModelSource(str(folder)), pico.CPU, torch.float32)
        theirs = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32).eval()
        assert type(ours).__name__.endswith(name)
        assert type(ours).__name__ == type(theirs).__name__
        with torch.no_grad():
            assert torch.equal(ours(tokens).logits, theirs(tokens).logits)


def test_the_cache_is_measured_as_it_is(checkpoint, pruned):
    for folder in (checkpoint("qwen3"), pruned("qwen3")):
        rival = TransformersRival(str(folder), RunConfig(device="cpu", dtype="float32"))
        per_token = 4 * ModelSource(str(folder)).shape.kv_cache_values_per_token
        assert rival.cache_bytes_per_token(Workload(2, 8, 3)) == per_token


def test_every_forward_pass_is_made_once(checkpoint):
    rival = TransformersRival(str(checkpoint("llama_gqa")), RunConfig(device="cpu", dtype="float32"))
    seen: list[tuple[int, ...]] = []
    rival.model.model.register_forward_hook(
        lambda module, args, kwargs, output: seen.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    assert rival.run(Workload(2, 8, 3)).keys() == {"prefill", "decode"}
    assert seen == [(2, 8), (2, 1), (2, 1), (2, 1)]


def test_memory_holds_the_weights_and_little_more(tmp_path):
    """47 MB of weights; the rest is activations, the head's output and what the allocator keeps."""
    sizes = {"hidden_size": 512, "intermediate_size": 1536, "head_dim": 64, "num_hidden_layers": 4}
    folder = pico.make_checkpoint(tmp_path / "model", "llama_gqa", **sizes)
    weights = 4 * ModelSource(str(folder)).shape.parameters
    assert weights > 40e6
    (held,) = peak_memory(str(folder), RunConfig(device="cpu", dtype="float32"), [Workload(1, 32, 2)])
    assert held is None or weights < held < 1.5 * weights


def test_the_command_leaves_a_table_numbers_and_a_picture(checkpoint, pruned, tmp_path, capsys):
    dense, folder = checkpoint("llama_gqa"), pruned("llama_gqa")
    main(["bench", str(folder), "--against", str(dense), "--output", str(tmp_path / "out"), *FAST_FLAGS])
    printed = capsys.readouterr().out
    assert "1 x 16 tokens read, 3 more written" in printed
    assert (tmp_path / "out/bench.png").read_bytes().startswith(b"\x89PNG")
    values = json.loads((tmp_path / "out/bench.json").read_text())
    shapes = [ModelSource(str(path)).shape for path in (dense, folder)]
    assert [model["parameters"] for model in values["models"]] == [shape.parameters for shape in shapes]
    assert values["models"][1]["layer_ratio"] == shapes[0].layer_parameters / shapes[1].layer_parameters
    for rows in values["measurements"]:
        for row, tokens in zip(rows, (8, 16)):
            assert row["work"] == {"sequences": 1, "tokens": tokens, "written": 3}
            for stage, count in (("prefill", tokens), ("decode", 3)):
                assert row[f"{stage}_tokens_per_second"] == pytest.approx(count / row[f"{stage}_seconds"]["median"])
    assert values["measurements"][0][0]["prefill_speedup"] is None
    assert values["measurements"][1][0]["prefill_speedup"]["median"] > 0


@pytest.fixture(scope="module")
def gguf(tmp_path_factory) -> tuple[str, Any]:
    """A .gguf file, and the model in it."""
    pytest.importorskip("gguf")
    pytest.importorskip("xllamacpp")
    from gguf_file import write_gguf

    model = pico.random_model("llama_mha", bos_token_id=1, eos_token_id=2)
    return str(write_gguf(model, tmp_path_factory.mktemp("gguf") / "pico.gguf")), model


def test_gguf_files_run_in_llama_cpp(gguf, tmp_path):
    path, model = gguf
    result = darwinlm.bench(path, against=path, output=tmp_path, bench={**FAST, "threads": 1}).result
    assert (tmp_path / "bench.json").is_file()
    assert torch.get_num_threads() == 1
    facts, rows = result.models[1], result.measurements[1]
    assert facts.engine.startswith("llama.cpp")
    assert facts.parameters == model.num_parameters()
    assert facts.layer_parameters == sum(p.numel() for p in model.model.layers.parameters())
    assert rows[0].cache_bytes_per_token == 2 * 2 * 3 * 32  # keys and values in float16, 3 layers, 4 heads of 8
    assert all(math.isfinite(row.tokens_per_second(stage)) for row in rows for stage in ("prefill", "decode"))


def test_checkpoints_run_in_llama_cpp_and_several_requests_at_once(pruned, checkpoint, monkeypatch):
    pytest.importorskip("gguf")
    pytest.importorskip("xllamacpp")
    monkeypatch.setattr("darwinlm.measure.bench.peak_memory", lambda name, config, work: [None] * len(work))
    settings = {**FAST, "threads": 1, "engine": "llama.cpp", "gguf": "q8_0", "batch_sizes": [1, 3]}
    result = darwinlm.bench(str(pruned("llama_gqa")), against=str(checkpoint("llama_gqa")), bench=settings).result
    assert [facts.engine.endswith("q8_0") for facts in result.models] == [True, True]
    assert result.models[0].parameters == ModelSource(str(checkpoint("llama_gqa"))).shape.parameters
    for rows in result.measurements:
        assert [row.work.sequences for row in rows] == [1, 1, 3, 3]
        assert all(row.prefill_seconds.median > 0 and row.decode_seconds.median > 0 for row in rows)


def test_answers_under_load_are_timed_from_the_first_to_the_last_token():
    """A server that thinks, and then writes three tokens, a little apart."""

    class Slow(BaseHTTPRequestHandler):
        def do_POST(self):
            asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()
            for pause in (0.2, 0.1, 0.1):
                time.sleep(pause)
                self.wfile.write(b'data: {"text": "x"}\n\n')
                self.wfile.flush()
            self.wfile.write(b"data: [DONE]\n\n")

        def log_message(self, *arguments):
            pass

    asked: list[dict[str, Any]] = []
    with ThreadingHTTPServer(("127.0.0.1", 0), Slow) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        took = under_load(f"http://127.0.0.1:{server.server_port}", random_prompts(Workload(4, 5, 2), 9, 0), {"n": 3})
        server.shutdown()
    assert 0.2 <= took["prefill"] < 2
    assert 0.15 <= took["decode"] < 2
    assert len(asked) == 4
    assert all(body["stream"] and body["n"] == 3 and len(body["prompt"]) == 5 for body in asked)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"engine": "llama.cpp", "gguf": "q4"}, r"bench\.gguf is 'q4'.*q4_k_m"),
        ({"engine": "vllm"}, "DARWINLM_VLLM is '/no/python', where no Python is"),
        ({"repeats": 0}, r"bench\.repeats is 0"),
        ({"threads": 0}, r"bench\.threads is 0"),
        ({"batch_sizes": []}, r"bench\.batch_sizes is \[\]"),
        ({"context_lengths": [8, 0]}, r"bench\.context_lengths is \[8, 0\]"),
        ({"context_lengths": [128]}, "reads at most 128 tokens"),
    ],
)
def test_impossible_work_is_refused(settings, said, checkpoint, monkeypatch):
    monkeypatch.setenv("DARWINLM_VLLM", "/no/python")
    monkeypatch.setattr("darwinlm.measure.bench.peak_memory", lambda *arguments: pytest.fail("long work began"))
    with pytest.raises(RequestError, match=said):
        darwinlm.bench(str(checkpoint("llama_gqa")), bench=settings)


def test_models_of_other_engines_or_none_are_refused(checkpoint, gguf, tmp_path):
    with pytest.raises(RequestError, match="belong to different engines"):
        darwinlm.bench(gguf[0], against=str(checkpoint("llama_gqa")))
    with pytest.raises(RequestError, match=r"a file for llama\.cpp, and bench\.engine is vllm"):
        darwinlm.bench(gguf[0], bench={"engine": "vllm"})
    with pytest.raises(RequestError, match=r"There is no file 'no\.gguf'"):
        darwinlm.bench("no.gguf")
    (tmp_path / "broken.gguf").write_bytes(b"GGUF and then nothing of the kind, for a while")
    with pytest.raises(RequestError, match="no whole GGUF file"):
        darwinlm.bench(str(tmp_path / "broken.gguf"))
    with pytest.raises(RequestError, match="There is no model folder"):
        darwinlm.bench("./nothing")
    with pytest.raises(RequestError, match="No model is given"):
        darwinlm.bench("")


@pytest.mark.parametrize("package", ["gguf", "xllamacpp"])
def test_a_missing_package_is_named(package, gguf, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(RequestError, match=f"pip install {package}"):
        darwinlm.bench(gguf[0], bench=FAST)


def test_what_llama_cpp_cannot_load_is_a_wrong_request(gguf, tmp_path):
    data = bytearray(Path(gguf[0]).read_bytes())
    data[data.index(b"blk.1.ffn_down") + 4] = ord("7")  # a tensor that llama.cpp misses
    (tmp_path / "renamed.gguf").write_bytes(data)
    with pytest.raises(RequestError, match=r"llama\.cpp cannot load '.*renamed\.gguf': [^.]+\. Convert"):
        darwinlm.bench(str(tmp_path / "renamed.gguf"), bench=FAST)
