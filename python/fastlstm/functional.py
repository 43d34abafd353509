"""The LSTM as two functions with everything explicit, on the native kernels; `reference` has the same ones in NumPy.

Checks that need only Python stand here, every check of an array in the native core. Letters: T steps, B batch, I input,
H hidden, P projection, D directions, L layers; Hout = P if there is a projection, else H.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from . import _core
from .cells import PLAIN, LSTMCellOptions, check_cell_options, check_probability
from .device_arrays import on_gpu
from .device_backward import device_backward
from .device_forward import DeviceTape, device_forward
from .device_weights import DeviceWeights
from .gradients import Gradients
from .layouts import check_cell, check_long_sequence, check_truncate
from .weights import WeightSpec, checked_arrays

__all__ = ["PackedWeights", "Tape", "lstm_backward", "lstm_forward"]

_VERBOSE = os.environ.get("FASTLSTM_VERBOSE", "0") not in ("", "0")


@dataclass(frozen=True)
class PackedWeights:
    """Weights in the order in which the kernels of one instruction set read them: a copy, never written again.

    >>> weights = {"weight_ih_l0": np.ones((4, 1)), "weight_hh_l0": np.ones((4, 1))}
    >>> packed = PackedWeights.of(weights)
    >>> packed.spec.hidden_size, packed.native.dtype
    (1, 'float64')
    """

    spec: WeightSpec
    cell: LSTMCellOptions
    native: _core.Weights

    @property
    def is_readable(self) -> bool:
        """Whether the active kernels read weights in this order."""
        return self.native.isa == _core.active_isa()

    @classmethod
    def of(
        cls,
        weights: Mapping[str, np.ndarray],
        spec: WeightSpec | None = None,
        *,
        cell: LSTMCellOptions = PLAIN,
        storage: str = "whole",
        threads: int | None = None,
    ) -> PackedWeights:
        """Pack a mapping with torch's names and shapes; raises as `WeightSpec.from_weights` and `check_weights` do.

        storage "bf16" or "int8" rounds float32 weights, for inference alone: see `CompressedLSTM`.
        """
        spec, arrays = checked_arrays(weights, spec)
        check_cell(spec, check_cell_options(cell))
        return cls.of_checked(arrays, spec, cell, storage, threads)

    @classmethod
    def of_checked(
        cls, arrays: list[np.ndarray], spec: WeightSpec, cell: LSTMCellOptions, storage: str, threads: int | None
    ) -> PackedWeights:
        """Pack what `checked_arrays` gave."""
        sizes = (spec.input_size, spec.hidden_size, spec.num_layers, spec.num_directions, spec.proj_size)
        parts = (spec.bias, spec.peepholes, spec.layer_norm)
        return cls(spec, cell, _core.Weights(arrays, *sizes, *parts, cell, storage, threads))

    def paths(self, T: int, B: int, *, training: bool = False, threads: int | None = None) -> list[str]:
        """How each layer would run T steps of B rows: what the measured rule in csrc/cpu/plan.cpp chooses, in words.

        With FASTLSTM_VERBOSE=1 in the environment every call of `lstm_forward` prints this to stderr.

        >>> PackedWeights.of({"weight_ih_l0": np.ones((4, 1)), "weight_hh_l0": np.ones((4, 1))}).paths(1, 1, threads=2)
        ['layer 0 forward: 1 thread, 48 rows at a time']
        """
        return _core.paths(self.native, T, B, training, threads)


@dataclass(frozen=True)
class Tape:
    """What `lstm_backward` needs of one `lstm_forward`. It has copies of all it needs, and backward never writes it."""

    spec: WeightSpec
    native: _core.Tape

    @property
    def nbytes(self) -> int:
        """Its size in memory, in bytes."""
        return self.native.nbytes

    @property
    def dropout_seed(self) -> int:
        return self.native.dropout_seed

    @property
    def dropout_call(self) -> int:
        return self.native.dropout_call


def lstm_forward(
    x: np.ndarray,
    weights: Mapping[str, np.ndarray] | PackedWeights | DeviceWeights,
    state: tuple[np.ndarray, np.ndarray] | None = None,
    *,
    cell: LSTMCellOptions | None = None,
    batch_first: bool = False,
    dropout: float = 0.0,
    dropout_seed: int | None = None,
    dropout_call: int = 0,
    dropout_step: int = 0,
    lengths: npt.ArrayLike | None = None,
    mask: npt.ArrayLike | None = None,
    reset: npt.ArrayLike | None = None,
    masked_output: str = "zero",
    return_sequence: bool = True,
    return_cells: bool = False,
    return_gates: bool = False,
    training: bool = True,
    checkpoint_every: int | str | None = None,
    threads: int | None = None,
    algo: str | None = None,
    tf32: bool = False,
    out: np.ndarray | None = None,
) -> tuple[Any, ...]:
    """Run an LSTM of any layers and directions: y, (h_n, c_n), then cells and gates if asked for, then tape.

    x: `[T,B,I]`, `[B,T,I]` if batch_first, or unbatched `[T,I]`, of the weights' dtype (float32 or float64), with any
    strides. weights: torch's names and shapes, see `WeightSpec.shapes`, or packed before. cell: the options of the
    cell, those of the packed weights if None. state: (h0 `[L*D,B,Hout]`, c0 `[L*D,B,H]`), zeros if None; unbatched
    without B. y: `[T,B,D*Hout]` laid out as x, in `out` if given (writable, C-contiguous, apart from the inputs);
    cells: c of every step of the last layer, `[T,B,D*H]` laid out as y, with return_cells; gates: i f g o of every
    step of it after their activations, `[T,B,D*4H]`, 0 where a step does not count, with return_gates; h_n, c_n as
    state. tape: for `lstm_backward`; None unless training.

    lengths `[B]`, mask and reset (laid out as x, without I): a step counts if mask is true and t < length. One that
    does not passes the state through, and its y is 0 ("zero") or the held h ("repeat"); its x is never read. reset
    cuts a row before step t, in both directions; beyond a row's length it is ignored. dropout, between layers and in
    training only, and what `cell` draws need a dropout_seed from 0 to 2**64 - 1. threads: at most so many, the
    library's setting if None.

    x and weights may be CuPy arrays or torch's CUDA tensors, and so are the results then; algo: "step", "resident" or
    "persistent" instead of what the library would choose there, see docs/gpu.md; tf32: floats may be rounded to TF32 in
    the recurrent products, as tensor cores take them. Nothing waits for the GPU.

    For long sequences: with return_sequence=False y is None and takes no memory. checkpoint_every=K keeps the state of
    every K-th step only (K is rounded up to the steps that backward sums at once, 256 rows or more), and backward runs
    the steps between once more: memory for T/K + K steps and a copy of x, the same gradients to the last bit. "auto" is
    sqrt(T). Two directions keep y of the layers before the last, too. dropout_step: the number of the first step;
    pieces of one sequence then have the whole's masks.

    Raises ValueError or TypeError naming argument, got and expected; MemoryError with the size that cannot be had.

    >>> weights = {"weight_ih_l0": np.ones((4, 1)), "weight_hh_l0": np.ones((4, 1))}
    >>> y, (h_n, c_n), tape = lstm_forward(np.ones((2, 1, 1)), weights)
    >>> y.round(4).ravel(), bool(h_n[0, 0, 0] == y[-1, 0, 0])
    (array([0.3696, 0.6505]), True)
    """
    packed = _packed(weights, cell, threads)
    check_call(
        masked_output,
        batch_first=batch_first,
        return_sequence=return_sequence,
        return_cells=return_cells,
        return_gates=return_gates,
        training=training,
    )
    every = check_long_sequence(return_sequence, out, checkpoint_every, training, dropout_step)
    dropout, seed = check_probability("dropout", dropout), 0
    if training and ((dropout and packed.spec.num_layers > 1) or packed.cell.draws):
        seed = -1 if dropout_seed is None else _integer("dropout_seed", dropout_seed)
        if not 0 <= seed < 2**64:
            raise ValueError(f"dropout_seed is {dropout_seed}, expected an integer from 0 to 2**64 - 1")
    call, first_step = _integer("dropout_call", dropout_call) & 0xFFFFFFFF, int(dropout_step) & 0xFFFFFFFF
    if isinstance(packed, DeviceWeights) or on_gpu(x):
        on_device = _check_device(x, packed, threads, every)
        with on_device.library.current(on_device.like):
            return device_forward(
                x,
                on_device,
                state,
                lengths=lengths,
                mask=mask,
                reset=reset,
                repeat=masked_output == "repeat",
                training=training,
                dropout=dropout,
                random={"seed": seed, "call": call, "first_step": first_step},
                algo=algo or "auto",
                tf32=tf32,
                out=out,
                batch_first=batch_first,
                return_sequence=return_sequence,
                return_cells=return_cells,
                return_gates=return_gates,
            )
    if algo is not None:
        raise ValueError(f"algo is {algo!r}, but x is on the CPU: expected None")
    if tf32:
        raise ValueError("tf32 is True, but x is on the CPU: expected False")
    y, (h_n, c_n), cells, gates, tape = _core.forward(
        packed.native,
        x,
        state,
        lengths,
        mask,
        reset,
        batch_first,
        masked_output == "repeat",
        return_sequence,
        return_cells,
        return_gates,
        training,
        every,
        dropout,
        seed,
        call,
        first_step,
        threads,
        out,
    )
    if _VERBOSE:
        _print_paths(packed, x, batch_first, training, threads)
    result = Tape(packed.spec, tape) if tape is not None else None
    return (y, (h_n, c_n), *([cells] if return_cells else []), *([gates] if return_gates else []), result)


def forward_natively(
    packed: PackedWeights,
    x: np.ndarray,
    state: tuple[np.ndarray, np.ndarray] | None,
    marks: Any,  # lengths, mask, reset
    options: Any,  # the flags from batch_first to training, then checkpoint_every
    random: Any,  # dropout, then its seed, call and step
    threads: int | None,
) -> tuple[Any, ...]:
    """`lstm_forward` on the CPU less its checks: y, (h_n, c_n), cells, gates, tape, each None if not asked for."""
    arguments: tuple[Any, ...] = (x, state, *marks, *options, *random, threads, None)
    *results, tape = _core.forward(packed.native, *arguments)
    if _VERBOSE:
        _print_paths(packed, x, options[0], options[-2], threads)
    return *results, None if tape is None else Tape(packed.spec, tape)


def _print_paths(packed: PackedWeights, x: np.ndarray, batch_first: bool, training: bool, threads: int | None) -> None:
    T, B, *_ = (*x.shape[:-1], 1)  # unbatched: one row
    T, B = (B, T) if batch_first and x.ndim == 3 else (T, B)
    for line in packed.paths(T, B, training=training, threads=threads):
        print(f"fastlstm {packed.native.isa} {packed.native.dtype} T={T} B={B}: {line}", file=sys.stderr)


def check_call(masked_output: str, **flags: object) -> None:
    """What of a call the native core takes without a check."""
    if masked_output not in ("zero", "repeat"):
        raise ValueError(f"masked_output is {masked_output!r}, expected 'zero' or 'repeat'")
    for name, flag in flags.items():
        if not isinstance(flag, (bool, np.bool_)):
            raise TypeError(f"{name} is {flag!r}, a {type(flag).__qualname__}: expected True or False")


def _packed(
    weights: Mapping[str, np.ndarray] | PackedWeights | DeviceWeights,
    cell: LSTMCellOptions | None,
    threads: int | None,
) -> PackedWeights | DeviceWeights:
    if cell is not None:
        check_cell_options(cell)
    if not isinstance(weights, (PackedWeights, DeviceWeights)):
        if isinstance(weights, Mapping) and any(map(on_gpu, weights.values())):
            return DeviceWeights.of(weights, cell=cell or PLAIN)
        return PackedWeights.of(weights, cell=cell or PLAIN, threads=threads)
    if cell is not None and cell != weights.cell:
        raise ValueError(f"cell is {cell}, but the weights were packed for {weights.cell}: expected None or the same")
    return weights


def _check_device(x: object, packed: PackedWeights | DeviceWeights, threads: int | None, every: int) -> DeviceWeights:
    """The weights, if both they and x are on a GPU, and nothing is asked that only the CPU can do."""
    if not isinstance(packed, DeviceWeights) or not on_gpu(x):
        of_x, of_weights = ("on a GPU" if there else "on the CPU" for there in (on_gpu(x), not on_gpu(x)))
        raise TypeError(f"x is {of_x}, but the weights are {of_weights}: expected both on one device")
    if threads is not None:
        raise ValueError(f"threads is {threads}, but x is on a GPU: expected None")
    if every:
        raise ValueError("checkpoint_every is given, but x is on a GPU, whose kernels keep every step: expected None")
    return packed


def lstm_backward(
    tape: Tape | DeviceTape,
    dy: np.ndarray | None = None,
    dstate: tuple[np.ndarray | None, np.ndarray | None] | None = None,
    *,
    dcells: np.ndarray | None = None,
    dgates: np.ndarray | None = None,
    truncate: int | None = None,
    threads: int | None = None,
    want_x: bool = True,
    want_weights: bool = True,
) -> Gradients:
    """The gradients of a loss with respect to x, state and weights, from those with respect to forward's results.

    dy, dstate = (dh_n, dc_n), dcells and dgates have the shape, layout and dtype of y, (h_n, c_n), cells and gates;
    each of them, and each half of dstate, may be None for zero, which dy has to be where forward returned no y.
    truncate=K: no gradient of a state crosses from t = nK to nK - 1 or back, as if each K steps were a call of their
    own. Without want_x the result's x is None, without want_weights its weights are empty, and the CPU's kernels do not
    compute them. The tape is never written: several calls give the same. Raises ValueError or TypeError naming
    argument, got and expected.

    >>> weights = {"weight_ih_l0": np.ones((4, 1)), "weight_hh_l0": np.ones((4, 1))}
    >>> y, (h_n, c_n), tape = lstm_forward(np.ones((2, 1, 1)), weights)
    >>> lstm_backward(tape, dy=np.ones_like(y)).x.round(4).ravel()
    array([0.5293, 0.2421])
    """
    if isinstance(tape, DeviceTape):
        if threads is not None:
            raise ValueError(f"threads is {threads}, but the tape is of a GPU: expected None")
        with tape.library.current(tape.x):
            found = device_backward(tape, dy, dstate, dcells=dcells, dgates=dgates, truncate=truncate)
        return Gradients(found.x if want_x else None, found.state, found.weights if want_weights else {})
    if not isinstance(tape, Tape):
        raise TypeError(f"tape is a {type(tape).__qualname__}, expected the tape of a training lstm_forward")
    every = check_truncate(truncate)
    dx, dstate0, dw = _core.backward(tape.native, dy, dstate, dcells, dgates, every, threads, want_x, want_weights)
    return Gradients(dx, dstate0, dict(zip(tape.spec.shapes(), dw, strict=True)) if want_weights else {})


def backward_natively(
    tape: Tape,
    given: Any,  # dy, (dh_n, dc_n), dcells, dgates
    threads: int | None,
    want_x: bool,
    want_weights: bool,
) -> tuple[np.ndarray | None, tuple[np.ndarray, np.ndarray], list[np.ndarray]]:
    """`lstm_backward` on the CPU less its checks; the weights' gradients are in torch's order."""
    dy, dstate, dcells, dgates = given
    return _core.backward(tape.native, dy, dstate, dcells, dgates, 0, threads, want_x, want_weights)


def _integer(name: str, number: object) -> int:
    if not isinstance(number, (int, np.integer)):
        raise TypeError(f"{name} is {number!r}, expected an integer")
    return int(number)
