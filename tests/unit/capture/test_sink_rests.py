# SPDX-License-Identifier: AGPL-3.0-or-later
"""The sink lets the spool catch up."""

from __future__ import annotations

import socket
import threading

from everywhen.capture.counters import Counters
from everywhen.capture.sink import Sink


def test_it_rests_after_each_round() -> None:
    counters, rounds = Counters.create(), threading.Semaphore(0)
    watchdog, control = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sink = threading.Thread(target=Sink([512], lambda *_: 0, counters, control, rounds.release).run)
    sink.start()
    try:
        assert all(rounds.acquire(timeout=20) for _ in range(2))
    finally:
        watchdog.close()
        sink.join()
        control.close()
        counters.close()
