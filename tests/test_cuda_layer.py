"""`LSTM` with its weights on a GPU, emulated or real: moving them, training, streams, and what is refused."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import emulated_arrays
from fastlstm import LSTM, lstm_backward, lstm_forward
from fastlstm.device_arrays import LIBRARIES
from fastlstm.device_stream import DeviceStream
from fastlstm.optim import Adam, clip_gradients
from gpus import Gpu

RNG = np.random.default_rng(0)


def draw(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def make(**options: Any) -> LSTM:
    return LSTM(3, 9, **{"num_layers": 2, "seed": 0, **options})


def on(gpu: Gpu, lstm: LSTM, **options: Any) -> LSTM:
    return copy.deepcopy(lstm).to(gpu.put(draw(1)), **options)


def close(gpu: Gpu, found: Any, expected: np.ndarray, bound: float = 2e-6) -> None:
    np.testing.assert_allclose(gpu.get(found), expected, rtol=bound, atol=bound)


@pytest.mark.parametrize("options", [{}, {"bidirectional": True, "batch_first": True, "proj_size": 5}], ids=str)
def test_call_and_gradients_are_the_cpus(gpu: Gpu, options: dict[str, Any]) -> None:
    cpu = make(**options)
    lstm, x = on(gpu, cpu), draw(5, 4, 3)
    assert lstm.device == "cuda:0" and cpu.device == "cpu"
    y, (h_n, c_n) = cpu(x)
    found_y, found_state = lstm(gpu.put(x))
    close(gpu, found_y, y)
    for found, expected in zip(found_state, (h_n, c_n), strict=True):
        close(gpu, found, expected)
    *_, tape = cpu.forward(x)
    *_, found_tape = lstm.forward(gpu.put(x))
    expected_grads, grads = cpu.backward(tape, y), lstm.backward(found_tape, gpu.put(y))
    close(gpu, grads.x, expected_grads.x, 1e-5)
    for name, expected in expected_grads.weights.items():
        close(gpu, grads.weights[name], expected, 1e-5)


def test_training_goes_as_on_the_cpu(gpu: Gpu) -> None:
    if gpu.name == "torch":
        pytest.skip("optim.Adam takes NumPy's and CuPy's arrays; torch has its own")
    cpu = make(dropout=0.3)
    lstm, x = on(gpu, cpu), draw(5, 4, 3)
    adams = Adam(0.01), Adam(0.01)
    for _ in range(3):
        for layer, adam, put in ((cpu, adams[0], np.array), (lstm, adams[1], gpu.put)):
            y, _, tape = layer.forward(put(x))
            grads = layer.backward(tape, y)
            clip_gradients(grads.weights, 0.5)
            with layer.updating() as weights:
                adam.step(weights, grads.weights)
        adams[1].load_state_dict(adams[1].state_dict())
    for name, expected in cpu.weights.items():
        close(gpu, lstm.weights[name], expected, 1e-5)


@pytest.mark.parametrize("hidden_size", [1, 2])
def test_gradients_may_be_scaled_in_place(gpu: Gpu, hidden_size: int) -> None:
    lstm = LSTM(3, hidden_size, seed=0).to(gpu.put(draw(1)))
    y, _, tape = lstm.forward(gpu.put(draw(5, 4, 3)))
    grads = lstm.backward(tape, y).weights
    before = gpu.get(grads["bias_ih_l0"])
    grads["bias_hh_l0"] *= 2
    np.testing.assert_array_equal(gpu.get(grads["bias_ih_l0"]), before)


def test_weights_read_are_copies_and_weights_written_are_used(gpu: Gpu) -> None:
    lstm, x = on(gpu, make()), gpu.put(draw(5, 4, 3))
    before = gpu.get(lstm(x)[0])
    lstm.weights["weight_hh_l0"][...] = 0
    np.testing.assert_array_equal(gpu.get(lstm(x)[0]), before)
    new = draw(36, 9)
    for array in (new, gpu.put(new)):
        lstm.load_state_dict(make().state_dict())  # NumPy's, into a layer on a GPU
        lstm.weights["weight_hh_l0"] = array
        cpu = make()
        cpu.weights["weight_hh_l0"] = new
        close(gpu, lstm(x)[0], cpu(gpu.get(x))[0])


def test_there_and_back_changes_nothing(gpu: Gpu) -> None:
    cpu, x = make(), draw(5, 4, 3)
    lstm = on(gpu, cpu)
    assert lstm.to("cpu") is lstm and lstm.device == "cpu"
    np.testing.assert_array_equal(lstm(x)[0], cpu(x)[0])


def test_half_precision(gpu: Gpu) -> None:
    cpu, x = make(), draw(5, 4, 3)
    lstm = on(gpu, cpu, dtype=np.float16)
    assert lstm.dtype == np.float16
    y = lstm(gpu.put(x.astype(np.float16)))[0]
    assert gpu.get(y).dtype == np.float16
    close(gpu, y, cpu(x)[0], 2e-3)
    with pytest.raises(TypeError, match="dtype is float16, expected float32 or float64"):
        lstm.to("cpu")
    with pytest.raises(TypeError, match="dtype is float16"):
        lstm.save("never.safetensors")
    assert lstm.device == "cuda:0"
    assert lstm.to("cpu", np.float64)(x.astype(float))[0].dtype == np.float64


def test_algorithm_and_tf32_reach_the_kernels(gpu: Gpu) -> None:
    lstm, x = on(gpu, make(num_layers=1)), gpu.put(draw(5, 4, 3))
    exact, step, rounded = lstm(x)[0], lstm(x, algo="step")[0], lstm(x, algo="persistent", tf32=True)[0]
    np.testing.assert_array_equal(gpu.get(exact), gpu.get(step))
    assert np.abs(gpu.get(rounded) - gpu.get(exact)).max() > 1e-6
    *_, tape = lstm.forward(x, algo="persistent")
    assert tape.directions[0].layer.algorithm == "persistent"


def test_copies_pickles_and_files(gpu: Gpu, tmp_path: Path) -> None:
    lstm, x = on(gpu, make()), gpu.put(draw(5, 4, 3))
    for other in (copy.deepcopy(lstm), pickle.loads(pickle.dumps(lstm))):
        np.testing.assert_array_equal(gpu.get(other(x)[0]), gpu.get(lstm(x)[0]))
        other.weights["weight_hh_l0"] = draw(36, 9)
        assert (gpu.get(other(x)[0]) != gpu.get(lstm(x)[0])).any()
    lstm.save(tmp_path / "lstm.safetensors")
    loaded = LSTM.load(tmp_path / "lstm.safetensors")
    assert loaded.device == "cpu"
    np.testing.assert_array_equal(loaded(gpu.get(x))[0], make()(gpu.get(x))[0])


def test_named_devices(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "emulated_arrays" if gpu.name == "emulated" else gpu.name
    monkeypatch.setattr("fastlstm.device_owned_weights.LIBRARIES", {name: LIBRARIES[name]})
    for device in ("cuda", "cuda:0"):
        assert make().to(device).device == "cuda:0"
    for device in ("cuda:", "cuda:x", "gpu", "cuda:-1"):
        with pytest.raises(ValueError, match=f"device is '{device}', expected 'cpu', 'cuda'"):
            make().to(device)
    monkeypatch.setattr("fastlstm.device_owned_weights.LIBRARIES", {})
    with pytest.raises(RuntimeError, match="neither CuPy nor torch is installed"):
        make().to("cuda")


def test_without_cuda_the_cause_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastlstm.cuda.reason", lambda: "there is none today")
    lstm = make()
    with pytest.raises(RuntimeError, match="a GPU is asked for, but there is none today"):
        lstm.to("cuda")
    assert lstm.device == "cpu"


# Streams


@pytest.mark.parametrize("batch_first", [False, True])
def test_a_stream_gives_the_whole_sequence(gpu: Gpu, batch_first: bool) -> None:
    lstm = make(proj_size=5, batch_first=batch_first)
    time = int(batch_first)
    x = draw(4, 11, 3) if batch_first else draw(11, 4, 3)
    y, (h_n, c_n) = lstm(x)
    stream = on(gpu, lstm).stream(4)
    assert isinstance(stream, DeviceStream)
    found = []
    for begin, end in ((0, 5), (5, 6), (6, 6), (6, 7), (7, 11)):
        block = x[:, begin:end] if batch_first else x[begin:end]
        is_step = begin == 5
        got = gpu.get(stream(gpu.put(block[:, 0] if is_step and time else block[0] if is_step else block)))
        assert got.ndim == (2 if is_step else 3)
        found.append(np.expand_dims(got, time) if is_step else got)
    np.testing.assert_allclose(np.concatenate(found, axis=time), y, rtol=2e-6, atol=2e-6)
    for state, expected in zip(stream.state, (h_n, c_n), strict=True):
        close(gpu, state, expected)


def test_a_stream_without_a_batch_axis(gpu: Gpu) -> None:
    lstm, x = make(), draw(5, 3)
    stream = on(gpu, lstm).stream(None)
    found = [gpu.get(stream(gpu.put(x[0])))[None], gpu.get(stream(gpu.put(x[1:])))]
    np.testing.assert_allclose(np.concatenate(found), lstm(x)[0], rtol=2e-6, atol=2e-6)
    with pytest.raises(ValueError, match="rows is given"):
        stream.reset([0])


def test_out_and_state_stay_where_they_are(gpu: Gpu) -> None:
    lstm, x = make(), draw(6, 4, 3)
    y, stream = lstm(x)[0], on(gpu, lstm).stream(4)
    step, block = gpu.put(draw(4, 9)), gpu.put(draw(5, 4, 9))
    memory = stream._h
    assert stream(gpu.put(x[0]), out=step) is step and stream(gpu.put(x[1:]), out=block) is block
    assert stream._h is memory  # as a CUDA graph needs
    close(gpu, step, y[0])
    close(gpu, block, y[1:])


def test_state_and_reset(gpu: Gpu) -> None:
    lstm, x = make(), draw(6, 4, 3)
    stream = on(gpu, lstm).stream(4)
    for rows in ([1, 3], np.array([False, True, False, True]), gpu.put(np.array([False, True, False, True]))):
        stream.reset()
        stream(gpu.put(x[:3]))
        stream.reset(rows)
        reset = np.zeros((6, 4), bool)
        reset[3, [1, 3]] = True
        close(gpu, stream(gpu.put(x[3:])), lstm(x, reset=reset)[0][3:])
    state = tuple(gpu.put(draw(2, 4, 9)) for _ in "hc")
    stream.state = state
    again = on(gpu, lstm).stream(4, state)
    np.testing.assert_array_equal(gpu.get(stream(gpu.put(x))), gpu.get(again(gpu.put(x))))
    stream.state[0][...] = 7  # a copy
    assert not (gpu.get(stream.state[0]) == 7).any()
    stream.state = (None, state[1])
    assert not gpu.get(stream.state[0]).any()
    np.testing.assert_array_equal(gpu.get(stream.state[1]), gpu.get(state[1]))
    for other in (copy.deepcopy(again), pickle.loads(pickle.dumps(again))):
        np.testing.assert_array_equal(gpu.get(other.state[0]), gpu.get(again.state[0]))
        assert "DeviceStream" in repr(other)


def test_a_stream_keeps_the_weights_it_began_with(gpu: Gpu) -> None:
    lstm, x = on(gpu, make()), draw(6, 4, 3)
    stream = lstm.stream(4)
    lstm.weights["weight_hh_l0"] = draw(36, 9)
    close(gpu, stream(gpu.put(x)), make()(x)[0])


def test_bad_input_leaves_the_state_alone(gpu: Gpu) -> None:
    stream = on(gpu, make()).stream(2)
    stream(gpu.put(draw(2, 3)))
    before = gpu.get(stream.state[0])
    good = gpu.put(draw(2, 3))
    for x, out, error, message in [
        (draw(2, 4), None, ValueError, r"x has shape \(2, 4\): expected \(2, 3\) for a step or \(T, 2, 3\) for"),
        (draw(5, 4, 3), None, ValueError, r"x has shape \(5, 4, 3\)"),
        (draw(2, 3).astype(float), None, TypeError, "x has dtype float64"),
        (draw(2, 3), gpu.put(draw(2, 8)), ValueError, r"out has shape \(2, 8\), expected \(2, 9\)"),
        (draw(2, 3), draw(2, 9), TypeError, "out is a ndarray of float32, expected an array on the GPU"),
    ]:
        with pytest.raises(error, match=message):
            stream(gpu.put(x), out=out)
    with pytest.raises(TypeError, match="x is on the CPU"):
        stream(draw(2, 3))
    with pytest.raises(ValueError, match="h has shape"):
        stream.state = (gpu.put(draw(2, 1, 9)), None)
    with pytest.raises(TypeError, match="expected a pair"):
        stream.state = good
    with pytest.raises(IndexError):
        stream.reset([7])
    np.testing.assert_array_equal(gpu.get(stream.state[0]), before)


def test_what_a_gpu_refuses(gpu: Gpu) -> None:
    lstm, x = on(gpu, make()), gpu.put(draw(5, 4, 3))
    for call, error, message in [
        (lambda: lstm(draw(5, 4, 3)), TypeError, "x is on the CPU, but the weights are on a GPU"),
        (lambda: make()(x), TypeError, "x is on a GPU, but the weights are on the CPU"),
        (lambda: lstm(x, threads=1), ValueError, "threads is 1"),
        (lambda: lstm.stream(threads=1), ValueError, "threads is 1"),
        (lambda: lstm.forward(x, checkpoint_every=2), ValueError, "checkpoint_every is given"),
        (lambda: lstm.compress("bf16"), ValueError, "the layer is on cuda:0"),
        (lambda: make(bidirectional=True).to(x).stream(), ValueError, "bidirectional is True"),
        (lambda: make()(draw(5, 4, 3), algo="step"), ValueError, "algo is 'step', but x is on the CPU"),
        (lambda: lstm.to(x, dtype="bfloat16"), TypeError, "dtype is bfloat16, expected float16, float32 or float64"),
        (lambda: lstm.load_state_dict({}), ValueError, "weights lacks"),
    ]:
        with pytest.raises(error, match=message):
            call()
    with pytest.raises(ValueError, match="weight_hh_l0 has shape"):
        lstm.weights["weight_hh_l0"] = gpu.put(draw(36, 8))
    with pytest.raises(TypeError, match="weight_hh_l0 has dtype float64"):
        lstm.weights["weight_hh_l0"] = draw(36, 9).astype(float)


def test_two_devices_are_not_mixed(monkeypatch: pytest.MonkeyPatch, emulated_module: Any) -> None:
    monkeypatch.setitem(__import__("sys").modules, "fastlstm._cuda", emulated_module)
    lstm, x = make().to(emulated_arrays.emulated(draw(1))), emulated_arrays.emulated(draw(5, 4, 3))
    x.number = 1
    with pytest.raises(TypeError, match="x is on cuda:1, but the weights are on cuda:0"):
        lstm(x)
    weights = {name: emulated_arrays.emulated(array) for name, array in make().weights.items()}
    weights["bias_hh_l1"].number = 1
    with pytest.raises(TypeError, match="bias_hh_l1 is on cuda:1"):
        lstm_forward(emulated_arrays.emulated(draw(5, 4, 3)), weights)


# What was packed on one stream may not be in memory yet when another one reads it.
def test_weights_are_packed_for_each_stream(monkeypatch: pytest.MonkeyPatch, emulated_module: Any) -> None:
    monkeypatch.setitem(__import__("sys").modules, "fastlstm._cuda", emulated_module)
    lstm, library = make().to(emulated_arrays.emulated(draw(1))), emulated_arrays.EmulatedLibrary
    first = lstm._pack()
    assert lstm._pack() is first
    monkeypatch.setattr(library, "stream", lambda self, like: 7)
    second = lstm._pack()
    assert second is not first and lstm._pack() is second
    monkeypatch.setattr(library, "is_capturing", lambda self, like: True)
    captured = lstm._pack()  # becomes part of the graph: a replay packs the weights of its time
    assert captured is not second and lstm._pack() is not captured
    monkeypatch.setattr(library, "is_capturing", lambda self, like: False)
    assert lstm._pack() is not captured
    *_, tape = lstm.forward(emulated_arrays.emulated(draw(5, 4, 3)))
    assert lstm_backward(tape, dstate=None, dy=emulated_arrays.emulated(draw(5, 4, 9))).x.shape == (5, 4, 3)
