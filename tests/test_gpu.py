"""What only a real GPU shows: streams, graphs of launches, devices; that nothing waits for it or keeps its memory."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from typing import Any

import numpy as np
import pytest

from cases import Case, Problem, assert_close, make_problem, solve, truth_of
from fastlstm import LSTM, functional, reference
from fastlstm.cells import PLAIN
from fastlstm.weights import WeightSpec
from gpus import REAL, TORCH, Gpu

ALGORITHMS = ["step", "resident", "persistent"]
CASE = Case("small_enough_for_every_algorithm", WeightSpec(32, 48), 20, 40)
# A stream that sleeps has begun nothing of what it was given next: whatever is done then ran somewhere else. A tenth of
# a second at 2 GHz, while a call returns within some milliseconds.
CYCLES = 200_000_000
SLEEP = """extern "C" __global__ void take_time(long long cycles) {
  const long long start = clock64();
  while (clock64() - start < cycles) {}
}"""


class TorchStreams:
    """torch's streams and devices under names that CuPy's have, too."""

    def __init__(self) -> None:
        self.cuda = importlib.import_module("torch").cuda

    def new(self) -> Any:
        return self.cuda.Stream()

    def on(self, stream: Any) -> AbstractContextManager[Any]:
        return self.cuda.stream(stream)

    def after(self, stream: Any, earlier: Any) -> None:
        """What `stream` is given from now on waits for what `earlier` was given."""
        stream.wait_stream(earlier)

    def sleep(self) -> None:
        """The current stream, not the host."""
        self.cuda._sleep(CYCLES)

    def is_done(self) -> bool:
        """Whether the current stream is."""
        return self.cuda.current_stream().query()

    def finish(self) -> None:
        self.cuda.synchronize()

    def devices(self) -> int:
        return self.cuda.device_count()

    def device(self, number: int) -> AbstractContextManager[Any]:
        return self.cuda.device(number)

    def current_device(self) -> int:
        return self.cuda.current_device()


class CupyStreams:
    """As `TorchStreams`."""

    def __init__(self) -> None:
        self.cupy = importlib.import_module("cupy")

    def new(self) -> Any:
        return self.cupy.cuda.Stream(non_blocking=True)

    def on(self, stream: Any) -> AbstractContextManager[Any]:
        return stream

    def after(self, stream: Any, earlier: Any) -> None:
        stream.wait_event(earlier.record())

    @cached_property
    def kernel(self) -> Any:
        return self.cupy.RawKernel(SLEEP, "take_time")

    def sleep(self) -> None:
        self.kernel((1,), (1,), (np.int64(CYCLES),))

    def is_done(self) -> bool:
        return self.cupy.cuda.get_current_stream().done

    def finish(self) -> None:
        self.cupy.cuda.Device().synchronize()

    def devices(self) -> int:
        return self.cupy.cuda.runtime.getDeviceCount()

    def device(self, number: int) -> AbstractContextManager[Any]:
        return self.cupy.cuda.Device(number)

    def current_device(self) -> int:
        return self.cupy.cuda.runtime.getDevice()


@pytest.fixture
def streams(gpu: Gpu) -> Any:
    """Those of the GPU's library, whose `sleep` is compiled."""
    streams = {"torch": TorchStreams, "cupy": CupyStreams}[gpu.name]()
    streams.sleep()
    streams.finish()
    return streams


def on_gpu(gpu: Gpu, seed: int = 0, **options: Any) -> Problem:
    return make_problem(CASE, seed).astype("float32").map_arrays(gpu.put).with_options(**options)


def fetched(gpu: Gpu, found: dict[str, Any]) -> dict[str, np.ndarray]:
    return {name: gpu.get(array) for name, array in found.items()}


def truth(seed: int) -> dict[str, np.ndarray]:
    return solve(make_problem(CASE, seed), reference)


real_gpu = pytest.mark.parametrize("gpu", REAL, indirect=True)
torch_alone = pytest.mark.parametrize("gpu", TORCH, indirect=True)
every_algorithm = pytest.mark.parametrize("algo", ALGORITHMS)


@every_algorithm
@real_gpu
def test_all_runs_on_the_current_stream(gpu: Gpu, streams: Any, algo: str) -> None:
    problem, stream = on_gpu(gpu, algo=algo), streams.new()
    for _ in range(2):  # the second time there is memory for this stream, which else the driver might wait for
        streams.finish()
        with streams.on(stream):
            streams.sleep()  # so that b + x . W is not there yet for a kernel of another stream
            found = solve(problem)
    streams.finish()
    assert_close(fetched(gpu, found), truth_of(CASE), "float32")


@every_algorithm
@real_gpu
def test_calls_on_two_streams_do_not_meet(gpu: Gpu, streams: Any, algo: str) -> None:
    """Nor does what a call has returned to the library's memory while its stream had not begun."""
    seeds, lanes = range(6), [streams.new(), streams.new()]
    problems = [on_gpu(gpu, seed, algo=algo) for seed in seeds]
    streams.finish()
    for lane in lanes:
        with streams.on(lane):
            streams.sleep()
    found = []
    for seed in seeds:
        with streams.on(lanes[seed % 2]):
            found.append(solve(problems[seed]))
    streams.finish()
    for seed in seeds:
        assert_close(fetched(gpu, found[seed]), truth(seed), "float32")


@every_algorithm
@real_gpu
def test_backward_runs_on_the_stream_of_its_own_call(gpu: Gpu, streams: Any, algo: str) -> None:
    problem, first, second = on_gpu(gpu, algo=algo), streams.new(), streams.new()
    for _ in range(2):  # as above
        streams.finish()
        with streams.on(first):
            *_, tape = functional.lstm_forward(problem.x, problem.weights, problem.state, **problem.options)
        streams.after(second, first)
        with streams.on(first):
            streams.sleep()  # what backward gave to this one would come too late
        with streams.on(second):
            grads = functional.lstm_backward(tape, problem.dy, problem.dstate, dcells=problem.dcells)
    streams.finish()
    found = fetched(gpu, {"dx": grads.x, **{"d" + name: array for name, array in grads.weights.items()}})
    assert_close(found, {name: truth_of(CASE)[name] for name in found}, "float32")


@every_algorithm
@real_gpu
def test_nothing_waits_for_the_gpu(gpu: Gpu, streams: Any, algo: str) -> None:
    problem = on_gpu(gpu, algo=algo)
    for _ in range(2):  # the first call loads kernels and takes memory, for which the driver may wait
        streams.finish()
        streams.sleep()
        solve(problem)
        done = streams.is_done()
    assert not done
    streams.finish()


@contextmanager
def raising_where_torch_waits() -> Iterator[None]:
    cuda = importlib.import_module("torch").cuda
    cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        cuda.set_sync_debug_mode("default")


@pytest.mark.filterwarnings("ignore:Synchronization debug mode:UserWarning")  # "does not yet detect all"
@torch_alone
def test_no_operation_of_torch_waits(gpu: Gpu) -> None:
    marks = {"lengths": np.arange(40) % 21, "mask": np.arange(800).reshape(20, 40) % 3 > 0}
    problem = on_gpu(gpu, **{name: gpu.put(array) for name, array in marks.items()})
    solve(problem)
    with raising_where_torch_waits():
        found = solve(problem)
    expected = solve(make_problem(CASE).with_options(**marks), reference)
    assert_close(fetched(gpu, found), expected, "float32")


@torch_alone
def test_memory_is_given_back(gpu: Gpu, streams: Any) -> None:
    problem = on_gpu(gpu)
    solve(problem)  # after which cuBLAS has its workspace
    before = streams.cuda.memory_allocated()
    found = solve(problem)
    assert streams.cuda.memory_allocated() > before
    del found
    assert streams.cuda.memory_allocated() == before


def captured(streams: TorchStreams, run: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
    """Its replay, and the arrays that each replay writes."""
    side, graph = streams.new(), streams.cuda.CUDAGraph()
    streams.finish()
    with streams.on(side):  # kernels, handles and workspaces are there before the capture, which cannot make them
        run()
    streams.finish()
    with streams.cuda.graph(graph):
        results = run()
    return graph.replay, results


def overwrite(problem: Problem, by: Problem) -> None:
    """Every array, in its place."""
    to: list[Any] = []
    problem.map_arrays(to.append)
    by.map_arrays(lambda array: to.pop(0).copy_(array))


@every_algorithm
@torch_alone
def test_a_graph_runs_again_with_other_inputs(gpu: Gpu, streams: Any, algo: str) -> None:
    """Forward and backward, weights among the inputs; the third replay needs memory that is filled anew."""
    problem = on_gpu(gpu, algo=algo)
    replay, results = captured(streams, lambda: solve(problem))
    for seed in (0, 1, 2):
        overwrite(problem, on_gpu(gpu, seed))
        replay()
        assert_close(fetched(gpu, results), truth(seed), "float32")


@every_algorithm
@torch_alone
def test_a_graph_of_inference_runs_again_with_another_x(gpu: Gpu, streams: Any, algo: str) -> None:
    problem, other = on_gpu(gpu), on_gpu(gpu, seed=1)
    packed = functional.DeviceWeights.of(problem.weights, cell=PLAIN)

    def infer(x: Any) -> dict[str, Any]:
        y, (h_n, c_n), _ = functional.lstm_forward(x, packed, problem.state, training=False, algo=algo)
        return {"y": y, "h_n": h_n, "c_n": c_n}

    expected = fetched(gpu, infer(other.x))
    replay, results = captured(streams, lambda: infer(problem.x))
    problem.x.copy_(other.x)
    replay()
    assert_close(fetched(gpu, results), expected, "float32")


@every_algorithm
@real_gpu
def test_a_second_device(gpu: Gpu, streams: Any, algo: str) -> None:
    """The arrays say where; the current device stays what it is."""
    if streams.devices() < 2:
        pytest.skip("there is one device")
    with streams.device(1):
        problem = on_gpu(gpu, algo=algo)
    before = streams.current_device()
    found = solve(problem)
    assert streams.current_device() == before != 1
    assert_close(fetched(gpu, found), truth_of(CASE), "float32")


@torch_alone
def test_a_graph_of_a_stream_goes_on_where_its_last_replay_ended(gpu: Gpu, streams: Any) -> None:
    cpu, x = LSTM(3, 9, num_layers=2, seed=0), np.random.default_rng(0).standard_normal((6, 4, 3), np.float32)
    step, out = gpu.put(x[0]), gpu.put(np.zeros((4, 9), np.float32))
    stream = LSTM(3, 9, num_layers=2, seed=0).to(step).stream(4)
    replay, _ = captured(streams, lambda: stream(step, out=out))
    stream.reset()
    found = []
    for of_step in x:
        step.copy_(gpu.put(of_step))
        replay()
        found.append(gpu.get(out.clone()))
    np.testing.assert_allclose(np.stack(found), cpu(x)[0], rtol=2e-6, atol=2e-6)
