# The native module (csrc/python/), as fastlstm.functional and fastlstm.config see it. Not public.
# Letters: T steps, B batch, I input, H hidden, P projection, D directions, L layers; Hout = P if P else H.
from typing import Any

from numpy.typing import ArrayLike, NDArray

from .cells import LSTMCellOptions

__version__: str

class Weights:
    """Weights of all layers and directions, copied and packed for one instruction set and dtype."""

    def __init__(
        self,
        arrays: list[NDArray[Any]],  # torch's order: per layer, per direction w_ih, w_hh, b_ih, b_hh, w_hr, peephole
        input_size: int,
        hidden_size: int,
        num_layers: int,
        num_directions: int,
        proj_size: int,
        bias: bool,
        peepholes: bool,
        layer_norm: bool,
        cell: LSTMCellOptions,
        storage: str,  # "whole", "bf16", "int8"
        threads: int | None,
    ) -> None: ...
    @property
    def dtype(self) -> str: ...
    @property
    def isa(self) -> str: ...
    @property
    def nbytes(self) -> int: ...

class Tape:
    """What backward needs of a training forward; never written after it was made."""

    @property
    def nbytes(self) -> int: ...
    @property
    def dropout_seed(self) -> int: ...
    @property
    def dropout_call(self) -> int: ...

class Stream:
    """State and weights of one direction; fastlstm.Stream says what a call does."""

    def __init__(self, weights: Weights, batch_size: int | None, batch_first: bool, threads: int | None) -> None: ...
    def __call__(self, x: NDArray[Any], out: NDArray[Any] | None = None) -> NDArray[Any]: ...
    @property
    def state(self) -> tuple[NDArray[Any], NDArray[Any]]: ...  # h [L,B,Hout], c [L,B,H]: copies
    @state.setter
    def state(self, state: tuple[NDArray[Any] | None, NDArray[Any] | None] | None) -> None: ...

def forward(
    weights: Weights,
    x: NDArray[Any],  # [T,B,I], [B,T,I] if batch_first
    state: tuple[NDArray[Any], NDArray[Any]] | None,  # h0 [L*D,B,Hout], c0 [L*D,B,H]
    lengths: ArrayLike | None,  # [B]
    mask: ArrayLike | None,  # [T,B], [B,T] if batch_first
    reset: ArrayLike | None,  # as mask
    batch_first: bool,
    repeat: bool,
    return_sequence: bool,
    return_cells: bool,
    return_gates: bool,
    training: bool,
    checkpoint_every: int,  # 0: every step is kept, -1: sqrt(T)
    dropout: float,
    dropout_seed: int,
    dropout_call: int,
    dropout_step: int,
    threads: int | None,
    out: NDArray[Any] | None,  # y's memory, laid out as x
    memory: NDArray[Any] | None = ...,  # [tape_bytes] uint8 that the tape is left in instead of being returned
) -> tuple[
    NDArray[Any] | None, tuple[NDArray[Any], NDArray[Any]], NDArray[Any] | None, NDArray[Any] | None, Tape | None
]:
    """Return y [T,B,D*Hout], (h_n, c_n), cells [T,B,D*H], gates [T,B,D*4H], tape: None where not asked for."""

def tape_bytes(weights: Weights, T: int, B: int) -> int:
    """How much memory forward's tape takes: of weights of these sizes, options and dtype on this instruction set."""

def resume(
    weights: Weights,
    memory: NDArray[Any],  # [tape_bytes] uint8 at 64 bytes, as a forward with the same arguments left it
    T: int,
    B: int,
    batched: bool,
    batch_first: bool,
    lengths: ArrayLike | None,
    mask: ArrayLike | None,
    reset: ArrayLike | None,
    repeat: bool,
    return_sequence: bool,
    dropout: float,
    dropout_seed: int,
    dropout_call: int,
) -> Tape:
    """Make forward's tape from the memory that it was left in, which it keeps and backward reads."""

def backward(
    tape: Tape,
    dy: NDArray[Any] | None,  # [T,B,D*Hout]
    dstate: tuple[NDArray[Any] | None, NDArray[Any] | None] | None,  # dh_n, dc_n
    dcells: NDArray[Any] | None,  # [T,B,D*H]
    dgates: NDArray[Any] | None,  # [T,B,D*4H]
    truncate: int,  # 0: not
    threads: int | None,
    want_x: bool = ...,
    want_weights: bool = ...,
) -> tuple[NDArray[Any] | None, tuple[NDArray[Any], NDArray[Any]], list[NDArray[Any]]]:
    """Return dx if wanted, (dh0, dc0), and the weights' gradients, if wanted, in the order Weights took the arrays."""

class SlstmWeights:
    """Weights of an sLSTM, copied and packed for one instruction set and dtype."""

    def __init__(
        self,
        weight_ih: NDArray[Any] | None,  # [4H,I]; None where input_size is 0
        weight_hh: NDArray[Any],  # [4H,H/num_heads]
        bias: NDArray[Any] | None,  # [4H]
        input_size: int,
        hidden_size: int,
        num_heads: int,
    ) -> None: ...
    @property
    def dtype(self) -> str: ...
    @property
    def isa(self) -> str: ...
    @property
    def nbytes(self) -> int: ...

class SlstmTape:
    """What slstm_backward needs of a training slstm_forward; never written after it was made."""

    @property
    def nbytes(self) -> int: ...

def slstm_forward(
    weights: SlstmWeights,
    x: NDArray[Any],  # [T,B,I], [B,T,I] if batch_first
    state: tuple[NDArray[Any] | None, ...] | None,  # h c n m [1,B,H]
    lengths: ArrayLike | None,  # [B]
    mask: ArrayLike | None,  # [T,B], [B,T] if batch_first
    reset: ArrayLike | None,  # as mask
    batch_first: bool,
    repeat: bool,
    training: bool,
    threads: int | None,
    out: NDArray[Any] | None,  # y's memory, laid out as x
) -> tuple[NDArray[Any], tuple[NDArray[Any], ...], SlstmTape | None]:
    """Return y [T,B,H], the last h c n m, tape: None unless training."""

def slstm_backward(
    tape: SlstmTape,
    dy: NDArray[Any] | None,  # [T,B,H]
    dstate: tuple[NDArray[Any] | None, ...] | None,  # of h c n m
    threads: int | None,
) -> tuple[NDArray[Any], tuple[NDArray[Any], ...], list[NDArray[Any]]]:
    """Return dx, those of the first h c n m, and the weights' in the order in which SlstmWeights took the arrays."""

def paths(weights: Weights, T: int, B: int, training: bool, threads: int | None) -> list[str]:
    """Say in words how each layer would run sequences of T steps and B rows."""

def transposed(array: NDArray[Any]) -> NDArray[Any]:
    """Return a contiguous array [n,m] of one [m,n], which NumPy copies ten times slower."""

def profile(on: bool) -> dict[str, float]:
    """Start or end measuring; return the seconds that calling threads spent in each phase since it last began."""

def activation(name: str, x: NDArray[Any], alpha: float = ..., beta: float = ...) -> NDArray[Any]:
    """Apply the active instruction set's fastlstm.cells.activate to each element of x: a hook for accuracy sweeps."""

def activation_slope(name: str, y: NDArray[Any], alpha: float = ..., beta: float = ...) -> NDArray[Any]:
    """Apply the active instruction set's fastlstm.cells.activation_slope to each element of y."""

def set_num_threads(n: int) -> None: ...
def get_num_threads() -> int: ...
def set_isa(name: str) -> None: ...
def active_isa() -> str: ...
def release_memory() -> None: ...
def build_config() -> dict[str, object]: ...
