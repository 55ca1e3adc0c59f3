# SPDX-License-Identifier: AGPL-3.0-or-later
"""`scripts/test` itself: what it repeats, what counts in the end, and that it never keeps to itself what failed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STALE = "{" + ", ".join(f'"tests/e2e/test_gone.py::test_{number}": true' for number in range(5)) + "}"


def run(folder: Path, place: str, *bodies: str) -> subprocess.CompletedProcess[str]:
    """In a checkout of these tests alone, after runs of tests that are gone."""
    (folder / "scripts").mkdir()
    shutil.copy(ROOT / "scripts" / "test", folder / "scripts")
    (folder / ".venv").symlink_to(Path(sys.prefix))
    (folder / "pytest.ini").write_text("[pytest]\naddopts = -ra -p xdist\n")
    cache = folder / ".pytest_cache" / "v" / "cache"
    cache.mkdir(parents=True)
    (cache / "lastfailed").write_text(STALE)
    (folder / "tests" / place).mkdir(parents=True)
    tests = "".join(f"def test_{number}():\n    {body}\n" for number, body in enumerate(bodies))
    (folder / "tests" / place / "test_some.py").write_text(f"from pathlib import Path\n{tests}")
    env = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}  # they take longer than the tests
    return subprocess.run([folder / "scripts" / "test"], cwd=folder, env=env, capture_output=True, text=True, check=False)


ONCE = "mark = Path(__file__).with_suffix('.once'); first = not mark.exists(); mark.touch(); assert not first, 'beside'"


@pytest.mark.parametrize(
    ("place", "body"),
    [
        ("e2e", ONCE),
        ("unit", ONCE.replace("assert not first, 'beside'", "assert not first, 'beside: No space left on device'")),
    ],
    ids=["with a guest", "without room"],
)
def test_one_that_passes_alone_is_said_at_the_end(tmp_path: Path, place: str, body: str) -> None:
    done = run(tmp_path, place, body, "pass")
    assert done.returncode == 0, done
    said = done.stdout.splitlines()[-2:]
    assert said[0].startswith("WARNING: 1 of the tests failed beside others and passed alone")
    assert said[1].startswith(f"FAILED tests/{place}/test_some.py::test_0 - AssertionError: beside")
    assert (tmp_path / ".pytest_cache" / "failed-beside-others").read_text().splitlines() == said


@pytest.mark.parametrize(
    ("place", "bodies"),
    [
        pytest.param("unit", [ONCE], id="of others nothing is repeated"),
        pytest.param("e2e", ["assert False"], id="alone it fails, too"),
        pytest.param("e2e", [ONCE.replace(".once", f".{number}") for number in range(4)], id="too many"),
    ],
)
def test_what_fails(tmp_path: Path, place: str, bodies: list[str]) -> None:
    done = run(tmp_path, place, *bodies)
    assert done.returncode == 1, done
    assert "WARNING" not in done.stdout
