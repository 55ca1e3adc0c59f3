# SPDX-License-Identifier: AGPL-3.0-or-later
"""`everywhen serve`: all that it has."""

from everywhen.interfaces.cli import serve_nbd, serve_webdav

__all__ = ["serve_nbd", "serve_webdav"]
