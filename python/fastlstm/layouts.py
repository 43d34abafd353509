"""How a caller's arrays lie, and what they must be: what `reference` checks and rearranges before it computes."""

from __future__ import annotations

import operator
from typing import Any, NamedTuple

import numpy as np

from .cells import LSTMCellOptions
from .weights import WeightSpec, check_array


class Layout(NamedTuple):
    """How the caller's arrays lie; inside, sequences are `[T,B,..]` and states `[L*D,B,..]`, which no layout swaps."""

    steps: int
    batch: int
    batch_first: bool
    unbatched: bool

    def sequence(self, *size: int) -> tuple[int, ...]:
        """The caller's shape of a sequence `[T,B,*size]`."""
        if self.unbatched:
            return (self.steps, *size)
        return (self.batch, self.steps, *size) if self.batch_first else (self.steps, self.batch, *size)

    def state(self, rows: int, size: int) -> tuple[int, ...]:
        """The caller's shape of a state `[rows,B,size]`."""
        return (rows, size) if self.unbatched else (rows, self.batch, size)

    def enter(self, a: np.ndarray) -> np.ndarray:
        return a[:, None] if self.unbatched else a.swapaxes(0, 1) if self.batch_first else a

    def leave(self, a: np.ndarray) -> np.ndarray:
        return a[:, 0] if self.unbatched else np.ascontiguousarray(a.swapaxes(0, 1)) if self.batch_first else a

    def enter_state(self, a: np.ndarray) -> np.ndarray:
        return a[:, None] if self.unbatched else a

    def leave_state(self, a: np.ndarray) -> np.ndarray:
        return a[:, 0] if self.unbatched else a


def deliver(y: np.ndarray, out: np.ndarray | None, x: np.ndarray) -> np.ndarray:
    if out is None:
        return y
    if not (check_array("out", out, y.shape, y.dtype).flags.carray and not np.shares_memory(out, x)):
        raise ValueError("out is read-only, not C-contiguous or overlaps x, expected a writable array of its own")
    out[...] = y
    return out


def check_input(x: np.ndarray, spec: WeightSpec, dtype: np.dtype[Any], batch_first: bool) -> Layout:
    batched, size = ("(B, T, {0})" if batch_first else "(T, B, {0})"), spec.x_size
    if check_array("x", x).ndim not in (2, 3) or x.shape[-1] != size:
        raise ValueError(
            f"x has shape {x.shape}, but the weights need input size {size}: "
            f"expected {batched.format(size)}, or (T, {size}) unbatched"
        )
    if dtype.kind != "f":
        raise TypeError(f"the weights have dtype {dtype}, expected float32 or float64")
    check_array("x", x, dtype=dtype)
    steps, batch = (len(x), 1) if x.ndim == 2 else x.shape[1::-1] if batch_first else x.shape[:2]
    return Layout(steps, batch, batch_first, unbatched=x.ndim == 2)


def check_options(
    spec: WeightSpec,
    cell: LSTMCellOptions,
    masked_output: str,
    training: bool,
    dropout: float,
    dropout_seed: int | None,
) -> None:
    if masked_output not in ("zero", "repeat"):
        raise ValueError(f'masked_output is {masked_output!r}, expected "zero" or "repeat"')
    if not 0 <= dropout <= 1:
        raise ValueError(f"dropout is {dropout}, expected a probability from 0 to 1")
    check_cell(spec, cell)
    if not (training and ((dropout and spec.num_layers > 1) or cell.draws)):
        return
    if dropout_seed is None or not 0 <= operator.index(dropout_seed) < 2**64:
        raise ValueError(f"dropout_seed is {dropout_seed}, expected an integer from 0 to 2**64 - 1")


def check_cell(spec: WeightSpec, cell: LSTMCellOptions) -> None:
    if cell.input_dropout and not spec.input_size:
        raise ValueError(
            f"input_dropout is {cell.input_dropout}, but x holds pre-activations, which have no input: expected 0"
        )


def check_long_sequence(
    return_sequence: bool, out: np.ndarray | None, checkpoint_every: int | str | None, training: bool, dropout_step: int
) -> int:
    """checkpoint_every as the native core takes it: 0 for None, -1 for "auto"."""
    if not return_sequence and out is not None:
        raise ValueError("out is given, but return_sequence is False: expected None, since no y is stored")
    if isinstance(dropout_step, bool) or not isinstance(dropout_step, (int, np.integer)):
        raise TypeError(f"dropout_step is {dropout_step!r}, expected an integer")
    if dropout_step < 0:
        raise ValueError(f"dropout_step is {dropout_step}, expected the number of the first step, at least 0")
    if checkpoint_every is None:
        return 0
    if not training:
        raise ValueError(f"checkpoint_every is {checkpoint_every!r}, but training is False: expected None")
    return -1 if checkpoint_every == "auto" else _steps("checkpoint_every", checkpoint_every, ' or "auto"')


def check_dy(dy: np.ndarray | None, return_sequence: bool) -> None:
    if dy is not None and not return_sequence:
        raise ValueError("dy is given: expected None, since forward ran with return_sequence=False")


def check_truncate(truncate: int | None) -> int:
    """truncate as the native core takes it: 0 for None."""
    return 0 if truncate is None else _steps("truncate", truncate)


def _steps(name: str, steps: object, more: str = "") -> int:
    if isinstance(steps, bool) or not isinstance(steps, (int, np.integer)):
        error = ValueError if isinstance(steps, str) and more else TypeError
        raise error(f"{name} is {steps!r}, expected a number of steps{more}, or None")
    if steps < 1:
        raise ValueError(f"{name} is {steps}, expected at least 1{more}, or None")
    return min(int(steps), 2**62)


def enter_states(
    name: str,
    names: tuple[str, str],
    states: tuple[np.ndarray | None, np.ndarray | None] | None,
    spec: WeightSpec,
    layout: Layout,
    dtype: np.dtype[Any],
) -> tuple[np.ndarray, np.ndarray]:
    """Both halves as `[L*D,B,..]`; None is zeros."""
    if states is None:
        states = None, None
    if not isinstance(states, (tuple, list)) or len(states) != 2:
        raise TypeError(f"{name} is a {type(states).__qualname__}, expected a pair ({names[0]}, {names[1]})")
    rows = spec.num_layers * spec.num_directions
    h = or_zeros(names[0], states[0], layout.state(rows, spec.hidden_output), dtype)
    c = or_zeros(names[1], states[1], layout.state(rows, spec.hidden_size), dtype)
    return layout.enter_state(h), layout.enter_state(c)


def or_zeros(name: str, array: np.ndarray | None, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
    return np.zeros(shape, dtype) if array is None else check_array(name, array, shape, dtype)
