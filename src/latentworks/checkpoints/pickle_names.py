"""What a name in a pickle may mean: the few that make tensors and containers are ours, the rest stand for nothing or are refused."""

import torch

__all__ = ["CLASSES", "DTYPES", "check_name", "is_function"]

DTYPES = {
    "torch.FloatStorage": torch.float32,
    "torch.DoubleStorage": torch.float64,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
}

_REACH = frozenset(("builtins", "__builtin__", "os", "posix", "nt", "subprocess", "sys", "importlib", "system", "popen", "eval", "exec"))
"""Refused wherever they are in a name: a path of attributes ends at them."""

_MODULES = _REACH | frozenset((
    "_ctypes", "_io", "_operator", "_osx_support", "_pickle", "_posixsubprocess", "_socket", "_thread", "_winapi", "aifc", "asyncio",
    "ast", "atexit", "bdb", "cProfile", "cPickle", "cffi", "cgi", "cloudpickle", "code", "codecs", "codeop", "commands", "compileall",
    "concurrent", "ctypes", "dbm", "dill", "distutils", "doctest", "ensurepip", "fcntl", "fileinput", "ftplib", "functools", "gc",
    "getpass", "glob", "http", "idlelib", "imp", "inspect", "io", "ipaddress", "itertools", "joblib", "keyword", "lib2to3",
    "linecache", "logging", "marshal", "mmap", "multiprocessing", "netrc", "nntplib", "ntpath", "operator", "optparse", "pdb",
    "pickle", "pickletools", "pip", "pipes", "pkg_resources", "pkgutil", "platform", "posixpath", "profile", "pstats", "pty",
    "py_compile", "pydoc", "pyexpat", "readline", "requests", "resource", "rlcompleter", "runpy", "sched", "select", "selectors",
    "setuptools", "shelve", "shutil", "signal", "site", "smtpd", "smtplib", "socket", "socketserver", "sqlite3", "sre_compile", "ssl",
    "syslog", "tarfile", "telnetlib", "tempfile", "test", "threading", "timeit", "trace", "traceback", "tracemalloc", "types",
    "unittest", "urllib", "urllib2", "urllib3", "uuid", "venv", "webbrowser", "winreg", "wsgiref", "xml", "xmlrpc", "yaml", "zipapp",
    "zipfile", "zipimport"
))  # fmt: skip
"""Refused as the module of a name: what they have runs, loads, opens or builds."""

CLASSES = frozenset(f"{module}.{name}" for module in ("builtins", "__builtin__") for name in ("set", "frozenset", "dict", "list", "tuple"))
"""Containers that are made in earnest."""

_HARMLESS = CLASSES | {
    f"{module}.{name}"
    for module in ("builtins", "__builtin__")
    for name in ("int", "float", "bool", "str", "bytes", "bytearray", "complex", "object", "range", "xrange", "slice", "unicode", "long")
}

_MAKERS = {
    "_codecs.encode",
    "collections.defaultdict",
    "collections.deque",
    "copy_reg._reconstructor",
    "copyreg._reconstructor",
    "datetime.date",
    "datetime.datetime",
    "datetime.timedelta",
    "numpy.dtype",
    "numpy.ndarray",
    "numpy.core.multiarray._reconstruct",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray._reconstruct",
    "numpy._core.multiarray.scalar",
    "torch._utils._rebuild_device_tensor_from_numpy",
    "torch.device",
    "torch.serialization._get_layout",
}
"""In small letters, but what they make is a value: they may be called, and give nothing."""


def check_name(module: str, name: str) -> str:
    """The full name. Raises: ValueError naming it when it could only serve to run code."""
    full = f"{module}.{name}"
    first, *others = full.split(".")
    special = any(part.startswith("__") and part not in ("__main__", "__torch__") for part in (first, *others))
    if full not in _HARMLESS and (first in _MODULES or special or not _REACH.isdisjoint(others)):
        raise ValueError(f"it asks for {full!r}, which is refused: it can run code")
    return full


def is_function(full: str) -> bool:
    """Whether a name is one of a function, by its small letters, hence must not be called."""
    last = full.rpartition(".")[2].lstrip("_")
    return full not in _HARMLESS and full not in _MAKERS and not last[:1].isupper()
