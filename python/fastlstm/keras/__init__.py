"""`keras.layers.LSTM` by our kernels, on each of Keras's backends: see `fastlstm.keras.LSTM`.

Keras is needed here only (`pip install fastlstm[keras]`), and of its backends the one that it runs on.
"""

from .layer import LSTM

__all__ = ["LSTM"]
