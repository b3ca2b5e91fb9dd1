"""A folder of lm-evaluation-harness tasks over questions made here: choices, written answers, plain text, a group."""

from __future__ import annotations

import json
from pathlib import Path

import yaml

NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
CHOICE = {
    "task": "darwin_choice",
    "output_type": "multiple_choice",
    "doc_to_text": "After {{word}} comes",
    "doc_to_target": "{{answer}}",
    "doc_to_choice": "{{choices}}",
    "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
}
WRITE = {
    "task": "darwin_write",
    "output_type": "generate_until",
    "doc_to_text": "{{word}} then",
    "doc_to_target": "{{choices[answer]}}",
    "generation_kwargs": {"until": ["\n"], "max_gen_toks": 6, "do_sample": False},
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
}
READ = {
    "task": "darwin_read",
    "output_type": "loglikelihood_rolling",
    "doc_to_text": "",
    "doc_to_target": "{{word}} and {{choices[0]}}, {{choices[1]}} and {{choices[2]}}",
    "metric_list": [{"metric": "word_perplexity"}, {"metric": "byte_perplexity"}, {"metric": "bits_per_byte"}],
}
GROUP = {
    "group": "darwin_group",
    "task": ["darwin_choice", "darwin_write"],
    "aggregate_metric_list": [{"metric": "acc", "weight_by_size": True}],
}


def make_tasks(folder: Path) -> Path:
    """Write the tasks and their questions into `folder`."""
    folder.mkdir(parents=True)
    for split, shift in (("test", 0), ("train", 1)):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in _rows(shift)))
    files = {split: str(folder / f"{split}.jsonl") for split in ("test", "train")}
    data = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": files},
        "test_split": "test",
        "fewshot_split": "train",
        "training_split": "train",
    }
    for task in (CHOICE, WRITE, READ):
        (folder / f"{task['task']}.yaml").write_text(yaml.safe_dump({**data, **task}))
    (folder / "group.yaml").write_text(yaml.safe_dump({**GROUP, "task": ["darwin_choice", "darwin_choice_other"]}))
    (folder / "other.yaml").write_text(
        yaml.safe_dump({**data, **CHOICE, "task": "darwin_choice_other", "doc_to_text": "{{word}},"})
    )
    return folder


def _rows(shift: int) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for place, word in enumerate(NUMBERS):
        others = [NUMBERS[(place + step) % len(NUMBERS)] for step in (1, 4, 7)]
        right = (place + shift) % 3
        others[0], others[right] = others[right], others[0]
        rows.append({"word": word, "choices": others, "answer": right})
    return rows
