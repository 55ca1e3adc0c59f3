# SPDX-License-Identifier: AGPL-3.0-or-later
"""Starts one command and says what it cost; run as a small process of its own.

    python -I -S launcher.py REPORT OUT ERR COMMAND...

A process starts its life with the memory of the one that made it, and Linux counts that in its peak: a large parent would
be measured instead of the command. Imports as little as it can for the same reason (about 9 MB). Times end when the
command has ended; that its bytes reach the disk afterwards is counted by itself (`sync_s`).
"""

import os
import sys
import time


def main() -> None:
    """See the module. REPORT gets `status wall_s cpu_s peak_bytes sync_s`."""
    report, out, err, *command = sys.argv[1:]
    with open(out, "wb") as stdout, open(err, "wb") as stderr:
        begin = time.perf_counter()
        child = os.fork()
        if child == 0:
            os.dup2(stdout.fileno(), 1)
            os.dup2(stderr.fileno(), 2)
            try:
                os.execvp(command[0], command)  # noqa: S606 - the command to measure
            finally:
                os._exit(127)
        _, status, used = os.wait4(child, 0)
        wall = time.perf_counter() - begin
    begin = time.perf_counter()
    os.sync()
    synced = time.perf_counter() - begin
    code = os.waitstatus_to_exitcode(status)
    with open(report, "w") as file:
        file.write(f"{code} {wall} {used.ru_utime + used.ru_stime} {used.ru_maxrss * 1024} {synced}")


if __name__ == "__main__":
    main()
