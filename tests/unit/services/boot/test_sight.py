# SPDX-License-Identifier: AGPL-3.0-or-later
"""A login prompt on a console, however it comes; and what is none."""

from __future__ import annotations

import pytest

from everywhen.services.boot.sight import Prompt


@pytest.mark.parametrize(
    "text",
    [
        b"\r\nDebian GNU/Linux 12 web1 ttyS0\r\n\r\nweb1 login: ",
        b"login: ",
        b"\x1b[1;32mweb1\x1b[0m login: \x1b[?25h",
        b"\x1b]0;a title\x07FreeBSD/amd64 (x) (ttyu0)\r\n\r\nlogin: ",
    ],
)
def test_a_prompt_in_pieces(text: bytes) -> None:
    whole, pieces = Prompt(), Prompt()
    assert whole.seen(text)
    assert [pieces.seen(text[at : at + 1]) for at in range(len(text))][-1]


@pytest.mark.parametrize(
    "text", [b"", b"Started getty.service - login: yes\r\n", b"logins: ", b"login:", b"Last login: Sat Nov 21\r\n#"]
)
def test_no_prompt(text: bytes) -> None:
    assert not Prompt().seen(text)


def test_what_was_long_ago_is_forgotten() -> None:
    prompt = Prompt()
    assert not any(prompt.seen(b"x" * 65536) for _ in range(100))
    assert prompt.seen(b" login: ")
