"""`darwinlm import`: which kind of foreign model it is."""

from __future__ import annotations

from pathlib import Path

from darwinlm.errors import RequestError
from darwinlm.foreign.gguf.importing import ImportedGguf, import_gguf
from darwinlm.foreign.gguf.reading import is_gguf
from darwinlm.foreign.masked import Imported, import_model


def import_foreign(
    source: str, output: str, *, model: str = "", configuration: str = "", dtype: str = ""
) -> Imported | ImportedGguf:
    """Write somebody else's model as a checkpoint.

    Args:
        source: a GGUF file, a masked checkpoint (folder or hub id), or the authors' level database.
        output: folder of the checkpoint.
        model: the dense model of a level database.
        configuration: the file that names the levels of a level database.
        dtype: of the checkpoint of a GGUF file: f32, f16 or bf16; by default what loses nothing.

    Raises:
        RequestError: nothing to import, or it does not fit; raised before anything is written.
    """
    path = Path(source).expanduser()
    if source and output and (is_gguf(path) or path.suffix == ".gguf"):
        if not path.is_file():
            raise RequestError(f"There is no file '{source}'.")
        if model or configuration:
            raise RequestError(f"'{source}' is a GGUF file; --model and --configuration are for level databases.")
        return import_gguf(path, Path(output).expanduser(), dtype)
    if source and (found := _only_gguf(path)):
        raise RequestError(f"'{source}' is a folder of GGUF files. Give one of them: {', '.join(found)}.")
    if dtype:
        raise RequestError(f"--dtype is for GGUF files, and '{source}' is none.")
    return import_model(source, output, model=model, configuration=configuration)


def _only_gguf(folder: Path) -> list[str]:
    """Names of the GGUF files in a folder that is no checkpoint."""
    if not folder.is_dir() or (folder / "config.json").exists():
        return []
    return sorted(path.name for path in folder.glob("*.gguf"))
