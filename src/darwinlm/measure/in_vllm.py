"""A checkpoint in vLLM: offline, or its OpenAI server under load; in vLLM's own environment, in processes of their own."""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import weakref
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import torch

from darwinlm.config import RunConfig
from darwinlm.errors import RequestError
from darwinlm.measure.rival import Facts, Workload
from darwinlm.measure.under_load import random_prompts, under_load
from darwinlm.models.source import ModelSource
from darwinlm.serving import vllm_worker

PYTHON = "DARWINLM_VLLM"
"""Environment variable: the Python of an environment that has vLLM, where that is another one."""
_START_SECONDS = 900


class Worker:
    """A process that has vLLM and one engine at a time.

    Args:
        config: lengths, numbers of sequences, dtype and threads count.
        options: more that vLLM's `LLM` takes.
    """

    def __init__(self, config: RunConfig, **options: Any) -> None:
        self._log = TemporaryFile("w+")  # noqa: SIM115  as long as the process
        command = [_python(), vllm_worker.__file__]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self._log}
        process = subprocess.Popen(command, text=True, env=_environment(config), **pipes)
        assert process.stdin is not None
        assert process.stdout is not None
        self._questions, self._answers = process.stdin, process.stdout
        weakref.finalize(self, _ended, process, self._log)
        self._options = {**_options(config), **options}

    def ask(self, model: str, prompts: list[list[int]], written: int) -> dict[str, Any]:
        """Seconds that vLLM takes; without prompts, what it is.

        Raises:
            RequestError: it cannot load the model.
        """
        asked = {"model": model, "options": self._options, "prompts": prompts, "written": written}
        try:
            self._questions.write(json.dumps(asked) + "\n")
            self._questions.flush()
        except BrokenPipeError:
            raise _cannot(model, self._log) from None
        if not (answer := self._answers.readline()):
            raise _cannot(model, self._log)
        return json.loads(answer)


class VllmRival:
    """A model in vLLM's offline engine.

    Args:
        name: folder or hub id.
        config: as for `Worker`, and the seed.
        worker: that several models share in turn; by default one of its own.
    """

    title = "vLLM"

    def __init__(self, name: str, config: RunConfig, worker: Worker | None = None) -> None:
        source = ModelSource(name, packed=True)  # weights of the hub come, too
        self.name, self.model, self.shape, self.seed = name, str(source.folder), source.shape, config.seed
        self.worker = worker or Worker(config)

    @functools.cached_property
    def _told(self) -> dict[str, Any]:
        return self.worker.ask(self.model, [], 0)

    @property
    def facts(self) -> Facts:
        """What it is, in the words of vLLM."""
        engine = f"{self.title} {self._told['version']}, {self._told['dtype']}, {self._told['device']}"
        return Facts(self.name, engine, self.shape.parameters, self.shape.layer_parameters)

    def run(self, work: Workload) -> dict[str, float]:
        """All prompts at once, greedily."""
        return self.worker.ask(self.model, random_prompts(work, self.shape.vocabulary, self.seed), work.written)

    def cache_bytes_per_token(self, work: Workload) -> float:
        """By the widths; an absent attention has no pages."""
        return self.shape.kv_cache_values_per_token * getattr(torch, self._told["dtype"]).itemsize


class VllmServerRival(VllmRival):
    """A model in vLLM's OpenAI server, asked over HTTP."""

    title = "vLLM's server"

    def __init__(self, name: str, config: RunConfig) -> None:
        super().__init__(name, config)
        _ = self._told
        del self.worker  # it has told what it is
        self._log = TemporaryFile("w+")  # noqa: SIM115  as long as the process
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        options = {**_options(config), "served_model_name": "model", "host": "127.0.0.1", "port": self._port}
        words = [word for key, value in options.items() for word in (f"--{key.replace('_', '-')}", str(value))]
        command = [_python(), "-m", "vllm.entrypoints.openai.api_server", "--model", self.model, *words]
        command += ["--no-enable-prefix-caching", *(["--enforce-eager"] if not torch.cuda.is_available() else [])]
        env = {**_environment(config), "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
        self._process = subprocess.Popen(command, env=env, stdout=self._log, stderr=self._log)
        weakref.finalize(self, _ended, self._process, self._log)
        self._wait()

    def _wait(self) -> None:
        """Until it answers."""
        until = time.monotonic() + _START_SECONDS
        while time.monotonic() < until and self._process.poll() is None:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self._port}/health")
                return
            except urllib.error.URLError:
                time.sleep(0.2)
        raise _cannot(self.model, self._log)

    def run(self, work: Workload) -> dict[str, float]:
        """A request for each prompt, all at once."""
        prompts = random_prompts(work, self.shape.vocabulary, self.seed)
        asked = {"model": "model", "max_tokens": work.written + 1, "temperature": 0, "ignore_eos": True}
        return under_load(f"http://127.0.0.1:{self._port}/v1/completions", prompts, asked)


def load_engine(name: str, config: RunConfig) -> None:
    """Check that vLLM is here.

    Raises:
        RequestError: it is not.
    """
    _python()
    ModelSource(name, weights=False, packed=True)


def _python() -> str:
    told = os.environ.get(PYTHON, "")
    if told and Path(told).is_file():
        return told
    if not told and importlib.util.find_spec("vllm"):
        return sys.executable
    found = f"{PYTHON} is '{told}', where no Python is" if told else "vLLM is not installed here"
    raise RequestError(
        f"{found}. Install DarwinLM beside vLLM (`pip install --no-deps -e .`), and set {PYTHON} to the Python of that "
        "environment where it is not this one."
    )


def _options(config: RunConfig) -> dict[str, Any]:
    bench = config.bench
    length = max(bench.context_lengths) + bench.decode_tokens + 1
    return {"max_model_len": length, "max_num_seqs": max(bench.batch_sizes), "dtype": config.dtype}


def _environment(config: RunConfig) -> dict[str, str]:
    threads = config.bench.threads or torch.get_num_threads()
    return {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": f"0-{threads - 1}" if threads > 1 else "0",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "HF_HUB_OFFLINE": "1",
        **{name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
    }


def _cannot(model: str, log: Any) -> RequestError:
    log.seek(0)
    told = [line.strip() for line in log.read().splitlines() if line.strip()]
    reason = next((line for line in reversed(told) if "Error" in line), told[-1] if told else "it ended")
    return RequestError(f"vLLM cannot load '{model}': {reason[:500]}")


def _ended(process: subprocess.Popen[Any], log: Any) -> None:
    process.terminate()
    process.wait()
    for pipe in (process.stdin, process.stdout, log):
        if pipe:
            pipe.close()
