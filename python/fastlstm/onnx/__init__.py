"""ONNX's operator LSTM on fastlstm's kernels: as a function, and in onnx's evaluator; models read and written.

Needs onnx (`pip install fastlstm[onnx]`); `import fastlstm` does not import it.
"""

from .models import from_model, to_model
from .operator import LSTM, lstm

__all__ = ["LSTM", "from_model", "lstm", "to_model"]
