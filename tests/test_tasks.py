"""`darwinlm eval --tasks` on local tasks: lm-evaluation-harness's own command line is the truth, number for number."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import pytest
import safetensors.torch
from lm_eval.api.group import Group
from lm_eval.tasks import TaskManager

import darwinlm
import local_tasks
import pico
from darwinlm.assemble import Assembler
from darwinlm.cli import main
from darwinlm.errors import RequestError
from darwinlm.export.huggingface import export_checkpoint
from darwinlm.measure.answers import Answers, differences, scores
from darwinlm.measure.harness import LoadedTask, load_tasks
from darwinlm.measure.task_list import PAPER, TaskRequest, read_tasks
from darwinlm.measure.task_scores import Difference, TaskComparison
from killing import kill_within

TASKS = ("darwin_choice", "darwin_write", "darwin_read")
SHOTS, BATCH = 2, 4


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """Where the harness keeps what it read; not in the user's own cache."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(autouse=True)
def own_cache(home, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", home / "datasets")


@functools.cache
def shipped(include_path: str | None) -> TaskManager:
    """The harness's index of all that it ships, and of a folder: slow to make."""
    return TaskManager(include_path=include_path)


@pytest.fixture(autouse=True)
def made_once(monkeypatch):
    def manager(include_path: str | None = None, *, include_defaults: bool = True) -> TaskManager:
        if include_defaults:
            return shipped(include_path)
        return TaskManager(include_path=include_path, include_defaults=False)

    monkeypatch.setattr("lm_eval.tasks.TaskManager", manager)


@pytest.fixture(scope="module")
def tasks(tmp_path_factory) -> Path:
    return local_tasks.make_tasks(tmp_path_factory.mktemp("tasks") / "local")


@pytest.fixture(scope="module")
def pruned(source, database, tmp_path_factory) -> Path:
    """A checkpoint with layers of unequal width and an absent layer in the middle."""
    levels = database("llama_gqa", "kv_group")
    genome = tuple(ladder.top if ladder.layer == 1 else 1 for ladder in levels.ladders())
    folder = tmp_path_factory.mktemp("exported") / "model"
    export_checkpoint(Assembler(source("llama_gqa"), levels), genome, folder, {}, {})
    return folder


@pytest.fixture(scope="module")
def chatting(tmp_path_factory) -> Path:
    """A checkpoint with a chat template."""
    folder = pico.make_checkpoint(tmp_path_factory.mktemp("chatting") / "model", "llama_tied", seed=3)
    tokenizer = pico.tokenizer()
    turns = "{% for turn in messages %}[{{ turn.role }}]{{ turn.content }}\n{% endfor %}"
    tokenizer.chat_template = turns + "{% if add_generation_prompt %}[assistant]{% endif %}"
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def command_line(tasks, home, tmp_path_factory) -> Callable[..., dict[str, Any]]:
    """What `python -m lm_eval` writes of a checkpoint: `results` by task, and `samples`, the rows of every document."""

    @functools.cache
    def ask(folder: Path, *more: str) -> dict[str, Any]:
        output = tmp_path_factory.mktemp("asked")
        command = [sys.executable, "-m", "lm_eval", "--model", "hf", "--device", "cpu", "--trust_remote_code"]
        command += ["--model_args", f"pretrained={folder},dtype=float32", "--batch_size", str(BATCH)]
        command += [
            "--tasks",
            ",".join(TASKS),
            "--num_fewshot",
            str(SHOTS),
            "--include_path",
            str(tasks),
            "--log_samples",
            *more,
        ]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(home), "OMP_NUM_THREADS": "1"}
        environment.pop("PYTHONPATH", None)  # the harness needs nothing of ours
        done = subprocess.run(
            [*command, "--output_path", str(output)], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[-3000:]
        (written,) = output.rglob("results_*.json")
        samples = {task: next(output.rglob(f"samples_{task}_*.jsonl")).read_text().splitlines() for task in TASKS}
        rows = {task: [json.loads(line) for line in lines] for task, lines in samples.items()}
        return {"results": json.loads(written.read_text())["results"], "samples": rows}

    return ask


def test_numbers_are_those_of_the_harness_itself(checkpoint, pruned, tasks, command_line, tmp_path, capsys):
    dense = checkpoint("llama_gqa")
    asked = ",".join(f"{task}@{SHOTS}" for task in TASKS)
    arguments = ["eval", pruned, "--against", dense, "--tasks", asked, "--include-path", tasks]
    main([str(word) for word in [*arguments, "--batch-size", BATCH, "--output", tmp_path / "out"]])
    printed = capsys.readouterr().out
    found = json.loads((tmp_path / "out/eval.json").read_text())["tasks"]
    assert found["models"] == {"dense": str(dense), "model": str(pruned)}
    for key, folder in (("dense", dense), ("model", pruned)):
        truth = command_line(folder)["results"]
        assert len(found["scores"][key]) == 6
        for score in found["scores"][key]:
            values = truth[score["task"]]
            assert score["value"] == values[f"{score['metric']},none"]
            stderr = values[f"{score['metric']}_stderr,none"]
            assert score["stderr"] == (stderr if stderr != "N/A" else None)
            assert (score["shots"], score["questions"]) == (SHOTS, 10)
    rows = {key: command_line(folder)["samples"] for key, folder in (("dense", dense), ("model", pruned))}
    paired = {(one["task"], one["metric"]): one for one in found["differences"]["model"]}
    assert set(paired) == {("darwin_choice", "acc"), ("darwin_choice", "acc_norm"), ("darwin_write", "exact_match")}
    for (task, metric), one in paired.items():
        ours, theirs = ([row[metric] for row in sorted(rows[key][task], key=lambda row: row["doc_id"])] for key in rows)
        each = np.subtract(theirs, ours)
        assert one["value"] == pytest.approx(each.mean(), abs=1e-12)
        assert one["stderr"] == pytest.approx(each.std(ddof=1) / len(each) ** 0.5, abs=1e-12)
    values = {key: [score["value"] for score in scores] for key, scores in found["scores"].items()}
    assert values["dense"] != values["model"]
    counted = [score["value"] for score in found["scores"]["model"] if score["counts"]]
    assert len(counted) == 2
    assert found["averages"]["model"] == sum(counted) / 2
    table = (tmp_path / "out/eval.md").read_text()
    for row in ("| darwin_choice | 2 | acc * | 10 |", "| darwin_choice | 2 | acc_norm | 10 |", "| average of * |"):
        assert row in table
    assert "darwin_write" in printed
    assert "average of *" in printed
    assert "Differences, paired by document" in printed


def test_chat_templates_are_applied_as_the_harness_does(checkpoint, chatting, tasks, command_line, tmp_path):
    asked = ",".join(f"{task}@{SHOTS}" for task in TASKS[:2])
    plain, found = (
        darwinlm.evaluate(
            str(chatting), tasks=asked, include_path=tasks, batch_size=BATCH, apply_chat_template=chat, output=tmp_path
        )
        for chat in (False, True)
    )
    truth = command_line(chatting, "--apply_chat_template")["results"]
    for score in found.tasks.scores["model"]:
        assert score.value == truth[score.task][f"{score.metric},none"]
    assert plain.tasks.scores != found.tasks.scores
    assert found.tasks.settings["chat template"] == "applied"
    with pytest.raises(RequestError, match="has no chat template"):
        darwinlm.evaluate(
            str(checkpoint("llama_gqa")), tasks="darwin_choice", include_path=tasks, apply_chat_template=True
        )


def test_killed_between_tasks_and_typed_again_is_as_uninterrupted(
    checkpoint, pruned, tasks, home, text, tmp_path, capsys
):
    command = ["eval", pruned, "--against", checkpoint("llama_gqa"), "--beside", f"{pruned}/../again", "--data", text]
    shutil.copytree(pruned, pruned.parent / "again", dirs_exist_ok=True)
    command += ["--blocks.sequence_length", 32, "--blocks.held_out", 4, "--include-path", tasks, "--batch-size", BATCH]
    command += ["--tasks", "darwin_group@1,darwin_write@2", "--output"]
    environment = {"HF_DATASETS_CACHE": str(home / "datasets")}
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    kill_within("darwinlm.measure.answering", "_ask", 5, [*map(str, command), str(killed)], environment)
    assert not (killed / "eval.json").exists()
    before = {path: path.stat().st_mtime_ns for path in (killed / "eval").iterdir()}
    assert len(before) == 2 + 4  # text of two different models; tasks: three of the dense one, one of the next
    for folder in (killed, whole):
        main([str(word) for word in [*command, folder]])
    assert {path: path.stat().st_mtime_ns for path in before} == before
    for name in ("eval.json", "eval.md"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes()
    assert {path.name for path in (killed / "eval").iterdir()} == {path.name for path in (whole / "eval").iterdir()}
    found = json.loads((whole / "eval.json").read_text())["tasks"]
    same = f"{pruned}/../again"
    assert [one["value"] for one in found["differences"][same]] == [
        one["value"] for one in found["differences"]["model"]
    ]
    assert found["averages"][same] == found["averages"]["model"]
    assert "Running" not in capsys.readouterr().err  # the harness's own bars


def test_a_changed_weight_is_another_model(checkpoint, tasks, text, tmp_path):
    folder, out = tmp_path / "model", tmp_path / "out"
    shutil.copytree(checkpoint("llama_tied"), folder)
    asked = {"tasks": "darwin_choice", "include_path": tasks, "data": str(text), "output": out}
    blocks = {"sequence_length": 32, "held_out": 4}
    before = darwinlm.evaluate(str(folder), **asked, blocks=blocks).qualities["model"]
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][7, 11] += 3.0
    safetensors.torch.save_file(weights, folder / "model.safetensors", {"format": "pt"})
    after = darwinlm.evaluate(str(folder), **asked, blocks=blocks).qualities["model"]
    assert after.perplexity != before.perplexity
    assert len(list((out / "eval").iterdir())) == 4


def test_groups_and_averages_of_differences_have_closed_forms():
    rng = np.random.default_rng(0)
    parts = {"a": rng.random((2, 9)), "b": rng.random((2, 30))}
    for by_size in (True, False):
        how = SimpleNamespace(metric="acc", weight_by_size=by_size, aggregation="mean", filter_list=None)
        group: Any = Group("both", aggregate_metric_list=[how])
        group.get_all_tasks = lambda: [SimpleNamespace(task_name=name) for name in parts]
        task = LoadedTask(TaskRequest("both"), dict.fromkeys(parts), {"both": group})
        ours, theirs = (
            {
                name: Answers(
                    {"acc,none": values[k].mean(), "sample_len": values.shape[1]}, 0, {"acc": list(values[k])}
                )
                for name, values in parts.items()
            }
            for k in range(2)
        )
        (one,) = differences(task, ours, theirs)
        gaps = {name: values[0] - values[1] for name, values in parts.items()}
        sizes = np.array([len(gap) for gap in gaps.values()]) if by_size else np.ones(2)
        weights = sizes / sizes.sum()
        means = np.array([gap.mean() for gap in gaps.values()])
        errors = np.array([gap.std(ddof=1) / len(gap) ** 0.5 for gap in gaps.values()])
        assert one.value == pytest.approx(weights @ means)
        assert one.value == pytest.approx(scores(task, ours)[0].value - scores(task, theirs)[0].value)
        assert one.stderr == pytest.approx(((weights * errors) ** 2).sum() ** 0.5)
    rows = [
        Difference(name, 0, "acc", value, error, True) for name, value, error in (("a", 0.1, 0.03), ("b", 0.3, 0.04))
    ]
    of_both = TaskComparison({"dense": "", "model": ""}, {}, {}, {}, {"model": rows}).average_difference("model")
    assert of_both is not None
    assert (of_both.value, of_both.stderr) == (pytest.approx(0.2), pytest.approx(0.025))


def test_a_group_is_one_row_and_text_is_read_too(checkpoint, tasks, tmp_path):
    (tmp_path / "text.txt").write_text("some text that repeats; " * 100)
    found = darwinlm.evaluate(
        str(checkpoint("llama_gqa")),
        tasks="darwin_group@1,darwin_choice@0",
        include_path=tasks,
        limit=3,
        data=str(tmp_path / "text.txt"),
        blocks={"sequence_length": 32, "held_out": 4},
        output=tmp_path / "out",
    )
    rows = {score.task: score for score in found.tasks.scores["model"] if score.counts}
    assert set(rows) == {"darwin_group", "darwin_choice"}
    assert (rows["darwin_group"].questions, rows["darwin_group"].shots) == (6, 1)
    assert (rows["darwin_choice"].questions, rows["darwin_choice"].shots) == (3, 0)
    parts = found.tasks.raw["model"]["darwin_group@1"]
    mean = (parts["darwin_choice"]["acc,none"] + parts["darwin_choice_other"]["acc,none"]) / 2
    assert rows["darwin_group"].value == pytest.approx(mean)
    saved = json.loads((tmp_path / "out/eval.json").read_text())
    assert saved["qualities"]["model"]["perplexity"] == found.qualities["model"].perplexity
    assert "perplexity" in (tmp_path / "out/eval.md").read_text()


def refused(capsys, *arguments: object) -> str:
    with pytest.raises(SystemExit) as exit_:
        main([str(argument) for argument in arguments])
    assert exit_.value.code == 2
    return capsys.readouterr().err


def test_a_task_that_runs_what_the_model_writes_is_refused(tasks, tmp_path):
    text = (tasks / "darwin_write.yaml").read_text().replace("darwin_write", "darwin_run")
    (tmp_path / "run.yaml").write_text(f"{text}unsafe_code: true\n")
    with pytest.raises(RequestError, match="'darwin_run' runs code that the model writes"):
        load_tasks(read_tasks("darwin_run"), str(tmp_path))


def test_what_cannot_be_asked_is_refused_before_a_model_is_loaded(checkpoint, tasks, capsys, monkeypatch, tmp_path):
    def loaded(*arguments: object, **options: object) -> None:
        raise AssertionError("a model was loaded")

    def unreachable(*arguments: object, **options: object) -> None:
        raise ConnectionError("Couldn't reach the hub")

    monkeypatch.setattr("darwinlm.models.whole.load_whole", loaded)
    asked = ["eval", checkpoint("llama_gqa"), "--include-path", tasks, "--tasks"]
    said = refused(capsys, *asked, "darwin_choise,darwin_write,nothing_like_it")
    assert "no task 'darwin_choise'. Did you mean darwin_choice" in said
    assert "no task 'nothing_like_it'" in said
    assert "darwin_write'" not in said
    (tmp_path / "broken.yaml").write_text("task: broken\noutput_type: multiple_choice\ndataset_path: json\n")
    said = refused(capsys, "eval", checkpoint("llama_gqa"), "--include-path", tmp_path, "--tasks", "broken")
    assert "The task 'broken' cannot be loaded" in said
    (tmp_path / "fixed.yaml").write_text(
        (tasks / "darwin_choice.yaml").read_text().replace("darwin_choice", "fixed") + "num_fewshot: 0\n"
    )
    said = refused(capsys, "eval", checkpoint("llama_gqa"), "--include-path", tmp_path, "--tasks", "fixed@3")
    assert "takes no examples, but 'fixed@3' asks for 3" in said
    monkeypatch.setattr("datasets.load_dataset", unreachable)
    said = refused(capsys, *asked, "sciq")
    assert "The task 'sciq' cannot be loaded (ConnectionError: Couldn't reach the hub)" in said


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--tasks", "a@x,,b@-1"], "--tasks has 'a@x'"),
        (["--tasks", "a@1,a@1"], "names 'a@1' twice"),
        (["--tasks", "a", "--limit", "0"], "--limit is 0"),
        (["--tasks", "a", "--batch-size", "many"], "--batch_size is 'many'"),
        (["--limit", "3"], "--limit without tasks"),
        (["--apply-chat-template"], "--apply_chat_template without tasks"),
        (["--beside", "./a,./a"], "--beside names './a', which is among the models already"),
        (["--tasks", "a", "--include-path", "./gone"], "no folder './gone'"),
    ],
)
def test_mistyped(flags, said, checkpoint, capsys):
    assert said in refused(capsys, "eval", checkpoint("llama_gqa"), *flags)


def test_without_the_harness_it_says_how_to_get_it(checkpoint, capsys, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install 'darwinlm[eval]'" in refused(capsys, "eval", checkpoint("llama_gqa"), "--tasks", "paper")


def test_the_papers_list():
    shots = {request.name: request.shots for request in read_tasks("paper")}
    assert [name for name, count in shots.items() if count == 0] == ["arc_easy", "logiqa", "piqa", "sciq", "boolq"]
    assert {name: count for name, count in shots.items() if count} == {
        "mmlu": 5,
        "winogrande": 5,
        "hellaswag": 10,
        "arc_challenge": 25,
    }
    assert read_tasks("hellaswag@10, piqa") == (TaskRequest("hellaswag", 10), TaskRequest("piqa"))


def test_the_harness_knows_the_papers_tasks_and_metrics(tasks):
    index: Any = shipped(str(tasks)).task_index
    for request in PAPER:
        assert request.name in index
    for name in ("hellaswag", "arc_easy", "logiqa"):  # those whose file is no sum of others
        metrics = [metric["metric"] for metric in index[name].cfg["metric_list"]]
        assert {request.name: request.metric for request in PAPER}[name] in metrics


def test_a_bare_list_of_tasks_must_have_names():
    with pytest.raises(RequestError, match="''"):
        read_tasks("a,,b")
