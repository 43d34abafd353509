"""Thousands of malformed calls at random: each must raise, write nothing and never crash.

Run as a program, this file is the test's child, so that a crash is a failed test. `test_bad_input.py` has the messages.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastlstm
from fastlstm import functional


class Unreadable:
    """What NumPy cannot turn into an array."""

    def __array__(self, *args: object, **options: object) -> np.ndarray:
        raise KeyError("no array in here")


def framework_array(name: str) -> object:
    """An object whose type looks like another framework's array."""
    module, _, kind = name.rpartition(".")
    return type(kind, (), {"__module__": module})()


class Fuzz:
    """Draws a valid call, then spoils one or two of its arguments."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)

    def pick(self, choices: Any) -> Any:
        return choices[int(self.rng.integers(len(choices)))]

    def maybe(self, value: Any) -> Any:
        return value if self.rng.integers(2) else None

    def array(self, dtype: Any, *shape: int) -> np.ndarray:
        return self.rng.standard_normal(shape).astype(dtype)

    def not_an_array(self) -> Any:
        kinds = ("torch.Tensor", "cupy.ndarray", "jax.Array")
        values = [[], [1.0], {}, "x", b"x", 3, 2.5, object(), int, Unreadable(), {1, 2}, ..., [[1], [2, 3]]]
        return self.pick([*values, *(framework_array(kind) for kind in kinds)])

    def wrong_dtype(self, array: np.ndarray) -> np.ndarray:
        other = "f8" if array.dtype == np.float32 else "f4"
        return np.zeros(
            array.shape, self.pick([other, "f2", "i8", "u1", "?", "c8", "O", "U2", "S3", "M8[s]", "V4", ">f4"])
        )

    def wrong_shape(self, array: np.ndarray) -> np.ndarray:
        shape = list(array.shape)
        if not shape or self.rng.integers(2):
            shape = self.pick(
                [[1, *shape], [*shape, 1], [*shape, 2], shape[1:] and [*shape[1:], *shape[:1], 1], [7] * 5]
            )
        else:
            axis = int(self.rng.integers(len(shape)))
            shape[axis] = int(
                self.pick([shape[axis] + 1, shape[axis] + 100, max(shape[axis] - 1, 0) or shape[axis] + 2])
            )
        return np.zeros(shape, array.dtype)

    def spoil(self, array: np.ndarray) -> Any:
        way = self.rng.integers(3)
        return self.not_an_array() if way == 0 else self.wrong_dtype(array) if way == 1 else self.wrong_shape(array)

    def bad_out(self, out: np.ndarray, memory: np.ndarray) -> Any:
        locked, wide = out.copy(), np.zeros((*out.shape[:-1], 2 * out.shape[-1]), out.dtype)
        locked.flags.writeable = False
        raw = np.zeros(out.nbytes + 1, np.uint8)[1:].view(out.dtype).reshape(out.shape)
        inside = memory[: out.size].reshape(out.shape)
        strided = wide[..., ::2] if out.shape[-1] > 1 or out.size > 1 else locked
        return self.pick([locked, strided, raw, inside, self.spoil(out)])

    def bad_lengths(self, T: int, B: int) -> Any:
        lengths = self.rng.integers(0, T + 1, B)
        wrong = lengths.copy()
        wrong[self.rng.integers(B)] = self.pick([-1, T + 1, -(2**62), 2**62])
        floats = lengths + self.pick([0.0, 0.5, np.nan, np.inf])
        values = [wrong, wrong.tolist(), floats, lengths.astype("?"), lengths.astype("O"), lengths.astype("U3")]
        return self.pick([*values, lengths[None, :], np.append(lengths, 0), Unreadable(), "lengths", {}, object()])

    def bad_marks(self, shape: tuple[int, ...]) -> Any:
        marks = self.rng.integers(0, 2, shape)
        wrong = marks.astype(self.pick(["f4", "f8", "i8"]))
        wrong.flat[self.rng.integers(marks.size)] = self.pick([2, -1, 7])
        fractional = marks.astype("f8")
        fractional.flat[self.rng.integers(marks.size)] = self.pick([0.5, np.nan, -np.inf, 1 + 1e-9])
        others = [marks.astype(kind) for kind in ("O", "U1", "S1", "c8", "M8[s]", "m8[s]")]
        return self.pick(
            [wrong, wrong.tolist(), fractional, *others, self.wrong_shape(marks), Unreadable(), "mask", {}]
        )

    def bad_threads(self) -> Any:
        return self.pick([0, -1, 2**31, 2**63, 2**70, -(2**70), 1.5, 2.0, "2", b"2", True, [1], (), object(), 1j])

    def sizes(self) -> tuple[int, ...]:
        return tuple(int(n) for n in self.rng.integers([1, 1, 1, 1, 1, 1], [7, 5, 6, 20, 4, 3]))

    def forward(self) -> tuple[Callable[..., Any], dict[str, Any], dict[str, Any]]:
        """A function, valid arguments, and bad values for some of them."""
        T, B, I, H, L, D = self.sizes()
        dtype, batch_first, unbatched = self.pick(["f4", "f8"]), bool(self.rng.integers(2)), self.rng.integers(4) == 0
        lstm = fastlstm.LSTM(I, H, L, bidirectional=D == 2, batch_first=batch_first, dtype=dtype, dropout=0.5, seed=0)
        B = 1 if unbatched else B
        steps = (T,) if unbatched else (B, T) if batch_first else (T, B)
        out = self.array(dtype, *steps, D * H)
        memory = self.array(dtype, T * B * max(I, D * H))  # x's, and of the `out` that overlaps it
        x = memory[: T * B * I].reshape(*steps, I)
        states = [self.array(dtype, L * D, *(() if unbatched else (B,)), H) for _ in range(2)]
        call = self.pick([lstm, lstm.forward, functional.lstm_forward])
        good = {
            "x": x,
            "state": self.maybe(tuple(states)),
            "lengths": self.maybe(self.rng.integers(0, T + 1, B)),
            "mask": self.maybe(self.rng.integers(0, 2, steps)),
            "reset": self.maybe(self.rng.integers(0, 2, steps).astype(bool)),
            "out": self.maybe(out),
            "threads": self.pick([None, 1, 2]),
            "masked_output": self.pick(["zero", "repeat"]),
            "return_cells": bool(self.rng.integers(2)),
        }
        which = int(self.rng.integers(2))
        spoiled = [self.spoil(states[i]) if i == which else states[i] for i in range(2)]
        bad = {
            "x": self.pick([self.not_an_array(), self.wrong_dtype(x), np.zeros((*steps, I + 1), dtype), x[None, None]]),
            "state": self.pick([spoiled, tuple(spoiled), [], states[:1], states * 2, states[0], "hc", 5, {}]),
            "lengths": self.bad_lengths(T, B),
            "mask": self.bad_marks(steps),
            "reset": self.bad_marks(steps),
            "out": self.bad_out(out, memory),
            "threads": self.bad_threads(),
            "masked_output": self.pick(["hold", None, 0, b"zero", [], np.zeros(3)]),
        }
        if call is functional.lstm_forward:
            good |= {"weights": lstm.state_dict(), "batch_first": batch_first}
            names = list(lstm.weights)
            spoilt = lstm.state_dict()
            spoilt[self.pick(names)] = self.spoil(spoilt[self.pick(names)])
            missing = {name: array for name, array in lstm.weights.items() if name != names[0]}
            bad["weights"] = self.pick([spoilt, missing, lstm.state_dict() | {"w": x}, {}, None, [], 5])
            bad["dropout"] = self.pick([-0.1, 1.1, np.nan, np.inf, "0.5", None, [], 1j])
        return call, good, bad

    def backward(self) -> tuple[Callable[..., Any], dict[str, Any], dict[str, Any]]:
        T, B, I, H, L, D = self.sizes()
        dtype = self.pick(["f4", "f8"])
        lstm = fastlstm.LSTM(I, H, L, bidirectional=D == 2, dtype=dtype, seed=0)
        _, _, tape = lstm.forward(self.array(dtype, T, B, I))
        dy = self.array(dtype, T, B, D * H)
        dstate = [self.array(dtype, L * D, B, H) for _ in range(2)]
        good = {
            "tape": tape,
            "dy": self.maybe(dy),
            "dstate": self.maybe(tuple(dstate)),
            "dcells": self.maybe(dy.copy()),
        }
        which = int(self.rng.integers(2))
        spoiled = [self.spoil(dstate[i]) if i == which else None for i in range(2)]
        bad = {
            "tape": self.pick([None, 0, object(), dy, tape.native, "tape"]),
            "dy": self.spoil(dy),
            "dstate": self.pick([spoiled, tuple(spoiled), [], dstate[:1], dstate * 2, dstate[0], "hc", 5, {}]),
            "dcells": self.spoil(dy),
            "threads": self.bad_threads(),
        }
        return lstm.backward, good, bad

    def layer(self) -> tuple[Callable[..., Any], dict[str, Any], dict[str, Any]]:
        sizes = [0, -1, -(2**63), 1.5, "8", None, True, [3], object(), np.nan, np.float32(3)]
        bad = {name: self.pick([*sizes, 2**62, 2**64]) for name in ("input_size", "hidden_size")}
        bad |= {"num_layers": self.pick(sizes), "proj_size": self.pick([*sizes[1:], 6, 7, 2**62])}
        bad |= {name: self.pick([0, 1, None, "yes", [], 2.0]) for name in ("bias", "bidirectional")}
        bad["dropout"] = self.pick([-1, 2, np.nan, -np.inf, "0.5", None, True, [], 1j])
        bad["dtype"] = self.pick(["f2", "i4", "O", "U3", ">f4", "c8", "no_such", 5, [("a", "f4")], "M8"])
        bad["seed"] = self.pick([-1, 1.5, "seed", object()])
        return fastlstm.LSTM, {"input_size": 4, "hidden_size": 6}, bad


def arrays_of(value: Any) -> list[np.ndarray]:
    if isinstance(value, np.ndarray):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [array for item in value for array in arrays_of(item)] if isinstance(value, (list, tuple)) else []


def fuzz(calls: int, seed: int) -> None:
    """Say each call before it is made: the last line is the one that crashed."""
    source = Fuzz(seed)
    for number in range(calls):
        call, good, bad = source.pick([source.forward, source.forward, source.backward, source.layer])()
        count = min(int(source.rng.integers(1, 3)), len(bad))
        changed = {name: bad[name] for name in source.rng.permutation(sorted(bad))[:count]}
        arguments = good | changed
        print(number, getattr(call, "__qualname__", type(call).__name__), repr(changed)[:600], flush=True)
        arrays = arrays_of(arguments)
        before = [array.tobytes() for array in arrays]
        try:
            call(**arguments)
        except (ValueError, TypeError, MemoryError) as error:
            assert str(error), "an error without a message"
        else:
            raise AssertionError("a malformed call was accepted")
        assert [array.tobytes() for array in arrays] == before, "a refused call has written"


def test_fuzz_of_malformed_calls(tmp_path: Path) -> None:
    command = [sys.executable, "-X", "faulthandler", "-W", "ignore", __file__]
    done = subprocess.run(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout[-4000:]
    assert done.stdout.count("\n") >= 4000


@pytest.mark.parametrize(
    "lengths",
    [np.zeros(0, "U3"), np.zeros(0, [("a", "i4"), ("b", "f8")]), np.zeros(0, object), []],
    ids=["strings", "records", "objects", "list"],
)
def test_empty_batch_takes_or_refuses_empty_lengths(lengths: Any, tmp_path: Path) -> None:
    code = f"""
import numpy as np
from fastlstm import LSTM
dtype = {getattr(lengths, "dtype", np.dtype(float)).descr!r}
try:
    y, _ = LSTM(4, 6)(np.zeros((5, 0, 4), np.float32), lengths=np.zeros(0, dtype))
    assert y.shape == (5, 0, 6)
except TypeError as error:
    assert "lengths" in str(error) and "integers" in str(error)
"""
    command = [sys.executable, "-X", "faulthandler", "-c", code]
    done = subprocess.run(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout


if __name__ == "__main__":
    fuzz(calls=4000, seed=2)
