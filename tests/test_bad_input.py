"""Bad input: every malformed argument is a TypeError or ValueError that names argument, got and expected.

One case per argument and mistake; `test_fuzz.py` mixes them by the thousand.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import fastlstm
from fastlstm import functional

T, B, I, H = 5, 3, 4, 6
FLOAT = np.float32

# argument or arguments, what raises, what its message names: the argument, then what it got and what was expected
Case = tuple[dict[str, Any], type[Exception], tuple[str, ...]]


class Unreadable:
    """What NumPy cannot turn into an array."""

    def __array__(self, *args: object, **options: object) -> np.ndarray:
        raise KeyError("no array in here")


def zeros(*shape: int, dtype: Any = FLOAT) -> np.ndarray:
    return np.zeros(shape, dtype)


def framework_array(name: str) -> object:
    """An object whose type looks like another framework's array: no framework is needed to name its face."""
    module, _, kind = name.rpartition(".")
    return type(kind, (), {"__module__": module})()


def misaligned(*shape: int) -> np.ndarray:
    raw = np.zeros(int(np.prod(shape)) * 4 + 1, np.uint8)
    return raw[1:].view(FLOAT).reshape(shape)


def read_only(*shape: int) -> np.ndarray:
    array = zeros(*shape)
    array.flags.writeable = False
    return array


def overlapping(argument: str, shape: tuple[int, ...]) -> dict[str, Any]:
    """The last element of the input is the first one of `out`."""
    size = int(np.prod(shape))
    memory = zeros(size + T * B * H - 1)
    taken, out = memory[:size].reshape(shape), memory[size - 1 :].reshape(T, B, H)
    state = {"state[0] (h0)": (taken, zeros(1, B, H)), "state[1] (c0)": (zeros(1, B, H), taken)}
    return {"out": out, **({"x": taken} if argument == "x" else {"state": state[argument]})}


def lengths_cases() -> dict[str, Case]:
    def case(lengths: Any, kind: type[Exception], *said: str) -> Case:
        return {"lengths": lengths}, kind, ("lengths", *said)

    return {
        "lengths_negative": case([2, -1, 0], ValueError, "-1", "0 <= length <= T = 5"),
        "lengths_beyond_T": case([2, 6, 0], ValueError, "6", "0 <= length <= T = 5"),
        "lengths_beyond_int64": case(np.array([2, 2**64 - 1, 0], np.uint64), ValueError, str(2**64 - 1), "T = 5"),
        "lengths_fractional": case([1.5, 2, 3], TypeError, "float64", "integers"),
        "lengths_whole_floats": case([1.0, 2.0, 3.0], TypeError, "float64", "integers"),
        "lengths_booleans": case([True, True, False], TypeError, "bool", "integers"),
        "lengths_objects": case(np.array([1, 2, 3], object), TypeError, "object", "integers"),
        "lengths_strings": case(["1", "2", "3"], TypeError, "U1", "integers"),
        "lengths_too_few": case([1, 2], ValueError, "(2,)", "(3,)"),
        "lengths_of_rank_2": case([[1, 2, 3]], ValueError, "(1, 3)", "(3,)"),
        "lengths_one_for_all": case(3, ValueError, "()", "(3,)"),
        "lengths_ragged": case([[1], [2, 3], 4], TypeError, "list", "array"),
        "lengths_unreadable": case(Unreadable(), TypeError, "Unreadable", "array"),
    }


def marks_cases(name: str) -> dict[str, Case]:
    """mask and reset obey the same rules."""

    def case(value: Any, kind: type[Exception], *said: str) -> Case:
        return {name: value}, kind, (name, *said)

    def one(value: Any, dtype: Any) -> np.ndarray:
        array = zeros(T, B, dtype=dtype)
        array[3, 1] = value
        return array

    cases = {
        "holds_2": case(one(2, int), ValueError, "2", "booleans, or numbers 0 and 1"),
        "holds_minus_1": case(one(-1, np.int8), ValueError, "-1", "booleans, or numbers 0 and 1"),
        "holds_a_half": case(one(0.5, np.float64), ValueError, "0.5", "booleans, or numbers 0 and 1"),
        "holds_nan": case(one(np.nan, FLOAT), ValueError, "nan", "booleans, or numbers 0 and 1"),
        "complex": case(zeros(T, B, dtype=complex), TypeError, "complex128", "booleans, or numbers 0 and 1"),
        "objects": case(zeros(T, B, dtype=object), TypeError, "object", "booleans, or numbers 0 and 1"),
        "strings": case(zeros(T, B, dtype="U1"), TypeError, "U1", "booleans, or numbers 0 and 1"),
        "dates": case(zeros(T, B, dtype="M8[s]"), TypeError, "datetime64", "booleans, or numbers 0 and 1"),
        "transposed": case(zeros(B, T, dtype=bool), ValueError, "(3, 5)", "(5, 3)"),
        "of_rank_1": case(zeros(T, dtype=bool), ValueError, "(5,)", "(5, 3)"),
        "of_rank_3": case(zeros(T, B, 1, dtype=bool), ValueError, "(5, 3, 1)", "(5, 3)"),
        "a_scalar": case(True, ValueError, "()", "(5, 3)"),
        "unreadable": case(Unreadable(), TypeError, "Unreadable", "array"),
    }
    return {f"{name}_{key}": value for key, value in cases.items()}


def out_cases() -> dict[str, Case]:
    def case(out: Any, kind: type[Exception], *said: str) -> Case:
        return {"out": out}, kind, ("out", *said)

    overlaps: dict[str, Case] = {
        f"out_overlaps_{label}": (
            overlapping(argument, shape),
            ValueError,
            ("out", f"overlaps {argument}", "of its own"),
        )
        for label, argument, shape in [
            ("x", "x", (T, B, I)),
            ("h0", "state[0] (h0)", (1, B, H)),
            ("c0", "state[1] (c0)", (1, B, H)),
        ]
    }
    return overlaps | {
        "out_read_only": case(read_only(T, B, H), ValueError, "read-only", "writable"),
        "out_strided": case(zeros(T, B, 2 * H)[:, :, ::2], ValueError, "not contiguous", "C order"),
        "out_in_fortran_order": case(np.asfortranarray(zeros(T, B, H)), ValueError, "not contiguous", "C order"),
        "out_reversed": case(zeros(T, B, H)[::-1], ValueError, "not contiguous", "C order"),
        "out_misaligned": case(misaligned(T, B, H), ValueError, "aligned", "C order"),
        "out_of_another_size": case(zeros(T, B, H + 1), ValueError, "(5, 3, 7)", "(5, 3, 6)"),
        "out_of_another_rank": case(zeros(T * B, H), ValueError, "(15, 6)", "(5, 3, 6)"),
        "out_of_float64": case(zeros(T, B, H, dtype=np.float64), TypeError, "float64", "float32"),
        "out_of_objects": case(zeros(T, B, H, dtype=object), TypeError, "object", "float32"),
        "out_a_list": case([0.0], TypeError, "list", "numpy.ndarray"),
        "out_a_torch_tensor": case(framework_array("torch.Tensor"), TypeError, "torch.Tensor", "fastlstm.torch"),
    }


def forward_cases() -> dict[str, Case]:
    def x(value: Any, kind: type[Exception], *said: str) -> Case:
        return {"x": value}, kind, ("x", *said)

    def state(value: Any, kind: type[Exception], *said: str) -> Case:
        return {"state": value}, kind, ("state", *said)

    def threads(value: Any, kind: type[Exception], *said: str) -> Case:
        return {"threads": value}, kind, ("threads", *said)

    h, c = zeros(1, B, H), zeros(1, B, H)
    return {
        "x_of_rank_1": x(zeros(I), ValueError, "(4,)", "(T, B, 4)"),
        "x_of_rank_4": x(zeros(1, T, B, I), ValueError, "(1, 5, 3, 4)", "(T, B, 4)"),
        "x_a_scalar": x(zeros(), ValueError, "()", "(T, B, 4)"),
        "x_of_another_input_size": x(zeros(T, B, I + 3), ValueError, "(5, 3, 7)", "(T, B, 4)"),
        "x_unbatched_of_another_input_size": x(zeros(T, I + 3), ValueError, "(5, 7)", "(T, 4)"),
        "x_of_no_features": x(zeros(T, B, 0), ValueError, "(5, 3, 0)", "(T, B, 4)"),
        "x_of_float64": x(zeros(T, B, I, dtype=np.float64), TypeError, "float64", "x.astype(np.float32)"),
        "x_of_float16": x(zeros(T, B, I, dtype=np.float16), TypeError, "float16", "x.astype(np.float32)"),
        "x_of_integers": x(zeros(T, B, I, dtype=int), TypeError, "int64", "x.astype(np.float32)"),
        "x_of_complex": x(zeros(T, B, I, dtype=complex), TypeError, "complex128", "x.astype(np.float32)"),
        "x_of_objects": x(zeros(T, B, I, dtype=object), TypeError, "object", "x.astype(np.float32)"),
        "x_of_records": x(zeros(T, B, I, dtype=[("a", "f4")]), TypeError, "'a'", "x.astype(np.float32)"),
        "x_of_another_byte_order": x(zeros(T, B, I, dtype=">f4"), TypeError, ">f4", "x.astype(np.float32)"),
        "x_a_list": x([[[0.0] * I] * B] * T, TypeError, "list", "numpy.ndarray"),
        "x_none": x(None, TypeError, "NoneType", "numpy.ndarray"),
        "x_a_torch_tensor": x(framework_array("torch.Tensor"), TypeError, "torch.Tensor", "fastlstm.torch"),
        "x_a_cupy_array": x(framework_array("cupy.ndarray"), TypeError, "cupy.ndarray", "x.get()"),
        "x_a_jax_array": x(framework_array("jaxlib._jax.ArrayImpl"), TypeError, "jaxlib", "fastlstm.jax"),
        "state_an_array": state(zeros(2, B, H), TypeError, "numpy.ndarray", "a pair (h, c)"),
        "state_of_three": state((h, c, c), ValueError, "3", "a pair (h, c)"),
        "state_empty": state((), ValueError, "0", "a pair (h, c)"),
        "h0_of_another_batch": state((zeros(1, B + 1, H), c), ValueError, "(h0)", "(1, 4, 6)", "(1, 3, 6)"),
        "h0_batch_first": state((zeros(B, 1, H), c), ValueError, "(h0)", "(3, 1, 6)", "(1, 3, 6)"),
        "h0_of_more_layers": state((zeros(2, B, H), c), ValueError, "(h0)", "(2, 3, 6)", "(1, 3, 6)"),
        "h0_unbatched": state((zeros(1, H), c), ValueError, "(h0)", "(1, 6)", "(1, 3, 6)"),
        "h0_of_float64": state((h.astype(np.float64), c), TypeError, "(h0)", "float64", "astype(np.float32)"),
        "c0_of_another_size": state((h, zeros(1, B, H + 1)), ValueError, "(c0)", "(1, 3, 7)", "(1, 3, 6)"),
        "c0_of_objects": state((h, c.astype(object)), TypeError, "(c0)", "object", "astype(np.float32)"),
        "c0_a_list": state((h, c.tolist()), TypeError, "(c0)", "list", "numpy.ndarray"),
        "c0_a_torch_tensor": state((h, framework_array("torch.Tensor")), TypeError, "(c0)", "fastlstm.torch"),
        "masked_output_unknown": ({"masked_output": "hold"}, ValueError, ("masked_output", "'hold'", "'repeat'")),
        "masked_output_none": ({"masked_output": None}, ValueError, ("masked_output", "None", "'repeat'")),
        "threads_zero": threads(0, ValueError, "0", "1 <= threads"),
        "threads_negative": threads(-2, ValueError, "-2", "1 <= threads"),
        "threads_beyond_reason": threads(10**6, ValueError, "1000000", "1 <= threads"),
        "threads_beyond_int64": threads(2**70, ValueError, str(2**70), "1 <= threads"),
        "threads_fractional": threads(1.5, TypeError, "float", "positive integer"),
        "threads_a_string": threads("2", TypeError, "str", "positive integer"),
        "threads_a_boolean": threads(True, TypeError, "bool", "positive integer"),
        **lengths_cases(),
        **marks_cases("mask"),
        **marks_cases("reset"),
        **out_cases(),
    }


FORWARD = forward_cases()


def expect(call: Callable[[], object], kind: type[Exception], said: tuple[str, ...]) -> None:
    with pytest.raises(kind) as caught:
        call()
    assert type(caught.value) is kind
    message = str(caught.value)
    assert re.match(rf"{re.escape(said[0])}\b", message) or f"{said[0]} is" in message, message
    for part in said[1:]:
        assert part in message, message


@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("name", FORWARD)
def test_forward_refuses(name: str, training: bool) -> None:
    changed, kind, said = FORWARD[name]
    lstm = fastlstm.LSTM(I, H, seed=0)
    arguments = {"x": zeros(T, B, I), **changed}
    before = arguments["out"].copy() if isinstance(arguments.get("out"), np.ndarray) else None
    expect(lambda: (lstm.forward if training else lstm)(**arguments), kind, said)
    if before is not None:
        np.testing.assert_array_equal(arguments["out"], before)


def test_forward_takes_neighbours_that_only_touch() -> None:
    memory = zeros(T * B * (H + I))
    x, out = memory[: T * B * I].reshape(T, B, I), memory[T * B * I :].reshape(T, B, H)
    y, _ = fastlstm.LSTM(I, H, seed=0)(x, out=out)
    assert y is out


@pytest.mark.parametrize(
    ("x_shape", "changed", "said"),
    [
        ((B, T, I), {"mask": zeros(T, B, dtype=bool)}, ("mask", "(5, 3)", "(3, 5)")),
        ((B, T, I), {"reset": zeros(T, B, dtype=bool)}, ("reset", "(5, 3)", "(3, 5)")),
        ((B, T, I), {"out": zeros(T, B, H)}, ("out", "(5, 3, 6)", "(3, 5, 6)")),
        ((B, T, I), {"lengths": [1] * T}, ("lengths", "(5,)", "(3,)")),
        ((B, T, I + 1), {}, ("x", "(3, 5, 5)", "(B, T, 4)")),
        ((T, I), {"mask": zeros(T, 1, dtype=bool)}, ("mask", "(5, 1)", "(5,)")),
        ((T, I), {"lengths": [1, 2]}, ("lengths", "(2,)", "expected")),
        ((T, I), {"lengths": 6}, ("lengths", "6", "T = 5")),
        ((T, I), {"out": zeros(T, 1, H)}, ("out", "(5, 1, 6)", "(5, 6)")),
        ((T, I), {"state": (zeros(1, 1, H), zeros(1, H))}, ("state", "(1, 1, 6)", "(1, 6)")),
    ],
    ids=[
        "mask_time_major",
        "reset_time_major",
        "out_time_major",
        "lengths_by_step",
        "x_of_another_input_size",
        "unbatched_mask_with_batch",
        "unbatched_lengths_of_two",
        "unbatched_length_beyond_T",
        "unbatched_out_with_batch",
        "unbatched_state_with_batch",
    ],
)
def test_forward_refuses_in_other_layouts(
    x_shape: tuple[int, ...], changed: dict[str, Any], said: tuple[str, ...]
) -> None:
    lstm = fastlstm.LSTM(I, H, batch_first=True, seed=0)
    expect(lambda: lstm(zeros(*x_shape), **changed), ValueError, said)


BACKWARD: dict[str, Case] = {
    "dy_of_another_size": ({"dy": zeros(T, B, H + 1)}, ValueError, ("dy", "(5, 3, 7)", "(5, 3, 6)")),
    "dy_of_another_rank": ({"dy": zeros(T, H)}, ValueError, ("dy", "(5, 6)", "(5, 3, 6)")),
    "dy_of_float64": ({"dy": zeros(T, B, H, dtype=np.float64)}, TypeError, ("dy", "float64", "dy.astype(np.float32)")),
    "dy_of_objects": ({"dy": zeros(T, B, H, dtype=object)}, TypeError, ("dy", "object", "dy.astype(np.float32)")),
    "dy_a_number": ({"dy": 1.0}, TypeError, ("dy", "float", "numpy.ndarray")),
    "dy_a_torch_tensor": ({"dy": framework_array("torch.Tensor")}, TypeError, ("dy", "torch.Tensor", "fastlstm.torch")),
    "dstate_an_array": ({"dstate": zeros(2, B, H)}, TypeError, ("dstate", "numpy.ndarray", "a pair (h, c)")),
    "dstate_of_one": ({"dstate": (zeros(1, B, H),)}, ValueError, ("dstate", "1", "a pair (h, c)")),
    "dh_n_of_another_size": (
        {"dstate": (zeros(1, B, 1), None)},
        ValueError,
        ("dstate", "(dh_n)", "(1, 3, 1)", "(1, 3, 6)"),
    ),
    "dc_n_of_float64": (
        {"dstate": (None, zeros(1, B, H, dtype=np.float64))},
        TypeError,
        ("dstate", "(dc_n)", "float64", "float32"),
    ),
    "dcells_of_another_size": ({"dcells": zeros(T, B, 1)}, ValueError, ("dcells", "(5, 3, 1)", "(5, 3, 6)")),
    "dcells_a_list": ({"dcells": [1.0]}, TypeError, ("dcells", "list", "numpy.ndarray")),
    "threads_zero": ({"threads": 0}, ValueError, ("threads", "0", "1 <= threads")),
    "tape_none": ({"tape": None}, TypeError, ("tape", "NoneType", "lstm_forward")),
    "tape_an_output": ({"tape": zeros(T, B, H)}, TypeError, ("tape", "ndarray", "lstm_forward")),
}


@pytest.mark.parametrize("name", BACKWARD)
def test_backward_refuses(name: str) -> None:
    changed, kind, said = BACKWARD[name]
    lstm = fastlstm.LSTM(I, H, seed=0)
    _, _, tape = lstm.forward(zeros(T, B, I))
    expect(lambda: lstm.backward(**{"tape": tape, **changed}), kind, said)


LAYER: dict[str, Case] = {
    "input_size_negative": ({"input_size": -1}, ValueError, ("input_size", "-1", "at least 0")),
    "hidden_size_negative": ({"hidden_size": -3}, ValueError, ("hidden_size", "-3", "at least 1")),
    "hidden_size_fractional": ({"hidden_size": 2.5}, TypeError, ("hidden_size", "2.5", "integer")),
    "hidden_size_a_string": ({"hidden_size": "8"}, TypeError, ("hidden_size", "'8'", "integer")),
    "hidden_size_a_boolean": ({"hidden_size": True}, TypeError, ("hidden_size", "True", "integer")),
    "hidden_size_beyond_memory": ({"hidden_size": 2**62}, ValueError, ("hidden_size", str(2**62), "expected")),
    "input_size_beyond_int64": ({"input_size": 2**64}, ValueError, ("input_size", str(2**64), "expected")),
    "num_layers_zero": ({"num_layers": 0}, ValueError, ("num_layers", "0", "at least 1")),
    "num_layers_none": ({"num_layers": None}, TypeError, ("num_layers", "None", "integer")),
    "proj_size_negative": ({"proj_size": -1}, ValueError, ("proj_size", "-1", "at least 0")),
    "proj_size_not_below_hidden_size": ({"proj_size": H}, ValueError, ("proj_size", "6", "0 (none) to 5")),
    "bias_a_number": ({"bias": 1}, TypeError, ("bias", "1", "True or False")),
    "bidirectional_a_string": ({"bidirectional": "yes"}, TypeError, ("bidirectional", "'yes'", "True or False")),
    "dropout_above_1": ({"dropout": 1.5}, ValueError, ("dropout", "1.5", "0 to 1")),
    "dropout_negative": ({"dropout": -0.1}, ValueError, ("dropout", "-0.1", "0 to 1")),
    "dropout_nan": ({"dropout": np.nan}, ValueError, ("dropout", "nan", "0 to 1")),
    "dropout_a_string": ({"dropout": "0.5"}, TypeError, ("dropout", "'0.5'", "0 to 1")),
    "dtype_half": ({"dtype": np.float16}, TypeError, ("dtype", "float16", "float32 or float64")),
    "dtype_object": ({"dtype": object}, TypeError, ("dtype", "object", "float32 or float64")),
    "dtype_of_another_byte_order": ({"dtype": ">f4"}, TypeError, ("dtype", ">f4", "float32 or float64")),
    "forget_bias_without_bias": ({"forget_bias": 1.0, "bias": False}, ValueError, ("forget_bias", "1.0", "None")),
}


@pytest.mark.parametrize("name", LAYER)
def test_layer_refuses(name: str) -> None:
    changed, kind, said = LAYER[name]
    expect(lambda: fastlstm.LSTM(**{"input_size": I, "hidden_size": H, **changed}), kind, said)


def dropped(**changed: Any) -> dict[str, Any]:
    return {"dropout": 0.5, "dropout_seed": 1, **changed}


FUNCTION: dict[str, Case] = {
    "dropout_above_1": (dropped(dropout=1.5), ValueError, ("dropout", "1.5", "0 to 1")),
    "dropout_nan": (dropped(dropout=np.nan), ValueError, ("dropout", "nan", "0 to 1")),
    "dropout_a_string": (dropped(dropout="0.5"), TypeError, ("dropout", "0.5", "expected")),
    "dropout_seed_missing": (dropped(dropout_seed=None), ValueError, ("dropout_seed", "None", "2**64 - 1")),
    "dropout_seed_negative": (dropped(dropout_seed=-1), ValueError, ("dropout_seed", "-1", "2**64 - 1")),
    "dropout_seed_too_large": (dropped(dropout_seed=2**64), ValueError, ("dropout_seed", str(2**64), "2**64 - 1")),
    "dropout_seed_fractional": (dropped(dropout_seed=1.5), TypeError, ("dropout_seed", "1.5", "integer")),
    "dropout_call_fractional": (dropped(dropout_call=1.5), TypeError, ("dropout_call", "1.5", "integer")),
    "batch_first_a_string": ({"batch_first": "yes"}, TypeError, ("batch_first", "yes", "True or False")),
    "return_cells_an_array": ({"return_cells": zeros(2)}, TypeError, ("return_cells", "ndarray", "True or False")),
    "weights_none": ({"weights": None}, TypeError, ("weights", "NoneType", "mapping")),
    "weights_a_list": ({"weights": [zeros(4, 1)]}, TypeError, ("weights", "list", "mapping")),
    "weights_empty": ({"weights": {}}, ValueError, ("weights", "weight_ih_l0")),
}


@pytest.mark.parametrize("name", FUNCTION)
def test_function_refuses(name: str) -> None:
    changed, kind, said = FUNCTION[name]
    weights = fastlstm.LSTM(I, H, 2, seed=0).weights
    expect(lambda: functional.lstm_forward(**{"x": zeros(T, B, I), "weights": weights, **changed}), kind, said)


@pytest.mark.parametrize(
    ("value", "kind"), [(0, ValueError), (-1, ValueError), (2**70, ValueError), (1.5, TypeError), (None, TypeError)]
)
def test_set_num_threads_refuses(value: Any, kind: type[Exception]) -> None:
    before = fastlstm.get_num_threads()
    with pytest.raises(kind, match=r"expected .*(positive integer|1 <= )"):
        fastlstm.set_num_threads(value)
    assert fastlstm.get_num_threads() == before


def test_set_isa_refuses_and_says_what_can_run() -> None:
    before = fastlstm.active_isa()
    with pytest.raises(ValueError, match=r"'sse1'.*expected one of .*" + before):
        fastlstm.set_isa("sse1")
    assert fastlstm.active_isa() == before


def test_torch_tensors_are_told_of_their_face() -> None:
    torch = pytest.importorskip("torch")
    lstm = fastlstm.LSTM(I, H, seed=0)
    with pytest.raises(TypeError, match=r"x is a torch\.Tensor.*fastlstm\.torch\.LSTM"):
        lstm(torch.zeros(T, B, I))
    with pytest.raises(TypeError, match=r"h0.*torch\.Tensor.*fastlstm\.torch\.LSTM"):
        lstm(zeros(T, B, I), (torch.zeros(1, B, H), zeros(1, B, H)))
    with pytest.raises(TypeError, match=r"out is a torch\.Tensor.*fastlstm\.torch\.LSTM"):
        lstm(zeros(T, B, I), out=torch.zeros(T, B, H))
