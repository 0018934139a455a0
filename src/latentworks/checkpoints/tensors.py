"""Weights from any file we know, mapped rather than read, and models that are filled with them without ever holding them twice."""

from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from latentworks.checkpoints.mapped import MappedFile, release
from latentworks.checkpoints.safe_pickle import read_pickle
from latentworks.checkpoints.safetensors_file import read_safetensors, write_safetensors
from latentworks.staging import staged_file

__all__ = ["load_weights", "read_tensors", "without_weights", "write_tensors"]


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file or of a ``torch.save`` file (its ``state_dict``, if it has one), by name, told apart by content.

    They lie in the mapped file: nothing is read before it is used, and changing one does not change the file.
    Raises: ValueError in one line, naming the file and what is wrong with it.
    """
    try:
        file = MappedFile(path)
        begin = file.bytes(0, min(4, file.size))  # not less of it: the length of a safetensors header may begin alike
        if begin == b"PK\x03\x04":
            return _state_dict(read_pickle(file))
        if begin == b"\x80\x02\x8a\x0a":
            raise ValueError("it has the format of torch before 1.6: load it with torch and save it again")
        return read_safetensors(file)
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror or error}") from None
    except ValueError as error:
        text = " ".join(str(error).split())
        raise ValueError(text if str(path) in text else f"{path} cannot be read as weights: {text}") from None


def _state_dict(state: Any) -> dict[str, Tensor]:
    for _ in range(8):
        if not isinstance(state, dict) or "state_dict" not in state:
            break
        state = state["state_dict"]
    if not isinstance(state, dict) or not all(isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items()):
        raise ValueError("it holds no state_dict of tensors: is it a model checkpoint?")
    return dict(state)


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None, dtypes: Mapping[str, torch.dtype] | None = None
) -> None:
    """Write a safetensors file, whole or not at all, tensor by tensor: none is copied as long as it is on the CPU and contiguous.

    ``dtypes``: of those to be written in another type than they have, by name. Tensors may share memory; each is written by itself.
    Raises: ValueError when it cannot be written, or a type has no name in the format.
    """
    with staged_file(path) as temporary:
        write_safetensors(temporary, tensors, metadata, dtypes)


class _Bare(TorchFunctionMode):
    """``torch.empty``, which is how layers make their weights, takes no memory; buffers, which are computed, stay as they are."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **((kwargs or {}) | ({"device": "meta"} if func is torch.empty else {})))


@contextmanager
def without_weights() -> Iterator[None]:
    """Modules built inside have their weights on the ``meta`` device, without memory, until `load_weights`; buffers have their values."""
    with _Bare():
        yield


def load_weights(model: nn.Module, tensors: MutableMapping[str, Tensor], dtype: torch.dtype | None = None) -> None:
    """Make ``tensors`` the weights and buffers of a model, which may have been built in `without_weights`. ``tensors`` is emptied.

    ``dtype``: of the weights (None: the one they have in the model); buffers always keep their own. What has it already is not copied, so a
    model may lie in the file it came from; of what is converted, the file's part leaves memory at once.
    Raises: ValueError naming keys that are missing, have no place, or another shape, before anything is changed.
    """
    own = model.state_dict(keep_vars=True)
    complaints = [
        *(f"{key} is missing" for key in own if key not in tensors),
        *(f"{key} has no place in the model" for key in tensors if key not in own),
        *(
            f"{key} has shape {tuple(tensors[key].shape)} instead of {tuple(value.shape)}"
            for key, value in own.items()
            if key in tensors and tensors[key].shape != value.shape
        ),
    ]
    if complaints:
        more = f" and {len(complaints) - 5} more" if len(complaints) > 5 else ""
        raise ValueError(f"weights do not fit the model: {', '.join(complaints[:5])}{more}")
    filled: dict[str, Tensor] = {}
    made: dict[int, Tensor] = {}  # weights that are one in the model stay one
    places: set[int] = set()
    for key in list(tensors):
        value = _converted(tensors.pop(key), own[key], dtype)
        if value.data_ptr() in places:  # two names for one weight in the file may be two weights in the model
            value = value.clone()
        places.add(value.data_ptr())
        filled[key] = made.setdefault(id(own[key]), nn.Parameter(value) if isinstance(own[key], nn.Parameter) else value)
    model.load_state_dict(filled, strict=True, assign=True)


def _converted(given: Tensor, own: Tensor, dtype: torch.dtype | None) -> Tensor:
    target = dtype if dtype is not None and isinstance(own, nn.Parameter) else own.dtype
    value = given.detach().to(target).contiguous()
    if value.data_ptr() != given.data_ptr():
        release(given)
    return value
