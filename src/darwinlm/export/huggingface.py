"""The canonical checkpoint: safetensors, a standard config with `per_layer_config`, and one modeling file.

It loads with transformers alone (`trust_remote_code=True`) and gives the logits of the zero-masked dense model.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from darwinlm.assemble import Assembler
from darwinlm.errors import RequestError
from darwinlm.export.card import model_card
from darwinlm.export.folder import check_replaceable, partial_of, put_in_place, record_of
from darwinlm.export.words import copy_words
from darwinlm.genome import Genome
from darwinlm.models.experts import stored
from darwinlm.models.family import Family
from darwinlm.models.heterogeneous import heterogeneous_config, modeling_source
from darwinlm.models.shape import ModelShape
from darwinlm.models.sites import HEAD, Kind
from darwinlm.models.source import ModelSource
from darwinlm.models.stock_form import kept_layers, renumbered, stock_config
from darwinlm.refit.store import Refits
from darwinlm.runtime.files import write_json, write_tensors, write_text

_BIAS_FIELDS: dict[Kind, str] = {"attention": "attention_bias", "mlp": "mlp_bias"}
"""Fields of a configuration that name biases of all matrices of a kind, where a family has them."""
SHARD_BYTES = 4 << 30
"""Largest weight file."""
CODE = "modeling_darwinlm"
"""Name of the modeling file, without its ending."""
_AUTO_MAP = {
    "AutoConfig": f"{CODE}.DarwinLMConfig",
    "AutoModel": f"{CODE}.DarwinLMModel",
    "AutoModelForCausalLM": f"{CODE}.DarwinLMForCausalLM",
}


def export_checkpoint(
    assembler: Assembler,
    genome: Genome,
    folder: Path,
    facts: dict[str, Any],
    made_from: dict[str, Any],
    refits: Refits | None = None,
    *,
    stock: bool = False,
) -> None:
    """Write a genome's model as a checkpoint; the folder appears whole or not at all.

    Args:
        assembler: dense weights and database.
        genome: the levels.
        folder: where the checkpoint goes; one that lies there is replaced.
        facts: what the model card says of how it was made.
        made_from: kept beside it as `darwinlm.json`, so that it is known again.
        refits: output matrices that take the place of the database's.
        stock: as a model of the family's stock class, of the layers that are left; all of them must be alike.
    """
    source, shape, tensors = assembler.source, assembler.shape(genome), assembler.tensors(genome)
    if refits:
        tensors = refits.put_into(tensors)
    config = assembler.config(genome)
    if stock:
        kept = kept_layers(shape)
        config, tensors = stock_config(shape, shape.layers[kept[0]], kept), renumbered(tensors, kept)
    card = model_card(source, shape, assembler.space.levels_of(genome), facts, stock=config if stock else None)
    write_checkpoint(folder, source, config, tensors, card=card, made_from=made_from)


def write_model(folder: Path, source: ModelSource, model: Any, *, card: str, made_from: dict[str, Any]) -> bool:
    """Write a model in memory as a checkpoint, in the dtype of the one that it was cut from.

    Biases of output matrices that the family can have are named by the configuration; it then has zeros for all others.

    Returns:
        Whether it can be one: False where it has tensors that no configuration of the family names, and nothing is written.
    """
    config, state = _naming_biases(source, model), model.state_dict()
    outlines = ModelShape.of(source.family, config).outlines()
    own = set(state) - ({HEAD} if source.shape.tied else set())
    if own - set(outlines) or any(not name.endswith(".bias") for name in set(outlines) - own):
        return False
    tensors = (
        (name, state[name].to("cpu", source.dtype) if name in state else torch.zeros(sizes, dtype=source.dtype))
        for name, sizes in outlines.items()
    )
    write_checkpoint(folder, source, config, tensors, card=card, made_from=made_from)
    return True


def _naming_biases(source: ModelSource, model: Any) -> Any:
    """The configuration of a model, with the fields set that name biases which it has and the dense model has not."""
    dense, layers = copy.deepcopy(source.config), ModelShape.of(source.family, model.config).layers
    for kind, field in _BIAS_FIELDS.items():
        end = f".{source.family.site(kind).output}.bias"
        if getattr(dense, field, None) is False and any(name.endswith(end) for name in model.state_dict()):
            setattr(dense, field, True)
    same = dense.to_dict() == source.config.to_dict()
    return model.config if same else heterogeneous_config(source.family, dense, layers)


def write_checkpoint(
    folder: Path,
    source: ModelSource,
    config: Any,
    tensors: Iterable[tuple[str, Tensor]],
    *,
    card: str,
    made_from: dict[str, Any],
) -> None:
    """Write any heterogeneous model as a checkpoint; the folder appears whole or not at all.

    Args:
        folder: where the checkpoint goes; one that lies there is replaced.
        source: where tokenizer, licence, generation settings and dtype come from.
        config: from `heterogeneous_config`, or a stock one of a model whose layers are alike.
        tensors: (full name, tensor), streamed.
        card: the README.md.
        made_from: kept beside it as `darwinlm.json`, so that it is known again.

    Raises:
        RequestError: the folder holds something that is not ours.
    """
    check_replaceable(folder)
    partial = partial_of(folder)
    write_files(partial, source.family, config, source.dtype, tensors)
    copy_words(source, partial)
    write_text(partial / "README.md", card)
    put_in_place(partial, folder, made_from)


def write_files(
    folder: Path, family: Family, config: Any, dtype: torch.dtype, tensors: Iterable[tuple[str, Tensor]]
) -> None:
    """Weights, configuration and, where layers differ, the modeling file; arguments as in `write_checkpoint`."""
    _write_weights(folder, stored(tensors, family.experts))
    write_json(folder / "config.json", _config_values(config, dtype))
    if _is_ours(config):
        write_text(folder / f"{CODE}.py", modeling_source(family))


def require_canonical(source: ModelSource) -> None:
    """Check that a model's modules are what they seem: in the portable form, stubs stand for those that are gone.

    Raises:
        RequestError: it is the portable form.
    """
    if "portable" in (record_of(source.folder) or {}):
        raise RequestError(
            f"'{source.name}' is the portable form of a checkpoint, with zero stubs for modules that are gone. Take the "
            "checkpoint that it was made from; it lies beside it, without '-portable' in its name."
        )


def _is_ours(config: Any) -> bool:
    """Whether it is a configuration of layers that differ; else stock code loads the checkpoint."""
    return type(config).__name__ == "DarwinLMConfig"


def _config_values(config: Any, dtype: torch.dtype) -> dict[str, Any]:
    values, stored = json.loads(config.to_json_string()), str(dtype).removeprefix("torch.")
    if not _is_ours(config):
        return {key: value for key, value in values.items() if key != "auto_map"} | {"dtype": stored}
    return {"architectures": ["DarwinLMForCausalLM"], "auto_map": _AUTO_MAP, **values, "dtype": stored}


def _write_weights(folder: Path, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Stream tensors into one file, or into numbered ones with an index."""
    names: list[list[str]] = []
    total = 0
    for number, shard in enumerate(_shards(tensors)):
        write_tensors(folder / f"part-{number}.safetensors", shard, {"format": "pt"})
        names.append(list(shard))
        total += sum(tensor.nbytes for tensor in shard.values())
    if len(names) == 1:
        os.replace(folder / "part-0.safetensors", folder / "model.safetensors")
        return
    index: dict[str, str] = {}
    for number, held in enumerate(names):
        file = f"model-{number + 1:05d}-of-{len(names):05d}.safetensors"
        os.replace(folder / f"part-{number}.safetensors", folder / file)
        index |= dict.fromkeys(held, file)
    write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": index})


def _shards(tensors: Iterable[tuple[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
    """Groups of at most SHARD_BYTES; a larger tensor gets one of its own."""
    shard: dict[str, Tensor] = {}
    for name, tensor in tensors:
        if shard and sum(held.nbytes for held in shard.values()) + tensor.nbytes > SHARD_BYTES:
            yield shard
            shard = {}
        shard[name] = tensor
    yield shard
