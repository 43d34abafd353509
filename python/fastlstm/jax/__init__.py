"""`fastlstm.jax.lstm`: an LSTM on JAX's arrays, under jit and grad, on the CPU.

Needs jax (`pip install fastlstm[jax]`); `import fastlstm` does not import it.
"""

from .operator import lstm

__all__ = ["lstm"]
