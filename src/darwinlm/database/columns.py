"""Which single columns leave, by greedy equation 3 of arXiv 2502.07780, in blocks of matrix products.

Letters: C = columns, n = those still in the matrices, B = removals that are applied together.
K = H^-1 and P = W^T W. Removing column j, with h = K[:, j], d = h_j, p = P[:, j]:

    K <- K - r r^T,              r = h / sqrt(d)
    P <- P - r w^T - w r^T,      w = (p - (P_jj / 2d) h) / sqrt(d)

The last B vectors r and w stay aside: the column that leaves next is the stale one less their small products, and the
diagonals are kept current. Every B removals the matrices are updated by products, and shrink.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from darwinlm.errors import CalibrationError

BLOCK = 128
"""Removals that are applied together."""
PANEL = 512
"""Columns of a symmetric matrix that are updated together."""
HOST_WASTE, DEVICE_WASTE = 0.0, 0.25
"""Share of dead columns that the matrices may hold: on a device a new size costs a new capture of the steps."""


def choose_columns(inverse: Tensor, moment: Tensor, count: int, block: int = BLOCK) -> list[int]:
    """The first `count` single columns that leave.

    Args:
        inverse: (C, C), H^-1; overwritten.
        moment: (C, C), W^T W; overwritten.
        count: within [0, C).
        block: B.

    Raises:
        CalibrationError: the inverse is no longer positive definite.
    """
    on_host = inverse.device.type == "cpu"
    waste = HOST_WASTE if on_host else DEVICE_WASTE
    columns = torch.arange(inverse.shape[0], device=inverse.device)
    dead = torch.zeros_like(columns, dtype=torch.bool)
    inverse, moment, scratch = inverse.contiguous(), moment.contiguous(), inverse.new_empty(inverse.numel())
    order: list[Tensor] = []
    steps, gone = None, 0
    while count > 0:
        steps = steps or (HostSteps if on_host else DeviceSteps)(inverse, moment, block)
        size = min(block, count)
        chosen, r, w = steps(size, dead)
        if not torch.isfinite(r.sum() + w.sum()):  # a NaN or Inf anywhere shows in the sum
            raise lost_definiteness()
        _require_living(chosen, size, dead)
        order.append(columns[chosen])
        dead[chosen] = True
        gone, count = gone + size, count - size
        if gone > waste * len(columns):
            stay = (~dead).nonzero().flatten()
            r, w = r.index_select(1, stay), w.index_select(1, stay)
            inverse, moment = _shrunk(inverse, stay, scratch), _shrunk(moment, stay, scratch)
            columns, dead, steps, gone = columns[stay], torch.zeros_like(dead[stay]), None, 0
        update_lower(inverse, r, r, -1)
        update_lower(moment, r, w, -1)
        update_lower(moment, w, r, -1)
        mirror(inverse)
        mirror(moment)
    return torch.cat(order).tolist() if order else []


class HostSteps:
    """The steps on a CPU, in numpy: at these sizes a tensor library's cost of an operation is most of the work."""

    def __init__(self, inverse: Tensor, moment: Tensor, block: int) -> None:
        self.inverse, self.moment = inverse.numpy(), moment.numpy()

    def __call__(self, size: int, dead: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        inverse, moment = self.inverse, self.moment
        n, dtype = inverse.shape[0], inverse.dtype
        r, w = np.empty((size, n), dtype), np.empty((size, n), dtype)
        k_diagonal, p_diagonal = inverse.diagonal().copy(), moment.diagonal().copy()
        k_diagonal[dead.numpy()], p_diagonal[dead.numpy()] = 1, np.inf
        chosen, scratch = np.empty(size, np.int64), np.empty(n, dtype)
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):  # the caller looks for what is not finite
            for i in range(size):
                j = chosen[i] = np.divide(p_diagonal, k_diagonal, out=scratch).argmin()  # eq. 3
                r_j, w_j = r[:i, j].copy(), w[:i, j].copy()
                np.subtract(inverse[j], np.dot(r_j, r[:i], out=scratch), out=r[i])
                np.subtract(moment[j], np.dot(r_j, w[:i], out=scratch), out=w[i])
                w[i] -= np.dot(w_j, r[:i], out=scratch)
                half = w[i, j] / r[i, j] / 2
                scale = 1 / np.sqrt(r[i, j])
                r[i] *= scale
                w[i] *= scale
                w[i] -= np.multiply(r[i], half, out=scratch)
                k_diagonal -= np.multiply(r[i], r[i], out=scratch)
                p_diagonal -= np.multiply(np.multiply(r[i], w[i], out=scratch), 2, out=scratch)
                k_diagonal[j], p_diagonal[j] = 1, np.inf  # dead: never again the least
        return torch.from_numpy(chosen), torch.from_numpy(r), torch.from_numpy(w)


class DeviceSteps:
    """The steps on a GPU: no value comes back to the host, and a whole block is one captured graph.

    Vectors of steps not yet taken are zero, so every step is the same kernels on the same memory.
    """

    def __init__(self, inverse: Tensor, moment: Tensor, block: int) -> None:
        n = inverse.shape[0]
        self.inverse, self.moment, self.block = inverse, moment, block
        self.r, self.w = inverse.new_zeros(block, n), inverse.new_zeros(block, n)
        self.k_diagonal, self.p_diagonal = inverse.new_ones(n), inverse.new_ones(n)
        self.chosen = torch.zeros(block, dtype=torch.int64, device=inverse.device)
        self.step = torch.zeros(1, dtype=torch.int64, device=inverse.device)
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, size: int, dead: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        self._begin(dead)
        if size == self.block and self.inverse.is_cuda:
            if self.graph is None:
                self._capture()
                self._begin(dead)
            assert self.graph is not None
            self.graph.replay()
        else:
            for _ in range(size):
                self._take()
        return self.chosen[:size].clone(), self.r[:size], self.w[:size]

    def _begin(self, dead: Tensor) -> None:
        self.r.zero_()
        self.w.zero_()
        self.step.zero_()
        self.k_diagonal.copy_(self.inverse.diagonal()).masked_fill_(dead, 1)
        self.p_diagonal.copy_(self.moment.diagonal()).masked_fill_(dead, torch.inf)

    def _capture(self) -> None:
        device = self.inverse.device
        stream, current = torch.cuda.Stream(device), torch.cuda.current_stream(device)
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            self._take()  # libraries set themselves up outside of the capture
        current.wait_stream(stream)
        self.step.zero_()
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(device), torch.cuda.graph(self.graph, stream=stream):  # its default is another device's
            for _ in range(self.block):
                self._take()

    def _take(self) -> None:
        j = (self.p_diagonal / self.k_diagonal).argmin(0, keepdim=True)  # eq. 3
        r_j, w_j = self.r.index_select(1, j).squeeze(1), self.w.index_select(1, j).squeeze(1)
        h = torch.addmv(self.inverse.index_select(0, j).squeeze(0), self.r.T, r_j, alpha=-1)
        p = torch.addmv(self.moment.index_select(0, j).squeeze(0), self.w.T, r_j, alpha=-1)
        p.addmv_(self.r.T, w_j, alpha=-1)
        d = h.index_select(0, j)
        half = p.index_select(0, j) / (2 * d)
        r = h * d.rsqrt()
        w = p * d.rsqrt() - half * r
        self.r.index_copy_(0, self.step, r[None])
        self.w.index_copy_(0, self.step, w[None])
        self.chosen.index_copy_(0, self.step, j)
        self.k_diagonal.addcmul_(r, r, value=-1).index_fill_(0, j, 1)
        self.p_diagonal.addcmul_(r, w, value=-2).index_fill_(0, j, torch.inf)  # dead: never again the least
        self.step.add_(1)


def _require_living(chosen: Tensor, size: int, dead: Tensor) -> None:
    """Check that as many different, living columns were chosen as asked: a graph that captured nothing repeats itself."""
    if len(chosen) != size or len(chosen.unique()) != size or dead[chosen].any():
        raise RuntimeError(
            f"The steps on '{dead.device}' chose a column twice: the graph of a GPU is wrong, and with it all that follows. "
            "Please report this with the versions of torch and of the driver; --device cpu goes on from here."
        )


def update_lower(matrix: Tensor, a: Tensor, b: Tensor, scale: float) -> None:
    """Add scale * a^T b to the panels of `matrix` (C, C) on and below the diagonal; a and b are (n, C).

    Of a symmetric update the rest is their mirror, which saves almost half of the product.
    """
    for start in range(0, matrix.shape[0], PANEL):
        panel = slice(start, start + PANEL)
        matrix[start:, panel].addmm_(a[:, start:].T, b[:, panel], alpha=scale)


def mirror(matrix: Tensor) -> None:
    """Copy what lies below the diagonal panels of a symmetric matrix to above them, in place."""
    for start in range(0, matrix.shape[0], PANEL):
        stop = start + PANEL
        matrix[start:stop, stop:] = matrix[stop:, start:stop].T


def submatrix(matrix: Tensor, places: Tensor) -> Tensor:
    """The rows and columns at `places` (k,), in that order; a gather is several times faster than indexing twice."""
    return matrix.index_select(0, places).gather(1, places.expand(len(places), -1))


def _shrunk(matrix: Tensor, places: Tensor, scratch: Tensor) -> Tensor:
    """The submatrix at `places` (k,), ascending, in the memory of the (n, n) matrix itself; by way of `scratch`."""
    k, n = len(places), matrix.shape[0]
    rows, kept = scratch[: k * n].view(k, n), matrix.view(-1)[: k * k].view(k, k)
    torch.index_select(matrix, 0, places, out=rows)
    return torch.gather(rows, 1, places.expand(k, -1), out=kept)


def lost_definiteness() -> CalibrationError:
    """The fault of an inverse Hessian that is no longer positive definite."""
    return CalibrationError(
        "The inverse Hessian lost its positive-definiteness while columns were removed. "
        "Raise database.rel_damp, or calibrate on more tokens (blocks.hessian)."
    )
