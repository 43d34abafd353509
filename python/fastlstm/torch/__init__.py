"""`fastlstm.torch.LSTM` in place of `torch.nn.LSTM`: the same arguments, weights, numbers and gradients, and more.

Needs torch (`pip install fastlstm[torch]`), against which nothing is compiled; `import fastlstm` does not import it.
"""

from .cell import LSTMCell
from .convert import Conversion, convert
from .lstm import LSTM

__all__ = ["LSTM", "Conversion", "LSTMCell", "convert"]
