"""`LSTM.save` and `LSTM.load`: what a file holds, and what happens with a strange one or a full disk."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastlstm import LSTM, files

numpy_files = pytest.importorskip("safetensors.numpy")

X = np.random.default_rng(0).standard_normal((6, 4, 5), np.float32)


def small() -> LSTM:
    return LSTM(5, 7, num_layers=2, bidirectional=True, seed=3)


def same_weights(a: LSTM, b: LSTM) -> bool:
    return all(np.array_equal(a.weights[name], b.weights[name]) for name in a.weights)


@pytest.mark.parametrize("as_path", [str, Path])
def test_saved_layer_predicts_the_same(tmp_path: Path, dtype: str, as_path: Any) -> None:
    lstm = LSTM(5, 7, 2, False, True, 0.25, True, 3, dtype=dtype)
    path = as_path(tmp_path / "layer.safetensors")
    lstm.save(path)
    again = LSTM.load(path)
    assert repr(again) == repr(lstm) and same_weights(again, lstm)
    x = X.astype(dtype)
    np.testing.assert_array_equal(again(x)[0], lstm(x)[0])
    assert [file.name for file in tmp_path.iterdir()] == ["layer.safetensors"]


def test_saved_file_is_one_that_safetensors_reads(tmp_path: Path) -> None:
    lstm = small()
    lstm.save(tmp_path / "layer")
    arrays = numpy_files.load_file(tmp_path / "layer")
    assert set(arrays) == set(lstm.weights)
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, lstm.weights[name])


@pytest.mark.skipif(os.name != "posix", reason="permissions are POSIX's")
def test_saved_file_has_the_permissions_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "any").touch()
    small().save(tmp_path / "layer")
    assert (tmp_path / "layer").stat().st_mode == (tmp_path / "any").stat().st_mode


def test_strided_arrays_are_saved_as_they_read(tmp_path: Path) -> None:
    whole = np.arange(24, dtype=np.float32).reshape(4, 6)
    arrays = {"transposed": whole.T, "every_second": whole[:, ::2], "backwards": whole[::-1], "column": whole[:, 1]}
    assert not any(array.flags.c_contiguous for array in arrays.values())
    files.write(tmp_path / "arrays", {}, arrays)
    _, again = files.read(tmp_path / "arrays")
    for name, array in arrays.items():
        np.testing.assert_array_equal(again[name], array)


def test_newer_format_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    newer = files.FORMAT_VERSION + 1
    with monkeypatch.context() as patch:
        patch.setattr(files, "FORMAT_VERSION", newer)
        small().save(tmp_path / "layer")
    with pytest.raises(
        ValueError, match=rf"layer has format version {newer}, but this fastlstm reads up to {newer - 1}"
    ):
        LSTM.load(tmp_path / "layer")


def test_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    numpy_files.save_file(small().state_dict(), tmp_path / "other", {"format": "pt"})
    with pytest.raises(ValueError, match="other has format 'pt', expected 'fastlstm'"):
        LSTM.load(tmp_path / "other")
    numpy_files.save_file(small().state_dict(), tmp_path / "bare")
    with pytest.raises(ValueError, match="bare has format None, expected 'fastlstm'"):
        LSTM.load(tmp_path / "bare")


def test_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lstm, path = small(), tmp_path / "layer"
    lstm.save(path)
    before = path.read_bytes()

    def no_space(draft: Path, content: bytes) -> int:
        with draft.open("wb") as file:
            file.write(content[: len(content) // 2])
        raise OSError("no space left")

    monkeypatch.setattr(Path, "write_bytes", no_space)
    with pytest.raises(OSError, match="no space left"):
        LSTM(5, 7).save(path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
