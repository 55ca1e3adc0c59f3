# SPDX-License-Identifier: AGPL-3.0-or-later
"""The process that parses guests' files has all code at hand before it gives up files: none can be loaded afterwards."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import everywhen.formats.filesystems
import everywhen.guest

SOURCES = [*Path(everywhen.guest.__path__[0]).glob("*.py"), *Path(everywhen.formats.filesystems.__path__[0]).glob("*.py")]


def imported_late() -> set[str]:
    """Modules, or names in them, that functions import."""
    found = set()
    for source in SOURCES:
        for node in ast.walk(ast.parse(source.read_text())):
            if isinstance(node, ast.FunctionDef):
                for inner in ast.walk(node):
                    if isinstance(inner, ast.ImportFrom):
                        found |= {f"{inner.module}.{name.name}" for name in inner.names}
                    elif isinstance(inner, ast.Import):
                        found |= {name.name for name in inner.names}
    return found


def test_all_code_is_loaded_before() -> None:
    code = "import sys\nfrom everywhen.guest.process import load_all\nload_all()\nprint(*sys.modules, sep='\\n')"
    loaded = set(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout.splitlines())
    late = imported_late()
    assert late
    assert not {
        name for name in late if name not in loaded and name.rpartition(".")[0] not in loaded - {"dissect.util.compression"}
    }
    assert {"encodings.utf_16_le", "encodings.cp437"} <= loaded
