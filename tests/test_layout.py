"""The shape of the code: who may import whom, where edges may live, how long a file may grow.

Each rule is a function from one module to what breaks it, so that the planted violations below can
show that it would notice.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
OURS = ("schemas", "streams", "workers", "tests")
MAX_FILE_LINES = 450
MAX_FUNCTION_LINES = 60

# Standard library that reads a clock, the host, the network or chance: not for streams/core.
IMPURE = frozenset(
    """asyncio concurrent contextvars ctypes datetime fcntl fileinput getpass glob http importlib
    io locale logging mmap multiprocessing os pathlib platform queue random sched secrets select
    selectors shutil signal socket socketserver sqlite3 ssl subprocess sys tempfile threading
    time urllib uuid warnings""".split()  # noqa: SIM905 - three lines of words, not forty of one each
)
PURE = sys.stdlib_module_names - IMPURE
PICKLERS = frozenset({"pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"})
UNSAFE_CALLS = frozenset({"torch.load", "yaml.load", "yaml.unsafe_load", "yaml.full_load"})
COMPUTE = frozenset({"torch", "diffusers", "transformers"})
SHAPELESS_NAMES = frozenset({"utils", "helpers", "common", "manager", "misc"})


@dataclass(frozen=True, slots=True)
class Module:
    """A Python file: its path from the root with slashes, and what is in it."""

    path: str
    source: str

    @property
    def tree(self) -> ast.Module:
        return ast.parse(self.source, self.path)

    @property
    def package(self) -> str:
        return self.path.split("/")[0]

    def lies_under(self, *folders: str) -> bool:
        return any(self.path.startswith(f"{folder}/") for folder in folders)


Rule = Callable[[Module], Iterator[str]]


def dotted(node: ast.expr) -> str:
    """`os.environ` for that expression, "" for anything that is not names joined by dots."""
    match node:
        case ast.Name(id=name):
            return name
        case ast.Attribute(value=value, attr=attr) if base := dotted(value):
            return f"{base}.{attr}"
    return ""


def imported(module: Module) -> Iterator[str]:
    """Dotted names that a module imports, wherever it does, `from x import y` as `x.y`."""
    folder = module.path.removesuffix(".py").split("/")[:-1]
    for node in ast.walk(module.tree):
        match node:
            case ast.Import(names=names):
                yield from (alias.name for alias in names)
            case ast.ImportFrom(module=source, names=names, level=level):
                above = folder[: len(folder) - level + 1] if level else []
                base = ".".join([*above, *([source] if source else [])])
                yield from (f"{base}.{alias.name}" for alias in names)
            case ast.Call(func=func, args=[ast.Constant(value=str(name)), *_]) if dotted(func) in {
                "importlib.import_module",
                "import_module",
                "__import__",
            }:
                yield name


def tops(module: Module) -> set[str]:
    """The packages that a module imports from."""
    return {name.split(".")[0] for name in imported(module)}


def core_is_pure(module: Module) -> Iterator[str]:
    """streams/core imports pure standard library and itself, and opens or prints nothing."""
    if not module.lies_under("streams/core"):
        return
    for name in imported(module):
        if name.split(".")[0] not in PURE and not f"{name}.".startswith("streams.core."):
            yield f"core imports {name}"
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Call) and dotted(node.func) in {"open", "print", "input"}:
            yield f"core calls {dotted(node.func)}"


def imports_point_one_way(module: Module) -> Iterator[str]:
    """workers -> streams -> streams.core; schemas is a leaf; nothing shipped imports tests."""
    forbidden = {
        "schemas": {"streams", "workers", "tests"},
        "streams": {"workers", "tests"},
        "workers": {"tests"},
    }
    for name in sorted(tops(module) & forbidden.get(module.package, set())):
        yield f"{module.package} imports {name}"


def edges_stay_in_their_place(module: Module) -> Iterator[str]:
    """Torch and its friends only under workers/, confluent_kafka only in streams/kafka/."""
    if module.package == "tests":
        return
    if not module.lies_under("workers"):
        yield from (f"imports {name} outside workers/" for name in sorted(tops(module) & COMPUTE))
    if not module.lies_under("streams/kafka") and "confluent_kafka" in tops(module):
        yield "imports confluent_kafka outside streams/kafka/"


def settings_alone_read_the_environment(module: Module) -> Iterator[str]:
    """`os.environ` and its like only in streams/settings.py (tests may)."""
    if module.package == "tests" or module.path == "streams/settings.py":
        return
    readers = {"os.environ", "os.environb", "os.getenv", "os.putenv", "os.getenvb"}
    used = {dotted(node) for node in ast.walk(module.tree) if isinstance(node, ast.Attribute)}
    for name in sorted((used | set(imported(module))) & readers):
        yield f"reads the environment: {name}"


def bytes_from_outside_run_nothing(module: Module) -> Iterator[str]:
    """No pickle in any dress: reading such bytes can run what their writer liked."""
    if module.package != "tests":  # they make such bytes, to see them refused
        yield from (f"imports {name}" for name in sorted(tops(module) & PICKLERS))
    for node in ast.walk(module.tree):
        match node:
            case ast.Call(func=func) if dotted(func) in UNSAFE_CALLS:
                yield f"calls {dotted(func)}"
            case ast.keyword(arg="allow_pickle", value=ast.Constant(value=True)):
                yield "passes allow_pickle=True"
    yield from (f"imports {name}" for name in imported(module) if name in UNSAFE_CALLS)


def broad_handlers_raise_again(module: Module) -> Iterator[str]:
    """`except Exception` ends in `raise`, but in the loops that decide a record's fate."""
    engines = {f"workers/{name}engine.py" for name in ("", "batch_", "step_")}
    if module.path in engines | {"workers/step_ladder.py", "streams/runner.py"}:
        return
    for node in ast.walk(module.tree):
        if not isinstance(node, ast.ExceptHandler):
            continue
        kinds = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
        broad = any(k is None or dotted(k) in {"Exception", "BaseException"} for k in kinds)
        if broad and not isinstance(node.body[-1], ast.Raise):
            yield f"swallows every exception at line {node.lineno}"


def files_and_functions_are_short(module: Module) -> Iterator[str]:
    """A file fits in a head, a function on a screen."""
    lines = len(module.source.splitlines())
    if lines > MAX_FILE_LINES:
        yield f"{lines} lines, {MAX_FILE_LINES} at most"
    for node in ast.walk(module.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > MAX_FUNCTION_LINES:
                yield f"{node.name}: {length} lines, {MAX_FUNCTION_LINES} at most"


def names_say_something(module: Module) -> Iterator[str]:
    """No drawer for whatever is left over."""
    for part in module.path.removesuffix(".py").split("/"):
        if set(part.split("_")) & SHAPELESS_NAMES:
            yield f"'{part}' says nothing about what is in it"


RULES: tuple[Rule, ...] = (
    core_is_pure,
    imports_point_one_way,
    edges_stay_in_their_place,
    settings_alone_read_the_environment,
    bytes_from_outside_run_nothing,
    broad_handlers_raise_again,
    files_and_functions_are_short,
    names_say_something,
)


def our_modules() -> list[Module]:
    return [
        Module(file.relative_to(ROOT).as_posix(), file.read_text(encoding="utf-8"))
        for package in OURS
        for file in sorted((ROOT / package).rglob("*.py"))
    ]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_every_module_keeps(rule: Rule) -> None:
    broken = [f"{module.path}: {what}" for module in our_modules() for what in rule(module)]
    assert broken == [], rule.__doc__


def test_the_modules_that_the_rules_are_about_are_found() -> None:
    found = {module.path for module in our_modules()}
    assert {"streams/settings.py", "streams/runner.py", "workers/engine.py"} <= found
    assert any(path.startswith("streams/core/") for path in found)


LONG_FUNCTION = "def f():\n" + "    pass\n" * MAX_FUNCTION_LINES

PLANTED: tuple[tuple[Rule, str, str], ...] = (
    (core_is_pure, "streams/core/a.py", "import time"),
    (core_is_pure, "streams/core/a.py", "def f():\n    import random"),
    (core_is_pure, "streams/core/a.py", "from os import path"),
    (core_is_pure, "streams/core/a.py", "from datetime import datetime"),
    (core_is_pure, "streams/core/a.py", "import threading, asyncio, socket, logging"),
    (core_is_pure, "streams/core/a.py", "import confluent_kafka"),
    (core_is_pure, "streams/core/a.py", "import boto3"),
    (core_is_pure, "streams/core/a.py", "import numpy"),
    (core_is_pure, "streams/core/a.py", "from streams import errors"),
    (core_is_pure, "streams/core/a.py", "from streams.core_of_another import x"),
    (core_is_pure, "streams/core/a.py", "from .. import settings"),
    (core_is_pure, "streams/core/a.py", "from ..settings import Settings"),
    (core_is_pure, "streams/core/a.py", "print(1)"),
    (imports_point_one_way, "schemas/a.py", "import streams"),
    (imports_point_one_way, "schemas/a.py", "from workers.engine import Engine"),
    (imports_point_one_way, "streams/a.py", "from workers import main"),
    (imports_point_one_way, "streams/a.py", "__import__('workers')"),
    (imports_point_one_way, "workers/a.py", "from tests.builders import a_record"),
    (edges_stay_in_their_place, "streams/a.py", "import torch.nn"),
    (
        edges_stay_in_their_place,
        "streams/a.py",
        "import importlib\nimportlib.import_module('torch')",
    ),
    (edges_stay_in_their_place, "schemas/a.py", "from transformers import AutoModel"),
    (edges_stay_in_their_place, "streams/kafka/a.py", "import diffusers"),
    (edges_stay_in_their_place, "workers/a.py", "from confluent_kafka import Consumer"),
    (edges_stay_in_their_place, "streams/runner.py", "import confluent_kafka.admin"),
    (settings_alone_read_the_environment, "workers/a.py", "import os\nos.environ['A']"),
    (settings_alone_read_the_environment, "streams/a.py", "from os import environ"),
    (settings_alone_read_the_environment, "streams/a.py", "import os\nos.getenv('A')"),
    (bytes_from_outside_run_nothing, "streams/a.py", "import pickle"),
    (bytes_from_outside_run_nothing, "workers/a.py", "from dill import loads"),
    (bytes_from_outside_run_nothing, "workers/a.py", "import torch\ntorch.load('a.pt')"),
    (bytes_from_outside_run_nothing, "workers/a.py", "from torch import load"),
    (bytes_from_outside_run_nothing, "tests/a.py", "import yaml\nyaml.load(text, Loader)"),
    (bytes_from_outside_run_nothing, "streams/a.py", "numpy.load(f, allow_pickle=True)"),
    (broad_handlers_raise_again, "streams/a.py", "try:\n    f()\nexcept Exception:\n    pass"),
    (broad_handlers_raise_again, "workers/a.py", "try:\n    f()\nexcept:\n    pass"),
    (
        broad_handlers_raise_again,
        "workers/a.py",
        "try:\n    f()\nexcept (OSError, BaseException):\n    pass",
    ),
    (files_and_functions_are_short, "tests/a.py", "x = 1\n" * (MAX_FILE_LINES + 1)),
    (files_and_functions_are_short, "streams/a.py", LONG_FUNCTION),
    (files_and_functions_are_short, "streams/a.py", f"async {LONG_FUNCTION}"),
    (names_say_something, "streams/utils.py", ""),
    (names_say_something, "streams/common/a.py", ""),
    (names_say_something, "workers/model_manager.py", ""),
)


@pytest.mark.parametrize(("rule", "path", "source"), PLANTED)
def test_a_planted_violation_is_caught(rule: Rule, path: str, source: str) -> None:
    assert list(rule(Module(path, source)))


INNOCENT = (
    ("streams/core/a.py", "from collections import deque\nfrom streams.core.events import Tick"),
    (
        "streams/core/a.py",
        "import hashlib\nfrom . import events\nfrom .offsets import OffsetTracker",
    ),
    ("streams/kafka/a.py", "import confluent_kafka"),
    ("workers/sampler/a.py", "import torch\nfrom streams.core import events"),
    ("streams/settings.py", "import os\nos.environ['REEL_HOME']"),
    ("tests/a.py", "import os, torch, confluent_kafka\nos.environ.copy()"),
    ("streams/a.py", "try:\n    f()\nexcept BaseException:\n    clean()\n    raise"),
    ("streams/runner.py", "try:\n    f()\nexcept Exception:\n    pass"),
    ("streams/a.py", "import json, yaml\njson.load(f)\nyaml.safe_load(f)"),
    ("streams/a.py", LONG_FUNCTION.removesuffix("    pass\n")),
)


@pytest.mark.parametrize(("path", "source"), INNOCENT)
def test_what_is_allowed_is_not_complained_of(path: str, source: str) -> None:
    assert [what for rule in RULES for what in rule(Module(path, source))] == []


def test_every_rule_has_a_planted_violation() -> None:
    assert {rule for rule, _, _ in PLANTED} == set(RULES)


@pytest.mark.parametrize(
    "package", ["schemas.codec", "streams.runner", "streams.expirer.__main__", "workers.main"]
)
def test_a_process_without_a_model_never_loads_torch(package: str) -> None:
    # The ast sees what is written; this sees what third parties pull in (615 MB resident).
    code = f"import {package}, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
