"""LSTMs that are called as their inputs arrive, and remember their state: `Stream`, whose work the native core does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from . import _core
from .functional import PackedWeights

if TYPE_CHECKING:
    from .inference import InferenceLSTM

__all__ = ["CarriesState", "Stream"]


class CarriesState:
    """What streams share, wherever they are."""

    _lstm: InferenceLSTM
    _batch_size: int | None
    _threads: int | None
    state: Any

    def _own(self, lstm: InferenceLSTM, batch_size: int | None, threads: int | None) -> None:
        if lstm.bidirectional:
            raise ValueError("bidirectional is True: expected an LSTM of one direction, as the end is not known yet")
        if batch_size is not None:
            if isinstance(batch_size, (bool, np.bool_)) or not isinstance(batch_size, (int, np.integer)):
                raise TypeError(f"batch_size is {batch_size!r}, expected a positive integer, or None for no batch axis")
            if not 1 <= batch_size < 2**31:
                raise ValueError(f"batch_size is {batch_size}, expected a positive integer")
            batch_size = int(batch_size)
        self._lstm, self._batch_size, self._threads = lstm, batch_size, threads

    @property
    def batch_size(self) -> int | None:
        """The number of rows; None where inputs have no batch axis."""
        return self._batch_size

    def reset(self, rows: npt.ArrayLike | None = None) -> None:
        """Zero the state, of all rows or of some: indices or a boolean array, as NumPy takes them.

        >>> import fastlstm
        >>> stream = fastlstm.LSTM(3, 5, seed=0).stream(batch_size=2)
        >>> y = stream(np.ones((2, 3), np.float32))
        >>> stream.reset(rows=[0])
        >>> [bool(row.any()) for row in stream.state[0][0]]
        [False, True]
        """
        if rows is None:
            self.state = (None, None)
        elif self._batch_size is None:
            raise ValueError("rows is given, but the stream has no batch axis: expected None")
        else:
            self._clear(rows)

    def _clear(self, rows: npt.ArrayLike) -> None:
        h, c = self.state
        h[:, np.asarray(rows)] = 0
        c[:, np.asarray(rows)] = 0
        self.state = (h, c)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._lstm!r}, batch_size={self._batch_size})"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._lstm, self._batch_size, self.state, self._threads)


class Stream(CarriesState, _core.Stream):
    """Steps and blocks of one endless sequence per row; made by `LSTM.stream`. Call it as `stream(x, out=None)`.

    x: one step `[B,I]` (`[I]` where batch_size is None) or a block `[T,B,I]` (`[B,T,I]` if the layer is batch_first;
    `[T,I]` unbatched), of the weights' dtype. Returns y, with `[.., Hout]` in place of I, in `out` if given (writable,
    C-contiguous, apart from x); with `out` a step allocates nothing. Results are bitwise those of the whole sequence in
    one call. Short calls keep the interpreter's lock, since a busy Python thread would hold it for 5 ms; calls of about
    0.1 ms and more release it. A stream belongs to one thread at a time: a second one gets a RuntimeError.

    Raises ValueError or TypeError naming argument, got and expected; the state is then as it was.

    >>> import fastlstm
    >>> lstm = fastlstm.LSTM(3, 5, seed=0)
    >>> x = np.random.default_rng(0).standard_normal((4, 1, 3), np.float32)
    >>> stream = lstm.stream(batch_size=1)
    >>> y = [stream(step) for step in x[:2]] + list(stream(x[2:]))
    >>> bool((np.stack(y) == lstm(x)[0]).all())
    True
    """

    def __init__(
        self,
        lstm: InferenceLSTM,
        batch_size: int | None,
        state: tuple[np.ndarray, np.ndarray] | None,
        threads: int | None,
    ) -> None:
        self._own(lstm, batch_size, threads)
        packed = lstm._pack()
        assert isinstance(packed, PackedWeights)
        _core.Stream.__init__(self, packed.native, self._batch_size, lstm.batch_first, threads)
        if state is not None:
            self.state = state
