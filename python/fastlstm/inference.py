"""What all layers share, whatever their weights are made of: torch's attributes, the inference call, and streaming."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from .cells import PLAIN, LSTMCellOptions
from .device_stream import DeviceStream
from .device_weights import DeviceWeights
from .functional import PackedWeights, lstm_forward
from .stream import Stream
from .weights import WeightSpec

__all__ = ["InferenceLSTM"]


class InferenceLSTM:
    """An LSTM that can be called; `LSTM` and `CompressedLSTM` are the ones to make."""

    spec: WeightSpec
    cell: LSTMCellOptions
    batch_first: bool
    dtype: np.dtype[Any]

    # torch's attributes

    @property
    def input_size(self) -> int:
        return self.spec.input_size

    @property
    def hidden_size(self) -> int:
        return self.spec.hidden_size

    @property
    def num_layers(self) -> int:
        return self.spec.num_layers

    @property
    def bias(self) -> bool:
        return self.spec.bias

    @property
    def bidirectional(self) -> bool:
        return self.spec.bidirectional

    @property
    def proj_size(self) -> int:
        return self.spec.proj_size

    # what torch's has not

    @property
    def peepholes(self) -> bool:
        return self.spec.peepholes

    @property
    def layer_norm(self) -> bool:
        return self.spec.layer_norm

    def __repr__(self) -> str:
        options = {
            "num_layers": (self.num_layers, 1),
            "bias": (self.bias, True),
            "batch_first": (self.batch_first, False),
            "dropout": (getattr(self, "dropout", 0.0), 0.0),
            "bidirectional": (self.bidirectional, False),
            "proj_size": (self.proj_size, 0),
            "peepholes": (self.peepholes, False),
            "layer_norm": (self.layer_norm, False),
            "cell": (self.cell, PLAIN),
        }
        changed = [f", {name}={value}" for name, (value, default) in options.items() if value != default]
        return f"{type(self).__name__}({self.input_size}, {self.hidden_size}{''.join(changed)}{self._more()})"

    def _more(self) -> str:
        """What `repr` says of the class's own options."""
        raise NotImplementedError

    def _pack(self) -> PackedWeights | DeviceWeights:
        """The weights as the active kernels read them."""
        raise NotImplementedError

    def _frozen(self) -> InferenceLSTM:
        """This layer as it is now, which no later change of weights reaches."""
        raise NotImplementedError

    # computing

    def __call__(
        self,
        x: np.ndarray,
        state: tuple[np.ndarray, np.ndarray] | None = None,
        *,
        lengths: npt.ArrayLike | None = None,
        mask: npt.ArrayLike | None = None,
        reset: npt.ArrayLike | None = None,
        masked_output: str = "zero",
        return_sequence: bool = True,
        return_cells: bool = False,
        return_gates: bool = False,
        threads: int | None = None,
        algo: str | None = None,
        tf32: bool = False,
        out: np.ndarray | None = None,
    ) -> tuple[Any, ...]:
        """Inference: y, (h_n, c_n), then cells and gates if asked for. No dropout, nothing kept.

        With return_sequence=False y is None, and one direction takes next to no memory beside x.
        Arguments, shapes and errors as in `functional.lstm_forward`.
        """
        *results, _ = lstm_forward(
            x,
            self._pack(),
            state,
            batch_first=self.batch_first,
            lengths=lengths,
            mask=mask,
            reset=reset,
            masked_output=masked_output,
            return_sequence=return_sequence,
            return_cells=return_cells,
            return_gates=return_gates,
            training=False,
            threads=threads,
            algo=algo,
            tf32=tf32,
            out=out,
        )
        return tuple(results)

    def stream(
        self,
        batch_size: int | None = 1,
        state: tuple[np.ndarray, np.ndarray] | None = None,
        *,
        threads: int | None = None,
    ) -> Stream | DeviceStream:
        """An object that carries the state from call to call, for steps or blocks as they arrive.

        It keeps the weights that the layer has now. batch_size None is for inputs without a batch axis. state as in a
        call, zeros if None. threads: at most so many, the library's setting if None. Raises ValueError for a
        bidirectional layer, whose reverse direction needs the end of the sequence first.
        """
        frozen = self._frozen()
        kind = DeviceStream if isinstance(frozen._pack(), DeviceWeights) else Stream
        return kind(frozen, batch_size, state, threads)
