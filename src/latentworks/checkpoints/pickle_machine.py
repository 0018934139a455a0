"""Goes through a pickle without Python's own unpickler: it cannot import, and calls nothing but what makes tensors and containers."""

import pickletools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from latentworks.checkpoints.pickle_names import CLASSES, check_name, is_function

__all__ = ["Function", "Inert", "Machine", "kind_of"]

WORK = 32 << 20
"""What all objects of a pickle may take, in estimated bytes; those of a checkpoint with 3,000 tensors take 10 MB."""


@dataclass(frozen=True, slots=True)
class Inert:
    """Stands for a class, a function or an object that is not made: its name, and whether it is an object."""

    name: str
    made: bool = False


@dataclass(frozen=True, slots=True)
class Function:
    """One of the few that are called."""

    call: Callable[..., Any]


class Machine:
    """Goes through one pickle. ``meanings``: what names stand for, else they are inert. ``load``: makes a storage from its persistent id.

    Raises: ValueError; IndexError and TypeError where a pickle takes from an empty stack or takes what is not there.
    """

    def __init__(self, meanings: Mapping[str, Any], load: Callable[[Any], Tensor]) -> None:
        self.load = load
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []  # the stacks under each mark
        self.memo: dict[int, Any] = {}
        self.work = 0
        containers = {full: Function(getattr(self, "new_" + full.rpartition(".")[2])) for full in CLASSES}
        self.meanings = {**containers, "collections.OrderedDict": Function(self.new_dict), **meanings}

    def run(self, pickle: bytes) -> Any:
        """The object a pickle describes."""
        for opcode, argument, _ in pickletools.genops(pickle):
            self.charge(_COST.get(opcode.name, 40))
            if opcode.name in _VALUES:
                self.stack.append(argument)
            elif opcode.name in _STEPS:
                _STEPS[opcode.name](self, argument)
            else:
                raise ValueError(f"opcode {opcode.name} is refused")
        if len(self.stack) != 1 or self.below:
            raise ValueError("it does not end with one object")
        return self.stack[0]

    def charge(self, work: int) -> None:
        """Count the memory of an object. Raises: ValueError when a pickle makes more than any checkpoint does."""
        self.work += work
        if self.work > WORK:
            raise ValueError("it makes more objects than any checkpoint has")

    def mark(self) -> None:
        self.below.append(self.stack)
        self.stack = []

    def marked(self) -> list[Any]:
        """Everything above the last mark, which goes."""
        items, self.stack = self.stack, self.below.pop()
        return items

    def pop(self) -> Any:
        return self.stack.pop() if self.stack else self.marked()

    def take(self, count: int) -> list[Any]:
        """The topmost values, which go."""
        if len(self.stack) < count:
            raise IndexError("it takes more than there is")
        items = self.stack[-count:]
        del self.stack[-count:]
        return items

    def put(self, index: int | None) -> None:
        self.memo[len(self.memo) if index is None else index] = self.stack[-1]

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def append(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, list):
            target.extend(items)
        elif isinstance(target, set):
            target.update(item for item in items if _plain(item))
        elif not _object(target):
            raise ValueError(f"it appends to {kind_of(target)}")

    def set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, dict):
            target.update((key, value) for key, value in zip(items[::2], items[1::2], strict=True) if _plain(key))
        elif not _object(target):
            raise ValueError(f"it sets items of {kind_of(target)}")

    def name(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise ValueError("it asks for a name that is no text")
        full = check_name(module, name)
        self.push(self.meanings.get(full) or Inert(full))

    def call(self, function: Any, arguments: Any) -> None:
        if not isinstance(arguments, tuple | list):
            raise ValueError(f"it calls {kind_of(function)} with {kind_of(arguments)}")
        if isinstance(function, Function):
            self.charge(500)
            self.push(function.call(*arguments))
        elif isinstance(function, Inert) and (function.made or not is_function(function.name)):
            self.push(Inert(function.name, made=True))
        else:
            raise ValueError(f"it calls {kind_of(function)}, which is refused: it could run code")

    def build(self) -> None:
        """The state of an object is not needed, and that of a class would be an attack."""
        self.stack.pop()
        if not isinstance(self.stack[-1], dict | Tensor) and not _object(self.stack[-1]):
            raise ValueError(f"it changes {kind_of(self.stack[-1])}, which is refused")

    def new_dict(self, pairs: Any = ()) -> dict[Any, Any]:
        """From nothing, a mapping, or a list of pairs, as old files have it."""
        pairs = list(pairs.items()) if isinstance(pairs, dict) else pairs
        return {key: value for key, value in self.new_list(pairs) if _plain(key)}

    def new_list(self, items: Any = ()) -> list[Any]:
        if not isinstance(items, list | tuple | set | frozenset):
            raise ValueError(f"it makes a container of {kind_of(items)}")
        self.charge(100 * len(items))
        return list(items)

    def new_tuple(self, items: Any = ()) -> tuple[Any, ...]:
        return tuple(self.new_list(items))

    def new_set(self, items: Any = ()) -> set[Any]:
        return {item for item in self.new_list(items) if _plain(item)}

    def new_frozenset(self, items: Any = ()) -> frozenset[Any]:
        return frozenset(self.new_set(items))


def kind_of(value: Any) -> str:
    """What a value is, for people."""
    return repr(value.name) if isinstance(value, Inert) else type(value).__name__


def _object(value: Any) -> bool:
    return isinstance(value, Inert) and value.made


def _plain(key: Any) -> bool:
    """Whether a value may be a key. Others are left out: their hashes could collide, or nest without end."""
    return isinstance(key, str | bytes | bool | Inert | None) or (isinstance(key, int | float) and abs(key) < 1 << 60)


def _object_of(machine: Machine, items: list[Any]) -> None:
    machine.call(items[0], items[1:])


def _instance(machine: Machine, name: str) -> None:
    items = machine.marked()
    machine.name(*name.split(" ", 1))
    machine.call(machine.pop(), items)


def _mapping(machine: Machine, _: Any) -> None:
    items = machine.marked()
    machine.push({})
    machine.set_items(items)


_VALUES = frozenset((
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING", "BINSTRING", "SHORT_BINSTRING",
    "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"
))  # fmt: skip
"""Opcodes that push what follows them in the pickle."""

_COST = {
    **dict.fromkeys(("MARK", "EMPTY_LIST", "LIST", "EMPTY_DICT", "DICT"), 100),
    **dict.fromkeys(("EMPTY_SET", "FROZENSET"), 250),
    **dict.fromkeys(("MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT"), 110),
    **dict.fromkeys(("GLOBAL", "STACK_GLOBAL", "INST", "REDUCE", "OBJ", "NEWOBJ", "NEWOBJ_EX"), 200),
    **dict.fromkeys(("PERSID", "BINPERSID"), 1500),
}
"""Estimated bytes an opcode may take, where it is more than 40."""

_STEPS: dict[str, Callable[[Machine, Any], object]] = {
    **dict.fromkeys(("PROTO", "FRAME", "STOP"), lambda m, _: None),
    "NONE": lambda m, _: m.push(None),
    "NEWTRUE": lambda m, _: m.push(True),
    "NEWFALSE": lambda m, _: m.push(False),
    "EMPTY_LIST": lambda m, _: m.push([]),
    "EMPTY_DICT": lambda m, _: m.push({}),
    "EMPTY_SET": lambda m, _: m.push(set()),
    "EMPTY_TUPLE": lambda m, _: m.push(()),
    "MARK": lambda m, _: m.mark(),
    "POP": lambda m, _: m.pop(),
    "POP_MARK": lambda m, _: m.marked(),
    "DUP": lambda m, _: m.push(m.stack[-1]),
    "TUPLE": lambda m, _: m.push(tuple(m.marked())),
    "TUPLE1": lambda m, _: m.push(tuple(m.take(1))),
    "TUPLE2": lambda m, _: m.push(tuple(m.take(2))),
    "TUPLE3": lambda m, _: m.push(tuple(m.take(3))),
    "LIST": lambda m, _: m.push(m.marked()),
    "DICT": _mapping,
    "FROZENSET": lambda m, _: m.push(m.new_frozenset(m.marked())),
    "APPEND": lambda m, _: m.append(m.take(1)),
    "APPENDS": lambda m, _: m.append(m.marked()),
    "ADDITEMS": lambda m, _: m.append(m.marked()),
    "SETITEM": lambda m, _: m.set_items(m.take(2)),
    "SETITEMS": lambda m, _: m.set_items(m.marked()),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"), lambda m, index: m.put(index)),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), lambda m, index: m.push(m.memo[index])),
    "GLOBAL": lambda m, name: m.name(*name.split(" ", 1)),
    "STACK_GLOBAL": lambda m, _: m.name(*m.take(2)),
    "REDUCE": lambda m, _: m.call(*m.take(2)),
    "NEWOBJ": lambda m, _: m.call(*m.take(2)),
    "NEWOBJ_EX": lambda m, _: m.call(*m.take(3)[:2]),
    "INST": _instance,
    "OBJ": lambda m, _: _object_of(m, m.marked()),
    "BUILD": lambda m, _: m.build(),
    "BINPERSID": lambda m, _: m.push(m.load(m.stack.pop())),
}
"""What every other opcode that is understood does; the rest are refused (extension registry, buffers, persistent ids as text)."""
