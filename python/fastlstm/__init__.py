"""An LSTM on NumPy arrays, forward and backward, from C++ kernels and without a framework."""

from ._core import __version__
from .cells import LSTMCellOptions
from .compressed import CompressedLSTM
from .config import active_isa, build_config, get_num_threads, release_memory, set_isa, set_num_threads
from .functional import lstm_backward, lstm_forward
from .gradients import Gradients
from .layers import LSTM
from .slstm import SLSTM, slstm_backward, slstm_forward
from .stream import Stream

__all__ = [
    "LSTM",
    "SLSTM",
    "CompressedLSTM",
    "Gradients",
    "LSTMCellOptions",
    "Stream",
    "__version__",
    "active_isa",
    "build_config",
    "get_num_threads",
    "lstm_backward",
    "lstm_forward",
    "release_memory",
    "set_isa",
    "set_num_threads",
    "slstm_backward",
    "slstm_forward",
]
