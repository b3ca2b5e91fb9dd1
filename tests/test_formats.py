"""Types of ggml: sizes and numbers of the package gguf and of llama.cpp, and second-order rounding by least squares."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from darwinlm.errors import RequestError
from darwinlm.formats import llama_cpp
from darwinlm.formats.rounding import (
    inverse_factor,
    packed,
    require_formats,
    restored,
    rounded,
    rounded_in_order,
    stored,
)
from darwinlm.formats.types import BLOCKS, BY_GGUF, PACKED, by_size, fitting, ggml_type, stored_bytes

gguf = pytest.importorskip("gguf")


def normal(rows: int, columns: int, seed: int = 0) -> Tensor:
    return 0.05 * torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def types() -> list[str]:
    try:
        llama_cpp.library()
    except RequestError:
        return sorted(BY_GGUF)
    return sorted(BLOCKS.keys() - PACKED)


def test_blocks_and_sizes_are_those_of_the_package() -> None:
    for name, block in ((name, block) for name, block in BLOCKS.items() if name not in PACKED):
        assert gguf.GGML_QUANT_SIZES[ggml_type(name)] == block
    for name, columns in (("q4_0", 96), ("q8_0", 64), ("q4_0", 40), ("f16", 24), ("f32", 24)):
        assert stored_bytes((6, columns), name) == packed(normal(6, columns).numpy(), fitting(name, columns)).nbytes
    assert stored_bytes((7,), "q4_0") == 28
    assert by_size(["q4_0", "q8_0", "q5_1", "q4_0"]) == ("q8_0", "q5_1", "q4_0")
    assert [fitting("q6_k", columns) for columns in (512, 96, 40)] == ["q6_k", "q8_0", "f16"]


@pytest.mark.parametrize("name", types())
def test_what_is_rounded_is_what_is_read_back_and_stays(name: str) -> None:
    matrix = normal(32, 512)
    matrix[3, 64:96] = 0.0
    found = rounded(matrix, name)
    bytes_ = packed(found.numpy(), name)
    assert np.array_equal(gguf.quants.dequantize(bytes_, ggml_type(name)).reshape(32, 512), found.numpy())
    bits = 8 * BLOCKS[name][1] / BLOCKS[name][0]
    assert (found - matrix).square().mean().sqrt() < 0.05 * 4.5 * 2 ** -(bits - 0.5)
    assert torch.equal(rounded(matrix[5:9], name), found[5:9])
    if name in BY_GGUF:
        once = gguf.quants.dequantize(gguf.quants.quantize(matrix.numpy(), ggml_type(name)), ggml_type(name))
        assert np.array_equal(once, found.numpy())


def solved_anew(matrix: Tensor, hessian: Tensor, name: str, size: int) -> Tensor:
    """Columns rounded `size` at a time; after each time the free ones are solved for anew, in float64, from the whole problem."""
    whole, left, fixed = matrix.double(), matrix.double().clone(), torch.zeros(matrix.shape, dtype=torch.float64)
    for first in range(0, 128, size):
        block = slice(first // 32 * 32, first // 32 * 32 + 32)
        if first % 32 == 0:
            entered = left[:, block].clone()
        if size == 32:
            fixed[:, block] = rounded(left[:, block].float(), name)
        else:
            for row in range(len(entered)):  # the block as it came in sets the scale, its extreme stays at the end
                peak = entered[row].abs().argmax()
                scale = torch.bfloat16 if name in PACKED else torch.float16
                step = float((entered[row, peak].float() / -8).to(scale))
                at = -8 if first % 32 == peak else round(float(left[row, first] / step))
                fixed[row, first] = step * min(7, max(-8, at))
                if name in PACKED:
                    fixed[row, first] = fixed[row, first].bfloat16()
        free = slice(first + size, 128)
        lack = (whole - fixed)[:, : first + size] @ hessian[: first + size, free]
        left[:, free] = whole[:, free] + lack @ torch.linalg.inv(hessian[free, free])
    return fixed


@pytest.mark.parametrize("name", ["q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "iq4_nl", *PACKED])
def test_columns_behind_make_up_for_what_rounding_left_as_least_squares_says(name: str) -> None:
    if name not in (*types(), *PACKED):
        pytest.skip("llama.cpp is not installed")
    matrix, draw = normal(5, 128), torch.Generator().manual_seed(1)
    inputs, shared, mixing = (torch.randn(*size, generator=draw).double() for size in ((128, 400), (8, 400), (128, 8)))
    inputs += mixing @ shared  # columns that can stand in for each other
    hessian = inputs @ inputs.T / 400
    found, plain = rounded_in_order(matrix, inverse_factor(hessian), name), rounded(matrix, name)
    assert torch.equal(rounded(found, name), found)
    if name in ("q4_0", "iq4_nl", "w4a16_32"):
        wanted = solved_anew(matrix, hessian, name, 32 if name == "iq4_nl" else 1)
        torch.testing.assert_close(found.double(), wanted, rtol=0, atol=1e-6)

    def error(one: Tensor) -> float:
        change = one.double() - matrix.double()
        return float((change @ hessian * change).sum())

    assert error(found) < 0.7 * error(plain)


@pytest.mark.parametrize(
    ("name", "columns"), [*((name, 512) for name in (*types(), *PACKED)), ("q4_0", 40), ("w4a16", 40)]
)
def test_what_is_kept_of_a_rounded_matrix_gives_it_back(name: str, columns: int) -> None:
    matrix = normal(8, columns, seed=3)
    matrix[3, :40] = 0.0
    inputs = torch.randn(columns, 2 * columns, generator=torch.Generator().manual_seed(4)).double()
    for found in (rounded(matrix, name), rounded_in_order(matrix, inverse_factor(inputs @ inputs.T), name)):
        kept = stored(found, name)
        assert torch.equal(restored(kept, name, columns), found)
        assert kept.nbytes == stored_bytes((8, columns), name)


def test_rows_that_split_into_no_blocks_are_f16() -> None:
    matrix = normal(4, 40)
    assert torch.equal(rounded(matrix, "q4_0"), matrix.half().float())
    assert torch.equal(rounded_in_order(matrix, torch.eye(40), "q4_0"), matrix.half().float())


def test_what_llama_cpp_alone_rounds_to_is_refused_without_it(monkeypatch) -> None:
    monkeypatch.setattr(llama_cpp, "_LIBRARIES", {})
    llama_cpp.library.cache_clear()
    require_formats(["q8_0", "q4_0"])
    with pytest.raises(RequestError, match=r"q3_k.*darwinlm\[llamacpp\]"):
        require_formats(["q8_0", "q3_k"])
    llama_cpp.library.cache_clear()
