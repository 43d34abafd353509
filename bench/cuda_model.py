"""The speed of the CUDA kernels on paper, whether or not the GPU is here: python bench/cuda_model.py _cuda.so

Writes cuda_model.md from what dispatch.h chooses, what the compiled kernels need, and published figures of the GPUs.
All figures that go in stand in the first table. Where a GPU has run, its times count and this does not.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from cuda_resources import DEVICES, Device, Kernel, blocks_at_once, kernels_of, output_of, toolkit
from gpu_results import ANCHOR, ANCHORS, EXCHANGE, FLOORS, LEVELS

HERE = Path(__file__).resolve().parent
SIZES, BATCHES = (64, 256, 512, 768, 1024), (16, 64, 256)
STEPS = 1024


@dataclass(frozen=True)
class Speed:
    """Of a GPU; by a multiprocessor and clock where nothing else is said. From NVIDIA's white papers."""

    device: Device
    clock: float  # GHz, boosted
    memory: float  # bytes per ns of the whole GPU
    fill: float  # bytes from the L2 cache
    shared: float  # bytes from shared memory
    flops: dict[str, float]  # by precision; those of tensor cores by mma, not by Hopper's own instructions

    def us(self, clocks: float) -> float:
        return clocks / self.clock / 1000

    @property
    def exchange(self) -> float:
        """µs until what each block says has reached all."""
        return EXCHANGE[f"{self.device.architecture // 10}.{self.device.architecture % 10}"]


NAMED = {device.name: device for device in DEVICES}
SPEEDS = [
    Speed(NAMED["H100"], 1.755, 3350, 64, 128, {"fp16": 2560, "tf32": 1280, "fp32": 256}),
    Speed(NAMED["A100"], 1.41, 1555, 64, 128, {"fp16": 2048, "tf32": 1024, "fp32": 128}),
]
BYTES = {"fp16": 2, "tf32": 4, "fp32": 4}


class Layer(NamedTuple):
    precision: str
    N: int
    H: int
    backward: bool

    @property
    def depth(self) -> int:
        return 4 * self.H if self.backward else self.H

    @property
    def product_in(self) -> str:
        """In tf32, tensor cores serve forward alone."""
        return "fp32" if self.precision == "tf32" and self.backward else self.precision

    @property
    def flops(self) -> int:
        return 8 * self.N * self.H * self.H

    @property
    def streamed(self) -> int:
        """Bytes that come from memory or go there: pre, gates, h, y, c in forward; gates, d_pre, dy, c in backward."""
        units, size = self.N * self.H, BYTES[self.precision]
        return units * ((4 + 4 + 1 + 1) * size + 2 * 4) if not self.backward else units * ((4 + 4 + 1) * size + 2 * 4)


class Choice(NamedTuple):
    """As dispatch.h makes it; of "step" nothing but the name counts."""

    algorithm: str
    blocks: int
    threads: int
    shared_bytes: int
    thread_rows: int
    tile_rows: int  # of a block, where it is resident
    columns: int  # of a block


def choices(asked: list[tuple[Device, Layer]]) -> list[Choice]:
    """What dispatch.h chooses, compiled for these devices."""
    folder = toolkit()
    if folder is None:
        raise RuntimeError("there is no nvcc: pip install .[nvcc]")
    lines = [
        f"{device.processors} {device.shared_of_block} {BYTES[layer.precision]} {layer.N} {layer.H} "
        f"{int(layer.precision == 'tf32')} {int(layer.backward)}"
        for device, layer in asked
    ]
    with tempfile.TemporaryDirectory() as place:
        program, parts = Path(place) / "choices", [Path(place) / "choices.o", Path(place) / "no_device.o"]
        nvcc, cpp = folder / "bin" / "nvcc", HERE / "cpp"
        output_of(nvcc, "-std=c++17", "-arch=sm_80", "-x", "cu", "-c", cpp / "choices.cpp", "-o", parts[0])
        output_of("g++", "-c", cpp / "no_device.cpp", "-o", parts[1])
        output_of("g++", *parts, "-o", program)
        said = output_of(program, given="\n".join(lines)).splitlines()
    return [Choice(name, *map(int, numbers)) for name, *numbers in map(str.split, said)]


def brought(layer: Layer, choice: Choice) -> float:
    """Bytes that one multiprocessor gets from the L2 cache in a step."""
    if choice.algorithm == "resident":
        return 0.0
    return float(layer.N * layer.depth * BYTES[layer.precision])


def read_shared(layer: Layer, choice: Choice) -> float:
    """Bytes that one multiprocessor reads from shared memory in a step, of weights and operand; 128 for an access."""
    size, row = BYTES[layer.precision], 128
    if choice.algorithm == "resident":
        columns, warps = 1 if layer.backward else 4, -(-layer.H // 32)
        accesses = 32 * columns * size / row + choice.thread_rows / 4
        return choice.tile_rows / choice.thread_rows * warps * layer.depth * accesses * row
    tiles = -(-layer.N // choice.tile_rows)
    if layer.product_in == "fp32":  # a warp reads four numbers of each of a thread's rows at once
        return tiles * layer.depth * (1 + choice.thread_rows / 4) * row
    of_weights, of_operand = choice.columns, choice.tile_rows * (choice.columns // 16 + 1)
    return float(tiles * layer.depth * size * (of_weights + of_operand))


def microseconds(speed: Speed, layer: Layer, choice: Choice) -> float:
    """Of a step: the way there and back, then h, then the product; what is streamed runs beside all of it."""
    if choice.algorithm == "step":
        # Whatever the precision, it multiplies without tensor cores.
        return LEVELS["host launch"] + speed.us(layer.flops / speed.device.processors / speed.flops["fp32"])
    flops = 2.0 * layer.N * layer.depth * choice.columns
    if choice.algorithm == "resident":
        flops = layer.flops / choice.blocks
    elif layer.product_in == "fp32":  # threads beyond the tile of a warp multiply, too
        flops = -(-layer.N // choice.tile_rows) * layer.depth * 2.0 * 4 * 32 * choice.thread_rows
    product = max(read_shared(layer, choice) / speed.shared, flops / speed.flops[layer.product_in])
    chain = speed.us(brought(layer, choice) / speed.fill + product)
    chain += LEVELS["one block"] if choice.algorithm == "resident" else speed.exchange
    return max(chain, layer.streamed / speed.memory / 1000)


def of_precision(precision: str) -> Iterator[str]:
    layers = [Layer(precision, N, H, backward) for N in BATCHES for H in SIZES for backward in (False, True)]
    asked = [(speed.device, layer) for layer in layers for speed in SPEEDS]
    found = iter(choices(asked))
    columns = "N, H, pass, runs as, blocks, KiB of each, MFLOP, KiB brought to each, waits and launches".split(", ")
    columns += [f"{speed.device.name}: µs" for speed in SPEEDS] + ["floor of H100"]
    yield f"| {' | '.join(columns)} |"
    yield "|" + "---|" * len(columns)
    for layer in layers:
        mine = [next(found) for _ in SPEEDS]
        first = mine[0]
        times = [f"{microseconds(speed, layer, choice):.2f}" for speed, choice in zip(SPEEDS, mine, strict=True)]
        floor = FLOORS.get(layer.H, {}).get(layer.N) if precision == "fp16" and not layer.backward else None
        cells = [
            str(layer.N),
            str(layer.H),
            "backward" if layer.backward else "forward",
            first.algorithm,
            str(first.blocks) if first.blocks else "a tile each",
            f"{first.shared_bytes / 1024:.0f}" if first.blocks else "",
            f"{layer.flops / 1e6:.1f}",
            f"{brought(layer, first) / 1024:.0f}",
            {"persistent": "1 and 0", "resident": "0 and 0", "step": "0 and 1"}[first.algorithm],
            *times,
            "" if floor is None else str(floor),
        ]
        yield "| " + " | ".join(cells) + " |"


def beside_cudnn() -> Iterator[str]:
    """The one shape of which others have published times."""
    speed, N, H = SPEEDS[0], 16, 768
    layers = [Layer("fp16", N, H, False), Layer("fp16", N, H, True)]
    forward, backward = (
        microseconds(speed, layer, choice)
        for layer, choice in zip(layers, choices([(speed.device, layer) for layer in layers]), strict=True)
    )
    yield "| | forward, µs a step | both passes |"
    yield "|---|---|---|"
    yield f"| fastlstm, on paper, without x . W and the weights' gradients | {forward:.2f} | {forward + backward:.2f} |"
    for (name, precision), times in ANCHORS.items():
        both = (f"{1000 * times[mode] / STEPS:.2f}" for mode in ("inference", "training"))
        yield f"| {name}{', ' * bool(precision)}{precision}, published | {' | '.join(both)} |"


def of_kernels(kernels: list[Kernel]) -> Iterator[str]:
    """Registers at most, and how many blocks a multiprocessor holds of those that need the most."""
    yield "| kernel | threads | " + " | ".join(f"{s.device.name}: registers, blocks" for s in SPEEDS) + " |"
    yield "|---|---|" + "---|" * len(SPEEDS)
    for name in sorted({kernel.name for kernel in kernels}):
        cells = []
        for speed in SPEEDS:
            own = [k for k in kernels if k.name == name and k.architecture == speed.device.architecture]
            most = max(own, key=lambda kernel: kernel.registers)
            shared = speed.device.shared_of_block if name.startswith("persistent") else 0
            blocks = blocks_at_once([(speed.device, most.registers, most.threads, shared)])[0]
            cells.append(f"{most.registers}, {blocks}")
        yield f"| `{name}` | {max(kernel.threads for kernel in own)} | {' | '.join(cells)} |"


def constants() -> Iterator[str]:
    yield "| | " + " | ".join(speed.device.name for speed in SPEEDS) + " |"
    yield "|---|" + "---|" * len(SPEEDS)
    rows = {
        "multiprocessors": lambda s: s.device.processors,
        "clock, GHz": lambda s: s.clock,
        "memory, GB/s": lambda s: s.memory,
        "L2 cache to a multiprocessor, bytes a clock": lambda s: s.fill,
        "shared memory, bytes a clock": lambda s: s.shared,
        "FLOP a clock and multiprocessor: fp16, tf32, fp32": lambda s: ", ".join(f"{f:.0f}" for f in s.flops.values()),
        "what a block says reaches all, µs": lambda s: s.exchange,
        "one block's own step, launch by a graph, by the host, µs": lambda s: ", ".join(map(str, LEVELS.values())),
    }
    for name, of in rows.items():
        yield f"| {name} | {' | '.join(str(of(speed)) for speed in SPEEDS)} |"


def report(kernels: list[Kernel]) -> Iterator[str]:
    yield "# The CUDA kernels on paper"
    yield ""
    yield "Written by `cuda_model.py`. **All on paper**: choices are those of `csrc/cuda/dispatch.h`, registers"
    yield "those of the compiled kernels, all times a model. A step waits for what all blocks say, then h is brought to"
    yield "each multiprocessor, then it multiplies, as fast as shared memory or arithmetic allows; nothing overlaps."
    yield "The products over all steps at once, which are the array library's, are not in it. A real step is slower."
    for title, lines in [
        ("What goes in", constants()),
        (f"Beside what others have published, {ANCHOR}, T={STEPS}, H100", beside_cudnn()),
        ("float16 and bfloat16, a step", of_precision("fp16")),
        ("tf32, a step", of_precision("tf32")),
        ("float32, a step", of_precision("fp32")),
        ("Kernels: registers of a thread at most, and blocks that a multiprocessor then holds", of_kernels(kernels)),
    ]:
        yield from ("", f"## {title}", "", *lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("module", type=Path, help="the built _cuda")
    parser.add_argument("--to", type=Path, default=HERE / "cuda_model.md")
    options = parser.parse_args()
    options.to.write_text("\n".join(report(kernels_of(options.module))) + "\n")


if __name__ == "__main__":
    main()
