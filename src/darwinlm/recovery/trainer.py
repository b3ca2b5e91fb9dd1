"""transformers.Trainer with our loss, our text, our states, and a history that is ours to read."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from darwinlm.config import TrainConfig
from darwinlm.errors import RequestError
from darwinlm.recovery.batches import Batches
from darwinlm.recovery.history import History
from darwinlm.recovery.objective import Objective
from darwinlm.recovery.state import bookmark_of, load_state, save_state
from darwinlm.recovery.teacher import LiveTeacher
from darwinlm.recovery.teacher_logits import StoredTeacher
from darwinlm.runtime import ranks
from darwinlm.runtime.seeds import torch_generator


@dataclass(frozen=True)
class Course:
    """What accompanies a training."""

    seed: int
    folder: Path
    """Where its states lie."""
    history: History | None
    """None on ranks that do not write."""
    watch: Callable[[Any], dict[str, float]]
    """Scores the wrapped model on held-out text."""
    step_done: Callable[[str], None]
    """Called after each step with a word about it."""


class Recovery(Trainer):
    """The training loop.

    Args:
        objective: the student with its loss.
        arguments: of Trainer.
        train: the settings.
        batches: this rank's share of the text.
        teacher: None for cross entropy alone.
        course: what accompanies it.
    """

    def __init__(
        self,
        objective: Objective,
        arguments: TrainingArguments,
        train: TrainConfig,
        batches: Batches,
        teacher: LiveTeacher | StoredTeacher | None,
        course: Course,
    ) -> None:
        super().__init__(model=objective, args=arguments, callbacks=[_Marks(train, course.seed)])
        self.remove_callback(PrinterCallback)
        self.train_config, self.batches, self.teacher, self.course = train, batches, teacher, course
        self.began = time.perf_counter()

    def create_accelerator_and_postprocess(self) -> None:
        """Also on CPUs, where accelerate would leave FSDP out without a word and copy the whole model to every rank."""
        super().create_accelerator_and_postprocess()
        state = self.accelerator.state
        if self.args.fsdp and state.distributed_type == DistributedType.MULTI_CPU:
            settings: dict[str, Any] = self.args.fsdp_plugin_args or {}
            state.fsdp_plugin = FullyShardedDataParallelPlugin(**settings)
            state.distributed_type = DistributedType.FSDP
            if state.mixed_precision != "no":
                state.fsdp_plugin.set_mixed_precision(state.mixed_precision)
            self.is_fsdp_enabled = True

    def get_train_dataloader(self) -> Any:
        """The micro-batches of this rank: already shared out, so nothing prepares them any more."""
        return self.batches

    def compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, **others: Any) -> Any:
        """Cross entropy, or its mixture with what the teacher knows; a mean over the tokens of the micro-batch."""
        tokens = inputs["input_ids"]
        known = self.teacher.known(tokens, inputs["numbers"]) if self.teacher else None
        output = model(tokens, known)
        return (output["loss"], output) if return_outputs else output["loss"]

    def evaluate(self, *arguments: Any, **options: Any) -> dict[str, float]:
        """Score the held-out text."""
        quality = self.course.watch(self.model_wrapped)
        self.log({f"held_out_{name}": value for name, value in quality.items()})
        return quality

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Keep a line of the history, and tell the trackers.

        Raises:
            RequestError: the loss is no longer finite.
        """
        super().log(logs, start_time)
        step = self.state.global_step
        line: dict[str, Any] = {"step": step, "tokens": step * self.train_config.batch_tokens}
        if "loss" in logs:
            if not math.isfinite(logs["loss"]):
                raise RequestError(
                    f"The loss became {logs['loss']} at step {step}. Lower train.learning_rate (now "
                    f"{self.train_config.learning_rate:g}), raise train.warmup_steps, or use --dtype float32."
                )
            seconds, self.began = time.perf_counter() - self.began, time.perf_counter()
            line |= {name: logs[name] for name in ("loss", "learning_rate", "grad_norm") if name in logs}
            line["tokens_per_second"] = round(self.train_config.batch_tokens / seconds, 1)
            self.course.step_done(f"loss {logs['loss']:.4f}, {line['tokens_per_second']:,.0f} tokens/s")
        elif "held_out_perplexity" in logs:
            line["held_out"] = {
                name.removeprefix("held_out_"): value for name, value in logs.items() if "held_out" in name
            }
            self.began = time.perf_counter()
        else:
            return
        if self.course.history:
            self.course.history.add(line)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Our state in place of Trainer's pickles, which a kill could leave half-written."""
        optimizer, schedule = self._plain_optimizer(), self.lr_scheduler
        step, place = self.state.global_step, self.batches.bookmark
        save_state(self.course.folder, step, model, optimizer, schedule, place, self.state)  # type: ignore[arg-type]
        self.began = time.perf_counter()

    def save(self) -> None:
        """Keep the state after the last whole step."""
        if not (self.course.folder / f"state-{self.state.global_step}").exists():
            self._save_checkpoint(self.model_wrapped, None)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Weights come with the moments, when the model is wrapped."""

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        state = Path(checkpoint)
        load_state(state, self.model_wrapped, self._plain_optimizer(), self.lr_scheduler)  # type: ignore[arg-type]
        self.batches.step, self.batches.bookmark = self.state.global_step, bookmark_of(state)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Every step seeds its own randomness."""

    def _plain_optimizer(self) -> Any:
        """Without accelerate's wrapper."""
        return getattr(self.optimizer, "optimizer", self.optimizer)


class _Marks(TrainerCallback):
    """When to look at the held-out text and when to save; seeds each step (dropout, where a model has it)."""

    def __init__(self, train: TrainConfig, seed: int) -> None:
        self.train, self.seed = train, seed

    def on_step_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        generator = torch_generator(self.seed, "training", state.global_step, ranks.rank())
        torch.manual_seed(generator.initial_seed())

    def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        last = state.global_step == self.train.steps
        control.should_evaluate = last or state.global_step % every(self.train, self.train.eval_every_tokens) == 0
        control.should_save = last or state.global_step % every(self.train, self.train.save_every_tokens) == 0

    def on_epoch_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """The end of Trainer's loop, just after a step that did all this."""
        control.should_evaluate = control.should_save = False


def every(train: TrainConfig, tokens: int) -> int:
    """Steps between two marks; 0 tokens stand for ten marks in all."""
    return max(1, tokens // train.batch_tokens if tokens else -(-train.steps // 10))
