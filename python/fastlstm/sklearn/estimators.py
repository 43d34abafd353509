"""The two estimators. Letters: N sequences, T steps, B batch, I features, H hidden, D directions, K outputs."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.base import ClassifierMixin, RegressorMixin
from sklearn.utils import assert_all_finite, check_array, column_or_1d
from sklearn.utils.multiclass import check_classification_targets

from .base import LSTMEstimator

__all__ = ["LSTMClassifier", "LSTMRegressor"]


class LSTMClassifier(ClassifierMixin, LSTMEstimator):
    """An LSTM that reads a sequence and names its class: softmax on a linear layer of the last h, cross-entropy.

    X: `(N, T)`, each row a sequence of one feature; `(N, T, I)`; or a list of arrays `(T,)` or `(T, I)` of any T.
    max_norm: all gradients together are scaled down to it. early_stopping: validation_fraction of the sequences is
    held out, training ends after `patience` epochs that do not lower its loss by tol, and the best weights are kept.
    missing: what a NaN is: an "error", a reason to "skip" its step, or filled by the last value before it ("forward",
    0 before the first), its feature's mean over the training set ("mean"), or interpolated ("linear").
    random_state fixes weights, batches and dropout. verbose: a line on each epoch, by tqdm where it is installed.

    Attributes: lstm_, the trained `fastlstm.LSTM`; coef_ `[K,D*H]` and intercept_ `[K]`; classes_; n_features_in_, T
    for an X of two axes, else I; feature_names_in_; loss_curve_ and validation_loss_curve_, a number an epoch.

    >>> rng = np.random.default_rng(0)
    >>> X = rng.standard_normal((200, 20)).cumsum(axis=1)
    >>> y = np.where(X[:, -1] > X[:, 0], "up", "down")
    >>> classifier = LSTMClassifier(hidden_size=16, epochs=20, random_state=0).fit(X, y)
    >>> bool(classifier.score(X, y) > 0.9), classifier.predict([X[0]]).shape
    (True, (1,))
    """

    def partial_fit(
        self, X: Any, y: Any, classes: npt.ArrayLike | None = None, sample_weight: npt.ArrayLike | None = None
    ) -> Any:
        """One epoch more; the first call has to name all classes that will come, unless y has them all."""
        return self._partial_fit(X, y, sample_weight, classes)

    def predict_proba(self, X: Any) -> np.ndarray:
        """The probability of each class, `[N,K]`, in the order of classes_."""
        return _softmax(self._predicted_scores(X))

    def predict(self, X: Any) -> np.ndarray:
        """The likeliest class of each sequence, `[N]`."""
        likeliest = self._predicted_scores(X).argmax(axis=1)
        return np.asarray(self.classes_[likeliest])

    def _targets(self, y: Any, first: bool, classes: Any) -> np.ndarray:
        y = column_or_1d(y, warn=True)
        assert_all_finite(y, input_name="y")
        check_classification_targets(y)
        if first:
            self.classes_ = np.unique(y if classes is None else classes)
        places = np.minimum(np.searchsorted(self.classes_, y), len(self.classes_) - 1)
        if (strange := self.classes_[places] != y).any():
            raise ValueError(f"y has {y[strange][0]!r}, expected one of the classes {self.classes_.tolist()}")
        return np.asarray(places)

    def _outputs(self, targets: np.ndarray) -> int:
        return len(self.classes_)

    def _loss(self, scores: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        p = _softmax(scores)
        truth = np.arange(len(targets)), targets
        losses = -np.log(np.maximum(p[truth], np.finfo(p.dtype).tiny))
        p[truth] -= 1  # through cross-entropy and softmax at once
        return losses, p


class LSTMRegressor(RegressorMixin, LSTMEstimator):
    """An LSTM that reads a sequence and says one number, or several: a linear layer of the last h, squared error.

    y: `(N,)`, or `(N, K)` for a forecast of K steps, say; best of about unit size, as X. All else, but for classes_, as
    `LSTMClassifier`.

    >>> t = np.arange(300) / 5
    >>> windows = np.lib.stride_tricks.sliding_window_view(np.sin(t), 21)
    >>> regressor = LSTMRegressor(hidden_size=16, epochs=20, random_state=0).fit(windows[:200, :20], windows[:200, 20])
    >>> bool(regressor.score(windows[200:, :20], windows[200:, 20]) > 0.99)
    True
    """

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    def partial_fit(self, X: Any, y: Any, sample_weight: npt.ArrayLike | None = None) -> Any:
        """One epoch more."""
        return self._partial_fit(X, y, sample_weight, None)

    def predict(self, X: Any) -> np.ndarray:
        """y of each sequence: `[N]`, or `[N,K]` if it was trained on such."""
        scores = self._predicted_scores(X)
        return scores[:, 0] if self._is_single else scores

    def _targets(self, y: Any, first: bool, classes: Any) -> np.ndarray:
        y = check_array(y, ensure_2d=False, dtype=[np.float64, np.float32], input_name="y")
        if y.ndim > 2:
            raise ValueError(f"y has shape {y.shape}, expected (N,) or (N, K)")
        if first:
            self._is_single = y.ndim == 1
        y = y[:, None] if y.ndim == 1 else y
        if not first and y.shape[1] != len(self.intercept_):
            raise ValueError(f"y has {y.shape[1]} numbers for each sequence, expected {len(self.intercept_)} as before")
        return np.asarray(y)

    def _outputs(self, targets: np.ndarray) -> int:
        return int(targets.shape[1])

    def _loss(self, scores: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        difference = scores - targets.astype(scores.dtype, copy=False)
        return np.mean(difference**2, axis=1), 2 / scores.shape[1] * difference


def _softmax(scores: np.ndarray) -> np.ndarray:
    e = np.exp(scores - scores.max(axis=1, keepdims=True))
    p: np.ndarray = e / e.sum(axis=1, keepdims=True)
    return p
