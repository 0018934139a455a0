"""Reading other people's pickles: the same tensors as torch.load, and nothing ever runs."""

import collections
import io
import os
import pathlib
import pickle
import struct
import subprocess
import sys
import zipfile
from argparse import Namespace
from collections import OrderedDict
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from latentworks.checkpoints.safe_pickle import Inert, load_pickle
from latentworks.checkpoints.tensors import read_tensors

REFUSED = "can be read safely: "


def write(path: Path, payload: bytes, method: int = zipfile.ZIP_STORED, **entries: bytes) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("archive/data.pkl", payload)
        for name, content in entries.items():
            archive.writestr(f"archive/data/{name}", content)
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


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_protocol_and_a_whole_training_state(tmp_path, protocol):
    net = nn.Linear(3, 2)
    optimiser = torch.optim.AdamW(net.parameters())
    net(torch.ones(1, 3)).sum().backward()
    optimiser.step()
    state = {"state_dict": net.state_dict(), "optimizer_states": [optimiser.state_dict()], "module": net, "frozen": frozenset({1, "a"})}
    torch.save(state, tmp_path / "a.ckpt", pickle_protocol=protocol)
    read = load_pickle(tmp_path / "a.ckpt")
    assert torch.equal(read_tensors(tmp_path / "a.ckpt")["weight"], net.weight)
    assert torch.equal(read["optimizer_states"][0]["state"][0]["exp_avg"], optimiser.state_dict()["state"][0]["exp_avg"])
    assert (read["module"], read["frozen"]) == (Inert("torch.nn.modules.linear.Linear", made=True), {1, "a"})


class Callback:
    """Stands for a training library's class: with a state, hashable as a class, a dict and a list."""

    def __init__(self) -> None:
        self.best = 1.0


class Attributes(dict):
    """A dict of a class of its own, as Lightning's hyper-parameters are."""


class Items(list):
    """A list of a class of its own."""


class Bag(set):
    """A set of a class of its own."""


def test_unknown_classes_are_inert_and_the_tensors_intact(tmp_path):
    values = {
        "callbacks": {Callback: Callback()},
        "hyper": Attributes(a=1),
        "items": Items([1, 2]),
        "bag": Bag([1]),
        "path": Path("x"),
        "arguments": Namespace(lr=1),
        "numbers": [np.float64(0.5), np.arange(3), np.dtype("f4")],
        "counts": collections.defaultdict(list, a=[1]),
        "ordered": OrderedDict([("a", 1)]),
        "function": nn.functional.relu,  # a name that is not called
        "types": [torch.float16, torch.device("cpu"), torch.Size([1, 2]), int, slice(1)],
        "state_dict": {"w": torch.ones(2)},
    }
    torch.save(values, tmp_path / "a.ckpt")
    read = load_pickle(tmp_path / "a.ckpt")
    assert torch.equal(read["state_dict"]["w"], torch.ones(2))
    ((key, value),) = read["callbacks"].items()
    assert (key.name.rpartition(".")[2], key.made, value.made) == ("Callback", False, True)
    inert = [read["hyper"], read["items"], read["bag"], read["path"], read["arguments"], *read["numbers"]]
    assert all(isinstance(item, Inert) for item in inert)
    assert read["path"].name == f"pathlib.{type(Path()).__name__}"
    assert (read["counts"], read["ordered"], read["types"][2]) == ({"a": [1]}, {"a": 1}, (1, 2))


def test_a_tensor_with_attributes_is_the_tensor(tmp_path):
    parameter, plain = nn.Parameter(torch.ones(2)), torch.ones(3)
    parameter.note = plain.note = "x"
    torch.save({"a": parameter, "b": plain}, tmp_path / "a.ckpt")
    assert {key: value.shape[0] for key, value in read_tensors(tmp_path / "a.ckpt").items()} == {"a": 2, "b": 3}


class Attack:
    def __init__(self, function: object, *args: object) -> None:
        self.function, self.args = function, args

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return self.function, self.args


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_what_would_run_is_refused_by_name(tmp_path, protocol):
    target = tmp_path / "ran"
    nested = pickle.dumps(Attack(os.system, f"touch {target}"))
    attacks = [
        ("posix.system", Attack(os.system, f"touch {target}")),
        ("builtin", Attack(eval, f"open({str(target)!r}, 'w')")),
        ("builtin", Attack(exec, f"open({str(target)!r}, 'w')")),
        ("builtin", Attack(getattr, nn.Module, "__init__")),
        ("builtin", Attack(__import__, "trap")),
        ("subprocess.Popen", Attack(subprocess.Popen, ["touch", str(target)])),
        ("functools.partial", Attack(partial, os.system)),
        ("pickle.loads", Attack(pickle.loads, nested)),
        ("torch.serialization.load", Attack(torch.load, str(target))),
        ("torch.storage._load_from_bytes", Attack(torch.storage._load_from_bytes, nested)),
        ("torch.hub", Attack(torch.hub.load, "x")),
        ("io.open", Attack(pathlib.io.open, str(target), "w") if hasattr(pathlib, "io") else Attack(io.open, str(target), "w")),
    ]
    for i, (name, attack) in enumerate(attacks):
        payload = pickle.dumps({"state_dict": attack}, protocol=protocol)
        with pytest.raises(ValueError, match=f"{REFUSED}it (asks for|calls) '.*{name.partition('.')[2]}.*refused") as error:
            load_pickle(write(tmp_path / f"{i}.ckpt", payload))
        assert "\n" not in str(error.value)
    assert not target.exists()


def test_nothing_is_imported(tmp_path):
    (tmp_path / "trap_module.py").write_text("raise SystemExit('imported')")
    payload = b"\x80\x02ctrap_module\nClass\n)\x81."
    assert load_pickle(write(tmp_path / "a.ckpt", payload)) == Inert("trap_module.Class", made=True)


TEXT = b"X\x01\x00\x00\x00x"
HOSTILE = {
    "too few operands": b"\x80\x02cos\nsystem\nq\x00h\x00(S'x'\ntRR.",
    "global, never called": b"cos\nsystem\n.",
    "global of a module's module": b"cshutil\nos.system\n.",
    "global through attributes": b"\x80\x04\x8c\x05torch\x8c\x17serialization.os.system\x93.",
    "global through a dunder": b"\x80\x04\x8c\x05torch\x8c\x0e_C.__dict__.xx\x93.",
    "builtins' own dictionary": b"c__builtin__\n__dict__\n.",
    "global that is no text": b"\x80\x04K\x01K\x02\x93.",
    "global without a name": b"cos\n\n.",
    "extension registry 1": b"\x80\x02\x82\x01.",
    "extension registry 2": b"\x80\x02\x83\x01\x00.",
    "extension registry 4": b"\x80\x02\x84\x01\x00\x00\x00.",
    "instance": b"(S'echo x'\nios\nsystem\n.",
    "instance of a function": b"(S'x'\nimy_library\nrun\n.",
    "object": b"(cos\nsystem\nS'echo x'\no.",
    "object of a function": b"(cmy_library\nrun\nS'x'\no.",
    "newobj": b"\x80\x02csubprocess\nPopen\n" + TEXT + b"\x85\x81.",
    "newobj of a function": b"\x80\x02cmy_library\nrun\n)\x81.",
    "newobj with settings": b"\x80\x04\x8c\x02os\x8c\x06system\x93)}\x92.",
    "unknown function": b"cmy_library\nrun\n(tR.",
    "numpy's runstring": b"cnumpy.testing._private.utils\nrunstring\n(S'x'\n}tR.",
    "sparse tensors": b"ctorch._utils\n_rebuild_sparse_tensor\n(tR.",
    "quantised tensors": b"ctorch._utils\n_rebuild_qtensor\n(tR.",
    "build on a class": b"cmy_library\nClass\n}b.",
    "build on a number": b"K\x01}b.",
    "build on one of our functions": b"ccollections\nOrderedDict\n}b.",
    "setstate of another": b"cbuiltins\nobject\n)R}S'__setstate__'\ncos\nsystem\nsbS'echo x'\nb.",
    "a class as container": b"cmy_library\nClass\nK\x01a.",
    "items of a class": b"cmy_library\nClass\nK\x01K\x02s.",
    "items of a number": b"K\x01K\x01K\x02s.",
    "append to a number": b"K\x01K\x01a.",
    "odd number of items": b"}(K\x01u.",
    "called with a number": b"cmy_library\nClass\nK\x01R.",
    "called with a name": b"cmy_library\nClass\ncmy_library\nClass\nR.",
    "a number called": b"K\x01)R.",
    "memo never written": b"h\x07.",
    "memo of nothing": b"q\x07.",
    "no end": b"\x80\x02}",
    "two objects": b"K\x01K\x02.",
    "a mark at the end": b"(K\x01.",
    "a mark too few": b"K\x01t.",
    "empty stack": b"\x80\x02(lp0\n00.",
    "empty": b"",
    "no pickle": b"not a pickle",
    "unknown opcode": b"\xff.",
    "a buffer": b"\x80\x05\x97.",
    "a read-only buffer": b"\x80\x05K\x01\x98.",
    "persistent id as text": b"Pstorage\n.",
    "persistent id of a number": b"K\x01Q.",
    "persistent id too short": b"(U\x07storagectorch\nFloatStorage\nU\x019U\x03cputQ.",
    "persistent id of another kind": b"(U\x06modulectorch\nFloatStorage\nU\x010U\x03cpuK\x04tQ.",
    "persistent id with a negative count": b"(U\x07storagectorch\nFloatStorage\nU\x010U\x03cpuJ\xff\xff\xff\xfftQ.",
    "persistent id with a wrong count": b"(U\x07storagectorch\nFloatStorage\nU\x010U\x03cpuK\x05tQ.",
    "persistent id with a list as key": b"(U\x07storagectorch\nFloatStorage\n]U\x03cpuK\x04tQ.",
    "storage of no type": b"(U\x07storagectorch\nQUInt8Storage\nU\x010U\x03cpuK\x04tQ.",
    "storage that is not there": b"(U\x07storagectorch\nFloatStorage\nU\x019U\x03cpuK\x04tQ.",
    "storage outside": b"(U\x07storagectorch\nFloatStorage\nU\x0c../../x/../0U\x03cpuK\x04tQ.",
    "no storage": b"ctorch._utils\n_rebuild_tensor_v2\n(K\x01K\x01K\x01tR.",
    "a shape of numbers": b"ctorch._utils\n_rebuild_tensor_v2\n(K\x01K\x01)K\x01tR.",
    "parameter of a number": b"ctorch._utils\n_rebuild_parameter\n(K\x01tR.",
    "attributes by another function": b"ctorch._tensor\n_rebuild_from_type_v2\n(cmy_library\nClass\nN)NtR.",
    "set of a number": b"cbuiltins\nset\nK\x01\x85R.",
    "pairs that are none": b"ccollections\nOrderedDict\n]K\x01a\x85R.",
    "float that is none": b"Fx\n.",
    "integer that is none": b"Ix\n.",
    "integer too long": b"L" + b"9" * 5000 + b"L\n.",
    "text cut short": b"X\xff\xff\xff\x7fx.",
    "text of 8 exabytes": b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\x7fx.",
    "bytes of 8 exabytes": b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7fx.",
    "bytearray of 1 TB": b"\x80\x05\x96\x00\x00\x00\x00\x00\x01\x00\x00x.",
    "integer of 2 GB": b"\x80\x02\x8b\xff\xff\xff\x7fx.",
    "integer of negative length": b"\x80\x02\x8b\xff\xff\xff\xffx.",
    "frame of 8 exabytes": b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f",
    "surrogates": b"X\x03\x00\x00\x00\xff\xfe\xfd.",
    "other torch functions": b"ctorch\nload\n(S'x'\ntR.",
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_pickles_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match=REFUSED) as error:
        load_pickle(write(tmp_path / "a.ckpt", HOSTILE[name], **{"0": bytes(16)}))
    assert "\n" not in str(error.value)


def tensor(offset: int, size: tuple[int, ...], stride: tuple[int, ...], count: int = 4) -> bytes:
    """The pickle of one tensor in storage 0 of float32."""

    def number(value: int) -> bytes:
        return b"\x8a\x0a" + value.to_bytes(10, "little", signed=True)

    numbers = [b"(" + b"".join(map(number, values)) + b"t" for values in (size, stride)]
    storage = b"(U\x07storagectorch\nFloatStorage\nU\x010U\x03cpu" + number(count) + b"tQ"
    return b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(" + storage + number(offset) + b"".join(numbers) + b"\x89NtR."


@pytest.mark.parametrize(
    ("offset", "size", "stride"),
    [
        (0, (5,), (1,)), (1, (4,), (1,)), (4, (1,), (1,)), (-1, (2,), (1,)), (0, (-1,), (1,)), (0, (2,), (-1,)), (0, (2, 2), (4, 1)),
        (0, (1 << 40, 1 << 40), (0, 0)), (0, (5,), (0,)), (0, (2,), (1 << 62,)), (1 << 62, (1,), (1,)), (1 << 70, (1,), (1,)),
        (0, (2,), (1, 1)), (0, (1,) * 65, (1,) * 65), (0, (1 << 62, 4), (1 << 62, 1)), (0, (2, 3), (1, 1)),
    ],
)  # fmt: skip
def test_tensors_cannot_reach_outside_their_storage(tmp_path, offset, size, stride):
    data = struct.pack("<4f", 1, 2, 3, 4)
    assert load_pickle(write(tmp_path / "good.ckpt", tensor(1, (1, 2), (1, 2)), **{"0": data})).tolist() == [[2, 4]]
    with pytest.raises(ValueError, match=REFUSED):
        load_pickle(write(tmp_path / "a.ckpt", tensor(offset, size, stride), **{"0": data}))


def test_an_empty_tensor_may_have_any_place(tmp_path):
    assert load_pickle(write(tmp_path / "a.ckpt", tensor(9, (0, 7), (7, 1)), **{"0": bytes(16)})).shape == (0, 7)


def test_compressed_entries_are_read(tmp_path):
    data = struct.pack("<4f", 1, 2, 3, 4)
    write(tmp_path / "a.ckpt", tensor(0, (4,), (1,)), zipfile.ZIP_DEFLATED, **{"0": data})
    assert load_pickle(tmp_path / "a.ckpt").tolist() == [1, 2, 3, 4]
    with pytest.raises(ValueError, match="compressed in a way that is not supported"):
        load_pickle(write(tmp_path / "b.ckpt", b"N.", zipfile.ZIP_BZIP2))


def bombs() -> dict[str, bytes]:
    """Small pickles that make much of themselves."""
    prime = (1 << 61) - 1  # its multiples have the same hash
    return {
        "lists": b"]" * 3_000_000 + b".",
        "marks": b"(" * 3_000_000 + b".",
        "sets": b"\x80\x04" + b"\x8f" * 3_000_000 + b".",
        "names": b"".join(b"ca\n%d\n0" % i for i in range(300_000)) + b"N.",
        "nested": b"\x80\x02" + b")" + b"\x85" * 3_000_000 + b".",
        "a nested key": b"\x80\x02}" + b")" + b"\x85" * 700_000 + b"Ns.",
        "memo": b"\x80\x04N" + b"\x94" * 3_000_000 + b".",
        "distant memo": b"Nr\xff\xff\xff\xff.",
        "copies": b"](" + b"N" * 90_000 + b"eq\x000" + b"cbuiltins\nlist\nh\x00\x85R" * 150_000 + b".",
        "doubling": b"\x80\x02](K\x01" + b"".join(b"2" for _ in range(900_000)) + b"e.",
        "equal hashes": b"\x80\x02}(" + b"".join(b"\x8a\x0a%bN" % (i * prime).to_bytes(10, "little") for i in range(200_000)) + b"u.",
        "wide text": b"X" + (3_900_000).to_bytes(4, "little") + "🙂".encode() + b"a" * 3_899_996 + b".",
        "too long": bytes(5 << 20),
    }


BOMBS = """
import sys, time
from pathlib import Path
from latentworks.checkpoints.safe_pickle import load_pickle
def peak(): return int(next(l for l in open("/proc/self/status") if l.startswith("VmHWM")).split()[1]) / 1024
for path in map(Path, sys.argv[1:]):
    before, start = peak(), time.perf_counter()
    try:
        load_pickle(path)
    except ValueError:
        pass
    grown = peak() - before - path.stat().st_size / 2**20
    assert grown < 64, (path.name, grown)
    assert time.perf_counter() - start < 20, path.name
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")
def test_bombs_take_neither_memory_nor_time(tmp_path):
    files = [write(tmp_path / name, payload) for name, payload in bombs().items()]
    zeros = write(tmp_path / "zeros", tensor(0, (1 << 28,), (1,), 1 << 28), zipfile.ZIP_DEFLATED, **{"0": bytes(1 << 30)})
    with zipfile.ZipFile(tmp_path / "many entries", "w") as archive:
        for i in range(50_000):
            archive.writestr(f"{i}", b"")
    command = [sys.executable, "-c", BOMBS, *files, zeros, tmp_path / "many entries"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-500:]


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
    torch.save({"a": 1}, tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match=r"a\.ckpt cannot be read as weights: it holds no state_dict of tensors"):
        read_tensors(tmp_path / "a.ckpt")
