"""`DeviceStream`: the `Stream` of a layer whose weights are on a GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from .device_arrays import DeviceArray, on_gpu
from .device_layouts import check_on_gpu
from .device_weights import DeviceWeights
from .functional import lstm_forward
from .stream import CarriesState

if TYPE_CHECKING:
    from .inference import InferenceLSTM

__all__ = ["DeviceStream"]


class DeviceStream(CarriesState):
    """As `Stream`, on a GPU; made by `LSTM.stream` of a layer that was moved there. Call it as `stream(x, out=None)`.

    The state stays in the same memory, so that a CUDA graph that captured a call goes on where the last replay ended;
    capture it with `out`. Nothing waits for the GPU. Results agree with those of the whole sequence in one call but
    for x . W, whose order of summation is the array library's. One thread at a time.

    Raises ValueError or TypeError naming argument, got and expected; the state is then as it was.
    """

    def __init__(
        self,
        lstm: InferenceLSTM,
        batch_size: int | None,
        state: tuple[DeviceArray, DeviceArray] | None,
        threads: int | None,
    ) -> None:
        self._own(lstm, batch_size, threads)
        if threads is not None:
            raise ValueError(f"threads is {threads}, but the layer is on a GPU: expected None")
        packed = lstm._pack()
        assert isinstance(packed, DeviceWeights)
        self._weights = packed
        spec = lstm.spec
        with packed.library.current(packed.like):
            self._h, self._c = (
                packed.library.zeros((spec.num_layers, *self._rows, size), packed.dtype, packed.like)
                for size in (spec.hidden_output, spec.hidden_size)
            )
        if state is not None:
            self.state = state

    def __call__(self, x: DeviceArray, out: DeviceArray = None) -> DeviceArray:
        lstm = self._lstm
        step, time = (*self._rows, lstm.spec.x_size), int(lstm.batch_first and self._batch_size is not None)
        shape = tuple(x.shape)
        is_step = shape == step
        if not is_step and shape[:time] + shape[time + 1 :] != step:
            block = ("T", *step) if not time else (step[0], "T", *step[1:])
            raise ValueError(
                f"x has shape {shape}: expected {step} for a step or ({', '.join(map(str, block))}) for a block"
            )
        if out is not None:
            y_step = (*self._rows, lstm.spec.hidden_output)
            expected = y_step if is_step else (*shape[:-1], y_step[-1])
            check_on_gpu("out", out, expected, self._weights.dtype, self._weights.like)
        if is_step:
            x = x[:, None] if time else x[None]
            into = out if out is None else out[:, None] if time else out[None]
        else:
            into = out
        state = (self._h, self._c)
        y, (h, c), _ = lstm_forward(x, self._weights, state, batch_first=lstm.batch_first, training=False, out=into)
        self.state = (h, c)
        return out if out is not None else y[(slice(None),) * time + (0,)] if is_step else y

    @property
    def _rows(self) -> tuple[int, ...]:
        return () if self._batch_size is None else (self._batch_size,)

    @property
    def state(self) -> tuple[DeviceArray, DeviceArray]:
        """h `[L,B,Hout]` and c `[L,B,H]`, without B where there is no batch axis: copies. Assigning copies in, too."""
        copied = self._weights.library.copied
        with self._weights.library.current(self._h):
            return copied(self._h), copied(self._c)

    @state.setter
    def state(self, state: tuple[DeviceArray, DeviceArray] | None) -> None:
        halves = (None, None) if state is None else state
        if not isinstance(halves, (tuple, list)) or len(halves) != 2:
            raise TypeError(f"state is a {type(state).__qualname__}, expected a pair (h, c)")
        for name, own, array in zip(("h", "c"), (self._h, self._c), halves, strict=True):
            if array is not None:
                check_on_gpu(name, array, tuple(own.shape), self._weights.dtype, own)
        with self._weights.library.current(self._h):
            for own, array in zip((self._h, self._c), halves, strict=True):
                own[...] = 0 if array is None else array

    def _clear(self, rows: npt.ArrayLike) -> None:
        library, B = self._weights.library, self._rows[0]
        with library.current(self._h):
            if on_gpu(rows):
                check_on_gpu("rows", rows, (B,), "bool", self._h)
                keep: DeviceArray = rows == 0
            else:
                kept = np.ones(B, bool)
                kept[np.asarray(rows)] = False
                keep = library.put(kept, self._h)
            self.state = library.where(keep[:, None], self._h), library.where(keep[:, None], self._c)
