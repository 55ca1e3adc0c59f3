# SPDX-License-Identifier: AGPL-3.0-or-later
"""A folder as a page for browsers. Names are a guest's, and go in as text alone (ux R13); there are no scripts in it."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC
from html import escape
from urllib.parse import quote, unquote

from everywhen.interfaces.webdav.tree import Found, Unreadable
from everywhen.services.escape import visible
from everywhen.services.times import local_time
from everywhen.services.view.nodes import File

_STYLE = "body{font:16px sans-serif;margin:2em}td,th{text-align:left;padding:.1em 2em .1em 0}td.n{text-align:right}"


def page(href: str, members: Iterable[tuple[str, Found | Unreadable]]) -> bytes:
    """The folder at `href`, which is quoted and ends with a slash."""
    title = escape(visible(unquote(href)))
    parent = href.rstrip("/").rpartition("/")[0] + "/"
    rows = [] if href == "/" else [_row(parent, "..", "", "")]
    rows += [_member(href, name, found) for name, found in members]
    head = f'<meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>'
    table = f"<table><tr><th>Name<th>Bytes<th>Time (UTC)</tr>{''.join(rows)}</table>"
    return f"<!DOCTYPE html><html><head>{head}</head><body><h1>{title}</h1>{table}</body></html>\n".encode()


def _member(href: str, name: str, found: Found | Unreadable) -> str:
    link = href + quote(name, safe="")
    if isinstance(found, Unreadable):
        return _row(link, name, "", "cannot be read")
    try:
        time = local_time(found.node.time_ns, UTC)
    except (ValueError, OverflowError, OSError):
        time = ""  # a guest may have any number there
    if isinstance(found.node, File):
        return _row(link, name, f"{found.node.length:,}", time)
    return _row(f"{link}/", f"{name}/", "", time)


def _row(link: str, name: str, length: str, time: str) -> str:
    return f'<tr><td><a href="{escape(link)}">{escape(visible(name))}</a><td class="n">{length}<td>{time}</tr>'
