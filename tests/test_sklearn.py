"""`fastlstm.sklearn`: scikit-learn's own checks, what X may be, missing values, gradients, and how training goes on."""

from __future__ import annotations

import io
import pickle
import sys
from contextlib import redirect_stderr, redirect_stdout
from typing import Any

import numpy as np
import pytest

pytest.importorskip("sklearn")
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

import fastlstm
from fastlstm.masking import forward_fill, linear_fill, mean_fill
from fastlstm.sklearn import LSTMClassifier, LSTMRegressor


@pytest.fixture(autouse=True)
def one_thread(restored_settings: None) -> None:
    """More of them only wait for one another on so little work."""
    fastlstm.set_num_threads(1)


@parametrize_with_checks([LSTMClassifier(), LSTMRegressor()])
def test_scikit_learn_s_checks(estimator: Any, check: Any) -> None:
    check(estimator)


def walks(n: int = 60, T: int = 12, I: int = 1, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Random walks `[N,T,I]`, whether each ends above its start, and by how much."""
    x = np.random.default_rng(seed).standard_normal((n, T, I)).cumsum(axis=1)
    rise = x[:, -1, 0] - x[:, 0, 0]
    return x, np.where(rise > 0, "up", "down"), rise / rise.std()


QUICK: dict[str, Any] = {"hidden_size": 5, "epochs": 2, "random_state": 0}


def weights_of(estimator: Any) -> dict[str, np.ndarray]:
    return estimator.lstm_.state_dict() | {"coef": estimator.coef_, "intercept": estimator.intercept_}


def assert_same_weights(one: Any, other: Any) -> None:
    for name, weight in weights_of(one).items():
        np.testing.assert_array_equal(weight, weights_of(other)[name])


def test_reads_digits_row_by_row() -> None:
    digits = load_digits()
    images = (digits.images / 16).astype(np.float32)  # [N,8,8]: 8 steps of 8 features
    x_train, x_test, y_train, y_test = train_test_split(images, digits.target, random_state=0)
    classifier = LSTMClassifier(hidden_size=64, epochs=12, learning_rate=0.01, random_state=0).fit(x_train, y_train)
    assert classifier.score(x_test, y_test) > 0.95
    assert classifier.lstm_.dtype == classifier.coef_.dtype == np.float32
    p = classifier.predict_proba(x_test)
    np.testing.assert_allclose(p.sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_array_equal(classifier.classes_[p.argmax(axis=1)], classifier.predict(x_test))
    assert classifier.loss_curve_[-1] < 0.2 * classifier.loss_curve_[0]


def test_every_form_of_x_is_the_same_sequences() -> None:
    x, y, _ = walks()
    table, cube, several = (LSTMClassifier(**QUICK).fit(form, y) for form in (x[:, :, 0], x, [*x[:, :, 0]]))
    assert_same_weights(table, cube)
    assert_same_weights(table, several)
    assert (table.n_features_in_, cube.n_features_in_, several.n_features_in_) == (12, 1, 1)
    for form in (x[:, :, 0], x, [*x], [*x[:, :, 0]]):
        np.testing.assert_array_equal(several.predict_proba(form), table.predict_proba(x[:, :, 0]))


@pytest.mark.parametrize("bidirectional", [False, True])
def test_sequences_of_any_length_are_read_to_their_own_end(bidirectional: bool) -> None:
    x, _, y = walks(I=3)
    lengths = np.random.default_rng(1).integers(0, 13, len(x))
    sequences = [one[:length] for one, length in zip(x, lengths, strict=True)]
    regressor = LSTMRegressor(num_layers=2, bidirectional=bidirectional, **QUICK).fit(sequences, y)
    found = regressor.predict(sequences)
    for one, number in zip(sequences, found, strict=True):
        _, (h_n, _) = regressor.lstm_(one[None])
        h = np.concatenate(h_n[-2:] if bidirectional else h_n[-1:], axis=1)
        np.testing.assert_allclose(number, (h @ regressor.coef_.T + regressor.intercept_).item(), rtol=1e-10)


def with_gaps(x: np.ndarray) -> np.ndarray:
    x = x.copy()
    x[np.random.default_rng(2).random(x.shape) < 0.3] = np.nan
    x[:, 4] = 1.0  # so that no sequence is empty
    return x


def filled(x: np.ndarray, missing: str) -> Any:
    """What the option stands for, by hand."""
    return {
        "skip": lambda: [one[~np.isnan(one).any(axis=1)] for one in x],
        "forward": lambda: forward_fill(x, batch_first=True, initial=0.0),
        "mean": lambda: mean_fill(x),
        "linear": lambda: linear_fill(x, batch_first=True),
    }[missing]()


@pytest.mark.parametrize("missing", ["skip", "forward", "mean", "linear"])
def test_missing_values(missing: str) -> None:
    x, _, y = walks(I=2)
    x = with_gaps(x)
    regressor = LSTMRegressor(missing=missing, **QUICK).fit(x, y)
    by_hand = LSTMRegressor(**QUICK).fit(filled(x, missing), y)
    for name, weight in weights_of(regressor).items():
        np.testing.assert_allclose(weight, weights_of(by_hand)[name], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(regressor.predict(x), by_hand.predict(filled(x, missing)), rtol=1e-9)
    assert regressor.__sklearn_tags__().input_tags.allow_nan


def test_missing_values_are_an_error_unless_asked_for() -> None:
    x, y, _ = walks()
    for form in (with_gaps(x), with_gaps(x)[:, :, 0], [*with_gaps(x)]):
        with pytest.raises(ValueError, match="contains NaN"):
            LSTMClassifier(**QUICK).fit(form, y)
    assert not LSTMClassifier().__sklearn_tags__().input_tags.allow_nan


def test_the_training_set_s_mean_fills_the_test_set() -> None:
    x, _, y = walks(I=2)
    regressor = LSTMRegressor(missing="mean", **QUICK).fit(with_gaps(x), y)
    mean = np.nanmean(with_gaps(x), axis=(0, 1))
    found, expected = (regressor.predict(one) for one in (np.full((1, 12, 2), np.nan), np.tile(mean, (1, 12, 1))))
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_missing_values_of_sequences_of_any_length() -> None:
    x, _, y = walks(I=2)
    gaps = [one[: 5 + n % 8] for n, one in enumerate(with_gaps(x))]
    kept = [one[~np.isnan(one).any(axis=1)] for one in gaps]
    regressor, by_hand = LSTMRegressor(missing="skip", **QUICK).fit(gaps, y), LSTMRegressor(**QUICK).fit(kept, y)
    np.testing.assert_allclose(regressor.predict(gaps), by_hand.predict(kept), rtol=1e-9)


@pytest.mark.parametrize("kind", [LSTMClassifier, LSTMRegressor])
def test_gradients_by_finite_differences(kind: Any) -> None:
    x, names, rise = walks(n=7, T=5, I=2)
    y = names if kind is LSTMClassifier else np.stack([rise, rise**2], axis=1)
    sequences = [one[: 1 + n % 5] for n, one in enumerate(x)]
    estimator = kind(hidden_size=3, num_layers=2, bidirectional=True, epochs=1, random_state=0).fit(sequences, y)
    data = estimator._sequences(sequences, fitting=True, first=False)
    targets, share = estimator._targets(y, False, None), np.linspace(0, 2, 7)
    weights = weights_of(estimator)
    _, grads = estimator._gradients(weights, data, targets, share)
    rng = np.random.default_rng(0)
    for name, weight in weights.items():
        direction = rng.standard_normal(weight.shape)

        def loss(step: float, name: str = name, weight: Any = weight, direction: Any = direction) -> float:
            return estimator._gradients(weights | {name: weight + step * direction}, data, targets, share)[0]

        slope = (8 * (loss(1e-3) - loss(-1e-3)) - (loss(2e-3) - loss(-2e-3))) / 12e-3
        assert np.sum(grads[name] * direction) == pytest.approx(slope, rel=1e-7, abs=1e-10), name


def test_partial_fit_and_warm_start_go_on_where_training_was() -> None:
    x, y, _ = walks()
    whole = LSTMClassifier(**QUICK | {"epochs": 4}).fit(x, y)
    by_parts = LSTMClassifier(**QUICK)
    for _ in range(4):
        by_parts.partial_fit(x, y)
    assert_same_weights(whole, by_parts)
    warm = LSTMClassifier(warm_start=True, **QUICK).fit(x, y).fit(x, y)
    assert_same_weights(whole, warm)
    assert len(warm.loss_curve_) == 4
    assert_same_weights(LSTMClassifier(**QUICK).fit(x, y).fit(x, y), LSTMClassifier(**QUICK).fit(x, y))


def test_partial_fit_knows_the_classes_to_come() -> None:
    x, y, _ = walks()
    up = y == "up"
    classifier = LSTMClassifier(**QUICK).partial_fit(x[up], y[up], classes=["down", "up"])
    classifier.partial_fit(x[~up], y[~up])
    assert classifier.predict_proba(x).shape == (len(x), 2)
    with pytest.raises(ValueError, match=r"y has .*'level'.*, expected one of the classes \['down', 'up'\]"):
        classifier.partial_fit(x[:1], ["level"])


def test_early_stopping_keeps_the_best_weights() -> None:
    x, _, _ = walks(n=40)
    y = np.random.default_rng(3).standard_normal(40)  # nothing to learn: validation soon gets worse
    options: dict[str, Any] = {"hidden_size": 16, "learning_rate": 0.02, "validation_fraction": 0.25}
    options |= {"tol": 0.0, "random_state": 0}
    stopped = LSTMRegressor(early_stopping=True, epochs=200, patience=7, **options).fit(x, y)
    losses = stopped.validation_loss_curve_
    best = int(np.argmin(losses))
    assert len(losses) == len(stopped.loss_curve_) == best + 1 + 7
    shorter = LSTMRegressor(early_stopping=True, epochs=best + 1, **options).fit(x, y)
    assert_same_weights(stopped, shorter)
    assert shorter.validation_loss_curve_ == losses[: best + 1]


def test_dropout_and_weight_decay_act_in_training_alone() -> None:
    x, _, y = walks()
    plain, dropped, decayed = (
        LSTMRegressor(num_layers=2, **QUICK, **more).fit(x, y) for more in ({}, {"dropout": 0.5}, {"weight_decay": 1.0})
    )
    assert abs(plain.coef_ - dropped.coef_).max() > 1e-4
    assert abs(plain.coef_ - decayed.coef_).max() > 1e-4
    np.testing.assert_array_equal(dropped.predict(x), dropped.predict(x))


@pytest.mark.parametrize("max_norm", [1e-3, 1e3])
def test_gradients_are_clipped(max_norm: float, monkeypatch: pytest.MonkeyPatch) -> None:
    norms = []

    def step(self: Any, weights: Any, grads: Any) -> None:
        norms.append(np.sqrt(sum(np.sum(g**2) for g in grads.values())))

    monkeypatch.setattr("fastlstm.sklearn.base.Adam.step", step)
    x, _, y = walks()
    LSTMRegressor(max_norm=max_norm, **QUICK).fit(x, 100 * y)
    assert (max(norms) <= 1.01 * max_norm) and (max_norm < 1 or max(norms) > 10)


def test_works_in_scikit_learn_s_tools() -> None:
    x, y, rise = walks()
    pipeline = make_pipeline(StandardScaler(), LSTMClassifier(**QUICK))
    search = GridSearchCV(pipeline, {"lstmclassifier__hidden_size": [2, 4]}, cv=2).fit(x[:, :, 0], y)
    again = pickle.loads(pickle.dumps(search.best_estimator_))
    np.testing.assert_array_equal(again.predict(x[:, :, 0]), search.predict(x[:, :, 0]))
    forecaster = LSTMRegressor(**QUICK).fit(x, np.stack([rise, -rise, rise], axis=1))
    assert forecaster.predict(x).shape == (60, 3)
    assert not hasattr(clone(forecaster), "lstm_")


@pytest.mark.parametrize("with_tqdm", [True, False])
def test_verbose_says_how_it_goes(with_tqdm: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if with_tqdm:
        pytest.importorskip("tqdm")
    else:
        monkeypatch.setitem(sys.modules, "tqdm", None)
    x, _, y = walks()
    out, bar = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(bar):
        regressor = LSTMRegressor(verbose=True, early_stopping=True, **QUICK).fit(x, y)
        LSTMRegressor(**QUICK).fit(x, y)
    last = f"loss {regressor.loss_curve_[-1]:.4f}, of validation {regressor.validation_loss_curve_[-1]:.4f}"
    if with_tqdm:
        assert "2/2" in bar.getvalue() and last in bar.getvalue() and not out.getvalue()
    else:
        assert out.getvalue().splitlines()[1] == f"epoch 2 of 2: {last}" and len(out.getvalue().splitlines()) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs is 0, expected an integer of at least 1"),
        ({"batch_size": 2.5}, r"batch_size is 2\.5, expected an integer of at least 1"),
        ({"patience": 0}, "patience is 0, expected"),
        ({"missing": "drop"}, "missing is 'drop', expected one of 'error', 'skip', 'forward', 'mean', 'linear'"),
        ({"hidden_size": 0}, "hidden_size is 0, expected"),
        ({"dropout": 1.5}, r"dropout is 1\.5, expected a number from 0 to 1"),
        ({"max_norm": -1.0}, r"max_norm is -1\.0, expected"),
        ({"learning_rate": -1.0}, r"learning_rate is -1\.0, expected a number of at least 0"),
    ],
)
def test_refuses_parameters(options: dict[str, Any], message: str) -> None:
    x, y, _ = walks()
    with pytest.raises(ValueError, match=message):
        LSTMClassifier(**QUICK | options).fit(x, y)


def test_refuses_x_and_y() -> None:
    x, y, rise = walks(I=2)
    classifier = LSTMClassifier(**QUICK).fit(x, y)
    with pytest.raises(ValueError, match=r"X has 3 features in each step, but LSTMClassifier is expecting 2 features"):
        classifier.predict(np.ones((1, 4, 3)))
    with pytest.raises(ValueError, match=r"X has sequences of 2, 3 features, expected the same in all"):
        classifier.predict([np.ones((4, 3)), np.ones((4, 2))])
    regressor = LSTMRegressor(**QUICK).fit(x, rise)
    with pytest.raises(ValueError, match=r"y has 2 numbers for each sequence, expected 1 as before"):
        regressor.partial_fit(x, np.ones((60, 2)))
    with pytest.raises(ValueError, match=r"sample_weight is 0 for all|Sample weights must contain"):  # ours or theirs
        regressor.fit(x, rise, sample_weight=np.zeros(60))
    held_out = LSTMRegressor(early_stopping=True, validation_fraction=2, **QUICK)
    with pytest.raises(ValueError, match=r"sample_weight is 0 for all .* held out"):
        held_out.fit(x, rise, sample_weight=np.eye(60)[0])
    with pytest.raises(ValueError, match=r"inconsistent numbers of samples: \[60, 59\]"):
        regressor.fit(x, rise[1:])
