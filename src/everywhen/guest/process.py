# SPDX-License-Identifier: AGPL-3.0-or-later
"""The process that parses guests' file systems: `python -m everywhen.guest.process =DESCRIPTOR DISK=DESCRIPTOR ...`.

Bytes from guests are hostile, and some of the parsers are not ours. So they are parsed where there is nothing to take: this
process has a socket on which it is asked (the one without a name; `messages.py`), an NBD connection for each disk of one
moment, and nothing else: no repository, no key, no files (`confinement.py`). Whoever asks checks what it says, and kills it
when it takes too long.
"""

from __future__ import annotations

import codecs
import importlib
import pkgutil
import socket
import sys

import everywhen.guest
from everywhen.guest.confinement import confine, gathered, timed
from everywhen.guest.messages import receive
from everywhen.guest.questions import Answering
from everywhen.guest.served_disk import ServedDisk
from everywhen.storage.allocator import keep_large_buffers

_UNPACKERS = ("lznt1", "lzo", "lzxpress_huffman")
"""What readers load only when a file needs it."""
_ENCODINGS = ("ascii", "cp437", "latin-1", "utf-8", "utf-16", "utf-16-le", "utf-16-be")
"""Of names; Python loads each when it is used first."""
_PROCESSOR_S = 600.0
"""For one question; whoever asks has less patience."""


def load_all() -> None:
    """Have all code here that may be needed: afterwards no file can be opened."""
    for module in pkgutil.iter_modules(everywhen.guest.__path__):
        importlib.import_module(f"everywhen.guest.{module.name}")
    for name in _UNPACKERS:
        importlib.import_module(f"dissect.util.compression.{name}")
    for encoding in _ENCODINGS:
        codecs.lookup(encoding)


def main(arguments: list[str]) -> None:
    """Answer until there is nobody to ask."""
    keep_large_buffers()  # 315 MB of a file cost 1.1 s of system time without, 0.5 s with
    load_all()
    given = {name: int(number) for name, _, number in (one.rpartition("=") for one in arguments)}
    names = sorted(given, key=lambda name: given[name])
    numbers = gathered(given.values())
    sockets = {name: socket.socket(fileno=number) for name, number in zip(names, numbers, strict=True)}
    confine(3 + len(numbers))
    questions = sockets.pop("")
    answering = Answering({name: ServedDisk(one, name) for name, one in sockets.items()})

    def take(count: int) -> bytes:
        taken = bytearray()
        while len(taken) < count:
            some = questions.recv(count - len(taken))
            if not some:
                sys.exit(0)
            taken += some
        return bytes(taken)

    while True:
        question = receive(take)
        timed(_PROCESSOR_S)
        answer = answering.answer(question.head)
        timed(0)
        questions.sendall(answer)


if __name__ == "__main__":
    main(sys.argv[1:])
