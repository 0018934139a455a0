"""Coverage-guided fuzzing of the three readers of foreign files: torch.save, safetensors, YAML. Linux only.

    pip install atheris coverage
    python benchmarks/fuzz.py --minutes 60

Each reader is fuzzed in a process of its own for a third of the time, from the committed corpus and the hostile files of the tests.
Mutations know the formats: most change the pickle in a valid zip file, the header behind a right length, or a line of a YAML text. Every
input must give values or one line of ValueError, run, import and open nothing, and take at most 64 MB more than its size
(`tests/fuzzing.py`); anything else stops with the input. What adds coverage is kept in tests/corpus/, which the tests replay.
"""

import argparse
import collections
import contextlib
import io
import json
import os
import random
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve()
ROOT = HERE.parents[1]
CORPUS = ROOT / "tests" / "corpus"
sys.path.insert(0, str(ROOT / "tests"))

READS = {
    "torch": ["safe_pickle", "pickle_machine", "pickle_names", "zip_directory", "mapped"],
    "safetensors": ["safetensors_file", "mapped"],
    "yaml": ["config"],
}
"""The modules a reader is made of; of those that also do other things, only the reading functions count."""
LARGEST = 16 << 10
"""Bytes of the largest input."""


def mutate_torch(data: bytes, mutate: Callable[[bytes, int], bytes], pick: random.Random) -> bytes:
    """Another pickle in the zip file, or another storage."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        files = {info.filename: archive.read(info) for info in archive.infolist()}
    name = next(name for name in files if name.endswith("data.pkl"))
    if pick.random() < 0.1:
        name = pick.choice(list(files))
    files[name] = mutate(files[name], LARGEST)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED if pick.random() < 0.1 else zipfile.ZIP_STORED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return out.getvalue()


def mutate_safetensors(data: bytes, mutate: Callable[[bytes, int], bytes], pick: random.Random) -> bytes:
    """Another header of a right length: its text changed, or one value of one tensor."""
    length = int.from_bytes(data[:8], "little")
    text, rest = data[8 : 8 + length], data[8 + length :]
    if pick.random() < 0.7:
        header = json.loads(text)
        entry = pick.choice([value for value in header.values() if isinstance(value, dict)])
        key = pick.choice(list(entry))
        values = [0, 1, 2, 4, 8, -1, 1 << 31, 1 << 63, 1.5, None, "F32", "BF16", "U8", "BOOL", [], [0, 8], [8, 0], [2], [1 << 40] * 2]
        if isinstance(entry[key], list) and entry[key] and pick.random() < 0.5:
            entry[key][pick.randrange(len(entry[key]))] = pick.choice(values)
        else:
            entry[key] = pick.choice(values)
        text = json.dumps(header).encode()
    else:
        text = mutate(text, LARGEST)
    if pick.random() < 0.2:
        rest = mutate(rest, LARGEST)
    return len(text).to_bytes(8, "little") + text + rest


def mutate_yaml(data: bytes, mutate: Callable[[bytes, int], bytes], pick: random.Random) -> bytes:
    """A line of the text gone, doubled, or with another value."""
    lines = data.decode().splitlines()
    at = pick.randrange(len(lines))
    value = pick.choice(["1", "-1.5e3", ".inf", "~", "on", "*a", "&a [1]", "{a: 1}", "[x, [y]]", "!!binary x", "2020-01-01", "'q'", "<<"])
    change = pick.choices(("double", "delete", "value", "key", "bytes"), (1, 2, 3, 3, 1))[0]  # most keep it YAML
    if change == "double":
        lines.insert(at, lines[pick.randrange(len(lines))])
    elif change == "delete" and len(lines) > 1:
        del lines[at]
    elif change == "value":
        lines[at] = lines[at].partition(":")[0] + ": " + value
    elif change == "key":
        lines.insert(at, f"k{pick.randrange(99)}: {value}")
    else:
        lines[at] = mutate(lines[at].encode(), 200).decode("utf-8", "replace")
    return "\n".join(lines).encode()


MUTATE = {"torch": mutate_torch, "safetensors": mutate_safetensors, "yaml": mutate_yaml}


def count_past_the_header(target: str, counts: dict[str, int]) -> None:
    """Count inputs whose frame was right: a pickle in a zip file, a JSON header, a YAML document."""
    import yaml

    from latentworks.checkpoints import safe_pickle, safetensors_file

    owner: Any = {"torch": safe_pickle.Machine, "safetensors": safetensors_file, "yaml": yaml.SafeLoader}[target]
    name = {"torch": "run", "safetensors": "_header", "yaml": "get_single_node"}[target]
    inner = getattr(owner, name)

    def counted(*arguments: Any) -> Any:
        if target == "torch":  # the pickle is reached
            counts["past"] += 1
            return inner(*arguments)
        result = inner(*arguments)
        counts["past"] += result is not None
        return result

    setattr(owner, name, counted)


def work(target: str, seconds: int, folder: Path) -> None:
    """Fuzz one reader; libFuzzer ends the process."""
    import atheris

    with atheris.instrument_imports(include=["latentworks.checkpoints", "latentworks.config", "pickletools", "yaml"]):
        import fuzzing

    counts = {"executions": 0, "read": 0, "past": 0}
    count_past_the_header(target, counts)
    path = Path(tempfile.mkdtemp(dir="/dev/shm" if os.path.isdir("/dev/shm") else None)) / f"input{fuzzing.READERS[target][0]}"

    def once(data: bytes) -> None:
        path.write_bytes(data)
        counts["executions"] += 1
        counts["read"] += fuzzing.check(target, path)
        if counts["executions"] % 20 == 0:
            (folder / "counts.json").write_text(json.dumps(counts))

    def mutator(data: bytes, limit: int, seed: int) -> bytes:
        pick = random.Random(seed)
        try:
            changed = MUTATE[target](data, atheris.Mutate, pick) if pick.random() < 0.9 else atheris.Mutate(data, limit)
        except Exception:  # its frame is damaged already, and zip files and JSON have many ways to be
            changed = atheris.Mutate(data, limit)
        return changed[:limit]

    options = [f"-max_total_time={seconds}", f"-max_len={LARGEST}", "-timeout=20", "-rss_limit_mb=3000", f"-artifact_prefix={folder}/"]
    atheris.Setup([sys.argv[0], str(folder / "corpus"), *options], once, custom_mutator=mutator)
    atheris.Fuzz()


def seed(target: str, folder: Path) -> None:
    """The committed corpus, and the hostile files of the tests."""
    import torch

    import test_config
    import test_safe_pickle
    import test_tensors

    folder.mkdir(parents=True)
    for path in CORPUS.glob(f"{target}/*"):
        (folder / path.name).write_bytes(path.read_bytes())
    if target == "torch":
        for i, payload in enumerate([*test_safe_pickle.HOSTILE.values(), test_safe_pickle.tensor(0, (4,), (1,))]):
            test_safe_pickle.write(folder / f"hostile{i}", payload, **{"0": bytes(16)})
        torch.save({"state_dict": {"a": torch.ones(2, 3), "b": torch.nn.Parameter(torch.ones(1).half())}, "epoch": 1}, folder / "whole")
    elif target == "safetensors":
        for i, (content, _) in enumerate(test_tensors.DAMAGED.values()):
            (folder / f"damaged{i}").write_bytes(content[:LARGEST])
        test_tensors.write_tensors(folder / "whole", test_tensors.some_tensors(), {"format": "x"})
    else:
        for i, (text, _) in enumerate(test_config.HOSTILE.values()):
            (folder / f"hostile{i}").write_text(text[:500])
        (folder / "whole").write_text("model:\n  base: &a {lr: 1.0e-4, to: x.y}\n  params: {<<: *a, size: [1, 2]}\n  none: ~\n  on_: yes\n")


def least(target: str, folder: Path) -> None:
    """Keep in tests/corpus/ the smallest files that together reach everything the whole corpus reaches."""
    import fuzzing

    names = tuple(f"{name}.py" for name in READS[target])
    reached: set[tuple[str, int, int]] = set()
    arcs: set[tuple[str, int, int]] = set()

    def trace(frame: Any, event: str, argument: Any) -> Any:
        if not frame.f_code.co_filename.endswith(names) or "latentworks" not in frame.f_code.co_filename:
            return None
        last = [frame.f_lineno]

        def line(inner: Any, event: str, argument: Any) -> Any:
            arcs.add((inner.f_code.co_filename, last[0], inner.f_lineno))
            last[0] = inner.f_lineno
            return line

        return line

    target_folder = CORPUS / target
    target_folder.mkdir(parents=True, exist_ok=True)
    for path in target_folder.iterdir():
        path.unlink()
    input_path = folder / f"input{fuzzing.READERS[target][0]}"
    for path in sorted((folder / "corpus").iterdir(), key=lambda path: (path.stat().st_size, path.name)):
        input_path.write_bytes(path.read_bytes())
        arcs.clear()
        sys.settrace(trace)
        with contextlib.suppress(ValueError):
            fuzzing.READERS[target][1](input_path)
        sys.settrace(None)
        if not arcs <= reached:
            reached |= arcs
            (target_folder / f"{len(list(target_folder.iterdir())):03d}{fuzzing.READERS[target][0]}").write_bytes(path.read_bytes())


def cover() -> dict[str, float]:
    """Share of the readers' lines, in per cent, that a replay of the committed corpus reaches."""
    import coverage

    modules = [f"*/latentworks/checkpoints/{name}.py" for name in {name for names in READS.values() for name in names}]
    measured = coverage.Coverage(data_file=None, include=[*modules, "*/latentworks/config.py"])
    measured.start()
    import fuzzing

    for target, (_, reader) in fuzzing.READERS.items():
        for path in sorted((CORPUS / target).iterdir()):
            with contextlib.suppress(ValueError):
                reader(path)
    measured.stop()
    shares = {}
    for name in {name: None for names in READS.values() for name in names}:
        module = sys.modules[f"latentworks.{'config' if name == 'config' else f'checkpoints.{name}'}"]
        _, statements, _, missing, _ = measured.analysis2(module)
        away = _lines(Path(str(module.__file__)), _NOT_READING)
        counted = set(statements) - away
        shares[name] = round(100 * len(counted - set(missing)) / len(counted), 1)
    return shares


_NOT_READING = (
    *("release", "write_safetensors", "nearest", "Config", "_explain", "_path", "_siblings", "_models_in", "merge", "_key", "_number"),
    *("_read_json", "_unique"),
)


def _lines(path: Path, names: tuple[str, ...]) -> set[int]:
    import ast

    nodes = [node for node in ast.parse(path.read_text()).body if getattr(node, "name", None) in names]
    return {line for node in nodes for line in range(node.lineno, node.end_lineno + 1)}


def main() -> None:
    """Fuzz all three, keep the corpus, write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--only", choices=list(READS), help="fuzz this reader again, and keep the figures of the others")
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--finish", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--cover", action="store_true", help="only measure what the committed corpus reaches")
    given = parser.parse_args()
    if given.worker:
        return work(given.worker[0], int(given.worker[1]), Path(given.worker[2]))
    if given.finish:
        return least(given.finish[0], Path(given.finish[1]))
    if given.cover:
        return print(json.dumps(cover()))
    before = json.loads((HERE.parent / "results" / "fuzz.json").read_text())["rows"] if given.only else []
    rows: list[dict[str, Any]] = []
    command = [sys.executable, str(HERE)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for target in READS:
        if given.only not in (None, target):
            rows += [row for row in before if row["reader"] == target]
            continue
        folder = Path(tempfile.mkdtemp(prefix=f"fuzz-{target}-"))
        seed(target, folder / "corpus")
        start = time.monotonic()
        seconds = str(max(1, int(given.minutes * 20)))
        done = subprocess.run([*command, "--worker", target, seconds, str(folder)], env=environment, stdout=sys.stderr)
        counts = collections.Counter(json.loads((folder / "counts.json").read_text()))
        crashes = sorted(path.name for path in folder.glob("crash-*"))
        if done.returncode or crashes:
            raise SystemExit(f"{target}: {crashes or done.returncode}; the input is in {folder}")
        subprocess.run([*command, "--finish", target, str(folder)], env=environment, check=True)
        share = round(100 * counts["past"] / counts["executions"], 1)
        row = {"reader": target, "seconds": round(time.monotonic() - start), **counts, "past_the_header_percent": share, "crashes": 0}
        rows.append(row | {"corpus_files": len(list((CORPUS / target).iterdir()))})
    lines = json.loads(subprocess.run([*command, "--cover"], env=environment, check=True, capture_output=True, text=True).stdout)
    from record import save, table

    save("fuzz", rows, command=f"python benchmarks/fuzz.py --minutes {given.minutes:g}", line_coverage_percent=lines)
    print(table(list(rows[0]), [[str(value) for value in row.values()] for row in rows]))
    print(table(["module", "lines reached in %"], [[name, str(share)] for name, share in lines.items()]))


if __name__ == "__main__":
    main()
