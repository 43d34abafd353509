"""A plugin of pytest's that puts our layer in place of Keras's, for Keras's own tests."""

import keras
import pytest
from keras.src import layers

from fastlstm.keras import LSTM

layers.LSTM = keras.layers.LSTM = LSTM


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Some of them draw without a seed."""
    keras.utils.set_random_seed(0)
