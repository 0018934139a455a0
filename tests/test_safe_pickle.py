"""Reading other people's pickles: the same tensors as torch.load, and nothing ever runs."""

import io
import os
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch import nn

from latentworks.checkpoints.safe_pickle import Inert, load_pickle


def write(path: Path, payload: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", payload)
    return path


def test_reads_what_torch_reads(tmp_path):
    base = torch.randn(4, 6)
    values = {
        "state_dict": OrderedDict(view=base.t()[1:3], whole=base, half=base.half(), bf=base.bfloat16(), empty=torch.empty(0)),
        "kinds": [torch.tensor(3), torch.tensor([True, False]), torch.arange(3, dtype=torch.int32), torch.tensor(2.0, dtype=torch.float64)],
        "parameter": nn.Parameter(torch.ones(2)),
        "plain": {"epoch": 3, "lr": 0.1, "names": ("a", None, True), "set": {1, 2}, "bytes": "x"},
    }
    torch.save(values, tmp_path / "a.ckpt")
    ours, theirs = load_pickle(tmp_path / "a.ckpt"), torch.load(tmp_path / "a.ckpt", weights_only=True)
    assert ours["plain"] == theirs["plain"]
    for key, value in theirs["state_dict"].items():
        assert ours["state_dict"][key].dtype == value.dtype
        assert torch.equal(ours["state_dict"][key], value)
    assert all(torch.equal(a, b) for a, b in zip(ours["kinds"], theirs["kinds"], strict=True))
    assert torch.equal(ours["parameter"], theirs["parameter"])


class Callback:
    """Stands for a training library's class: with a state, hashable as a class, a dict and a list."""

    def __init__(self) -> None:
        self.best = 1.0


class Attributes(dict):
    """A dict of a class of its own, as Lightning's hyper-parameters are."""


def test_unknown_classes_are_inert(tmp_path):
    values = {"callbacks": {Callback: Callback()}, "hyper": Attributes(a=1), "path": Path("x"), "state_dict": {"w": torch.ones(2)}}
    torch.save(values, tmp_path / "a.ckpt")
    read = load_pickle(tmp_path / "a.ckpt")
    assert torch.equal(read["state_dict"]["w"], torch.ones(2))
    ((key, value),) = read["callbacks"].items()
    assert issubclass(key, Inert)
    assert type(value) is key
    assert isinstance(read["hyper"], Inert)
    assert isinstance(read["path"], Inert)


class Attack:
    def __init__(self, function: object, *args: object) -> None:
        self.function, self.args = function, args

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return self.function, self.args


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_nothing_runs(tmp_path, protocol):
    target = tmp_path / "ran"
    attacks = [
        Attack(os.system, f"touch {target}"),
        Attack(eval, f"open({str(target)!r}, 'w')"),
        Attack(exec, f"open({str(target)!r}, 'w')"),
        Attack(getattr, os, "system") if protocol else Attack(print, "x"),
        Attack(torch.load, str(target)),
    ]
    for i, attack in enumerate(attacks):
        try:
            payload = pickle.dumps({"state_dict": attack}, protocol=protocol)
        except (TypeError, pickle.PicklingError):  # a module cannot be pickled: nothing to read
            continue
        read = load_pickle(write(tmp_path / f"{i}.ckpt", payload))
        assert isinstance(read["state_dict"], Inert)
    assert not target.exists()


def test_nothing_is_imported(tmp_path):
    (tmp_path / "trap_module.py").write_text("raise SystemExit('imported')")
    payload = b"\x80\x02ctrap_module\nClass\n)\x81."
    assert isinstance(load_pickle(write(tmp_path / "a.ckpt", payload)), Inert)


def test_hand_written_opcodes_are_refused_or_inert(tmp_path):
    for i, payload in enumerate((
        b"\x80\x02cos\nsystem\nq\x00h\x00(S'x'\ntRR.",  # too few operands
        b"\x80\x02\x82\x01.",  # extension registry
        b"\x80\x02(lp0\n0.",  # empty stack
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(K\x01K\x01K\x01tR.",  # no storage
        b"\x80\x02(U\x07storagectorch\nFloatStorage\nU\x019U\x03cpuK\x04tQ.",  # a storage that is not in the file
        b"not a pickle",
    )):  # fmt: skip
        with pytest.raises(ValueError, match="can be read safely"):
            load_pickle(write(tmp_path / f"{i}.ckpt", payload))


def test_tensors_cannot_reach_outside_their_storage(tmp_path):
    torch.save({"w": torch.arange(4.0)}, tmp_path / "a.ckpt")
    with zipfile.ZipFile(tmp_path / "a.ckpt") as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    name = next(n for n in files if n.endswith("data.pkl"))
    size = files[name].replace(b"K\x04\x85", b"K\x40\x85")
    assert size != files[name]
    with zipfile.ZipFile(tmp_path / "b.ckpt", "w") as archive:
        for other, data in files.items():
            archive.writestr(other, size if other == name else data)
    with pytest.raises(ValueError, match="can be read safely"):
        load_pickle(tmp_path / "b.ckpt")


def test_files_that_are_no_checkpoints_are_named(tmp_path):
    with pytest.raises(ValueError, match="cannot read"):
        load_pickle(tmp_path / "nothing.ckpt")
    (tmp_path / "text.ckpt").write_text("hello")
    with pytest.raises(ValueError, match=r"text\.ckpt is no torch\.save file"):
        load_pickle(tmp_path / "text.ckpt")
    with zipfile.ZipFile(tmp_path / "empty.ckpt", "w") as archive:
        archive.writestr("other", b"")
    with pytest.raises(ValueError, match=r"data\.pkl"):
        load_pickle(tmp_path / "empty.ckpt")
    buffer = io.BytesIO()
    torch.save({"w": torch.randn(100)}, buffer)
    (tmp_path / "short.ckpt").write_bytes(buffer.getvalue()[:-200])
    with pytest.raises(ValueError, match=r"short\.ckpt"):
        load_pickle(tmp_path / "short.ckpt")
