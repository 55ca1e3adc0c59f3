# SPDX-License-Identifier: AGPL-3.0-or-later
"""What the C library is told it does."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

MANY_THREADS = """
import ctypes, threading
from everywhen.storage.allocator import use_few_arenas
use_few_arenas()
everybody = threading.Barrier(8)
def work():
    everybody.wait(30)
    kept = [bytes(70000) for _ in range(10)]
    everybody.wait(30)
threads = [threading.Thread(target=work) for _ in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
libc = ctypes.CDLL(None)
libc.fdopen.restype = ctypes.c_void_p
libc.malloc_info(0, ctypes.c_void_p(libc.fdopen(1, b"w")))
libc.fflush(None)
"""


def test_threads_share_arenas() -> None:
    if sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "malloc_info"):
        pytest.skip("this C library is not glibc")
    done = subprocess.run([sys.executable, "-c", MANY_THREADS], capture_output=True, text=True, check=True)
    assert 1 <= done.stdout.count("<heap nr=") <= 2
