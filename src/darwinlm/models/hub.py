"""Where a checkpoint lies: a folder, or the hub's copy on this machine, fetched in two steps: words first, then weights."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import hf_hub_download, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)

from darwinlm.errors import RequestError, first_line
from darwinlm.models.weights import INDEX, SINGLE, index_files

_WORDS = ("*.json", "README.md", "*.jinja", "*.model", "*.txt", "LICENSE*", "NOTICE*")
_BELOW = ["*/*"]
"""Files in subfolders of a repository are of other programs."""


def locate(name: str, *, config_alone: bool = False) -> tuple[Path, bool]:
    """The folder of a checkpoint with all but its weights, and whether the hub has more.

    Args:
        name: folder or hub id.
        config_alone: a path of a config.json will do.

    Raises:
        RequestError: there is no such model, or it cannot be reached.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder, False
    if folder.is_file() and folder.name == "config.json" and config_alone:
        return folder.parent, False
    if folder.suffix == ".gguf":
        raise RequestError(
            f"'{name}' is a GGUF file. Make a checkpoint of it first: darwinlm import {name} --output FOLDER, then give FOLDER."
        )
    if folder.exists() or name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise RequestError(
            f"There is no model folder '{name}'. Give a folder with a config.json, or a hub id such as Qwen/Qwen3-0.6B."
        )
    return _snapshot(name, _WORDS), True


def fetch_weights(name: str, folder: Path) -> None:
    """Complete the hub's copy in `folder` by the weight files that belong to the model.

    Raises:
        RequestError: they are not here, and the hub cannot be reached.
    """
    wanted = index_files(folder, name) if (folder / INDEX).is_file() else []
    _snapshot(name, (SINGLE, *wanted), folder.name)
    if (folder / SINGLE).is_file() or (wanted and all((folder / file).is_file() for file in wanted)):
        return
    try:
        hf_hub_download(name, SINGLE, revision=folder.name)
    except LocalEntryNotFoundError as fault:
        raise RequestError(
            f"The weights of '{name}' are not in the cache, or not all, and the hub cannot be reached to download them. Run "
            "this once with a connection, or give a folder that holds them."
        ) from fault
    except EntryNotFoundError:  # the hub was asked: the repository has none, which is said where files are opened
        return
    except Exception as fault:
        raise _out_of_reach(name, fault) from fault


def _snapshot(name: str, patterns: tuple[str, ...], revision: str | None = None) -> Path:
    try:
        found = snapshot_download(name, revision=revision, allow_patterns=list(patterns), ignore_patterns=_BELOW)
        return Path(found)
    except (RepositoryNotFoundError, HFValidationError) as fault:
        raise RequestError(
            f"'{name}' is neither a folder here nor a model on the hub that you can read. "
            "Check the spelling; for a gated model run `hf auth login` first."
        ) from fault
    except LocalEntryNotFoundError as fault:  # optional files may be absent from the cache
        if isinstance(config := try_to_load_from_cache(name, "config.json", revision=revision), str):
            return Path(config).parent
        raise _out_of_reach(name, fault) from fault
    except Exception as fault:  # the hub's client passes on whatever its HTTP library raises
        raise _out_of_reach(name, fault) from fault


def _out_of_reach(name: str, fault: Exception) -> RequestError:
    return RequestError(
        f"'{name}' is no folder here, and the hub cannot be reached to download it ({first_line(fault):.200}). Check the path "
        "or the connection."
    )
