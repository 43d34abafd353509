"""The named workloads that the bench times, and the arrays of each. Knows no rival and no clock."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from fnmatch import fnmatch

import numpy as np

import fastlstm

# inference: a sequence. training: forward, and the gradients of x, state and every weight. step: one step a call that
# goes on from the state of the call before, through the system's object for streams where it has one.
MODES = ("inference", "training", "step")
STEPS_CHECKED = 3


@dataclass(frozen=True)
class Case:
    """One workload. Its name says who runs it, or what it is hard for."""

    name: str
    T: int
    B: int
    I: int
    H: int
    layers: int = 1
    bidirectional: bool = False
    dtype: str = "float32"
    varying: str = ""  # what differs from row to row: "lengths", "mask" or "reset"
    modes: tuple[str, ...] = ("inference", "training")
    today: str = ""  # the rival that users of a real workload call today

    @property
    def directions(self) -> int:
        return 2 if self.bidirectional else 1

    def weights(self) -> list[tuple[int, int]]:
        """How many numbers the two matrices of each layer and direction have: for x, and for h."""
        inputs = [self.I] + [self.directions * self.H] * (self.layers - 1)
        return [(4 * self.H * size, 4 * self.H * self.H) for size in inputs for _ in range(self.directions)]

    def flops(self, mode: str) -> float:
        """Of the matrix products alone: two for each weight and step that counts; training has three such products."""
        steps = lengths(self).sum() if self.varying == "lengths" else self.T * self.B
        return 2.0 * float(steps) * sum(map(sum, self.weights())) * (3 if mode == "training" else 1)

    def shortened(self, flops: float, mode: str) -> Case:
        """The same with as many steps as fit into `flops`, but at least two (or the one there is)."""
        steps = int(flops / (self.flops(mode) / self.T))
        return replace(self, T=min(self.T, max(2, steps)))


INFERENCE, TRAINING, STEP = ("inference",), ("training",), ("step",)
EVERY = (*INFERENCE, *TRAINING, *STEP)

# Shapes from one step to a year, small to large: at each another system was the fastest.
GRID = (
    Case("step_64", 1, 1, 64, 64, modes=EVERY),
    Case("step_256", 1, 1, 256, 256, modes=EVERY),
    Case("step_512", 1, 1, 512, 512, modes=EVERY),
    Case("row_128", 100, 1, 64, 128),
    Case("row_256", 100, 1, 256, 256),
    Case("row_512", 100, 1, 512, 512),
    Case("row_1024", 50, 1, 1024, 1024),
    Case("batch32_128", 100, 32, 64, 128),
    Case("batch32_256", 100, 32, 256, 256),
    Case("batch64_512", 100, 64, 512, 512),
    Case("batch64_1024", 50, 64, 1024, 1024),
    Case("batch256_256", 50, 256, 256, 256),
    Case("batch256_512", 50, 256, 512, 512),
    Case("long_256", 2000, 8, 128, 256),
    Case("year_64", 365, 256, 8, 64),
    Case("year_256", 365, 256, 30, 256),
)

# What projects run, in their sizes, and what they call today.
REAL = (
    Case("hydrology", 365, 256, 31, 128, modes=TRAINING, today="torch"),
    Case("ppo_update", 128, 128, 256, 256, varying="reset", modes=TRAINING, today="torch_loop"),
    Case("ppo_rollout_1", 1, 1, 256, 256, modes=STEP, today="torch"),
    Case("ppo_rollout_8", 1, 8, 256, 256, modes=STEP, today="torch"),
    Case("amp_training", 1000, 50, 1, 16, modes=TRAINING, today="torch"),  # one chunk of truncated backpropagation
    Case("amp_stream", 1, 1, 1, 24, modes=STEP, today="torch"),  # 48,000 of these a second
    Case("deepar_training", 47, 32, 48, 40, layers=2, modes=TRAINING, today="torch"),
    Case("deepar_sampling", 1, 3200, 48, 40, layers=2, modes=STEP, today="torch"),
    Case("vad_step", 1, 1, 128, 128, modes=STEP, today="onnxruntime"),
    Case("vad_block", 512, 1, 128, 128, modes=INFERENCE, today="onnxruntime"),
    Case("open_unmix", 7750, 1, 512, 256, layers=3, bidirectional=True, modes=INFERENCE, today="torch"),
    Case("qlib", 60, 800, 6, 64, layers=2, modes=TRAINING, today="torch"),
    Case("padded", 2000, 16, 64, 128, varying="lengths", today="torch_packed"),
    Case("keras_mask", 200, 32, 128, 64, bidirectional=True, varying="mask", today="keras_tensorflow"),
    Case("long_two_layers", 2000, 8, 256, 256, layers=2, today="torch"),  # pytorch#81634
    Case("float64_three_layers", 200, 32, 4, 64, layers=3, dtype="float64", today="torch"),
)

# One size at a time, round ones and others: how the cost grows, and that nowhere it jumps.
BASE = Case("", 50, 32, 64, 128)
SIZES = {
    "T": (25, 50, 100, 200, 400),
    "B": (1, 2, 3, 4, 5, 6, 7, 8, 16, 32, 33, 64, 256),
    "H": (32, 64, 96, 100, 127, 128, 129, 256, 512),
    "I": (1, 3, 31, 32, 64, 128),
}
SWEEP = tuple(replace(BASE, name=f"sweep_{of}_{n}", **{of: n}) for of, sizes in SIZES.items() for n in sizes)
# An awkward size, and the round one beside it that it may not cost much more than, by FLOP.
NEIGHBOURS = {"B": {3: 4, 5: 4, 7: 8, 33: 32}, "H": {100: 96, 127: 128, 129: 128}, "I": {1: 32, 3: 32, 31: 32}}

# What the others leave out: options, float64, and sizes that fill no vector or tile.
EXTRA = (
    Case("digits", 8, 32, 8, 128),  # examples/digits.py
    Case("digits_float64", 8, 32, 8, 128, dtype="float64"),
    Case("batch32_128_float64", 50, 32, 64, 128, dtype="float64"),
    Case("batch32_256_float64", 20, 32, 256, 256, dtype="float64"),
    Case("batch32_128_two_layers", 50, 32, 64, 128, layers=2),
    Case("batch32_128_both_directions", 50, 32, 64, 128, bidirectional=True),
    Case("odd_sizes", 37, 13, 29, 51),
)

# For tests of the bench; in no default run
TINY = (
    Case("tiny", 5, 3, 4, 6),
    Case("tiny_step", 1, 3, 4, 6, modes=STEP),
    *(Case(f"tiny_{what}", 5, 3, 4, 6, varying=what) for what in ("lengths", "mask", "reset")),
    Case("tiny_deep", 5, 3, 4, 6, layers=2, bidirectional=True),
    Case("tiny_float64", 5, 3, 4, 6, dtype="float64"),
)

GROUPS = {"grid": GRID, "real": REAL, "sweep": SWEEP, "extra": EXTRA}
CASES = tuple(case for group in GROUPS.values() for case in group)
QUICK = ("step_64", "step_256", "row_128", "row_256", "batch32_128", "batch32_256", "year_64", "amp_training")


def choose(patterns: list[str]) -> list[Case]:
    """The cases of the groups and shell patterns (`row_*`), in the order of the table; ValueError if one names none."""
    every = (*CASES, *TINY)
    for pattern in patterns:
        if not any(matches(case, pattern) for case in every):
            names = ", ".join([*GROUPS, *(case.name for case in every)])
            raise ValueError(f"no case is named {pattern}, expected some of {names}")
    return [case for case in every if any(matches(case, pattern) for pattern in patterns)]


def matches(case: Case, pattern: str) -> bool:
    """Whether `pattern` is the name of the case's group, or a shell pattern of its own."""
    return case in GROUPS.get(pattern, ()) or fnmatch(case.name, pattern)


def lengths(case: Case) -> np.ndarray:
    """Of each row [B], from a twentieth of T to all of it, evenly and in no order."""
    even = np.linspace(max(1, case.T // 20), case.T, case.B).astype(np.int64)
    return np.random.default_rng(3).permutation(even)


@dataclass(frozen=True)
class Problem:
    """What every rival of a case gets: the same values, whatever the case's dtype."""

    case: Case
    weights: dict[str, np.ndarray]  # by torch's names
    x: np.ndarray  # [T,B,I]
    h0: np.ndarray  # [L*D,B,H]
    c0: np.ndarray  # [L*D,B,H]
    dy: np.ndarray  # [T,B,D*H]
    options: dict[str, np.ndarray] = field(default_factory=dict)  # lengths [B], mask [T,B] or reset [T,B]

    @property
    def state(self) -> tuple[np.ndarray, np.ndarray]:
        return self.h0, self.c0


def problem(case: Case, dtype: str | None = None) -> Problem:
    """The arrays of `case`, in its own dtype unless another is given."""
    rng = np.random.default_rng(7)
    wanted = np.dtype(dtype or case.dtype)

    def draw(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, np.float32).astype(wanted)

    sizes = {"num_layers": case.layers, "bidirectional": case.bidirectional, "seed": 7}
    weights = fastlstm.LSTM(case.I, case.H, **sizes).state_dict()
    rows = case.layers * case.directions
    return Problem(
        case=case,
        weights={name: array.astype(wanted) for name, array in weights.items()},
        x=draw(case.T, case.B, case.I),
        h0=draw(rows, case.B, case.H),
        c0=draw(rows, case.B, case.H),
        dy=draw(case.T, case.B, case.directions * case.H),
        options=options(case),
    )


def options(case: Case) -> dict[str, np.ndarray]:
    """The argument that a case's `varying` names: one step in five masked, or three in a hundred reset."""
    if case.varying == "lengths":
        return {"lengths": lengths(case)}
    chance = np.random.default_rng(5).random((case.T, case.B))
    return {"mask": {"mask": chance > 0.2}, "reset": {"reset": chance < 0.03}}.get(case.varying, {})
