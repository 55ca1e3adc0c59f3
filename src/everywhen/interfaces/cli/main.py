# SPDX-License-Identifier: AGPL-3.0-or-later
"""The command line's entry point."""


def main() -> None:
    """Run the command line."""
