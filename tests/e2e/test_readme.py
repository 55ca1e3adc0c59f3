# SPDX-License-Identifier: AGPL-3.0-or-later
"""The README's first use, typed as it stands: every command works, and prints lines of the shape that is shown."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = Path(sys.executable).parent


def commands() -> list[tuple[str, list[str]]]:
    block = re.search(r"```console\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert block
    found: list[tuple[str, list[str]]] = []
    for line in block[1].splitlines():
        if line.startswith("$ "):
            found.append((line[2:], []))
        elif line:
            found[-1][1].append(line)
    return found


def shape(line: str) -> str:
    """The words of a line, without what differs from run to run."""
    line = re.sub(r"p-[0-9a-z]{12}|[0-9A-Z]{6}(-[0-9A-Z]{6}){7}|/\S+", "@", line)
    line = re.sub(r"\b[0-9a-f]{8}\b|\([0-9a-f]{4}…\)", "@", line)
    line = re.sub(r"[-+]?\d[\d.,:-]*( (B|kB|MB|GB|TB|s|min|h|d))?|\bnow\b", "#", line)
    return " ".join(line.split())


def test_first_use_as_the_readme_says(tmp_path: Path) -> None:
    environment = {
        "PATH": f"{PROGRAM}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "TZ": "UTC",
        "EVERYWHEN_CACHE": str(tmp_path / "cache"),
        "EVERYWHEN_STATE": str(tmp_path / "state"),
    }
    image = tmp_path / "web1.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(image), "2G"], check=True)
    subprocess.run(["qemu-io", "-c", "write -P 7 1M 19M", str(image)], check=True, stdout=subprocess.DEVNULL)
    script = "set -e\n"
    for number, (command, _) in enumerate(commands()):
        script += f"echo '--- {number}'\n{command}\n"
        if command.startswith("everywhen backup"):
            script += f"qemu-io -c 'write -P {number} 3M 300k' {image} >/dev/null\n"
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    printed = re.split(r"^--- \d+\n", done.stdout, flags=re.MULTILINE)[1:]
    for (command, shown), lines in zip(commands(), printed, strict=True):
        assert [shape(line) for line in lines.splitlines() if line] == [shape(line) for line in shown], command


@pytest.mark.parametrize("page", [*sorted((ROOT / "docs").rglob("*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md"])
def test_files_that_documents_name_exist(page: Path) -> None:
    for name in re.findall(r"`((?:docs|src|tests|scripts)/[\w/.-]+)`", page.read_text()):
        assert (ROOT / name).exists(), name


def test_the_format_document_is_what_the_modules_say() -> None:
    subprocess.run([sys.executable, str(ROOT / "scripts/format-docs"), "--check"], check=True)
