# SPDX-License-Identifier: AGPL-3.0-or-later
"""P6: index and gc of 100 million chunks in 1 GB of memory (design, section 7). Synthetic; proves its results.

    python bench/p6_index.py [MILLIONS] [DIRECTORY]

Packs of 1,500 chunks with random names, one in five a delta against a full chunk of its pack; then nine packs in ten are
live, and marking must find exactly their rows. Limits itself to 1 GiB: with a cgroup (v2) of its own where it may make
one, which also limits the page cache; else with RLIMIT_DATA, which limits everything but the page cache (it says which).
"""

from __future__ import annotations

import itertools
import os
import resource
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from everywhen.formats.ids import PackId
from everywhen.formats.node import Names
from everywhen.formats.pack import DELTA_ONE, FULL_ZSTD, PackIndex
from everywhen.repository.gc.marking import Marker
from everywhen.repository.index.index import ChunkIndex

LIMIT = 1 << 30
ROWS = 1500
BUDGET = 256 << 20


def limit_memory() -> str:
    """Limit this process to LIMIT bytes; how."""
    root = Path("/sys/fs/cgroup")
    try:
        own = next(line[3:].strip() for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::"))
        group = root / own.lstrip("/") / f"everywhen-p6-{os.getpid()}"
        if "memory" not in (group.parent / "cgroup.subtree_control").read_text():
            raise OSError("no memory controller")
        group.mkdir()
        (group / "memory.max").write_text(str(LIMIT))
        (group / "memory.swap.max").write_text("0")
        (group / "cgroup.procs").write_text(str(os.getpid()))
    except (OSError, StopIteration) as error:
        resource.setrlimit(resource.RLIMIT_DATA, (LIMIT, LIMIT))
        return f"RLIMIT_DATA 1 GiB; the page cache is not limited (no cgroup v2 of our own: {error})"
    return "cgroup v2, memory.max 1 GiB"


class Peak:
    """Watches this process's own memory (page cache not counted)."""

    def __init__(self) -> None:
        self.bytes = 0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._end.wait(0.05):
            for line in Path("/proc/self/status").read_text().splitlines():
                if line.startswith("RssAnon:"):
                    self.bytes = max(self.bytes, int(line.split()[1]) << 10)

    def end(self) -> int:
        """Stop; the most there was."""
        self._end.set()
        self._thread.join()
        return self.bytes


def pack_of(number: int) -> PackIndex:
    """Pack `number`; the same each time."""
    names = names_of(number)
    forms = np.full(ROWS, FULL_ZSTD, dtype=np.uint8)
    forms[4::5] = DELTA_ONE
    sizes = np.full(ROWS, 20_000, dtype=np.uint32)
    return PackIndex(names, sizes, np.full(ROWS, 65536, dtype=np.uint32), forms, names[3::5])


def names_of(number: int) -> Names:
    """Its names."""
    return np.random.default_rng([6, number]).integers(0, 2**64, (ROWS, 4), dtype=np.uint64).view(np.uint8)


def pack_id(number: int) -> PackId:
    """Its id."""
    return PackId(number.to_bytes(16, "big"))


def build(index: ChunkIndex, packs: int) -> None:
    """Add all packs; prints what one costs. Making the names up is not counted."""
    spent, worst = 0.0, 0.0
    for number in range(packs):
        pack = pack_of(number)
        begin = time.perf_counter()
        index.add_pack(pack_id(number), pack)
        took = time.perf_counter() - begin
        spent, worst = spent + took, max(worst, took)
    begin = time.perf_counter()
    index.flush()
    last = time.perf_counter() - begin
    print(
        f"add_pack: {spent:.1f} s, mean {spent / packs * 1e3:.2f} ms for {ROWS} chunks (merges included), worst {worst:.2f} s"
    )
    print(f"flush: {last:.1f} s; build {packs * ROWS / (spent + last) / 1e6:.2f} M chunks/s", flush=True)


def look(index: ChunkIndex, packs: int) -> None:
    """Print the cost of lookups of random names that are there and that are not."""
    rng = np.random.default_rng(1)
    sample = np.concatenate([names_of(int(number)) for number in rng.integers(0, packs, 200)])
    for size, hit in itertools.product((64, 1000), (True, False)):
        spent = []
        for _ in range(max(20, 60_000 // size)):
            names = sample[rng.integers(0, len(sample), size)] if hit else rng.integers(0, 256, (size, 32), dtype=np.uint8)
            begin = time.perf_counter()
            located = index.lookup(names)
            spent.append(time.perf_counter() - begin)
            assert located.found.all() if hit else not located.found.any()
        what = "known" if hit else "new"
        mean, median = np.mean(spent) / size * 1e6, np.median(spent) / size * 1e6
        print(f"lookup of {size} {what} names: {mean:.2f} us a name, median {median:.2f}", flush=True)
    singles = [row.tobytes() for row in sample[rng.integers(0, len(sample), 5000)]]
    begin = time.perf_counter()
    assert all(index.lookup_one(one) is not None for one in singles)
    print(f"lookup_one: {(time.perf_counter() - begin) / len(singles) * 1e6:.1f} us", flush=True)


def mark(index: ChunkIndex, packs: int, scratch: str) -> None:
    """Mark nine packs in ten, and check every pack's rows."""

    def live() -> Iterator[int]:
        return (number for number in range(packs) if number % 10)

    rows = sum(1 for _ in live()) * ROWS
    with Marker(index, scratch, BUDGET, threshold=1000) as marker:
        begin = time.perf_counter()
        for number in live():
            marker.add(names_of(number))
        seconds = time.perf_counter() - begin
        print(f"marking: add {rows / 1e6:.1f} M names {seconds:.1f} s, {rows / seconds / 1e6:.2f} M names/s", flush=True)
        begin = time.perf_counter()
        marks = marker.finish()
        seconds = time.perf_counter() - begin
    print(f"marking: finish {seconds:.1f} s, {packs * ROWS / seconds / 1e6:.2f} M index entries/s")
    assert marks.missing.count == 0
    assert marks.broken.count == 0
    for use in marks.uses():
        expected = ROWS if int.from_bytes(use.pack, "big") % 10 else 0
        assert use.live_rows == expected
        assert use.live_bytes == use.stored_bytes * expected // ROWS
    print("marks proved: every pack has exactly its rows", flush=True)


def main() -> None:
    """See the module."""
    packs = int(float(sys.argv[1] if len(sys.argv) > 1 else "100") * 1e6) // ROWS
    print(f"{packs * ROWS:,} chunks in {packs:,} packs; numpy {np.__version__}; limit: {limit_memory()}", flush=True)
    directory = tempfile.mkdtemp(prefix="everywhen-p6-", dir=sys.argv[2] if len(sys.argv) > 2 else None)
    peak = Peak()
    try:
        path = os.path.join(directory, "index")
        index = ChunkIndex(path, os.urandom)
        build(index, packs)
        index.close()
        begin = time.perf_counter()
        index = ChunkIndex(path, os.urandom)
        size = sum(entry.stat().st_blocks * 512 for entry in os.scandir(path))
        runs = [placed.run.count for placed in index.view()]
        print(f"open: {(time.perf_counter() - begin) * 1e3:.0f} ms; {size / packs / ROWS:.1f} bytes an entry; runs {runs}")
        look(index, packs)
        mark(index, packs, os.path.join(directory, "scratch"))
    finally:
        shutil.rmtree(directory)
    print(f"peak of own memory {peak.end() / 2**20:.0f} MiB; CPU {time.process_time():.0f} s")


if __name__ == "__main__":
    main()
