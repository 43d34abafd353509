"""`LSTM`: a layer that owns its weights, and calls `functional`."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt

from .cells import PLAIN, LSTMCellOptions, check_cell_options, check_probability
from .compressed import CompressedLSTM
from .device_arrays import DeviceArray
from .device_owned_weights import moved
from .device_weights import DeviceWeights
from .functional import PackedWeights, Tape, lstm_backward, lstm_forward
from .gradients import Gradients
from .inference import InferenceLSTM
from .layouts import check_cell
from .owned_weights import LSTMWeights, OwnsWeights
from .weights import WeightSpec, check_dtype, initial_weights, spec_and_arrays

__all__ = ["LSTM", "LSTMWeights"]


class LSTM(OwnsWeights[PackedWeights | DeviceWeights], InferenceLSTM):
    """A long short-term memory of any layers and directions, with torch.nn.LSTM's arguments in torch's order.

    peepholes, layer_norm: whether c is seen by the gates, and whether the sums into the gates and c are normalised;
    both have weights. cell: all that has none, see `LSTMCellOptions`. forget_bias: the forget gate's first bias, on
    every layer and direction; None draws it like the others. dtype: float32 or float64, of the weights and of every
    array that goes in. seed: an integer that fixes the first weights and all random masks; None draws one. dropout acts
    between layers, in `forward` only. input_size 0: there is no W, and x holds the pre-activations `[T,B,D*4H]`.

    Raises TypeError or ValueError that names the argument.

    >>> lstm = LSTM(8, 32, num_layers=2, seed=0)
    >>> x = np.ones((10, 4, 8), np.float32)
    >>> y, (h_n, c_n) = lstm(x)
    >>> y.shape, h_n.shape, c_n.shape
    ((10, 4, 32), (2, 4, 32), (2, 4, 32))
    >>> y, state, tape = lstm.forward(x)
    >>> lstm.backward(tape, dy=np.ones_like(y)).weights["weight_hh_l1"].shape
    (128, 32)
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        *,
        peepholes: bool = False,
        layer_norm: bool = False,
        cell: LSTMCellOptions = PLAIN,
        forget_bias: float | None = None,
        dtype: npt.DTypeLike = np.float32,
        seed: int | None = None,
    ) -> None:
        self.spec = WeightSpec(
            input_size, hidden_size, num_layers, bias, bidirectional, proj_size, peepholes, layer_norm
        )
        self.cell = check_cell_options(cell)
        check_cell(self.spec, cell)
        self.batch_first = bool(batch_first)
        self.dropout = check_probability("dropout", dropout)
        self.dtype = check_dtype(dtype)
        sequence = np.random.SeedSequence(seed)
        rng = np.random.default_rng(sequence)
        arrays = initial_weights(self.spec, dtype=self.dtype, rng=rng, forget_bias=forget_bias)
        self._own(arrays)
        self._dropout_seed = int(sequence.spawn(1)[0].generate_state(1, np.uint64)[0])
        self._calls = 0

    # training

    def forward(
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
        checkpoint_every: int | str | None = None,
        threads: int | None = None,
        algo: str | None = None,
        tf32: bool = False,
        out: np.ndarray | None = None,
        dropout_seed: int | None = None,
        dropout_step: int = 0,
    ) -> tuple[Any, ...]:
        """Training: as a call, with a tape for `backward` at the end of the results, and with dropout.

        checkpoint_every: a tape of less memory, for long sequences: see `functional.lstm_forward`. dropout_seed fixes
        the masks of this call; by default each call draws others from the layer's seed. dropout_step: the number of
        x's first step, where x is a piece of a sequence whose masks it is to have.

        >>> lstm = LSTM(8, 32, seed=0)
        >>> x = np.ones((5000, 1, 8), np.float32)
        >>> _, (h_n, c_n), whole = lstm.forward(x)
        >>> _, _, tape = lstm.forward(x, checkpoint_every="auto", return_sequence=False)
        >>> whole.nbytes > 10 * tape.nbytes
        True
        >>> grads = [lstm.backward(t, dstate=(np.ones_like(h_n), None)) for t in (whole, tape)]
        >>> bool((grads[0].weights["weight_hh_l0"] == grads[1].weights["weight_hh_l0"]).all())
        True
        """
        call = 0
        if dropout_seed is None:
            with self._lock:
                call, self._calls = self._calls, self._calls + 1
        return lstm_forward(
            x,
            self._pack(),
            state,
            batch_first=self.batch_first,
            dropout=self.dropout,
            dropout_seed=self._dropout_seed if dropout_seed is None else dropout_seed,
            dropout_call=call,
            dropout_step=dropout_step,
            lengths=lengths,
            mask=mask,
            reset=reset,
            masked_output=masked_output,
            return_sequence=return_sequence,
            return_cells=return_cells,
            return_gates=return_gates,
            checkpoint_every=checkpoint_every,
            threads=threads,
            algo=algo,
            tf32=tf32,
            out=out,
        )

    def backward(
        self,
        tape: Tape,
        dy: np.ndarray | None = None,
        dstate: tuple[np.ndarray | None, np.ndarray | None] | None = None,
        *,
        dcells: np.ndarray | None = None,
        dgates: np.ndarray | None = None,
        truncate: int | None = None,
        threads: int | None = None,
    ) -> Gradients:
        """The gradients g.x, g.state = (dh0, dc0) and g.weights[name], as `functional.lstm_backward`.

        They are those at the weights that `forward` used, even if the layer's have changed since.
        """
        return lstm_backward(tape, dy, dstate, dcells=dcells, dgates=dgates, truncate=truncate, threads=threads)

    def _pack_now(self) -> PackedWeights | DeviceWeights:
        pack = PackedWeights.of if self.device == "cpu" else DeviceWeights.of
        return pack(self._weights._arrays, self.spec, cell=self.cell)

    def _checked(self, state_dict: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        _, arrays = spec_and_arrays(state_dict, self.spec)
        names = self.spec.shapes()
        return {name: self._weights.check(name, array) for name, array in zip(names, arrays, strict=True)}

    def _frozen(self) -> LSTM:
        frozen = copy.deepcopy(self)
        frozen._packed = frozen._weights._version, self._pack()
        return frozen

    def _more(self) -> str:
        return "" if self.dtype == np.float32 else f", dtype={self.dtype}"

    # devices

    @property
    def device(self) -> str:
        """Where the weights are, and so every array that goes in: "cpu" or "cuda:N"."""
        return self._weights.device

    def to(self, device: str | DeviceArray, dtype: npt.DTypeLike | None = None) -> LSTM:
        """Move the weights, in place, and return the layer: "cpu", "cuda", "cuda:N", or to where an array is.

        Without an array they become CuPy's, torch's where CuPy is not installed; calls then take arrays of that library
        on that device, and so do streams. dtype: another one for the weights, on a GPU float16, too. Waits for the GPU.
        Raises RuntimeError where there is none, ValueError or TypeError naming argument, got and expected; the layer
        is then as it was. docs/gpu.md says what a GPU cannot do.

        >>> LSTM(8, 32).to("cpu", dtype="float64").dtype
        dtype('float64')
        """
        dtype = self.dtype if dtype is None else dtype
        self._weights, self.dtype = moved(self._weights, device, dtype), np.dtype(dtype)
        return self

    def compress(self, storage: str) -> CompressedLSTM:
        """An LSTM for inference alone whose weights take half ("bf16") or a quarter ("int8") of the memory.

        It has the same call and the same stream; arithmetic stays float32. A batch of 1 is bound by reading weights,
        and becomes faster. `CompressedLSTM` says what it costs in exactness.
        """
        if self.device != "cpu":
            raise ValueError(f"the layer is on {self.device}, where nothing is compressed: expected it on the CPU")
        return CompressedLSTM.of(self.spec, self.batch_first, self._weights._arrays, storage, self.cell)

    # files and other libraries

    @classmethod
    def from_weights(
        cls,
        weights: Mapping[str, np.ndarray],
        *,
        batch_first: bool = False,
        dropout: float = 0.0,
        cell: LSTMCellOptions = PLAIN,
        seed: int | None = None,
    ) -> LSTM:
        """The layer whose weights these are, copied: a mapping with torch's names, such as `fastlstm.exchange` makes.

        >>> weights = LSTM(8, 32, num_layers=2, bidirectional=True).state_dict()
        >>> LSTM.from_weights(weights, batch_first=True)
        LSTM(8, 32, num_layers=2, batch_first=True, bidirectional=True)
        """
        arguments = asdict(WeightSpec.from_weights(weights)) | {"dtype": weights["weight_hh_l0"].dtype, "seed": seed}
        lstm = cls(batch_first=batch_first, dropout=dropout, cell=cell, **arguments)
        lstm.load_state_dict(weights)
        return lstm

    @classmethod
    def from_onnx(cls, model: Any, node: str | int | Sequence[str | int] | None = None) -> LSTM:
        """The layer that LSTM nodes of an ONNX model, or of the file of one, are: see `fastlstm.onnx.from_model`."""
        from .onnx import from_model

        return from_model(model, node)

    def to_onnx(self, path: str | os.PathLike[str] | None = None, *, lengths: bool = False, state: bool = False) -> Any:
        """An ONNX model of the layer's inference, for any T and B, written to path: see `fastlstm.onnx.to_model`."""
        from .onnx import to_model

        return to_model(self, path, lengths=lengths, state=state)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the layer to a safetensors file (`pip install fastlstm[io]`); an error leaves the old file.

        It has no device: `load` makes a layer on the CPU, and takes no float16, for which this raises TypeError.
        """
        check_dtype(self.dtype)
        from . import files  # with what writing needs, which importing fastlstm should not cost

        files.write(path, self._arguments(), self._weights.numpy())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> LSTM:
        """The layer that `save` wrote. Raises ValueError for a file of another kind or of a newer format."""
        from . import files

        arguments, arrays = files.read(path)
        if "cell" in arguments:
            arguments["cell"] = LSTMCellOptions(**arguments["cell"])
        lstm = cls(**arguments)
        lstm.load_state_dict(arrays)
        return lstm

    def _arguments(self) -> dict[str, Any]:
        own = {"batch_first": self.batch_first, "dropout": self.dropout, "dtype": self.dtype.name}
        return asdict(self.spec) | {"cell": asdict(self.cell)} | own
