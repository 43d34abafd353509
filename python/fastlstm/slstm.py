"""The sLSTM on the native kernels: two functions, and the layer `SLSTM`. `slstm_reference` has the former in NumPy.

sLSTM is xLSTM's scalar cell (Beck et al. 2024): exponential gates, states h c n m, and heads that do not see each
other's h. Letters: T steps, B batch, I input, H hidden, N heads, K = H/N the size of a head.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from . import _core
from .functional import check_call
from .owned_weights import OwnsWeights
from .slstm_weights import SLSTMGradients, SLSTMSpec, SLSTMState, check_slstm_weights, initial_slstm_weights
from .weights import check_array, check_dtype

__all__ = ["SLSTM", "PackedSLSTMWeights", "SLSTMTape", "slstm_backward", "slstm_forward"]


@dataclass(frozen=True)
class PackedSLSTMWeights:
    """Weights in the order in which the kernels of one instruction set read them: a copy, never written again.

    >>> packed = PackedSLSTMWeights.of({"weight_ih": np.ones((8, 4)), "weight_hh": np.ones((8, 1))})
    >>> packed.spec.num_heads, packed.native.dtype
    (2, 'float64')
    """

    spec: SLSTMSpec
    native: _core.SlstmWeights

    @property
    def is_readable(self) -> bool:
        """Whether the active kernels read weights in this order."""
        return self.native.isa == _core.active_isa()

    @classmethod
    def of(cls, weights: Mapping[str, np.ndarray]) -> PackedSLSTMWeights:
        """Pack a mapping; raises as `SLSTMSpec.from_weights` and `check_slstm_weights` do."""
        spec = SLSTMSpec.from_weights(weights)
        dtype = check_array("weight_hh", weights["weight_hh"]).dtype
        if dtype not in (np.dtype(np.float32), np.dtype(np.float64)):
            raise TypeError(f"the weights have dtype {dtype}, expected float32 or float64")
        arrays = check_slstm_weights(spec, weights, dtype)
        given = arrays.get("weight_ih"), arrays["weight_hh"], arrays.get("bias")
        return cls(spec, _core.SlstmWeights(*given, spec.input_size, spec.hidden_size, spec.num_heads))


@dataclass(frozen=True)
class SLSTMTape:
    """What `slstm_backward` needs of one `slstm_forward`: copies, which neither the caller nor backward ever writes."""

    spec: SLSTMSpec
    native: _core.SlstmTape

    @property
    def nbytes(self) -> int:
        """Its size in memory, in bytes."""
        return self.native.nbytes


def slstm_forward(
    x: np.ndarray,
    weights: Mapping[str, np.ndarray] | PackedSLSTMWeights,
    state: tuple[np.ndarray | None, ...] | None = None,
    *,
    batch_first: bool = False,
    lengths: npt.ArrayLike | None = None,
    mask: npt.ArrayLike | None = None,
    reset: npt.ArrayLike | None = None,
    masked_output: str = "zero",
    training: bool = True,
    threads: int | None = None,
    out: np.ndarray | None = None,
) -> tuple[np.ndarray, SLSTMState, SLSTMTape | None]:
    """Run an sLSTM: y `[T,B,H]` laid out as x, the last state, tape.

    x: `[T,B,I]`, `[B,T,I]` if batch_first, or unbatched `[T,I]`, of the weights' dtype (float32 or float64), with any
    strides; pre-activations, 4H for I, where there is no weight_ih. weights: see `SLSTMSpec.shapes`, or packed before.
    state: (h, c, n, m) as `SLSTMState`, zeros if None, as each of its parts may be. y: in `out` if given (writable,
    C-contiguous, apart from the inputs). tape: for `slstm_backward`; None unless training.

    lengths `[B]`, mask and reset (laid out as x, without I): a step counts if mask is true and t < length. One that
    does not passes the state through, and its y is 0 ("zero") or the held h ("repeat"); its x is never read. reset
    zeroes the state before step t; beyond a row's length it is ignored. threads: at most so many, which share heads and
    rows, the library's setting if None.

    Raises ValueError or TypeError naming argument, got and expected; MemoryError with the size that cannot be had.

    >>> weights = {"weight_ih": np.ones((4, 1)), "weight_hh": np.ones((4, 1))}
    >>> y, state, tape = slstm_forward(np.ones((2, 1, 1)), weights)
    >>> y.round(4).ravel(), bool(state.h[0, 0, 0] == y[-1, 0, 0])
    (array([0.5568, 0.7149]), True)
    """
    packed = weights if isinstance(weights, PackedSLSTMWeights) else PackedSLSTMWeights.of(weights)
    check_call(masked_output, batch_first=batch_first, training=training)
    y, last, tape = _core.slstm_forward(
        packed.native,
        x,
        state,
        lengths,
        mask,
        reset,
        batch_first,
        masked_output == "repeat",
        training,
        threads,
        out,
    )
    return y, SLSTMState(*last), SLSTMTape(packed.spec, tape) if tape is not None else None


def slstm_backward(
    tape: SLSTMTape,
    dy: np.ndarray | None = None,
    dstate: tuple[np.ndarray | None, ...] | None = None,
    *,
    threads: int | None = None,
) -> SLSTMGradients:
    """The gradients of a loss with respect to x, state and weights, from those with respect to y and the last state.

    dy, dstate = (dh, dc, dn, dm) have the shape, layout and dtype of y and the state; each may be None for zero. The
    tape is never written: several calls give the same. Raises ValueError or TypeError naming argument, got and
    expected.

    >>> weights = {"weight_ih": np.ones((4, 1)), "weight_hh": np.ones((4, 1))}
    >>> y, state, tape = slstm_forward(np.ones((2, 1, 1)), weights)
    >>> slstm_backward(tape, dy=np.ones_like(y)).x.round(4).ravel()
    array([0.6496, 0.2386])
    """
    if not isinstance(tape, SLSTMTape):
        raise TypeError(f"tape is a {type(tape).__qualname__}, expected the tape of a training slstm_forward")
    dx, dstate0, dweights = _core.slstm_backward(tape.native, dy, dstate, threads)
    return SLSTMGradients(dx, SLSTMState(*dstate0), dict(zip(tape.spec.shapes(), dweights, strict=True)))


class SLSTM(OwnsWeights[PackedSLSTMWeights]):
    """One layer of xLSTM's scalar cell, in one direction, that owns its weights.

    num_heads divides hidden_size: a head's gates see the h of its own units alone. forget_bias: the forget gate's first
    bias; None gives those of the xlstm package, see `initial_slstm_weights`. dtype: float32 or float64, of the weights
    and of every array that goes in. seed: an integer that fixes the first weights; None draws one. input_size 0: there
    is no weight_ih, and x holds the pre-activations of i f z o, `[T,B,4H]`.

    Raises TypeError or ValueError that names the argument.

    >>> slstm = SLSTM(8, 32, num_heads=2, seed=0)
    >>> x = np.ones((10, 4, 8), np.float32)
    >>> y, state = slstm(x)
    >>> y.shape, state.n.shape
    ((10, 4, 32), (1, 4, 32))
    >>> y, state, tape = slstm.forward(x)
    >>> slstm.backward(tape, dy=np.ones_like(y)).weights["weight_hh"].shape
    (128, 16)
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_heads: int = 4,
        bias: bool = True,
        batch_first: bool = False,
        *,
        forget_bias: float | None = None,
        dtype: npt.DTypeLike = np.float32,
        seed: int | None = None,
    ) -> None:
        self.spec = SLSTMSpec(input_size, hidden_size, num_heads, bias)
        self.batch_first = bool(batch_first)
        self.dtype = check_dtype(dtype)
        rng = np.random.default_rng(seed)
        self._own(initial_slstm_weights(self.spec, dtype=self.dtype, rng=rng, forget_bias=forget_bias))

    def __call__(
        self,
        x: np.ndarray,
        state: tuple[np.ndarray | None, ...] | None = None,
        *,
        lengths: npt.ArrayLike | None = None,
        mask: npt.ArrayLike | None = None,
        reset: npt.ArrayLike | None = None,
        masked_output: str = "zero",
        threads: int | None = None,
        out: np.ndarray | None = None,
    ) -> tuple[np.ndarray, SLSTMState]:
        """Inference: y and the last state, which may go into the next call. Nothing else is kept.

        Arguments, shapes and errors as in `slstm_forward`.
        """
        y, last, _ = self._forward(
            x,
            state,
            lengths=lengths,
            mask=mask,
            reset=reset,
            masked_output=masked_output,
            training=False,
            threads=threads,
            out=out,
        )
        return y, last

    def forward(
        self,
        x: np.ndarray,
        state: tuple[np.ndarray | None, ...] | None = None,
        *,
        lengths: npt.ArrayLike | None = None,
        mask: npt.ArrayLike | None = None,
        reset: npt.ArrayLike | None = None,
        masked_output: str = "zero",
        threads: int | None = None,
        out: np.ndarray | None = None,
    ) -> tuple[np.ndarray, SLSTMState, SLSTMTape]:
        """Training: as a call, with a tape for `backward` at the end of the results."""
        y, last, tape = self._forward(
            x,
            state,
            lengths=lengths,
            mask=mask,
            reset=reset,
            masked_output=masked_output,
            training=True,
            threads=threads,
            out=out,
        )
        assert tape is not None
        return y, last, tape

    def backward(
        self,
        tape: SLSTMTape,
        dy: np.ndarray | None = None,
        dstate: tuple[np.ndarray | None, ...] | None = None,
        *,
        threads: int | None = None,
    ) -> SLSTMGradients:
        """The gradients g.x, g.state = (dh, dc, dn, dm) and g.weights[name], as `slstm_backward`.

        They are those at the weights that `forward` used, even if the layer's have changed since.
        """
        return slstm_backward(tape, dy, dstate, threads=threads)

    def _forward(
        self, x: np.ndarray, state: tuple[np.ndarray | None, ...] | None, **options: Any
    ) -> tuple[np.ndarray, SLSTMState, SLSTMTape | None]:
        return slstm_forward(x, self._pack(), state, batch_first=self.batch_first, **options)

    def _pack_now(self) -> PackedSLSTMWeights:
        return PackedSLSTMWeights.of(self._weights._arrays)

    def _checked(self, state_dict: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return check_slstm_weights(self.spec, state_dict, self.dtype)

    def __repr__(self) -> str:
        options = {"bias": (self.spec.bias, True), "batch_first": (self.batch_first, False)}
        changed = "".join(f", {name}={value}" for name, (value, default) in options.items() if value != default)
        dtype = "" if self.dtype == np.float32 else f", dtype={self.dtype}"
        sizes = f"{self.spec.input_size}, {self.spec.hidden_size}, num_heads={self.spec.num_heads}"
        return f"SLSTM({sizes}{changed}{dtype})"
