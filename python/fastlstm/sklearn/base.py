"""What classifier and regressor share: an LSTM, a linear layer on its last h, Adam, and the loop that trains them.

Letters: N sequences, T steps, B batch, I features, H hidden, D directions, K outputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator
from sklearn.model_selection import train_test_split
from sklearn.utils import check_array, check_consistent_length, check_random_state
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from ..functional import lstm_backward, lstm_forward
from ..layers import LSTM
from ..optim import Adam, clip_gradients
from .sequences import MISSING, Sequences, mean_of, padded, without_missing

__all__ = ["LSTMEstimator"]

PREDICTED_AT_ONCE = 1024  # sequences


class LSTMEstimator(BaseEstimator):
    """An LSTM whose outputs are `h @ coef_.T + intercept_`, `[N,K]`, of its last h."""

    def __init__(
        self,
        hidden_size: int = 64,
        num_layers: int = 1,
        *,
        bidirectional: bool = False,
        dropout: float = 0.0,
        epochs: int = 50,
        batch_size: int = 32,
        learning_rate: float = 3e-3,
        weight_decay: float = 0.0,
        max_norm: float = 1.0,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        patience: int = 10,
        tol: float = 1e-4,
        missing: str = "error",
        warm_start: bool = False,
        random_state: Any = None,
        verbose: bool = False,
    ) -> None:
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.bidirectional = bidirectional
        self.dropout = dropout
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.max_norm = max_norm
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.patience = patience
        self.tol = tol
        self.missing = missing
        self.warm_start = warm_start
        self.random_state = random_state
        self.verbose = verbose

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        tags.input_tags.allow_nan = self.missing != "error"
        return tags

    # what classifier and regressor differ in

    def _targets(self, y: Any, first: bool, classes: Any) -> np.ndarray:
        """y as `_loss` takes it; sets what `predict` needs of it."""
        raise NotImplementedError

    def _outputs(self, targets: np.ndarray) -> int:
        raise NotImplementedError

    def _loss(self, scores: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The loss of each row `[B]`, and its gradient `[B,K]`."""
        raise NotImplementedError

    # training

    def fit(self, X: Any, y: Any, sample_weight: npt.ArrayLike | None = None) -> Any:
        """Train for `epochs`, from fresh weights unless warm_start; returns self.

        X: `(N, T)`, each row a sequence of one feature; `(N, T, I)`; or a list of arrays `(T,)` or `(T, I)` of any T.
        """
        first = not (self.warm_start and hasattr(self, "lstm_"))
        self._check_parameters()
        return self._train(X, y, sample_weight, first, None, self.epochs, self.early_stopping)

    def _partial_fit(self, X: Any, y: Any, sample_weight: Any, classes: Any) -> Any:
        self._check_parameters()
        return self._train(X, y, sample_weight, not hasattr(self, "lstm_"), classes, 1, False)

    def _train(
        self, X: Any, y: Any, sample_weight: Any, first: bool, classes: Any, epochs: int, early_stopping: bool
    ) -> Any:
        if y is None:
            raise ValueError(f"{type(self).__name__} requires y to be passed, but the target y is None")
        data = self._sequences(X, fitting=True, first=first)
        check_consistent_length(data.x, y)
        targets = self._targets(y, first, classes)
        weights = _check_sample_weight(sample_weight, data.x, dtype=data.x.dtype, ensure_non_negative=True)
        if first:
            self._begin(data, self._outputs(targets))
        held_out = None
        if early_stopping:
            kept, out = self._split(targets)
            held_out = data.rows(out), targets[out], weights[out]
            data, targets, weights = data.rows(kept), targets[kept], weights[kept]
        if not weights.any() or (held_out is not None and not held_out[2].any()):
            raise ValueError(
                "sample_weight is 0 for all sequences to learn from, or all held out: expected one above 0"
            )
        self._run(data, targets, weights, held_out, epochs)
        return self

    def _begin(self, data: Sequences, outputs: int) -> None:
        self._random = check_random_state(self.random_state)
        size, seed = data.x.shape[2], int(self._random.randint(2**31))
        self.lstm_ = LSTM(
            size,
            self.hidden_size,
            self.num_layers,
            batch_first=True,
            dropout=self.dropout,
            bidirectional=self.bidirectional,
            forget_bias=1.0,
            dtype=data.x.dtype,
            seed=seed,
        )
        last = self.lstm_.spec.output_size
        self.coef_ = self._random.normal(0, last**-0.5, (outputs, last)).astype(data.x.dtype)
        self.intercept_ = np.zeros(outputs, data.x.dtype)
        self.loss_curve_: list[float] = []
        self.validation_loss_curve_: list[float] = []
        self._adam, self._steps, self._seed = Adam(), 0, seed

    def _split(self, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        rows, stratify = np.arange(len(targets)), targets if hasattr(self, "classes_") else None
        kept, out = train_test_split(
            rows, test_size=self.validation_fraction, random_state=self._random, stratify=stratify
        )
        return kept, out

    def _run(
        self,
        data: Sequences,
        targets: np.ndarray,
        sample_weight: np.ndarray,
        held_out: tuple[Sequences, np.ndarray, np.ndarray] | None,
        epochs: int,
    ) -> None:
        weights = self.lstm_.state_dict() | {"coef": self.coef_, "intercept": self.intercept_}
        best, best_loss, waited = {n: w.copy() for n, w in weights.items()}, math.inf, 0
        self._adam.lr, self._adam.weight_decay = self.learning_rate, self.weight_decay
        share = sample_weight / sample_weight.mean()
        for report in self._epochs(epochs):
            order, total = self._random.permutation(len(targets)), 0.0
            for start in range(0, len(order), self.batch_size):
                rows = order[start : start + self.batch_size]
                loss, grads = self._gradients(weights, data.rows(rows), targets[rows], share[rows])
                clip_gradients(grads, self.max_norm)
                self._adam.step(weights, grads)
                total += loss * len(rows)
            self.loss_curve_.append(total / len(order))
            if held_out is None:
                report(f"loss {self.loss_curve_[-1]:.4f}")
                continue
            self._keep(weights)
            of_rows, _ = self._loss(self._scores(held_out[0]), held_out[1])
            loss = float(np.average(of_rows, weights=held_out[2]))
            self.validation_loss_curve_.append(loss)
            report(f"loss {self.loss_curve_[-1]:.4f}, of validation {loss:.4f}")
            waited = 0 if loss < best_loss - self.tol else waited + 1
            if loss < best_loss:
                best, best_loss = {n: w.copy() for n, w in weights.items()}, loss
            if waited >= self.patience:
                break
        self._keep(weights if held_out is None else best)

    def _gradients(
        self, weights: dict[str, np.ndarray], batch: Sequences, targets: np.ndarray, share: np.ndarray
    ) -> tuple[float, dict[str, np.ndarray]]:
        """The mean loss of a batch, and the gradient of every weight."""
        of_lstm = {name: weight for name, weight in weights.items() if name not in ("coef", "intercept")}
        self._steps += 1
        _, (h_n, _), tape = lstm_forward(
            batch.x,
            of_lstm,
            batch_first=True,
            lengths=batch.lengths,
            mask=batch.mask,
            return_sequence=False,
            dropout=self.dropout,
            dropout_seed=self._seed,
            dropout_call=self._steps,
        )
        h = _last(h_n, self.lstm_)
        losses, d_scores = self._loss(h @ weights["coef"].T + weights["intercept"], targets)
        d_scores *= share[:, None] / len(targets)
        dh_n = np.zeros_like(h_n)
        dh_n[-self.lstm_.spec.num_directions :] = np.split(
            d_scores @ weights["coef"], self.lstm_.spec.num_directions, 1
        )
        grads = lstm_backward(tape, dstate=(dh_n, None), want_x=False).weights
        return float(np.mean(losses * share)), grads | {"coef": d_scores.T @ h, "intercept": d_scores.sum(axis=0)}

    def _keep(self, weights: dict[str, np.ndarray]) -> None:
        weights = dict(weights)
        self.coef_, self.intercept_ = weights.pop("coef"), weights.pop("intercept")
        self.lstm_.load_state_dict(weights)

    def _epochs(self, epochs: int) -> Iterator[Callable[[str], None]]:
        """Once for each epoch, what to call with a line on how it went."""
        if not self.verbose:
            yield from (lambda line: None for _ in range(epochs))
            return
        try:
            from tqdm import tqdm
        except ImportError:
            for epoch in range(1, epochs + 1):
                yield lambda line, epoch=epoch: print(f"epoch {epoch} of {epochs}: {line}", flush=True)  # type: ignore[misc]
            return
        with tqdm(total=epochs, unit="epoch") as bar:
            for _ in range(epochs):
                yield bar.set_postfix_str
                bar.update()

    def _check_parameters(self) -> None:
        for name, least in (("epochs", 1), ("batch_size", 1), ("patience", 1)):
            if not isinstance(getattr(self, name), (int, np.integer)) or getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)!r}, expected an integer of at least {least}")
        for name in ("learning_rate", "weight_decay", "max_norm", "tol"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} is {getattr(self, name)!r}, expected a number of at least 0")
        if self.missing not in MISSING:
            raise ValueError(f"missing is {self.missing!r}, expected one of {', '.join(map(repr, MISSING))}")

    # prediction

    def _scores(self, data: Sequences) -> np.ndarray:
        parts = [np.zeros((0, len(self.intercept_)), self.coef_.dtype)]
        for start in range(0, len(data.x), PREDICTED_AT_ONCE):
            batch = data.rows(slice(start, start + PREDICTED_AT_ONCE))
            _, (h_n, _) = self.lstm_(batch.x, lengths=batch.lengths, mask=batch.mask, return_sequence=False)
            parts.append(_last(h_n, self.lstm_) @ self.coef_.T + self.intercept_)
        return np.concatenate(parts)

    def _predicted_scores(self, X: Any) -> np.ndarray:
        check_is_fitted(self)
        return self._scores(self._sequences(X, fitting=False, first=False))

    # input

    def _sequences(self, X: Any, fitting: bool, first: bool) -> Sequences:
        """X as the LSTM reads it; its NaNs are filled or masked."""
        finite: Any = True if self.missing == "error" else "allow-nan"
        options: dict[str, Any] = {"dtype": [np.float64, np.float32], "ensure_all_finite": finite}
        lengths = None
        if isinstance(X, (list, tuple)) and len(X) and all(isinstance(one, np.ndarray) and one.ndim for one in X):
            arrays = [one[:, None] if one.ndim == 1 else one for one in X]
            x, lengths = padded([check_array(one, ensure_min_samples=0, **options) for one in arrays])
        elif (X.ndim if hasattr(X, "ndim") else np.asarray(X).ndim) == 3:
            x = check_array(X, allow_nd=True, **options)
        elif first or self._is_table:
            x = validate_data(self, X, reset=first, **options)
        else:
            x = check_array(X, **options)
        if first:
            self._is_table: bool = x.ndim == 2
        x = x[:, :, None] if x.ndim == 2 else x
        if first and not self._is_table:
            self.n_features_in_ = x.shape[2]
        if not first and x.shape[2] != self.lstm_.input_size:
            raise ValueError(
                f"X has {x.shape[2]} features in each step, but {type(self).__name__} is expecting "
                f"{self.lstm_.input_size} features as input"
            )
        x = x if first else x.astype(self.lstm_.dtype, copy=False)
        if first:
            self.mean_ = mean_of(x)
        return without_missing(x, lengths, self.missing, self.mean_)


def _last(h_n: np.ndarray, lstm: LSTM) -> np.ndarray:
    """The last layer's last h, `[B,D*H]`."""
    return np.concatenate(h_n[-lstm.spec.num_directions :], axis=1)
