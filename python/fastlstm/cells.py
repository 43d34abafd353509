"""What a cell may do beyond the textbook's, and its equations in NumPy; the twins: csrc/cell_options.h and csrc/cell.h.

Letters: B batch, H hidden, P projection; Hout = P if there is a projection, else H. Gates stand in the order i f g o in
every 4H axis, peepholes in the order i f o in their 3H axis.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from itertools import zip_longest
from typing import Any, NamedTuple

import numpy as np

from .activations import ACTIVATIONS, activate, activation_slope

__all__ = ["Activation", "LSTMCellOptions", "cell_backward", "cell_forward"]


class Activation(NamedTuple):
    """One of ONNX's activation functions, by name, with its alpha and beta where it has them."""

    name: str
    alpha: float = 0.0
    beta: float = 0.0

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return activate(self.name, x, self.alpha, self.beta)

    def slope(self, y: np.ndarray) -> np.ndarray:
        """The derivative at an output y."""
        return activation_slope(self.name, y, self.alpha, self.beta)


TEXTBOOK = Activation("sigmoid"), Activation("tanh"), Activation("tanh")


@dataclass(frozen=True)
class LSTMCellOptions:
    """How a cell departs from the textbook's. The default does not; all options combine.

    activations: of the gates i f o, of g, and of c on its way into h (ONNX's f, g, h): each a name out of "sigmoid",
    "tanh", "relu", "hard_sigmoid", "affine", "leaky_relu", "elu", "softsign", "softplus", "scaled_tanh" and
    "thresholded_relu", or a tuple (name, alpha, beta), which can be left out where ONNX has a default.
    coupled_input_forget: f = 1 - i, and the forget gate's weights are not used (CIFG; ONNX's input_forget).
    gate_clip: what goes into an activation of i, f, g or o lies in [-gate_clip, gate_clip] (ONNX's clip).
    cell_clip: so does c after every step (TensorFlow's cell_clip, cuDNN's RNN clip).
    zoneout_h, zoneout_c: the probability that a unit of h (after a projection) or of c keeps what it was before a step
    (Krueger et al. 2017); inference takes the expectation.
    input_dropout, recurrent_dropout: the probability that a unit of x, or of h on its way into the next step's product,
    is dropped in all steps of a training call, the others growing by 1 / (1 - p) (Gal and Ghahramani 2016); with
    dropout_per_gate each gate has masks of its own, as in Keras.
    weight_drop: the probability that a weight of U is zero in all steps of a training call, the others growing by
    1 / (1 - p) (AWD-LSTM, Merity et al. 2018).

    Raises TypeError or ValueError that names the option.

    >>> LSTMCellOptions(activations=("hard_sigmoid", "tanh", ("leaky_relu", 0.1)), cell_clip=3.0).activations[2]
    Activation(name='leaky_relu', alpha=0.1, beta=0.0)
    """

    activations: tuple[Any, Any, Any] = TEXTBOOK
    coupled_input_forget: bool = False
    gate_clip: float | None = None
    cell_clip: float | None = None
    zoneout_h: float = 0.0
    zoneout_c: float = 0.0
    input_dropout: float = 0.0
    recurrent_dropout: float = 0.0
    dropout_per_gate: bool = False
    weight_drop: float = 0.0

    def __post_init__(self) -> None:
        triple = self.activations
        if not isinstance(triple, (tuple, list)) or len(triple) != 3:
            raise TypeError(f"activations is {triple!r}, expected three: of the gates, of g and of c")
        checked = tuple(_activation(f"activations[{i}]", one) for i, one in enumerate(triple))
        object.__setattr__(self, "activations", checked)
        for name in ("coupled_input_forget", "dropout_per_gate"):
            flag = getattr(self, name)
            if not isinstance(flag, (bool, np.bool_)):
                raise TypeError(f"{name} is {flag!r}, expected True or False")
        for name in ("gate_clip", "cell_clip"):
            if getattr(self, name) is not None:
                clip = _number(name, getattr(self, name), "a positive number or None")
                if not clip > 0:
                    raise ValueError(f"{name} is {clip}, expected a positive number or None")
                object.__setattr__(self, name, clip)
        for name in ("zoneout_h", "zoneout_c", "input_dropout", "recurrent_dropout", "weight_drop"):
            object.__setattr__(self, name, check_probability(name, getattr(self, name)))

    def __repr__(self) -> str:
        changed = [f"{f.name}={getattr(self, f.name)!r}" for f in fields(self) if getattr(self, f.name) != f.default]
        return f"LSTMCellOptions({', '.join(changed)})"

    @property
    def draws(self) -> bool:
        """Whether training draws random numbers, which needs a seed."""
        return any((self.zoneout_h, self.zoneout_c, self.input_dropout, self.recurrent_dropout, self.weight_drop))


def check_cell_options(cell: object) -> LSTMCellOptions:
    """`cell` itself; raises TypeError for anything but LSTMCellOptions."""
    if not isinstance(cell, LSTMCellOptions):
        raise TypeError(f"cell is {cell!r}, a {type(cell).__qualname__}: expected LSTMCellOptions")
    return cell


def check_probability(name: str, p: float) -> float:
    """`p` as a float; raises TypeError or ValueError that names it unless it is a number from 0 to 1."""
    p = _number(name, p, "a number from 0 to 1")
    if not 0 <= p <= 1:
        raise ValueError(f"{name} is {p}, expected a number from 0 to 1")
    return p


def _number(name: str, value: object, expected: str) -> float:
    if not isinstance(value, (int, float, np.integer, np.floating)) or isinstance(value, bool):
        raise TypeError(f"{name} is {value!r}, expected {expected}")
    return float(value)


def _activation(name: str, given: object) -> Activation:
    parts = (given,) if isinstance(given, str) else given if isinstance(given, (tuple, list)) and given else (None,)
    function, *parameters = parts
    if not isinstance(function, str) or len(parameters) > 2:
        raise TypeError(f"{name} is {given!r}, expected a name, or a tuple (name, alpha, beta)")
    if function not in ACTIVATIONS:
        raise ValueError(f"{name} is {function!r}, expected one of {', '.join(map(repr, ACTIVATIONS))}")
    values = []
    for which, default, value in zip_longest(("alpha", "beta"), ACTIVATIONS[function], parameters):
        value = default if value is None else _number(f"{which} of {name}", value, "a number")
        if value is None:
            raise ValueError(f"{name} has no {which}: expected ({function!r}, alpha, beta), as ONNX has no default")
        if not np.isfinite(value):
            raise ValueError(f"{which} of {name} is {value}, expected a finite number")
        values.append(value)
    if function in ("leaky_relu", "elu") and values[0] < 0:
        raise ValueError(f"alpha of {name} is {values[0]}, expected at least 0, so that {function} is monotonic")
    return Activation(function, *values)


PLAIN = LSTMCellOptions()


class CellNorm(NamedTuple):
    """The gain and bias of the layer normalisation of c, `[H]` each."""

    gamma: np.ndarray
    beta: np.ndarray


# One cell. Every row stands for itself.


def cell_forward(
    pre: np.ndarray,
    c_prev: np.ndarray,
    options: LSTMCellOptions = PLAIN,
    peephole: np.ndarray | None = None,
    norm: CellNorm | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One step of the cell (Gers, Schmidhuber and Cummins 2000; torch.nn.LSTM's equations, ONNX's with options).

    pre `[B,4H]`, c_prev `[B,H]` -> gates `[B,4H]` after their activations, c `[B,H]`, h `[B,H]` before any projection
    and zoneout. peephole `[3H]` (Gers, Schraudolph and Schmidhuber 2002): i and f see c_prev, o sees c.

    >>> gates, c, h = cell_forward(np.zeros((1, 4)), np.ones((1, 1)))
    >>> gates.tolist(), c.item(), round(h.item(), 6)
    ([[0.5, 0.5, 0.0, 0.5]], 0.5, 0.231059)
    """
    gate, squash, output = options.activations
    i, f, g, o = np.split(pre, 4, axis=-1)
    p_i, p_f, p_o = _peepholes(peephole)
    i = gate(_clip(_peep(i, p_i, c_prev), options.gate_clip))
    f = 1 - i if options.coupled_input_forget else gate(_clip(_peep(f, p_f, c_prev), options.gate_clip))
    g = squash(_clip(g, options.gate_clip))
    c = _clip(f * c_prev + i * g, options.cell_clip)
    o = gate(_clip(_peep(o, p_o, c), options.gate_clip))
    h = o * output(c if norm is None else layer_norm(c)[0] * norm.gamma + norm.beta)
    return np.concatenate([i, f, g, o], axis=-1), c, h


class CellGradient(NamedTuple):
    """The gradients of one step, by row: the sums over rows and steps are the caller's."""

    d_pre: np.ndarray  # [B,4H]
    dc_prev: np.ndarray  # [B,H]
    d_peephole: np.ndarray  # [B,3H]
    d_gamma: np.ndarray  # [B,H], as d_beta: of the CellNorm, zeros without
    d_beta: np.ndarray


def cell_backward(
    dh: np.ndarray,
    dc: np.ndarray,
    gates: np.ndarray,
    c_prev: np.ndarray,
    options: LSTMCellOptions = PLAIN,
    peephole: np.ndarray | None = None,
    norm: CellNorm | None = None,
    d_gates: np.ndarray | float = 0.0,
) -> CellGradient:
    """The chain rule through `cell_forward`: from dh, dc `[B,H]` and d_gates `[B,4H]` of its results.

    >>> gates, c, h = cell_forward(np.zeros((1, 4)), np.ones((1, 1)))
    >>> d = cell_backward(np.zeros((1, 1)), np.ones((1, 1)), gates, np.ones((1, 1)))
    >>> d.d_pre.tolist(), d.dc_prev.item()
    ([[0.0, 0.25, 0.5, 0.0]], 0.5)
    """
    gate, squash, output = options.activations
    i, f, g, o = np.split(gates, 4, axis=-1)
    p_i, p_f, p_o = _peepholes(peephole)
    di, df, dg, do = np.split(np.broadcast_to(np.asarray(d_gates, gates.dtype), gates.shape), 4, axis=-1)
    unclipped = f * c_prev + i * g
    c = _clip(unclipped, options.cell_clip)
    d_gamma = d_beta = np.zeros_like(c)

    seen = c if norm is None else layer_norm(c)[0] * norm.gamma + norm.beta
    y = output(seen)
    do = do + dh * y
    d_seen = dh * o * output.slope(y)
    if norm is not None:
        normalised, inverse_deviation = layer_norm(c)
        d_gamma, d_beta = d_seen * normalised, d_seen
        d_seen = layer_norm_backward(d_seen * norm.gamma, normalised, inverse_deviation)
    d_pre_o = do * _slope(gate, o, options.gate_clip)
    dc = _peep(dc + d_seen, p_o, d_pre_o)
    if options.cell_clip is not None:
        dc = np.where(np.abs(unclipped) < options.cell_clip, dc, 0)
    di, df, dg = di + dc * g, df + dc * c_prev, dg + dc * i
    if options.coupled_input_forget:
        di, df = di - df, np.zeros_like(df)
    d_pre_i, d_pre_f = di * _slope(gate, i, options.gate_clip), df * _slope(gate, f, options.gate_clip)
    d_pre = np.concatenate([d_pre_i, d_pre_f, dg * _slope(squash, g, options.gate_clip), d_pre_o], axis=-1)
    dc_prev = _peep(_peep(dc * f, p_f, d_pre_f), p_i, d_pre_i)
    return CellGradient(
        d_pre, dc_prev, np.concatenate([d_pre_i * c_prev, d_pre_f * c_prev, d_pre_o * c], axis=-1), d_gamma, d_beta
    )


def _peepholes(peephole: np.ndarray | None) -> list[Any]:
    return [None, None, None] if peephole is None else np.split(peephole, 3)


def _peep(x: np.ndarray, p: np.ndarray | None, seen: np.ndarray) -> np.ndarray:
    return x if p is None else x + p * seen


def _clip(x: np.ndarray, limit: float | None) -> np.ndarray:
    return x if limit is None else np.clip(x, -limit, limit)


def _slope(activation: Activation, y: np.ndarray, limit: float | None) -> np.ndarray:
    """The derivative at an output y, zero where its input was clipped: there y is what the limit gives."""
    slope = activation.slope(y)
    if limit is None:
        return slope
    low, high = activation(np.array([-limit, limit], y.dtype))
    return np.where((y == low) | (y == high), 0, slope)


# Layer normalisation (Ba, Kiros and Hinton 2016) over the last axis.

NORM_EPSILON = 1e-5  # haste's and torch.nn.LayerNorm's


def layer_norm(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """x minus its mean, over its standard deviation; and one over the latter, `[..,1]`."""
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = np.mean(centred * centred, axis=-1, keepdims=True)
    inverse_deviation = 1 / np.sqrt(variance + x.dtype.type(NORM_EPSILON))
    return centred * inverse_deviation, inverse_deviation


def layer_norm_backward(dy: np.ndarray, y: np.ndarray, inverse_deviation: np.ndarray) -> np.ndarray:
    """The gradient of x from that of y, the first result of `layer_norm`."""
    mean, along = dy.mean(axis=-1, keepdims=True), np.mean(dy * y, axis=-1, keepdims=True)
    dx: np.ndarray = (dy - mean - y * along) * inverse_deviation
    return dx
