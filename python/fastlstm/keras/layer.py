"""`LSTM`: Keras's layer, whose loop over time is our kernels."""

from __future__ import annotations

import importlib
from typing import Any

import keras
from keras import ops

from ..cells import Activation, LSTMCellOptions
from ..weights import WeightSpec
from .call import Call

__all__ = ["LSTM"]

# Keras's functions, by the names and parameters that ours have. Both of its modules have most of them.
_ACTIVATIONS = {
    "tanh": Activation("tanh"),
    "sigmoid": Activation("sigmoid"),
    "relu": Activation("relu"),
    "linear": Activation("affine", 1.0, 0.0),
    "hard_sigmoid": Activation("hard_sigmoid", 1 / 6, 0.5),
    "leaky_relu": Activation("leaky_relu", 0.2),
    "elu": Activation("elu", 1.0),
    "softsign": Activation("softsign"),
    "softplus": Activation("softplus"),
}
_OURS = {
    getattr(module, name): ours
    for module in (keras.activations, ops)
    for name, ours in _ACTIVATIONS.items()
    if hasattr(module, name)
}


@keras.saving.register_keras_serializable("fastlstm")
class LSTM(keras.layers.LSTM):
    """keras.layers.LSTM by fastlstm's kernels, on the backends tensorflow, torch, jax and numpy.

    Arguments, weights, masks, states and saved files are those of keras.layers.LSTM; x is `[batch, steps, features]`.
    The activations can be tanh, sigmoid, relu, linear, hard_sigmoid, leaky_relu, elu, softsign and softplus; with
    fallback=True, Keras's own loop runs a layer with others, which is a ValueError otherwise. With recurrent_dropout
    the masks are drawn by fastlstm, from the layer's seed: their numbers differ from Keras's. Computed is in float64 if
    the layer's compute dtype is that, else in float32. use_cudnn is for Keras's Bidirectional alone, which asks cuDNN
    for both directions where it has a GPU.

    >>> layer = LSTM(3, return_sequences=True)
    >>> tuple(layer(keras.ops.ones((2, 5, 4))).shape)
    (2, 5, 3)
    """

    def __init__(self, *args: Any, fallback: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fallback = fallback
        if keras.backend.backend() == "tensorflow":
            self.supports_jit = False  # XLA cannot call back
        if not fallback:
            self._activations()

    def get_config(self) -> dict[str, Any]:
        config: dict[str, Any] = super().get_config()
        return config | ({"fallback": True} if self.fallback else {})

    def _activations(self) -> tuple[Activation, ...]:
        """Ours, of the gates, of g and of c. Raises ValueError for one that the kernels have not."""
        for name in ("activation", "recurrent_activation"):
            if getattr(self, name) not in _OURS:
                got = keras.activations.serialize(getattr(self, name))
                raise ValueError(
                    f"{name} is {got!r}, expected one of {', '.join(map(repr, _ACTIVATIONS))}, "
                    "or fallback=True for Keras's own loop"
                )
        output = _OURS[self.activation]
        return _OURS[self.recurrent_activation], output, output

    def inner_loop(self, sequences: Any, initial_state: Any, mask: Any, training: bool = False) -> Any:
        """What Keras calls between its own work on states and outputs: the last output, all of them, and the states."""
        if not {self.activation, self.recurrent_activation} <= _OURS.keys() or _has_symbols(sequences):
            return super().inner_loop(sequences, initial_state, mask, training)
        backend = importlib.import_module(f".{keras.backend.backend()}", __package__)
        dtype = "float64" if self.compute_dtype == "float64" else "float32"
        call = self._call_of(bool(training))
        if training and 0 < self.dropout < 1 and not call.cell.input_dropout:
            sequences = sequences * ops.expand_dims(self.cell.get_dropout_mask(sequences[:, 0]), 1)
        initial_state = self._state(sequences, initial_state)
        if mask is not None:
            mask = _mask(sequences, mask[0] if isinstance(mask, list | tuple) else mask)
        if self.go_backwards:
            sequences = ops.flip(sequences, axis=1)
            mask = mask if mask is None else ops.flip(mask, axis=1)
        cell = self.cell
        weights = [cell.kernel, cell.recurrent_kernel, *([cell.bias] if cell.use_bias else [])]
        x, h0, c0, *weights = (ops.cast(one, dtype) for one in (sequences, *initial_state, *weights))
        seed = cell.seed_generator.next() if call.draws else None
        *sequence, h_n, c_n = backend.run(self, call, x, (h0, c0), weights, mask, seed)
        y = sequence[0] if sequence else h_n[:, None]
        if mask is not None:
            y = self._masked(y, mask, backend.LEADING_ZEROS or self.unroll)
        return y[:, -1], y, [h_n, c_n]

    def _state(self, sequences: Any, state: Any) -> list[Any]:
        """h0 and c0 `[B,H]`; one of a single row is that of every sample, as in Keras's loop."""
        if len(state) != 2:
            raise ValueError(f"initial_state has {len(state)} tensors, expected 2: h and c")
        for name, one in zip("hc", state, strict=True):
            if len(one.shape) != 2 or one.shape[1] != self.units:
                raise ValueError(f"initial_state's {name} has shape {tuple(one.shape)}, expected (batch, {self.units})")
        return [_rows(sequences, one) for one in state]

    def _call_of(self, training: bool) -> Call:
        I, H = self.cell.kernel.shape[0], self.units
        options: dict[str, Any] = {"activations": self._activations()}
        if training and self.cell.implementation == 1:
            rates = {"input_dropout": self.dropout, "recurrent_dropout": self.recurrent_dropout}
            options |= {name: rate for name, rate in rates.items() if rate < 1}  # Keras drops nothing at 1
            options["dropout_per_gate"] = True
        repeat = not self.zero_output_for_mask
        return Call(
            WeightSpec(I, H, bias=self.use_bias), LSTMCellOptions(**options), self.return_sequences, repeat, training
        )

    def _masked(self, y: Any, mask: Any, leading_zeros: bool) -> Any:
        """y `[B,T,H]`, or `[B,1,H]` of the last step, where the kernels leave it otherwise than Keras."""
        if not self.zero_output_for_mask and leading_zeros:
            counts = ops.cumsum(ops.cast(mask, "int32"), axis=1) > 0
        elif self.zero_output_for_mask and not self.return_sequences:
            counts = mask
        else:
            return y
        return ops.where(counts[:, -y.shape[1] :, None] if self.return_sequences else counts[:, -1:, None], y, 0)


def _has_symbols(sequences: Any) -> bool:
    """Whether sizes are symbols of JAX's: Keras infers shapes by them, and model.export leaves the batch open.

    The kernels are called back with numbers, which no exported program can. Keras's own loop is what it holds.
    """
    return keras.backend.backend() == "jax" and not all(isinstance(size, int) for size in sequences.shape)


def _mask(sequences: Any, mask: Any) -> Any:
    """`[B,T]` of bools; Keras's loop takes `[B,T,1]`, and a single row for all samples, too."""
    if len(mask.shape) == 3 and mask.shape[2] == 1:
        mask = ops.squeeze(mask, 2)
    if len(mask.shape) != 2:
        raise ValueError(f"mask has shape {tuple(mask.shape)}, expected (batch, steps)")
    return _rows(sequences, ops.cast(mask, "bool"))


def _rows(sequences: Any, one: Any) -> Any:
    """`[1,N]` as `[B,N]`, of sequences `[B,T,I]`; any other as it is."""
    if one.shape[0] != 1 or sequences.shape[0] == 1:
        return one
    return ops.broadcast_to(one, (ops.shape(sequences)[0], ops.shape(one)[1]))
