"""Pruned models in real engines on a CPU: log-probabilities and greedy tokens are those of the masked stock model.

DARWINLM_VLLM names the Python of an environment with vLLM, in which DarwinLM is installed; `make test-engines` makes one.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import darwinlm
import pico
from darwinlm.assemble import Assembler
from darwinlm.export.forms import Wanted, write_forms
from darwinlm.export.huggingface import export_checkpoint
from darwinlm.models.llama_cpp import llama_cpp_faults
from darwinlm.models.source import ModelSource

PYTHON = os.environ.get("DARWINLM_VLLM", "")
pytestmark = pytest.mark.skipif(not PYTHON, reason="DARWINLM_VLLM names no Python with vLLM: make test-engines")

SIZES = {"hidden_size": 64, "head_dim": 32, "num_attention_heads": 8, "num_key_value_heads": 4}  # kernels want 32
SLIDING = {"use_sliding_window": True, "sliding_window": 16}
SUBJECTS: dict[str, tuple[str, dict[str, Any], set[str]]] = {
    "llama": ("llama_gqa", {}, {"0.self_attn", "1.mlp"}),
    "llama, uneven heads": (
        "llama_gqa",
        {"num_attention_heads": 16, "hidden_size": 96, "head_dim": 48},
        {"2.self_attn"},
    ),
    "llama, biases": ("llama_bias", {}, {"1.self_attn", "2.self_attn"}),
    "mistral": ("mistral", {}, {"0.self_attn"}),
    "mistral, sliding window": ("mistral", {"sliding_window": 16}, {"1.self_attn", "1.mlp"}),
    "qwen2, tied, layers with windows": ("qwen2_tied", {**SLIDING, "max_window_layers": 1}, {"2.self_attn"}),
    "qwen2, tied": ("qwen2_tied", {}, {"0.self_attn", "2.mlp"}),
    "qwen3, layers with windows": ("qwen3", {**SLIDING, "max_window_layers": 2}, {"0.self_attn", "2.mlp"}),
    "qwen3, tied": ("qwen3_tied", {}, {"2.self_attn"}),
    "qwen3, tied, biases": ("qwen3_bias", {}, {"1.self_attn"}),
    "granite": ("granite", {}, {"1.self_attn"}),
    "phi3": ("phi3", {}, {"1.self_attn", "2.mlp"}),
    "qwen3, one shape": ("qwen3", {}, {"1.self_attn", "1.mlp"}),
    "qwen3_moe, one shape": (
        "qwen3_moe_normed",
        {"moe_intermediate_size": 64, "num_experts": 8},
        {"1.self_attn", "1.mlp"},
    ),
    "mixtral, one shape": (
        "mixtral",
        {"intermediate_size": 64, "num_local_experts": 8},
        {"1.self_attn", "1.mlp"},
    ),
    "olmoe, one shape": (
        "olmoe",
        {"hidden_size": 128, "num_attention_heads": 4, "intermediate_size": 64, "num_experts": 8},
        {"1.self_attn", "1.mlp"},
    ),
}
"""Name -> family, its sizes, and what is gone; other modules are narrower. Of "llama" they are whole."""
NATIVE = {
    "qwen3, one shape": "Qwen3ForCausalLM",
    "qwen3_moe, one shape": "Qwen3MoeForCausalLM",
    "mixtral, one shape": "MixtralForCausalLM",
    "olmoe, one shape": "OlmoeForCausalLM",
}
"""Those whose layers are alike -> vLLM's own class of them."""
PROMPTS, WRITTEN = (40, 33), 16
PLUGIN, BACKEND = {"VLLM_PLUGINS": "darwinlm"}, {"VLLM_PLUGINS": ""}
WAYS = {"plugin": "canonical", "backend": "canonical", "native": "canonical", "backend, portable": "portable"}
ABSENT = {"plugin": ("granite", "phi3")}
"""Way -> families that it does not know."""
CASES = [
    (way, name)
    for way in WAYS
    for name in SUBJECTS
    if (name in NATIVE) == (way == "native") and name not in ABSENT.get(way, ())
]
ALLOWED = 1e-4
PORT = 8321


@dataclass(frozen=True)
class Subject:
    """A pruned model, its truth, and how many attentions it has left."""

    forms: dict[str, Path]
    sequences: list[list[int]]
    """Prompts, and what the masked stock model writes after them."""
    logprobs: list[list[float]]
    attentions: int

    def question(self, form: str, **options: Any) -> dict[str, Any]:
        return {"folder": str(self.forms[form]), "sequences": self.sequences, "prompts": PROMPTS, "options": options}


@torch.no_grad()
def make_subject(folder: Path, name: str) -> Subject:
    family, sizes, gone = SUBJECTS[name]
    dense = pico.make_checkpoint(folder / "dense", family, **{**SIZES, **sizes})
    source = ModelSource(str(dense))
    levels = pico.make_database(folder / "database", source, tensor_parallel=2 if "uneven" not in name else 1)
    names = {f"model.layers.{each}" for each in gone}
    whole = name == "llama"
    genome = [
        ladder.top if ladder.name in names else min(int(not whole), ladder.top - 1) for ladder in levels.ladders()
    ]
    export_checkpoint(Assembler(source, levels), tuple(genome), folder / "model", {}, {}, stock=name in NATIVE)
    forms = write_forms(folder / "model", Wanted(portable=True))
    if not llama_cpp_faults(ModelSource(str(folder / "model"))):
        forms += write_forms(folder / "model", Wanted(format="gguf", dtype="f32"))
    truth, sequences, logprobs = pico.zero_masked(dense, levels, genome), [], []
    for seed, length in enumerate(PROMPTS):
        row = pico.random_tokens(1, length, seed)
        for _ in range(WRITTEN):
            row = torch.cat([row, truth(row).logits[:, -1:].argmax(-1)], 1)
        known = truth(row).logits[0, :-1].log_softmax(-1)
        sequences.append(row[0].tolist())
        logprobs.append(known.gather(1, row[0, 1:, None])[:, 0].tolist())
    attentions = sum(widths.heads > 0 for widths in ModelSource(str(folder / "model")).shape.layers)
    return Subject({form.name: form.path for form in forms}, sequences, logprobs, attentions)


@pytest.fixture(scope="session")
def subject(tmp_path_factory) -> Callable[[str], Subject]:
    return functools.cache(lambda name: make_subject(tmp_path_factory.mktemp("subject"), name))


def environment(**more: str) -> dict[str, str]:
    """Of a quiet vLLM on one core that asks nobody."""
    settings = {
        "OMP_NUM_THREADS": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "ERROR", "TORCHDYNAMO_DISABLE": "1",
        "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    }  # fmt: skip
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | settings | more


def ask(folder: Path, questions: list[dict[str, Any]], env: dict[str, str]) -> list[dict[str, Any]]:
    """The answers of one vLLM process; its models are loaded one after another."""
    (folder / "questions").write_text(json.dumps(questions))
    script = Path(__file__).with_name("vllm_answers.py")
    command = [PYTHON, str(script), str(folder / "questions"), str(folder / "answers")]
    done = subprocess.run(command, env=environment(**env), capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, (done.stdout + done.stderr)[-5000:]
    return json.loads((folder / "answers").read_text())


@pytest.fixture(scope="session")
def answers(subject, tmp_path_factory) -> Callable[[str, str], dict[str, Any]]:
    """Way and subject -> answer."""

    @functools.cache
    def process(plugin: bool) -> dict[tuple[str, str], dict[str, Any]]:
        options = {"trust_remote_code": not plugin, "distributed_executor_backend": "uni"}
        cases = [(way, name) for way, name in CASES if (way == "plugin") == plugin]
        questions = [subject(name).question(WAYS[way], **options) for way, name in cases]
        return dict(zip(cases, ask(tmp_path_factory.mktemp("asked"), questions, PLUGIN if plugin else BACKEND)))

    return lambda way, name: process(way == "plugin")[way, name]


def largest_difference(truth: Subject, answer: dict[str, Any]) -> float:
    """Over all that was scored and written, where the written tokens are the same."""
    gaps = [abs(a - b) for own, known in zip(answer["scored"], truth.logprobs) for a, b in zip(own, known, strict=True)]
    for written in (answer["cold"], answer["warm"]):
        for steps, row, known, length in zip(written, truth.sequences, truth.logprobs, PROMPTS):
            assert [token for token, _ in steps] == row[length:]
            gaps += [abs(own - a) for (_, own), a in zip(steps, known[length - 1 :], strict=True)]
    return max(gaps)


def told(name: str, way: str, difference: float) -> None:
    """Print a row for docs/benchmarks.md (`pytest -rP`), and check it."""
    print(f"| {name} | {way} | {difference:.1e} |")
    assert difference < ALLOWED


@pytest.mark.parametrize("name", SUBJECTS)
@torch.no_grad()
def test_transformers_gives_the_numbers_of_the_masked_model(name, subject):
    truth, gaps = subject(name), []
    model = AutoModelForCausalLM.from_pretrained(truth.forms["canonical"], trust_remote_code=True, dtype=torch.float32)
    for row, known, length in zip(truth.sequences, truth.logprobs, PROMPTS):
        found = model(torch.tensor([row])).logits[0, :-1].log_softmax(-1)
        gaps += [abs(own[token] - a) for own, token, a in zip(found.tolist(), row[1:], known, strict=True)]
        prompt = torch.tensor([row[:length]])
        mask = torch.ones_like(prompt)
        again = model.generate(prompt, attention_mask=mask, max_new_tokens=WRITTEN, do_sample=False, pad_token_id=0)
        assert again[0].tolist() == row
    told(name, "transformers", max(gaps))


@pytest.mark.parametrize("name", SUBJECTS)
def test_llama_cpp_gives_the_numbers_of_the_masked_model(name, subject):
    from llama_cpp import Engine

    truth, gaps = subject(name), []
    if "gguf f32" not in truth.forms:
        pytest.skip("refused: llama.cpp has no graph for it")
    engine = Engine(truth.forms["gguf f32"])
    for row, known, length in zip(truth.sequences, truth.logprobs, PROMPTS):
        for place in range(1, len(row)):
            found = engine.log_probabilities(row[:place], pico.VOCABULARY, reuse=place > length)
            gaps.append(abs(float(found[row[place]]) - known[place - 1]))
            assert place < length or int(found.argmax()) == row[place]
        assert engine.reused
    told(name, "llama.cpp", max(gaps))


@pytest.mark.parametrize(("way", "name"), CASES)
def test_vllm_gives_the_numbers_of_the_masked_model(way, name, subject, answers):
    answer, truth = answers(way, name), subject(name)
    difference = largest_difference(truth, answer)
    told(name, way, difference)
    mixed_pages = (
        way != "plugin" and "layers with windows" in name
    )  # vLLM joins them to blocks longer than these prompts
    assert all(answer["reused"]) or mixed_pages
    classes = {"plugin": "DarwinLMForCausalLM", "native": NATIVE.get(name)}
    assert answer["model"] == classes.get(way, "TransformersForCausalLM")
    if way == "plugin":
        assert len(answer["pages"]) == truth.attentions
        rooms = {each.split(".")[1] for each in answer["ours"] if "." in each}
        assert rooms <= {"errors", "keywords", "serving", "version"}


def of_packed(truth: Subject) -> tuple[Path, list[list[float]], list[list[float]]]:
    """The packed form of a subject, and what transformers gives for its sequences: unrounded, and of what is read back of it."""
    form = write_forms(truth.forms["canonical"], Wanted(format="compressed-tensors", dtype="w4a16"))[1]
    found = []
    with torch.no_grad():
        model = darwinlm.load(form.path, device="cpu", dtype="float32")
        for row in truth.sequences:
            known = model(torch.tensor([row])).logits[0, :-1].log_softmax(-1)
            found.append(known.gather(1, torch.tensor(row)[1:, None])[:, 0].tolist())
    return form.path, truth.logprobs, found


def farthest(first: list[list[float]], second: list[list[float]]) -> float:
    return max(abs(a - b) for one, other in zip(first, second, strict=True) for a, b in zip(one, other, strict=True))


READ = """
import sys, torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True, dtype=torch.bfloat16)
model(torch.arange(4)[None])  # unpacks them
save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items() if name.endswith("_proj.weight")}, sys.argv[2])
"""
"""The matrices that transformers and compressed-tensors read back of a checkpoint."""


@pytest.mark.parametrize("name", ["llama", "qwen3, tied"])
def test_engines_compute_with_the_numbers_of_the_packed_form(name, tmp_path, monkeypatch):
    for field, size in {"hidden_size": 128, "intermediate_size": 160}.items():  # kernels want multiples of 32
        monkeypatch.setitem(SIZES, field, size)
    truth = make_subject(tmp_path / "subject", name)
    folder, unrounded, rounded = of_packed(truth)
    command = [PYTHON, "-c", READ, str(folder), str(tmp_path / "read")]
    subprocess.run(command, env=environment(), check=True, cwd=tmp_path)
    theirs, ours = load_file(tmp_path / "read"), ModelSource(str(folder), packed=True)
    assert theirs.keys() == {key for key in ours.files if key.endswith("_proj.weight")}
    assert all(torch.equal(tensor, ours.tensors([key])[key].bfloat16()) for key, tensor in theirs.items())
    if "avx512f" not in Path("/proc/cpuinfo").read_text(encoding="utf-8"):
        pytest.skip(
            "vLLM's build for CPUs without AVX-512 has no kernel for 4 bits; what transformers reads back was right"
        )
    question = truth.question("canonical", distributed_executor_backend="uni", dtype="bfloat16")
    (answer,) = ask(tmp_path, [{**question, "folder": str(folder)}], PLUGIN)
    assert answer["model"] == "DarwinLMForCausalLM"
    gaps = farthest(answer["scored"], rounded), farthest(answer["scored"], unrounded)
    print(f"| {name} | vLLM, plugin, w4a16, bfloat16 | {gaps[0]:.2f} (unrounded: {gaps[1]:.2f}) |")
    assert gaps[0] < 0.1 < gaps[1]


def test_two_ranks_share_a_model(subject, tmp_path):
    truth = subject("qwen3, layers with windows")
    question = truth.question("canonical", tensor_parallel_size=2, distributed_executor_backend="mp")
    (answer,) = ask(tmp_path, [question], {**PLUGIN, "VLLM_CPU_OMP_THREADS_BIND": "0|1"})
    told("qwen3, layers with windows", "plugin, two ranks", largest_difference(truth, answer))


def test_the_openai_server_serves_it(subject, tmp_path):
    truth = subject("llama")
    command = [PYTHON, "-m", "vllm.entrypoints.openai.api_server", "--model", str(truth.forms["canonical"])]
    command += ["--dtype", "float32", "--enforce-eager", "--max-model-len", "128", "--port", str(PORT)]
    env = environment(**PLUGIN, VLLM_ENABLE_V1_MULTIPROCESSING="1")
    with (tmp_path / "log").open("w") as log, subprocess.Popen(command, env=env, stdout=log, stderr=log) as server:
        try:
            wait_for(server, tmp_path / "log")
            told = completion(truth.sequences[0][: PROMPTS[0]], str(truth.forms["canonical"]))
        finally:
            server.terminate()
    expected = truth.logprobs[0][PROMPTS[0] - 1 :]
    assert max(abs(a - b) for a, b in zip(told, expected, strict=True)) < ALLOWED


def wait_for(server: subprocess.Popen, log: Path) -> None:
    for _ in range(300):
        assert server.poll() is None, log.read_text()[-5000:]
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{PORT}/health")
            return
        except urllib.error.URLError:
            time.sleep(1)
    raise TimeoutError(log.read_text()[-5000:])


def completion(prompt: list[int], model: str) -> list[float]:
    """Log-probabilities of what the server writes."""
    body = {
        "model": model,
        "prompt": prompt,
        "max_tokens": WRITTEN,
        "temperature": 0,
        "logprobs": 0,
        "ignore_eos": True,
    }
    url = f"http://127.0.0.1:{PORT}/v1/completions"
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as found:
        return json.load(found)["choices"][0]["logprobs"]["token_logprobs"]


@pytest.mark.parametrize("engine", ["vllm", "vllm-server"])
def test_bench_measures_in_it(engine, subject, monkeypatch):
    for name, value in environment(**PLUGIN).items():
        monkeypatch.setenv(name, value)
    settings = {"engine": engine, "batch_sizes": [1, 4], "context_lengths": [24], "decode_tokens": 5, "repeats": 1}
    folder = str(subject("llama").forms["canonical"])
    result = darwinlm.bench(folder, against=folder, dtype="float32", bench=settings).result
    assert all(facts.engine.startswith("vLLM") and "float32" in facts.engine for facts in result.models)
    for rows in result.measurements:
        assert all(row.prefill_seconds.median > 0 and row.decode_seconds.median > 0 for row in rows)
