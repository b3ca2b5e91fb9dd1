"""lm-evaluation-harness asks a model in memory: its own requests, batches and sums, its progress in our log.

The only file that imports the harness at its top: import it once that is known to be installed.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from types import SimpleNamespace
from typing import Any

import lm_eval
import numpy as np
import torch
from lm_eval.api.metrics import mean
from lm_eval.models.huggingface import HFLM

from darwinlm.errors import DarwinLMError
from darwinlm.measure.answers import Answers, Kept, named
from darwinlm.measure.harness import as_its_command_line, begin, digest
from darwinlm.models.source import ModelSource
from darwinlm.models.tokens import tokens_digest
from darwinlm.models.whole import load_whole
from darwinlm.runtime.progress import log, progress

_ask: Any = lm_eval.evaluate
_Model: Any = HFLM  # its decorators hide what it takes
Encodings = dict[tuple[str, bool | None], np.ndarray]
"""Tokens of texts, by text and by whether special tokens are added; of one tokenizer."""


class Answering(_Model):
    """A model that answers the harness, and tokenizes no text twice.

    Args:
        model: a causal language model.
        tokenizer: its tokenizer.
        batch_size: sequences in a forward pass.
        known: what this tokenizer has made of texts so far; more is put in.
    """

    def __init__(self, model: Any, tokenizer: Any, batch_size: int, known: Encodings) -> None:
        self.known = known
        super().__init__(pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=batch_size)

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, left_truncate_len: int | None = None, **kwargs: Any
    ) -> list[int]:
        """As the harness does."""
        key = (string, add_special_tokens)
        if key not in self.known:
            self.known[key] = np.asarray(super().tok_encode(string, add_special_tokens, **kwargs), dtype=np.int32)
        return self.known[key][-(left_truncate_len or 0) :].tolist()

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """The sums of log-probabilities, and whether each text is the likeliest."""
        with self._told(requests):
            return super().loglikelihood(list(requests), disable_tqdm=True)

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[str]:
        """What the model writes."""
        with self._told(requests):
            return super().generate_until(list(requests), disable_tqdm=True)

    @contextmanager
    def _told(self, requests: Sequence[Any]) -> Iterator[None]:
        """Progress from the harness's own hook, which hears of every answer."""
        with progress(str(requests[0].task_name), total=len(requests)) as advance:
            self.set_cache_hook(SimpleNamespace(add_partial=lambda *_: advance("")))
            yield
        self.set_cache_hook(SimpleNamespace(add_partial=lambda *_: None))


def chat_of(tokenizer: Any) -> Callable[..., str]:
    """The harness's function that puts turns into a tokenizer's chat template."""
    stand_in: Any = SimpleNamespace(tokenizer=tokenizer, chat_template_args={})

    def chat(history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        return HFLM.apply_chat_template(stand_in, history, add_generation_prompt)

    return chat


@dataclass
class Asking:
    """A checkpoint that is asked; loaded when the first answer is not known yet."""

    source: ModelSource
    device: torch.device
    dtype: torch.dtype
    batch_size: int
    """Sequences in a forward pass."""
    limit: int | None
    """Questions of each task, the first ones; None for all."""
    chat: bool
    """Put turns into the checkpoint's chat template."""
    known: Encodings
    """Of its tokenizer."""

    def all_of(self, requests: Mapping[str, str], parts: Mapping[str, Any], kept: Kept) -> dict[str, Answers]:
        """Answers at the parts of a task, each kept as soon as it is there.

        Args:
            requests: `harness.digest` of what is to be asked, by part.
            parts: of a `LoadedTask`.
            kept: where answers lie.
        """
        found: dict[str, Answers] = {}
        for name, asked in requests.items():
            identity = {**self._identity, "requests": asked}
            if (result := kept.find(name, identity)) is None:
                found[name] = self._answers(parts[name], asked)
                kept.keep(name, identity, found[name])
            else:
                log.info("%s  known", name)
                found[name] = Answers(**result)
        return found

    @cached_property
    def _identity(self) -> dict[str, Any]:
        versions = {package: version(package) for package in ("lm_eval", "transformers")}
        arithmetic = {"dtype": str(self.dtype), "device": self.device.type, "batch_size": self.batch_size}
        return {
            "model": self.source.digest,
            "tokens": tokens_digest(self.source.tokenizer),
            **arithmetic,
            **versions,
        }

    @cached_property
    def _model(self) -> Answering:
        model = load_whole(self.source, self.device, self.dtype)
        return Answering(model, self.source.tokenizer, self.batch_size, self.known)

    def _answers(self, task: Any, requests: str) -> Answers:
        name, said = task.config.task, io.StringIO()
        with as_its_command_line(), redirect_stdout(said):  # it prints when it begins to bootstrap
            begin(task)
            results = _ask(
                self._model,
                task_dict={"tasks": {name: task}, "groups": {}},
                limit=self.limit,
                log_samples=True,
                apply_chat_template=self.chat,
                fewshot_as_multiturn=self.chat,
            )
        if digest(task) != requests:
            raise DarwinLMError(f"The requests of the task '{name}' were not the same when they were asked.")
        metrics = {key: _plain(value) for key, value in results["results"][name].items()}
        return Answers(metrics, int(results["n-shot"][name]), _documents(task, results["samples"][name]))


def _documents(task: Any, samples: Sequence[dict[str, Any]]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    by_filter: dict[str, list[dict[str, Any]]] = {}
    for sample in samples:
        by_filter.setdefault(sample["filter"], []).append(sample)
    for filter_, rows in by_filter.items():
        for metric, how in task.aggregation().items():
            if how is mean and all(isinstance(row.get(metric), (bool, int, float, np.number)) for row in rows):
                found[named(metric, filter_)] = [float(row[metric]) for row in rows]
    return found


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value
