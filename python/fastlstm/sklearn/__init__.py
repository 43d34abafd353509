"""`LSTMClassifier` and `LSTMRegressor`: sequences in, a class or numbers out, with scikit-learn's fit and predict.

Needs scikit-learn (`pip install fastlstm[sklearn]`); `import fastlstm` does not import it. Nothing else trains them.
"""

from .estimators import LSTMClassifier, LSTMRegressor

__all__ = ["LSTMClassifier", "LSTMRegressor"]
