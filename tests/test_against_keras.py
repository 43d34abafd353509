"""The native LSTM against keras.layers.LSTM: masks of any pattern, both modes of output, gradients by autograd."""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from cases import Case, Problem, assert_close, make_problem, solve
from fastlstm import LSTMCellOptions
from fastlstm.cells import PLAIN
from fastlstm.dropout import Draws
from fastlstm.weights import WeightSpec

torch = pytest.importorskip("torch")
if importlib.util.find_spec("keras") is None:
    pytest.skip("keras is not installed", allow_module_level=True)


@pytest.fixture(scope="module", autouse=True)
def keras_on_torch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Torch's autograd gives the gradients. Importing Keras reads its settings and writes a file of them."""
    os.environ.setdefault("KERAS_BACKEND", "torch")
    os.environ.setdefault("KERAS_HOME", str(tmp_path_factory.mktemp("keras")))
    keras = pytest.importorskip("keras")
    if keras.backend.backend() != "torch":
        pytest.skip(f"Keras was imported with the backend {keras.backend.backend()}, torch is needed")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # more of them only wait for one another on so little work
    yield
    torch.set_num_threads(threads)


def keras_weights(problem: Problem, suffix: str) -> list[np.ndarray]:
    """Keras has its weights transposed: kernel, recurrent kernel, bias. Its gates i f c o are our i f g o."""
    w = problem.weights
    return [w["weight_ih" + suffix].T, w["weight_hh" + suffix].T, w["bias_ih" + suffix] + w["bias_hh" + suffix]]


def inject(cell: Any, problem: Problem, direction: int, dtype: str) -> None:
    """Our masks in place of Keras's: `[4,B,n]` with one for each gate, which Keras takes as a list, else `[1,B,n]`."""
    options, spec = problem.options["cell"], problem.spec
    place = {"layer": 0, "direction": direction, "first_step": 0, "steps": 1, "batch": problem.x.shape[0]}
    sizes = (spec.input_size, spec.hidden_size, spec.hidden_size)
    seeds = problem.options["dropout_seed"], problem.options["dropout_call"]
    draws = Draws.of(options, True, *seeds, **place, sizes=sizes, dtype=np.dtype(dtype))
    for name, scales in (("get_dropout_mask", draws.x_scales), ("get_recurrent_dropout_mask", draws.h_scales)):
        masks = [torch.tensor(scale) for scale in scales]
        setattr(cell, name, lambda step, masks=masks: masks if options.dropout_per_gate else masks[0])


def keras_solve(keras: Any, problem: Problem, dtype: str) -> dict[str, np.ndarray]:
    """What `solve` returns, less the cells and the gradients of the initial state, for one layer of batch-first rows.

    Two layers stand for both directions: keras.layers.Bidirectional puts zeros in masked steps, whatever is asked.
    """
    p, spec = problem, problem.spec
    x, mask = torch.tensor(p.x.astype(dtype), requires_grad=True), p.options.get("mask")
    mask, cell = None if mask is None else torch.tensor(mask.astype(bool)), p.options.get("cell", PLAIN)
    gate, squash, output = cell.activations
    assert squash == output, "Keras has one activation for both"
    outputs, states, weights = [], [], {}
    for d, suffix in enumerate(["_l0", "_l0_reverse"][: spec.num_directions]):
        layer = keras.layers.LSTM(
            spec.hidden_size,
            return_sequences=True,
            return_state=True,
            go_backwards=d == 1,
            zero_output_for_mask=p.options["masked_output"] == "zero",
            activation=squash.name,
            recurrent_activation=gate.name,
            dropout=cell.input_dropout,
            recurrent_dropout=cell.recurrent_dropout,
            dtype=dtype,
        )
        layer.build(x.shape)
        layer.set_weights(keras_weights(p, suffix))
        state = None if p.state is None else [torch.tensor(a[d].astype(dtype)) for a in p.state]
        if cell.draws:
            inject(layer.cell, p, d, dtype)
        y, *state = layer(x, mask=mask, initial_state=state, training=True)
        outputs.append(y.flip(1) if d else y)
        states.append(state)
        weights[suffix] = [weight.value for weight in layer.trainable_weights]
    h_n, c_n = (torch.stack(parts) for parts in zip(*states, strict=True))
    found = {"y": torch.cat(outputs, dim=-1), "h_n": h_n, "c_n": c_n}
    torch.autograd.backward(list(found.values()), [torch.tensor(a.astype(dtype)) for a in (p.dy, *p.dstate)])
    found["dx"] = x.grad
    for suffix, (w_x, w_h, b) in weights.items():
        found |= {"dweight_ih" + suffix: w_x.grad.T, "dweight_hh" + suffix: w_h.grad.T}
        found |= {"dbias_ih" + suffix: b.grad, "dbias_hh" + suffix: b.grad}
    return {name: tensor.detach().numpy() for name, tensor in found.items()}


MASKS = ["random", "leading", "trailing", "nothing_counts", "everything_counts", "alternating_integers"]


@functools.cache
def problem_of(case: Case) -> Problem:
    """The case without dcells, which Keras has no counterpart of."""
    return replace(make_problem(case), dcells=None)


@functools.cache
def truth_by_keras(case: Case) -> dict[str, np.ndarray]:
    import keras

    return keras_solve(keras, problem_of(case), "float64")


def assert_agrees(case: Case, dtype: str) -> None:
    # On torch, Keras multiplies in float32 even what is float64: only semantics are held here, exactness elsewhere.
    truth = truth_by_keras(case)
    found = solve(problem_of(case).astype(dtype))
    assert_close({name: found[name].astype("float32") for name in truth}, truth, "float32")


def case_of(spec: WeightSpec, **options: Any) -> Case:
    return Case("", spec, 9, 6, "batch_first", **options)


@pytest.mark.parametrize("masked_output", ["zero", "repeat"])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("bidirectional", [False, True], ids=["one_direction", "both_directions"])
def test_masks(isa: str, dtype: str, mask: str, masked_output: str, bidirectional: bool) -> None:
    # Keras repeats a zero, not h0, where there is no output yet: the same without an initial state.
    spec = WeightSpec(5, 11, bidirectional=bidirectional)
    assert_agrees(case_of(spec, state=False, mask=mask, masked_output=masked_output), dtype)


def test_initial_state_under_a_mask(isa: str, dtype: str) -> None:
    assert_agrees(case_of(WeightSpec(5, 11, bidirectional=True), mask="random"), dtype)


# Keras takes four masks, one for each gate, where it drops h, else one of x for all gates.
DROPOUTS = {
    "of_x": LSTMCellOptions(input_dropout=0.4),
    "of_h_per_gate": LSTMCellOptions(recurrent_dropout=0.3, dropout_per_gate=True),
    "of_both_per_gate": LSTMCellOptions(input_dropout=0.4, recurrent_dropout=0.3, dropout_per_gate=True),
}


@pytest.mark.parametrize("mask", [None, "random"], ids=["", "masked"])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["one_direction", "both_directions"])
@pytest.mark.parametrize("dropped", DROPOUTS)
def test_dropout_with_masks_injected(isa: str, dtype: str, dropped: str, bidirectional: bool, mask: str | None) -> None:
    spec = WeightSpec(5, 11, bidirectional=bidirectional)
    assert_agrees(case_of(spec, mask=mask, cell=DROPOUTS[dropped]), dtype)


@pytest.mark.parametrize(
    "gate, squash", [(("hard_sigmoid", 1 / 6), "tanh"), ("sigmoid", "softsign"), ("sigmoid", "elu")]
)
def test_activations(isa: str, dtype: str, gate: Any, squash: str) -> None:
    cell = LSTMCellOptions(activations=(gate, squash, squash))
    assert_agrees(case_of(WeightSpec(5, 11, bidirectional=True), mask="random", cell=cell), dtype)


def test_comparison_depends_on_the_mask() -> None:
    masked, other = (truth_by_keras(case_of(WeightSpec(5, 11), mask=mask)) for mask in ("random", "leading"))
    with pytest.raises(AssertionError, match=r"'y'.*'dx'"):
        assert_close(masked, other, "float64")
