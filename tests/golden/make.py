# SPDX-License-Identifier: AGPL-3.0-or-later
"""Makes a golden repository with the program that is installed: `python tests/golden/make.py format-1`.

Run once when a format version is born; the result is kept for ever and opened by every later program. It holds, encrypted
and not: three points of a VM with two disks (one grows, one appears later), full chunks, deltas, a configuration file, a
hold, a drop that has not taken effect, a policy. `NAME.json` has the sums of what each point must give back.
What captures leave is in another one: `make_captured.py`.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

PASSPHRASE = "golden passphrase"  # noqa: S105 - of a repository that everybody may open
HERE = Path(__file__).parent


def secret(folder: Path) -> dict[str, str]:
    """What tells the program the passphrase, where there is one: it takes none for a repository without encryption."""
    passphrase = folder / "pass"
    return {"EVERYWHEN_PASSPHRASE_FILE": str(passphrase)} if passphrase.exists() else {}


def run(folder: Path, *arguments: str) -> dict[str, object]:
    environment = {
        **os.environ,
        "EVERYWHEN_CACHE": str(folder / "cache"),
        "EVERYWHEN_STATE": str(folder / "state"),
        **secret(folder),
    }
    command = [str(Path(sys.executable).parent / "everywhen"), *arguments, "--json"]
    done = subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.PIPE, check=True)
    answer: dict[str, object] = json.loads(done.stdout)
    return answer


def pages(chance: random.Random, count: int) -> bytes:
    return b"".join(chance.randbytes(300) + bytes(3796) for _ in range(count))


def build(folder: Path, encryption: str) -> dict[str, object]:
    chance = random.Random(20261121)
    if encryption != "none":
        (folder / "pass").write_text(PASSPHRASE + "\n")
    (folder / "domain.xml").write_text("<domain><name>gold</name></domain>\n")
    repo = ["--repo", "repository"]
    made = run(folder, "init", "repository", "--encryption", encryption, "--no-reserve")
    first, second = bytearray(pages(chance, 64) + bytes(3 << 20) + pages(chance, 20)), bytearray(pages(chance, 40))
    expected: list[dict[str, object]] = []
    for step in range(3):
        (folder / "a.img").write_bytes(first)
        (folder / "b.img").write_bytes(second)
        disks = ["vda=a.img"] + (["vdb=b.img"] if step else [])
        point = run(folder, "backup", "gold", *disks, "--config", "domain.xml", *repo)
        sums = {"vda": hashlib.sha256(first).hexdigest()} | ({"vdb": hashlib.sha256(second).hexdigest()} if step else {})
        expected.append({"point": point["point"], "time": point["time"], "sha256": sums})
        first[5 * 4096 : 5 * 4096 + 100] = chance.randbytes(100)
        first[3 << 20 : (3 << 20) + 4096] = chance.randbytes(4096)
        second += pages(chance, 5) + b"odd end"
    run(folder, "hold", f"gold@{expected[0]['point']}", "--reason", "golden", *repo)
    run(folder, "policy", "set", "gold", "daily 7d, last 3", *repo)
    return {"encryption": encryption, "recovery_key": made["recovery_key"], "points": expected}


def pack(folder: Path, archive: tarfile.TarFile, name: str) -> None:
    for path in sorted((folder / "repository").rglob("*")):
        if path.is_file():
            entry = tarfile.TarInfo(f"{name}/{path.relative_to(folder / 'repository')}")
            content = path.read_bytes()
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))


def make(name: str, build: Callable[[Path, str], dict[str, object]]) -> None:
    """`name`.tar.xz and `name`.json: a repository of each kind, built in a folder, and what is to be found in it."""
    target = HERE / name
    expected = {}
    with tarfile.open(f"{target}.tar.xz", "w:xz") as archive:
        for encryption in ("aes-256-gcm", "none"):
            with tempfile.TemporaryDirectory(prefix="gold-") as folder:
                expected[encryption] = build(Path(folder), encryption)
                pack(Path(folder), archive, encryption)
    Path(f"{target}.json").write_text(json.dumps(expected, indent=2) + "\n")


if __name__ == "__main__":
    make(sys.argv[1], build)
