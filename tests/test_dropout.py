"""The dropout mask: Philox against its published answers, and the mask as a pure function of its place."""

import numpy as np
import pytest

from fastlstm.dropout import dropout_mask, philox4x32


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        pytest.param((0, 0, 0, 0), (0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8", id="zeros"),
        pytest.param((2**32 - 1,) * 4, (2**32 - 1,) * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd", id="ones"),
        pytest.param(
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            "d16cfe09 94fdcceb 5001e420 24126ea1",
            id="digits_of_pi",
        ),
    ],
)
def test_philox_gives_the_known_answers_of_random123(counter, key, words):
    assert " ".join(f"{word:08x}" for word in philox4x32(counter, key)) == words


def test_dropout_mask_is_a_pure_function_of_its_place():
    whole = dropout_mask(0.4, 7, 3, layer=1, steps=5, batch=4, num_directions=2, units=6)
    assert whole.shape == (5, 4, 12)
    part = dropout_mask(0.4, 7, 3, layer=1, steps=3, batch=2, num_directions=1, units=5)
    np.testing.assert_array_equal(part, whole[:3, :2, :5])
    for t, b, d, unit in ((0, 0, 0, 0), (4, 3, 1, 5), (2, 1, 1, 3), (3, 0, 0, 4)):
        words = philox4x32((1 << 21 | d << 20 | unit >> 2, t, b, 3), (7, 0))
        assert whole[t, b, 6 * d + unit] == (int(words[unit & 3]) >= int(0.4 * 2**32))


def test_a_word_equal_to_the_threshold_is_kept():
    word = int(philox4x32((0, 0, 0, 0), (7, 0))[0])
    place = {"layer": 0, "steps": 1, "batch": 1, "num_directions": 1, "units": 1}
    assert dropout_mask(word / 2**32, 7, 0, **place).all()
    assert not dropout_mask((word + 1) / 2**32, 7, 0, **place).any()


def test_every_part_of_the_place_changes_the_dropout_mask():
    place = {"layer": 0, "steps": 4, "batch": 4, "num_directions": 2, "units": 8}
    base = dropout_mask(0.5, 1, 0, **place)
    others = [
        dropout_mask(0.5, 2, 0, **place),
        dropout_mask(0.5, 1 + 2**32, 0, **place),
        dropout_mask(0.5, 1, 1, **place),
        dropout_mask(0.5, 1, 0, **(place | {"layer": 1})),
        base[::-1],
        base[:, ::-1],
        np.concatenate([base[..., 8:], base[..., :8]], axis=-1),
    ]
    assert all((base != other).any() for other in others)


def test_dropout_keeps_its_share():
    for dropout in (0.0, 0.1, 0.5, 0.9, 1.0):
        kept = dropout_mask(dropout, 0, 0, layer=0, steps=100, batch=20, num_directions=1, units=50).mean()
        assert abs(kept - (1 - dropout)) < 4 * np.sqrt(dropout * (1 - dropout) / 100_000) + 1e-12
