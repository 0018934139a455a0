"""The base of every config: frozen, no unknown field, errors that name the field and the nearest valid one; load, merge and save."""

import difflib
import json
import re
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

__all__ = ["Config", "merge", "nearest", "read_mapping"]

LARGEST = 1 << 20
"""Bytes of the largest file of settings that is read."""

MOST = 20_000
"""Most values a YAML file may hold."""

DEEPEST = 50
"""Most levels of a YAML file; the authors' have 6."""

_KINDS = ("str", "int", "float", "bool", "null", "map", "seq", "merge")
"""YAML's kinds of values that settings are made of; others (dates, binaries, objects) are refused."""


def nearest(word: str, allowed: list[str]) -> str:
    """A hint for a misspelt word: the closest allowed ones, else all of them."""
    close = difflib.get_close_matches(word, allowed, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else "allowed: " + ", ".join(sorted(allowed))


class Config(BaseModel):
    """Base of all configs. Immutable; unknown fields are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @classmethod
    def parse(cls, values: dict[str, Any]) -> Self:
        """Validate. Raises: ValueError in one line, naming each bad field, its value, and the way out."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise ValueError("; ".join(_explain(cls, item, values) for item in error.errors())) from None

    def save(self, path: Path) -> None:
        """Write as JSON."""
        path.write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")

    def replace(self, **values: Any) -> Self:
        """A validated copy with some fields changed."""
        return self.parse({**self.model_dump(), **values})


def _explain(cls: type[BaseModel], item: Any, values: dict[str, Any]) -> str:
    where = _path(item["loc"], values, item["type"] == "missing")
    if item["type"] == "extra_forbidden":
        return f"unknown key {where!r}: {nearest(str(item['loc'][-1]), _siblings(values, cls, item['loc']))}"
    if item["type"] == "missing":
        return f"{where}: is required"
    message = item["msg"].removeprefix("Value error, ")
    return f"{where or cls.__name__}: {message}" + (f" (got {item['input']!r})" if where and not isinstance(item["input"], dict) else "")


def _path(loc: tuple[str | int, ...], values: Any, missing: bool) -> str:
    """The key as a person writes it: without the union members that pydantic names on the way."""
    parts = []
    for place, part in enumerate(loc):
        known = part in values if isinstance(values, dict) else isinstance(values, list | tuple) and part in range(len(values))
        if known or (missing and place == len(loc) - 1):
            parts.append(str(part))
            values = values[part] if known else None
    return ".".join(parts)


def _siblings(values: dict[str, Any], cls: type[BaseModel], loc: tuple[str | int, ...]) -> list[str]:
    """Valid keys beside the unknown one: walk the models along ``loc`` (union members appear in it by their ``kind``)."""
    models: list[type[BaseModel]] = [cls]
    for part in loc[:-1]:
        inner = [m for model in models if (field := model.model_fields.get(str(part))) for m in _models_in(field.annotation)]
        # not a field, hence a discriminator: keep the members whose kind this is
        models = inner or [m for m in models if "kind" in m.model_fields and m.model_fields["kind"].default == part] or models
    return sorted({name for model in models for name in model.model_fields})


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [m for inner in getattr(annotation, "__args__", ()) for m in _models_in(inner)]


def read_mapping(path: Path) -> dict[str, Any]:
    """A JSON or YAML file as a mapping of plain values, whose size is bounded. Raises: ValueError naming the file."""
    try:
        if path.exists() and not path.is_file():
            raise ValueError("it is no file")
        if path.exists() and path.stat().st_size > LARGEST:
            raise ValueError(f"it has {path.stat().st_size} bytes: settings have at most {LARGEST}")
        text = path.read_text(encoding="utf-8")
        values = _read_json(text) if path.suffix == ".json" else _read_yaml(text)
        _check(values, "")
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise ValueError(f"cannot read {path}: {_line(error)}") from None
    except (AttributeError, LookupError, TypeError, OverflowError) as error:  # what PyYAML answers "!!int" without a number with
        raise ValueError(f"cannot read {path}: a value does not have the type its tag says ({_line(error)})") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold a mapping of settings, not {type(values).__name__}")
    return values


def _line(error: Exception) -> str:
    return "it is nested too deeply" if isinstance(error, RecursionError) else " ".join(str(error).split())[:300]


def _read_json(text: str) -> Any:
    return json.loads(text, object_pairs_hook=_unique)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"{next(key for i, key in enumerate(keys) if key in keys[:i])!r} occurs twice")
    return values


class _Loader(yaml.SafeLoader):
    """Stops where a file has more values, or deeper ones, than settings do: each takes a thousand bytes while it is read."""

    nodes = 0
    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self.nodes += 1
        if self.nodes > MOST:
            raise ValueError(f"more than {MOST} values")
        if self.depth == DEEPEST:
            raise ValueError(f"it is nested too deeply: more than {DEEPEST} levels")
        self.depth += 1
        node: yaml.Node | None = super().compose_node(parent, index)
        self.depth -= 1
        return node


def _read_yaml(text: str) -> Any:
    """YAML's plain values: the nodes are counted and checked before anything is made of them."""
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _count(node, {})
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _count(node: yaml.Node, sizes: dict[int, int]) -> int:
    """How many values a node stands for, aliases followed. Raises: ValueError when they are too many, or of a kind no setting has."""
    kind = str(node.tag).removeprefix("tag:yaml.org,2002:")
    where = f"line {node.start_mark.line + 1}"
    if id(node) in sizes:
        if not sizes[id(node)]:
            raise ValueError(f"{where}: a value contains itself")
        return sizes[id(node)]
    sizes[id(node)] = 0  # being counted
    if kind not in _KINDS:
        raise ValueError(f"{where}: a value of kind {kind!r} is no setting: quote it if it is text")
    if kind in ("int", "float") and len(node.value) > 100:
        raise ValueError(f"{where}: a number of {len(node.value)} letters is no setting")
    total = 1
    if isinstance(node, yaml.MappingNode):
        keys = [key.value for key, _ in node.value if key.tag.endswith((":str", ":merge"))]
        if len(keys) != len(node.value):
            raise ValueError(f"{where}: a key that is no text: quote it")
        if len(set(keys)) != len(keys):
            raise ValueError(f"{where}: {next(key for i, key in enumerate(keys) if key in keys[:i])!r} occurs twice")
        total += sum(_count(value, sizes) for _, value in node.value)
    elif isinstance(node, yaml.SequenceNode):
        total += sum(_count(value, sizes) for value in node.value)
    if total > MOST:
        raise ValueError(f"{where}: more than {MOST} values, with those its aliases stand for")
    sizes[id(node)] = total
    return total


def _check(value: Any, where: str) -> None:
    """Raises: ValueError naming the first value that is no setting: not finite, too large for a number, or no text that can be written."""
    if isinstance(value, dict):
        for key, inner in value.items():
            _check(key, where)
            _check(inner, f"{where}.{key}".lstrip("."))
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            _check(inner, f"{where}.{i}".lstrip("."))
    elif isinstance(value, str):
        value.encode()
    elif isinstance(value, int | float) and not abs(value) < 1e300:
        raise ValueError(f"{where or 'it'}: the number is not finite, or too large")


def merge(values: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """A copy of ``values`` with overrides of the form ``a.b=c`` applied; c is read as YAML. Raises: ValueError."""
    result: dict[str, Any] = json.loads(json.dumps(values))
    for override in overrides:
        path, separator, text = override.partition("=")
        if not separator:
            raise ValueError(f"{override!r}: write a setting as key=value, e.g. train.batch=32")
        try:
            value = _read_yaml(text)
            _check(value, path)
        except (ValueError, RecursionError, yaml.YAMLError):
            raise ValueError(f"{override!r}: the value is no YAML; quote it") from None
        *parents, last = path.split(".")
        node: Any = result
        for parent in parents:
            key = _key(node, parent, path)
            if node[key] is None and last == "kind":
                node[key] = {}
            if not isinstance(node[key], dict | list):
                raise ValueError(f"unknown key {path!r}: {parent} is a value, not a group of settings")
            node = node[key]
        if last == "kind" and isinstance(node, dict) and node.get("kind") != value:
            node.clear()  # another kind has other settings
        node[last if isinstance(node, dict) else _key(node, last, path)] = _number(value)
    return result


def _key(node: dict[str, Any] | list[Any], part: str, path: str) -> str | int:
    """A part of a path as the key of a mapping or the place in a list that is there. Raises: ValueError."""
    keys = list(node) if isinstance(node, dict) else [str(i) for i in range(len(node))]
    if part not in keys:
        raise ValueError(f"unknown key {path!r}: {nearest(part, keys) if keys else 'this list is empty'}")
    return part if isinstance(node, dict) else int(part)


def _number(value: Any) -> Any:
    """YAML 1.1 reads 1e-4 as text; a person means a number."""
    return float(value) if isinstance(value, str) and re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)e[-+]?\d+", value, re.IGNORECASE) else value
