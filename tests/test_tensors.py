"""Weights from files: mapped, checked before memory is taken, and put into models without a second copy."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from latentworks.checkpoints.mapped import MappedFile, release
from latentworks.checkpoints.tensors import load_weights, read_tensors, without_weights, write_tensors

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def some_tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    tensors = {str(dtype): (torch.randn(3, 5) * 50).to(dtype) for dtype in DTYPES}
    base = torch.randn(4, 6)
    more = {"bool": torch.tensor([True, False]), "scalar": torch.tensor(2.5), "empty": torch.empty(0, 3)}
    return tensors | more | {"view": base.t()[1:3], "é": base}


def same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(ours[k].dtype == v.dtype and torch.equal(ours[k], v) for k, v in theirs.items())


def test_both_formats_come_back_as_they_were(tmp_path):
    tensors = some_tensors()
    write_tensors(tmp_path / "a.bin", tensors, {"format": "latentworks"})
    save_file({key: value.contiguous().clone() for key, value in tensors.items()}, tmp_path / "b.safetensors")
    torch.save({"state_dict": tensors, "epoch": 3}, tmp_path / "c.ckpt")
    torch.save(tensors, tmp_path / "d.pt")
    assert same(load_file(tmp_path / "a.bin"), tensors), "the safetensors library reads what we write"
    for name in ("a.bin", "b.safetensors", "c.ckpt", "d.pt"):
        assert same(read_tensors(tmp_path / name), tensors), name


def test_a_changed_tensor_does_not_change_the_file(tmp_path):
    write_tensors(tmp_path / "a", {"w": torch.zeros(9)})
    read_tensors(tmp_path / "a")["w"].fill_(1)
    assert not read_tensors(tmp_path / "a")["w"].any()


def test_released_pages_are_read_again(tmp_path):
    values = torch.arange(50_000.0)
    write_tensors(tmp_path / "a", {"v": values, "w": values})
    read = read_tensors(tmp_path / "a")
    release(read["v"])
    release(torch.ones(3))
    assert torch.equal(read["v"], values)
    assert torch.equal(read["w"], values)


def test_types_can_change_on_the_way_out(tmp_path):
    write_tensors(tmp_path / "a", {"w": torch.ones(3), "std": torch.ones(())}, dtypes={"w": torch.float16})
    assert {key: value.dtype for key, value in read_tensors(tmp_path / "a").items()} == {"w": torch.float16, "std": torch.float32}
    with pytest.raises(ValueError, match=r"w: values of type torch.complex64 cannot be written; supported are torch.float64"):
        write_tensors(tmp_path / "b", {"w": torch.ones(3, dtype=torch.complex64)})
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    real = Path.open
    monkeypatch.setattr(Path, "open", lambda self, mode="r", **kw: real(Path("/dev/full") if mode == "wb" else self, mode, **kw))
    with pytest.raises(ValueError, match="No space left on device; nothing was changed there"):
        write_tensors(tmp_path / "a", {"w": torch.ones(100_000)})
    assert list(tmp_path.iterdir()) == []


def header(values: object, data: int = 8) -> bytes:
    text = values if isinstance(values, bytes) else json.dumps(values).encode()
    return len(text).to_bytes(8, "little") + text + bytes(data)


def entry(shape: object = (2,), offsets: object = (0, 8), dtype: object = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


DAMAGED = {
    "empty": (b"", "is empty"),
    "short": (b"abc", "cut short"),
    "huge header": ((1 << 62).to_bytes(8, "little") + b"{}", "more than the file"),
    "long header": ((17 << 20).to_bytes(8, "little") + bytes(18 << 20), "more than is allowed"),
    "no JSON": (header(b"{'a'"), "Expecting property name"),
    "no text": (header(b"\xff{}"), "decode|invalid|Expecting"),
    "another encoding": (header('{"a": 1}'.encode("utf-16-be")), "not described|Expecting|invalid|decode"),
    "a list": (header([]), "is no mapping"),
    "deep": (header(b"[" * 200_000), "nested too deeply"),
    "twice": (header(b'{"a":{},"a":{}}'), "occurs twice"),
    "NaN": (header(b'{"a":NaN}'), "NaN in its header"),
    "no entry": (header({"a": 3}), "a: not described by"),
    "surplus": (header({"a": entry() | {"x": 1}}), "a: not described by"),
    "float 8": (header({"a": entry(dtype="F8_E4M3", shape=[8])}), "values of type 'F8_E4M3'; supported are F64"),
    "type of a type": (header({"a": entry(dtype=["F32"])}), "values of type"),
    "negative": (header({"a": entry(shape=[-2])}), "lists of integers from 0"),
    "overflow": (header({"a": entry(shape=[1 << 40, 1 << 40])}), "8 bytes for shape"),
    "huge number": (header({"a": entry(shape=[1 << 64])}), "lists of integers from 0"),
    "a bool": (header({"a": entry(shape=[True, 2])}), "lists of integers from 0"),
    "a float": (header({"a": entry(offsets=[0.0, 8.0])}), "lists of integers from 0"),
    "three offsets": (header({"a": entry(offsets=[0, 4, 8])}), "of two"),
    "backwards": (header({"a": entry(offsets=[8, 0])}), "begins at 8 instead of 0"),
    "a hole": (header({"a": entry([1], [0, 4]), "b": entry([1], [8, 12])}, 12), "b: its data begins at 8 instead of 4"),
    "overlap": (header({"a": entry(), "b": entry()}), "b: its data begins at 0 instead of 8"),
    "surplus data": (header({"a": entry()}, 9), "but its header describes"),
    "cut data": (header({"a": entry()}, 7), "but its header describes"),
    "a number too long": (header(b'{"a":' + b"1" * 5000 + b"}"), "digits|not described"),
    "old torch": (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", "format of torch before 1.6"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_files_are_named_in_one_line(tmp_path, name):
    content, message = DAMAGED[name]
    (tmp_path / "a.bin").write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        read_tensors(tmp_path / "a.bin")
    assert str(tmp_path / "a.bin") in str(error.value)
    assert "\n" not in str(error.value)


def test_what_is_no_file_is_named(tmp_path):
    with pytest.raises(ValueError, match="No such file"):
        read_tensors(tmp_path / "nothing")
    os.mkfifo(tmp_path / "pipe")
    for name in ("", "pipe"):
        with pytest.raises(ValueError, match="is no file"):
            read_tensors(tmp_path / name)


class Net(nn.Module):
    """With a weight, a shared weight, a saved and an unsaved buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
        self.tied = nn.Linear(3, 3, bias=False)
        self.tied.weight = self.first.weight
        self.register_buffer("std", torch.full((), 2.0))
        self.register_buffer("positions", torch.arange(5), persistent=False)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_a_model_without_weights_is_filled(dtype):
    with without_weights():
        net = Net()
    assert net.first.weight.is_meta
    net.second.requires_grad_(False)
    shared = torch.randn(3, 3, dtype=torch.float64)
    tensors = {"first.weight": shared, "tied.weight": shared, "second.weight": shared, "std": torch.tensor(0.5).half()}
    load_weights(net, tensors, dtype)
    assert tensors == {}
    assert not any(value.is_meta for value in (*net.parameters(), *net.buffers()))
    assert (net.std.dtype, float(net.std), net.positions.tolist()) == (torch.float32, 0.5, [0, 1, 2, 3, 4])
    assert net.tied.weight is net.first.weight, "one weight in the model stays one"
    assert net.second.weight.data_ptr() != net.first.weight.data_ptr(), "two weights in the model are not one in memory"
    assert torch.equal(net.first.weight, shared.to(dtype or torch.float32))
    assert (net.first.weight.requires_grad, net.second.weight.requires_grad) == (True, False)


def test_what_does_not_fit_is_named_and_changes_nothing():
    net = Net()
    before = net.first.weight.clone()
    tensors = {"first.weight": torch.ones(3, 3), "tied.weight": torch.ones(3, 3), "second.weight": torch.ones(2), "more": torch.ones(1)}
    message = r"std is missing, more has no place in the model, second.weight has shape \(2,\) instead of \(3, 3\)"
    with pytest.raises(ValueError, match=message):
        load_weights(net, tensors)
    assert torch.equal(net.first.weight, before)


MEASURE = """
import sys, torch
from pathlib import Path
from torch import nn
from latentworks.checkpoints.tensors import load_weights, read_tensors, without_weights, write_tensors
def peak(): return int(next(l for l in open("/proc/self/status") if l.startswith("VmHWM")).split()[1]) / 1024
path, dtype = Path(sys.argv[1]), getattr(torch, sys.argv[2])
with without_weights():
    net = nn.Sequential(*(nn.Linear(1024, 2048, bias=False) for _ in range(16)))
load_weights(nn.Linear(1, 1), {"weight": torch.ones(1, 1), "bias": torch.ones(1)})
before = peak()
load_weights(net, read_tensors(path), dtype)
sum(float(value.sum()) for value in net.parameters())
loaded = peak() - before
write_tensors(path.with_suffix(".out"), net.state_dict())
print(loaded, peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")
@pytest.mark.parametrize(
    ("stored", "dtype"), [("float32", "float32"), ("float16", "float32"), ("float32", "bfloat16"), ("torch", "float32")]
)
def test_loading_and_saving_take_no_second_copy(tmp_path, stored, dtype):
    """128 MB of float32 weights, which take at most 1.2 times their memory."""
    tensors = {f"{i}.weight": torch.ones(2048, 1024, dtype=getattr(torch, stored.replace("torch", "float32"))) for i in range(16)}
    torch.save(tensors, tmp_path / "a") if stored == "torch" else write_tensors(tmp_path / "a", tensors)
    command = [sys.executable, "-c", MEASURE, tmp_path / "a", dtype]
    loaded, saved = map(float, subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
    weights = 64 if dtype == "bfloat16" else 128
    assert loaded < 1.2 * weights + 8
    assert saved < 1.2 * weights + 8


def test_a_mapped_file_gives_what_is_in_it(tmp_path):
    (tmp_path / "a").write_bytes(bytes(range(12)))
    file = MappedFile(tmp_path / "a")
    assert file.tensor(1, 2, torch.int16).tolist() == [0x0201, 0x0403]
    for start, length in ((8, 5), (-1, 2), (3, -1)):
        with pytest.raises(ValueError, match="cut short"):
            file.bytes(start, length)
