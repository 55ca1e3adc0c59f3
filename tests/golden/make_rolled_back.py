# SPDX-License-Identifier: AGPL-3.0-or-later
"""Makes a golden repository of a VM that was rolled back: `python -m tests.golden.make_rolled_back format-1-rolled-back`.

Run once when points began to say so, as `make.py`. It holds, encrypted and not, a VM with a raw disk: backed up, changed,
rolled back, changed, backed up, and rolled forward. `NAME.json` has the sums of what the disk held at each line's end.
"""

from __future__ import annotations

import hashlib
import random
import sys
from pathlib import Path
from typing import Any

from tests.golden.make import PASSPHRASE, make, pages, secret
from tests.program import Program

SIZE = 64 * 4096


def build(folder: Path, encryption: str) -> dict[str, object]:
    chance = random.Random(20261122)
    if encryption != "none":
        (folder / "pass").write_text(PASSPHRASE + "\n")
    program = Program(folder, "repository", secret(folder))
    made = program.ok("init", program.repo, "--encryption", encryption, "--no-reserve")
    image = folder / "vda.raw"
    image.write_bytes(pages(chance, 64))
    moments: dict[str, str] = {}

    def note(moment: str) -> None:
        moments[moment] = hashlib.sha256(image.read_bytes()).hexdigest()

    def write() -> None:
        with image.open("r+b") as file:
            file.seek(chance.randrange(SIZE - 100))
            file.write(chance.randbytes(100))

    def rolled_back(to: str) -> Any:
        return program.ok("rollback", to, "--disk", f"vda={image}")["vms"]["gold"]

    first = program.backup("gold", f"vda={image}")["point"]
    note(f"gold@{first}")
    write()
    note("gold~1")
    rolled_back(f"gold@{first}")
    write()
    program.backup("gold", f"vda={image}")
    note("gold~2")
    rolled_back("gold~1")
    note("gold@latest")
    points = [{"id": point["id"], "rolled_back": point["rolled_back"]} for point in program.ok("points", "gold")]
    return {"recovery_key": made["recovery_key"], "moments": moments, "points": points}


if __name__ == "__main__":
    make(sys.argv[1], build)
