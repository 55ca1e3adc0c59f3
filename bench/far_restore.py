# SPDX-License-Identifier: AGPL-3.0-or-later
"""P9's restore: a process that restores a point through a store made slow, and says what came over the line.

    python -m bench.far_restore REPOSITORY CACHE VM@POINT TO LATENCY_S BYTES_PER_S

The passphrase is the benchmarks' own. Prints one JSON object.
"""

from __future__ import annotations

import json
import sys
import time
from datetime import UTC
from pathlib import Path

from bench.library import opened
from bench.tools import PASSPHRASE
from everywhen.services.addresses import parse_address
from everywhen.services.catalog import read_catalog
from everywhen.services.opening import open_moment
from everywhen.services.restore import RestoreOrder, restore
from everywhen.storage.delayed import DelayedStore
from everywhen.storage.metered import MeteredStore
from everywhen.storage.posix import PosixStore


def main() -> None:
    """See the module. Received bytes are counted at the near end of the line; `needed` are those of all data packs."""
    repository_path, cache, moment, to, latency, rate = sys.argv[1:]
    local = PosixStore(repository_path)
    line = DelayedStore(local, latency_s=float(latency), bytes_per_s=float(rate), sleep=time.sleep, clock=time.monotonic)
    store = MeteredStore(line)
    began = time.perf_counter()
    with opened(store, PASSPHRASE, Path(cache)) as repository:
        catalog = read_catalog(repository)
        address = parse_address(moment)
        vm, found = open_moment(repository, catalog, address, now_ns=time.time_ns(), zone=UTC, exact=True)
        order = RestoreOrder(vm, found, sorted(found.point.disks), to, "raw", "new", -1, files=False, state=Path(cache))
        opening = time.perf_counter() - began
        restore(repository, order, lambda _done, _total: None)
    seconds = time.perf_counter() - began
    print(
        json.dumps(
            {"seconds": seconds, "opening": opening, "received": store.bytes_read, "requests": sum(store.operations.values())}
        )
    )


if __name__ == "__main__":
    main()
