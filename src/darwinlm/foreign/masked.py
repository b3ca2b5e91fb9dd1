"""A dense-shaped model in which heads and columns are zero -> a really smaller checkpoint that computes the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from darwinlm.errors import RequestError
from darwinlm.export.card import model_card, without_places
from darwinlm.export.folder import check_replaceable
from darwinlm.export.huggingface import write_checkpoint
from darwinlm.foreign.authors import chosen_files, is_authors_database, read_matrix
from darwinlm.foreign.gguf.importing import ImportedGguf, import_gguf
from darwinlm.foreign.gguf.reading import is_gguf
from darwinlm.models.attention import lay_out
from darwinlm.models.heterogeneous import heterogeneous_config
from darwinlm.models.shape import LayerWidths, ModelShape
from darwinlm.models.shrink import shrink_attention, shrink_mlp
from darwinlm.models.sites import KINDS, framed, held, layer_prefix
from darwinlm.models.source import ModelSource
from darwinlm.models.zeros import live_columns, live_heads

_TOLD = (
    "made smaller by cutting out what another tool had set to zero.\nThe weights are really smaller; nothing is masked."
)


@dataclass(frozen=True)
class Imported:
    """What an import found, and where it lies now."""

    folder: Path
    before: ModelShape
    after: ModelShape
    """Padding queries and repeated KV heads of uneven groups included."""


@dataclass(frozen=True)
class _Live:
    heads: list[int]
    columns: list[int]


def import_model(
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
    if not source or not output:
        raise RequestError(
            "Give what to import and where to: darwinlm import SOURCE --output FOLDER (and --model for a database)."
        )
    folder = Path(output).expanduser()
    check_replaceable(folder)
    if is_authors_database(path):
        if not model:
            raise RequestError(
                f"'{source}' is a level database: add --model with the dense model that it was made from."
            )
        dense = ModelSource(model)
        text = Path(configuration).expanduser() if configuration else None
        return _write(dense, chosen_files(path, text, dense.shape), folder, source)
    if model or configuration:
        raise RequestError(
            f"'{source}' holds no <module>/<level>.pth files, so it is no level database; --model and --configuration are for "
            "those. A masked checkpoint is imported by itself."
        )
    return _write(ModelSource(source), {}, folder, source)


def _only_gguf(folder: Path) -> list[str]:
    """Names of the GGUF files in a folder that is no checkpoint."""
    if not folder.is_dir() or (folder / "config.json").exists():
        return []
    return sorted(path.name for path in folder.glob("*.gguf"))


def _write(model: ModelSource, files: Mapping[str, Path], folder: Path, origin: str) -> Imported:
    if model.folder.resolve() == folder.resolve():
        raise RequestError(f"--output is '{folder}', the model that is read. Choose another folder.")
    live = [_live(model, layer, _layer(model, layer, files)) for layer in range(len(model.shape.layers))]
    after = model.shape.with_layers([_widths(model, layer, found) for layer, found in enumerate(live)])
    if after == model.shape:
        raise RequestError(f"'{origin}' has no zero heads or columns: there is nothing to cut out.")
    facts = {
        "origin": f"`{without_places(origin)}`",
        "levels": f"{len(files)} matrices of a level database" if files else "masked",
    }
    write_checkpoint(
        folder,
        model,
        heterogeneous_config(model.family, model.config, after.layers),
        _tensors(model, files, live),
        card=model_card(model, after, {}, facts, told=_TOLD),
        made_from={
            "imported": without_places(origin),
            "files": {name: f"{path.parent.name}/{path.name}" for name, path in files.items()},
        },
    )
    return Imported(folder, model.shape, after)


def _layer(model: ModelSource, layer: int, files: Mapping[str, Path]) -> dict[str, Tensor]:
    """A layer as it was masked: the dense one, with the output matrices that a database names."""
    tensors = model.layer(layer)
    for site in model.family.sites:
        file = files.get(layer_prefix(layer) + site.output)
        if file is not None:
            name = f"{site.output}.weight"
            tensors[name] = read_matrix(file, tensors[name])
    return tensors


def _live(model: ModelSource, layer: int, tensors: Mapping[str, Tensor]) -> _Live:
    widths = model.shape.layers[layer]
    attention, mlp = map(model.family.site, KINDS)
    return _Live(
        heads=live_heads(attention, tensors, widths) if widths.heads else [],
        columns=live_columns(mlp, tensors, widths, model.config) if widths.intermediate else [],
    )


def _widths(model: ModelSource, layer: int, live: _Live) -> LayerWidths:
    old = model.shape.layers[layer]
    layout = lay_out(live.heads, old.heads, old.kv_heads)
    experts = old.experts if live.columns else 0
    width = len(live.columns) // max(experts, 1)
    return LayerWidths(layout.heads, layout.kv_heads, width, layout.padding, experts).as_in(old)


def _tensors(model: ModelSource, files: Mapping[str, Path], live: list[_Live]) -> Iterator[tuple[str, Tensor]]:
    """(full name, tensor) of the smaller model, layer by layer."""
    layers = (_shrunk(model, layer, _layer(model, layer, files), found) for layer, found in enumerate(live))
    return framed(lambda name: model.tensors([name])[name], model.shape.tied, layers)


def _shrunk(model: ModelSource, layer: int, tensors: Mapping[str, Tensor], live: _Live) -> dict[str, Tensor]:
    old, head_dim = model.shape.layers[layer], model.shape.head_dim
    attention, mlp = map(model.family.site, KINDS)
    found: dict[str, Tensor] = {}
    if live.heads:
        kept = torch.tensor([h * head_dim + i for h in live.heads for i in range(head_dim)])
        output = tensors[f"{attention.output}.weight"][:, kept]
        layout = lay_out(live.heads, old.heads, old.kv_heads)
        found |= shrink_attention(attention, held(attention, tensors), old, layout, kept, output)
    if live.columns:
        kept = torch.tensor(live.columns)
        output = tensors[f"{mlp.output}.weight"][:, kept].contiguous()
        found |= shrink_mlp(mlp, held(mlp, tensors), old, kept, output)
    return {**model.family.beside(tensors, old), **found} if found or old.linear else {}
