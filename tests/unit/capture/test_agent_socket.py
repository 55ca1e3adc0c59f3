# SPDX-License-Identifier: AGPL-3.0-or-later
from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from everywhen.capture.agent import AgentError, AgentGone, AgentRefused
from everywhen.capture.agent_socket import AgentSocket
from tests.agent_double import GuestDouble, listening, refusal


def test_an_answer(tmp_path: Path) -> None:
    with listening(tmp_path / "a", GuestDouble(), greeting=b'{"return": "old"}\n'), AgentSocket(str(tmp_path / "a")) as agent:
        assert agent.execute("guest-fsfreeze-status", timeout=5) == "thawed"
        assert agent.execute("guest-fsfreeze-freeze", timeout=5, blind=True) == 2
        assert agent.execute("guest-fsfreeze-status", timeout=5) == "frozen"


def test_a_refusal_is_told_in_its_words_but_not_at_any_length(tmp_path: Path) -> None:
    with listening(tmp_path / "a", lambda *_: refusal("no " * 9999)), AgentSocket(str(tmp_path / "a")) as agent:
        with pytest.raises(AgentRefused, match="guest-ping: no no") as raised:
            agent.execute("guest-ping", timeout=5)
        assert len(str(raised.value)) < 500


@pytest.mark.parametrize(
    "said", [b"garbage\n", b"[]\n", b'{"error": 5}\n', b'{"error": {}}\n', b"\xff\xff\n", b"{}\n", b"x" * (2 << 20)]
)
def test_garbage_is_an_error_and_the_next_conversation_is_another(tmp_path: Path, said: bytes) -> None:
    double = GuestDouble()
    double.changed["guest-ping"] = lambda *_: said
    with listening(tmp_path / "a", double), AgentSocket(str(tmp_path / "a")) as agent:
        with pytest.raises(AgentError, match="cannot be used"):
            agent.execute("guest-ping", timeout=5)
        assert agent.execute("guest-fsfreeze-status", timeout=5) == "thawed"


@contextmanager
def _chatting(path: Path, chatter: bytes) -> Iterator[None]:
    """Somebody who accepts, never answers, and says the same again and again."""
    ended = threading.Event()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()

        def chat() -> None:
            connection, _ = server.accept()
            with connection, suppress(OSError):
                while not ended.wait(0.001):
                    connection.sendall(chatter)

        thread = threading.Thread(target=chat)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


@pytest.mark.parametrize("chatter", [b"", b'{"return": 5}\n', b"\xff", b"noise"])
def test_no_agent_is_waited_for_without_limit(tmp_path: Path, chatter: bytes) -> None:
    """Nobody runs in the guest; or something says whatever it likes, for ever."""
    with _chatting(tmp_path / "a", chatter), AgentSocket(str(tmp_path / "a")) as agent:
        began = time.monotonic()
        with pytest.raises(AgentError, match=r"did not answer guest-ping within 0\.3 s: it does not run"):
            agent.execute("guest-ping", timeout=0.3)
        assert time.monotonic() - began < 5


def test_an_agent_that_is_busy(tmp_path: Path) -> None:
    with (
        listening(tmp_path / "a", lambda *_: b""),
        AgentSocket(str(tmp_path / "a")) as agent,
        pytest.raises(AgentError, match="it is busy"),
    ):
        agent.execute("guest-ping", timeout=0.2)


def test_no_vm_is_told_from_no_agent(tmp_path: Path) -> None:
    with AgentSocket(str(tmp_path / "a")) as agent, pytest.raises(AgentGone):
        agent.execute("guest-ping", timeout=1)
    with listening(tmp_path / "a", GuestDouble()), AgentSocket(str(tmp_path / "a")) as agent:
        agent.execute("guest-fsfreeze-status", timeout=5)
    with pytest.raises(AgentGone):  # the socket is still there
        agent.execute("guest-ping", timeout=1)
