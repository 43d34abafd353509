"""LSTMs in safetensors files: the arrays under torch's names, the layer's arguments in the metadata."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

# Raised by 1 whenever an older fastlstm could not read what is written.
FORMAT_VERSION = 1


def write(path: str | os.PathLike[str], arguments: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Write the file, or leave what was there untouched."""
    from safetensors.numpy import save

    path = Path(path)
    # safetensors.numpy writes the memory of a strided array as if it were contiguous, and says nothing.
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    metadata = {"format": "fastlstm", "format_version": str(FORMAT_VERSION), "arguments": json.dumps(dict(arguments))}
    draft = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}.draft")
    try:
        draft.write_bytes(save(contiguous, metadata))  # save_file would let nobody else read it
        os.replace(draft, path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def read(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The arguments and the arrays that `write` was given.

    Raises ValueError for a file that is none of ours or was written by a later format.
    """
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        metadata = file.metadata() or {}
        if metadata.get("format") != "fastlstm":
            raise ValueError(f"{os.fspath(path)} has format {metadata.get('format')!r}, expected 'fastlstm'")
        version = int(metadata["format_version"])
        if version > FORMAT_VERSION:
            raise ValueError(
                f"{os.fspath(path)} has format version {version}, but this fastlstm reads up to {FORMAT_VERSION}: "
                "expected a newer fastlstm"
            )
        return json.loads(metadata["arguments"]), {name: file.get_tensor(name) for name in file.keys()}
