# SPDX-License-Identifier: AGPL-3.0-or-later
"""The size budget: small files and functions are what keeps a code base enterable (yardstick: restic and kopia)."""

from __future__ import annotations

import ast
import statistics
from pathlib import Path

import everywhen

MODULES = sorted(Path(everywhen.__file__).parent.rglob("*.py"))
LINES = {path: len(path.read_text().splitlines()) for path in MODULES if path.name != "__init__.py"}
FORBIDDEN_NAMES = {"utils", "util", "helpers", "helper", "common", "misc", "manager", "handler"}


def functions(path: Path) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    tree = ast.parse(path.read_text())
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def is_command(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Commands have one parameter per option; their bodies are held to the budget all the same."""
    return any("command" in ast.dump(decorator) for decorator in function.decorator_list)


def test_files_are_small() -> None:
    sizes = sorted(LINES.values())
    assert statistics.median(sizes) <= 150
    assert sizes[int(len(sizes) * 0.9)] <= 400
    assert not [f"{path.name}: {lines}" for path, lines in LINES.items() if lines > 600]


def test_functions_are_short() -> None:
    long = []
    for path in MODULES:
        for function in functions(path):
            first = function.body[0].lineno if is_command(function) else function.lineno
            if (function.end_lineno or 0) - first + 1 > 60:
                long.append(f"{path.name}:{function.name}")
    assert not long


def test_functions_take_few_parameters() -> None:
    many = []
    for path in MODULES:
        for function in functions(path):
            arguments = function.args
            names = [a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs) if a.arg != "self"]
            if len(names) > 7 and not is_command(function):
                many.append(f"{path.name}:{function.name}")
    assert not many


def test_modules_are_named_after_one_thing() -> None:
    assert not [path for path in MODULES if path.stem in FORBIDDEN_NAMES]
