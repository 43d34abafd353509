"""The cells that variants.py times, by what each departs in, and their arrays. Knows no rival and no clock."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from cases import Case, Problem
from fastlstm.cells import PLAIN, LSTMCellOptions
from fastlstm.dropout import Draws, drop, dropout_mask

SEED = 11  # of all random masks


@dataclass(frozen=True)
class Variant:
    """A row of the table below."""

    name: str
    cell: LSTMCellOptions = PLAIN
    peepholes: bool = False
    layer_norm: bool = False
    external: bool = False  # x holds the pre-activations
    gates: bool = False  # the gates are returned, and in training have gradients
    modes: tuple[str, ...] = ("inference", "training")


TRAINING = ("training",)  # for what inference does not see
SIXTH = ("hard_sigmoid", 1 / 6, 0.5)  # torch's and Keras 3's

# Limits and probabilities are such that all branches are taken often.
VARIANTS = {
    variant.name: variant
    for variant in (
        Variant("plain"),
        Variant("peepholes", peepholes=True),
        Variant("CIFG", LSTMCellOptions(coupled_input_forget=True)),
        Variant("gate_clip", LSTMCellOptions(gate_clip=0.5)),
        Variant("cell_clip", LSTMCellOptions(cell_clip=0.5)),
        Variant("hard_sigmoid, tanh, tanh", LSTMCellOptions(activations=(SIXTH, "tanh", "tanh"))),
        Variant("sigmoid, relu, relu", LSTMCellOptions(activations=("sigmoid", "relu", "relu"))),
        Variant("sigmoid, softsign, softsign", LSTMCellOptions(activations=("sigmoid", "softsign", "softsign"))),
        Variant("sigmoid, elu, elu", LSTMCellOptions(activations=("sigmoid", "elu", "elu"))),
        Variant("zoneout", LSTMCellOptions(zoneout_h=0.1, zoneout_c=0.3)),
        Variant("dropout", LSTMCellOptions(input_dropout=0.3, recurrent_dropout=0.3), modes=TRAINING),
        Variant(
            "dropout_per_gate",
            LSTMCellOptions(input_dropout=0.3, recurrent_dropout=0.3, dropout_per_gate=True),
            modes=TRAINING,
        ),
        Variant("weight_drop", LSTMCellOptions(weight_drop=0.5), modes=TRAINING),
        Variant("layer_norm", layer_norm=True),
        Variant("return_gates", gates=True),
        Variant("external x.W", external=True),
    )
}


@dataclass(frozen=True)
class CellCase(Case):
    """A case of one layer and direction with another cell."""

    variant: str = "plain"

    @classmethod
    def of(cls, variant: Variant, T: int, B: int, I: int, H: int) -> CellCase:
        return cls(variant.name, T, B, 0 if variant.external else I, H, modes=variant.modes, variant=variant.name)


@dataclass(frozen=True)
class CellProblem(Problem):
    """Its weights are the variant's, and its options those of `lstm_forward`."""

    variant: Variant = VARIANTS["plain"]
    dgates: np.ndarray | None = None  # [T,B,4H]

    def draws(self, training: bool) -> Draws:
        """The masks that lstm_forward draws, for systems that have to be given them."""
        case, cell = self.case, self.variant.cell
        place = {"layer": 0, "direction": 0, "first_step": 0, "steps": case.T, "batch": case.B}
        return Draws.of(cell, training, SEED, 0, **place, sizes=(case.I, case.H, case.H), dtype=self.x.dtype)

    def weight_mask(self) -> np.ndarray:
        """What weight_drop multiplies U by, `[4H,H]`."""
        p, H = self.variant.cell.weight_drop, self.case.H
        place = {"layer": 0, "steps": 4 * H, "batch": 1, "num_directions": 1, "units": H, "kind": "weight_drop"}
        return drop(np.ones((4 * H, H), self.x.dtype), dropout_mask(p, SEED, 0, **place)[:, 0], p)


def cell_problem(problem: Problem) -> CellProblem:
    """What `cases.problem` made of a CellCase, with the variant's own weights, input and options."""
    case, dtype = problem.case, problem.x.dtype
    variant, H = VARIANTS[case.variant], case.H
    rng = np.random.default_rng(13)

    def draw(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, np.float32).astype(dtype)

    weights = dict(problem.weights)
    if variant.peepholes:
        weights["weight_peephole_l0"] = draw(3 * H) / 4
    if variant.layer_norm:
        weights |= {f"gamma_{of}_l0": 1 + draw(4 * H) / 4 for of in ("ih", "hh")}
        weights |= {"gamma_c_l0": 1 + draw(H) / 4, "beta_c_l0": draw(H) / 4}
    seed = {"dropout_seed": SEED} if variant.cell.draws else {}
    own = {name: getattr(problem, name) for name in ("case", "weights", "x", "h0", "c0", "dy")}
    plain = CellProblem(**own, options={"cell": variant.cell, "return_gates": variant.gates, **seed}, variant=variant)
    return replace(
        plain,
        weights=weights,
        x=draw(case.T, case.B, 4 * H) if variant.external else problem.x,
        dgates=draw(case.T, case.B, 4 * H) if variant.gates else None,
    )
