"""What a format leaves of a matrix, and second-order rounding, where later columns make up for earlier ones.

Letters: R = rows, C = columns, s = columns of a block.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Collection

import numpy as np
import torch
from torch import Tensor

from darwinlm.errors import CalibrationError, RequestError
from darwinlm.formats import llama_cpp
from darwinlm.formats.packing import pack, read_back, unpack, whole_numbers
from darwinlm.formats.types import BLOCKS, BY_GGUF, PACKED, WHOLE, fitting, ggml_type

_DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
_GRIDS = {
    "q8_0": (-127, 127, False),
    "q5_1": (0, 31, True),
    "q5_0": (-16, 15, False),
    "q4_1": (0, 15, True),
    "q4_0": (-8, 7, False),
    **{name: (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1, False) for name, bits in PACKED.items()},
}
"""Whole numbers of a block from and to, and whether it has an offset beside its scale."""
DAMPING = 1e-2
"""Of the second moments that rounding goes by, as a part of their mean diagonal."""
_ROUNDS = 50
"""Times that a rounding may be repeated by llama.cpp until nothing changes: it searches for scales, and needs two or three."""


def require_formats(names: Collection[str]) -> None:
    """Check that what rounds to these types is installed.

    Raises:
        RequestError: it is not; says what is missing.
    """
    names = [name for name in names if name not in PACKED]
    if names and importlib.util.find_spec("gguf") is None:
        raise RequestError("These formats need the package gguf. Install it with: pip install 'darwinlm[gguf]'")
    if others := [name for name in names if name not in BY_GGUF]:
        try:
            llama_cpp.library()
        except RequestError as fault:
            raise RequestError(
                f"Only llama.cpp's own code rounds to {', '.join(others)}, and no package here brings it. Install it with: pip "
                f"install 'darwinlm[llamacpp]', or choose among {', '.join(sorted(BY_GGUF, reverse=True))}."
            ) from fault


def rounded(matrix: Tensor, name: str) -> Tensor:
    """(R, C) float32: what an engine reads back of a matrix that is stored in a format, or in what stands in for it.

    Rounding the result once more changes nothing, so a checkpoint that holds it gives the same file again. Rows are rounded
    apart from each other.
    """
    name, place = fitting(name, matrix.shape[-1]), matrix.device
    if name in WHOLE:
        return matrix.to(_DTYPES[name]).float()
    if name in PACKED:
        return read_back(*whole_numbers(matrix, name))
    values = matrix.detach().to("cpu", torch.float32).contiguous().numpy()
    for _ in range(1 if name in BY_GGUF else _ROUNDS):
        before, values = values, _once(values, name)
        if np.array_equal(before, values):
            break
    return torch.from_numpy(values).to(place)


def _once(values: np.ndarray, name: str) -> np.ndarray:
    import gguf

    return gguf.quants.dequantize(packed(values, name), ggml_type(name)).reshape(values.shape).astype(np.float32)


def stored(found: Tensor, name: str) -> Tensor:
    """A matrix (R, C) as `rounded` and `rounded_in_order` give it, in the few bytes that `restored` gives it back from."""
    name = fitting(name, found.shape[-1])
    if name in WHOLE:
        return found.to("cpu", _DTYPES[name])
    if name in PACKED:
        numbers, scales = whole_numbers(found.cpu(), name)
        return torch.cat([pack(numbers, PACKED[name]).view(torch.uint8), scales.contiguous().view(torch.uint8)], 1)
    return torch.from_numpy(packed(found.to("cpu", torch.float32).contiguous().numpy(), name)).view(len(found), -1)


def restored(bytes_: Tensor, name: str, columns: int) -> Tensor:
    """(R, C) float32 from what `stored` made of it."""
    if (name := fitting(name, columns)) in WHOLE:
        return bytes_.float()
    if name in PACKED:
        words, scales = (part.contiguous() for part in bytes_.tensor_split([columns * PACKED[name] // 8], 1))
        return read_back(unpack(words.view(torch.int32), PACKED[name]), scales.view(torch.bfloat16))
    import gguf

    values = gguf.quants.dequantize(bytes_.numpy(), ggml_type(name))
    return torch.from_numpy(values.reshape(-1, columns).astype(np.float32, copy=False))


def packed(values: np.ndarray, name: str, importance: np.ndarray | None = None) -> np.ndarray:
    """(R, C) float32 in the bytes of a type.

    Args:
        values: the matrix.
        name: a type whose blocks its rows split into.
        importance: (C,) what an error in a column costs; llama.cpp then does it, whatever the type.
    """
    import gguf

    if name in BLOCKS and (name not in BY_GGUF or (importance is not None and name != "q8_0")):
        return llama_cpp.quantize(values, ggml_type(name), importance)
    with np.errstate(over="ignore"):
        return gguf.quants.quantize(values, ggml_type(name))


def inverse_factor(hessian: Tensor) -> Tensor:
    """U (C, C) upper triangular, float64, with U^T U the inverse of a positive definite matrix; its rows from b on are those of
    what is left of that once the first b columns are fixed.

    Raises:
        CalibrationError: the matrix is not positive definite.
    """
    lower, info = torch.linalg.cholesky_ex(hessian.double())
    if info.item() or not torch.isfinite(lower).all():
        raise CalibrationError("the second moments of a matrix's inputs are not positive definite")
    inverse = torch.cholesky_inverse(lower)
    del lower  # each is as large as the Hessian
    return torch.linalg.cholesky(inverse, upper=True)


def rounded_in_order(matrix: Tensor, upper: Tensor, name: str) -> Tensor:
    """(R, C) float32, rounded column by column: those that follow make up for the error of each (GPTQ, arXiv 2210.17323).

    The error e of column j changes the columns behind it by -e (H^-1)_j,behind / (H^-1)_jj, H^-1 of what is not rounded yet:
    eq. 4 of arXiv 2502.07780. A block's scale is the one that its type gives to the block as it is when its turn comes; the
    columns that set it stay at the ends of the grid, so that it is the scale of the result, too. Blocks of K-quants, whose
    scales are searched for, are rounded whole, and the columns behind them make up for that.

    Args:
        matrix: (R, C), left unchanged; rows are rounded apart from each other.
        upper: (C, C), `inverse_factor` of the second moments of its inputs, damped.
        name: of the type.
    """
    name = fitting(name, matrix.shape[-1])
    if name not in BLOCKS:
        return rounded(matrix, name)
    left, found = matrix.double().clone(), torch.empty(matrix.shape, dtype=torch.float32, device=matrix.device)
    size = BLOCKS[name][0]
    for first in range(0, matrix.shape[1], size):
        here, behind = slice(first, first + size), slice(first + size, None)
        block, within = left[:, here], upper[here, here]
        if name in _GRIDS:
            found[:, here], scaled = _column_by_column(block, within, name)
        else:
            found[:, here] = rounded(block.float(), name)
            error = block - found[:, here]
            scaled = torch.linalg.solve_triangular(within, error, upper=True, left=False)
        left[:, behind] -= scaled @ upper[here, behind]
    return found


def _column_by_column(block: Tensor, upper: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """A block (R, s), rounded, and the errors of its columns when their turn came, over `upper`'s diagonal."""
    (low, high, offset), packs = _GRIDS[name], name in PACKED
    scales = torch.bfloat16 if packs else torch.float16
    block, found, scaled = block.clone(), torch.empty_like(block), torch.empty_like(block)
    values = block.float()
    ends = {low: values.argmin(1), high: values.argmax(1)} if offset else {low: values.abs().argmax(1)}
    begin = values.amin(1) if offset else torch.zeros_like(values[:, 0])
    extreme = values.gather(1, ends[low][:, None])[:, 0]
    step = (values.amax(1) - begin) / high if offset else extreme / low
    step, begin = (one.to(scales).double() for one in (step, begin))
    for j in range(block.shape[1]):
        places = ((block[:, j] - begin) / step.where(step != 0, 1.0)).round().clamp(low, high)
        for end, column in ends.items():
            places = places.where(column != j, float(end))
        exact = begin + places * step
        found[:, j] = exact.to(scales) if packs else exact
        scaled[:, j] = (block[:, j] - found[:, j]) / upper[j, j]
        block[:, j + 1 :] -= scaled[:, j, None] * upper[j, j + 1 :]
    return found, scaled
