"""A checkpoint on the Hugging Face hub: its files, its other forms, and a card that says how good it is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from darwinlm.errors import RequestError, first_line
from darwinlm.export.forms import Form
from darwinlm.runtime.files import read_json

_ENGINES = """
## In engines
| | |
|---|---|
| transformers | as above |
| DarwinLM | `darwinlm.load("{repo}")`, without `trust_remote_code` |
| vLLM | `vllm serve {repo}` where DarwinLM is installed, else with `--model-impl transformers --trust-remote-code` |
"""


def check_push(repo: str) -> None:
    """Check that a checkpoint can be pushed, before any work.

    Raises:
        RequestError: the name is none, or nobody is logged in.
    """
    from huggingface_hub import get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as fault:
        raise RequestError(f"--push is '{repo}', which is no name on the hub: {first_line(fault)}") from fault
    if repo.count("/") != 1:
        raise RequestError(f"--push is '{repo}'; write it as USER/NAME.")
    if not get_token():
        raise RequestError("--push needs a token that may write: run `hf auth login`, or set HF_TOKEN.")


def push(forms: Sequence[Form], repo: str) -> str:
    """Put a checkpoint and the other forms of it into a repository, in one commit; gives its address.

    Args:
        forms: the canonical one first. A portable one goes into the folder `portable`, a packed one into that of its dtype, GGUF
            files beside the weights.
        repo: USER/NAME; made where it is not there.

    Raises:
        RequestError: the hub refuses, or cannot be reached.
    """
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HfHubHTTPError

    folder, files = forms[0].path, dict[str, Path]()
    for form in forms:
        prefix = f"{form.name.split()[-1]}/" if form is not forms[0] else ""
        inside = [path for path in form.path.rglob("*") if path.is_file()] if form.path.is_dir() else []
        files |= {prefix + path.relative_to(form.path).as_posix(): path for path in sorted(inside)}
        if not inside:
            files[form.path.name] = form.path
    gguf = [name for name in files if name.endswith(".gguf")]
    adding: list[Any] = [CommitOperationAdd(name, path) for name, path in files.items() if name != "README.md"]
    adding.append(CommitOperationAdd("README.md", hub_card(folder, repo, gguf).encode()))
    try:
        api = HfApi()
        url = api.create_repo(repo, exist_ok=True)
        api.create_commit(repo, adding, commit_message="A model pruned by DarwinLM")
    except (HfHubHTTPError, OSError, ValueError) as fault:
        raise RequestError(
            f"'{repo}' cannot be written on the hub: {first_line(fault)}. The files lie in '{folder}'."
        ) from fault
    return str(url)


def hub_card(folder: Path, repo: str, gguf: Sequence[str] = ()) -> str:
    """The checkpoint's card with its name on the hub, the engines that load it, and the numbers of the run it comes from.

    Args:
        folder: of the checkpoint; `summary.json` of a run lies beside it.
        repo: USER/NAME.
        gguf: names of the GGUF files.
    """
    from huggingface_hub import EvalResult, ModelCard

    card = ModelCard((folder / "README.md").read_text(encoding="utf-8").replace('"PATH"', f'"{repo}"'))
    card.text = card.text.rstrip() + "\n" + _ENGINES.format(repo=repo)
    for name in gguf:
        card.text += f"| llama.cpp | `llama-server --hf-repo {repo} --hf-file {name}` |\n"
    summary = folder.parent / "summary.json"
    found = read_json(summary) if summary.exists() else {}
    if pruned := found.get("pruned"):
        data = found["settings"]["data"]
        text = {"task_type": "text-generation", "dataset_type": data, "dataset_name": f"{data}, held out"}
        named = {"perplexity": "perplexity", "kl": "KL to the dense model, nats per token"}
        about: Any = card.data
        about.model_name = repo.split("/")[1]
        about.eval_results = [
            EvalResult(**text, metric_type=key, metric_name=name, metric_value=pruned[key])
            for key, name in named.items()
        ]
        if "/" in data and ":" not in data and not Path(data).exists():
            about.datasets = [data]
        rows = [(name, found[name]) for name in ("dense", "uniform", "pruned") if found.get(name)]
        table = [
            f"| {name} | {row['parameters']:,} | {row['perplexity']:.2f} | {row['kl']:.4f} |" for name, row in rows
        ]
        head = ["", "## Held-out text", "| | parameters | perplexity | KL to dense |", "|---|---|---|---|"]
        card.text += "\n".join([*head, *table]) + "\n"
    return str(card)
