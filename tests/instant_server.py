# SPDX-License-Identifier: AGPL-3.0-or-later
"""A VM's disks served as instant recovery serves them, without a hypervisor: `python -m tests.instant_server ADDRESS SOCKET`.

ADDRESS is a moment to begin with, or a VM, which goes on with its newest one. A line on standard input has it make a point, the
end of that has it end in order.
"""

from __future__ import annotations

import os
import select
import sys
import time
from contextlib import ExitStack
from pathlib import Path

from everywhen.interfaces.cli.context import Context
from everywhen.interfaces.cli.output import Output
from everywhen.interfaces.sockets import unix_socket
from everywhen.services.addresses import parse_address
from everywhen.services.catalog import read_catalog
from everywhen.services.instant.line import Line, Start
from everywhen.services.instant.serving import served
from everywhen.services.instant.starting import brought_in, start_again, start_at
from everywhen.services.protect.capture_order import Time
from everywhen.services.view.moments import OpenMoments

LIMIT = 16 << 20
"""Bytes that may wait in the spool."""


def main(wanted: str, place: str) -> None:
    """Serve."""
    context = Context(Output(sys.stdout, sys.stderr, os.environ), os.environ)
    address = parse_address(wanted)
    spool = context.state(address.vm) / "spool"
    with context.repository() as repository, context.repository() as reading, ExitStack() as stack:
        vm = read_catalog(repository).vm(address.vm)
        brought_in(repository, vm, spool, lambda: None)
        catalog = read_catalog(repository)
        again = address.when is None
        if again:
            address, newest = start_again(catalog, vm)
        moments = OpenMoments(reading, "boot", zone=context.zone, monotonic=time.monotonic, linger_s=0, before=lambda _: None)
        stack.callback(moments.close)
        view = stack.enter_context(moments.used(address))
        start = Start(view.moment, newest) if again else start_at(repository, catalog, vm, view.moment)
        line = stack.enter_context(Line(repository, vm, spool, start, LIMIT, Time(time.monotonic, time.sleep)))
        cache = Path(place).with_suffix(".cache")
        cache.mkdir(exist_ok=True)
        with served(view, line, str(cache), unix_socket(place, stack), lambda _name, error: print(error, file=sys.stderr)):
            print("serves", flush=True)
            while True:
                if select.select([sys.stdin], [], [], 0.2)[0]:
                    if not sys.stdin.readline():
                        break
                    print(line.seal() is not None, flush=True)
                line.tend()
        line.end()


if __name__ == "__main__":
    main(*sys.argv[1:])
