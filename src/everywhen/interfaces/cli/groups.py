# SPDX-License-Identifier: AGPL-3.0-or-later
"""`everywhen --help`: commands under the headings that say what one wants, not in one long list (ux 4.6)."""

from __future__ import annotations

from typing import Any

from typer.core import TyperGroup

HEADINGS = ("Look", "Get back", "Protect", "Keep", "Run")


class GroupedCommands(TyperGroup):
    """A group whose help lists its commands by their help panel; those without one come last."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:  # noqa: ANN401, ARG002 - the parser's own types are private
        """Write one section for each heading that has commands."""
        visible = {name: command for name, command in self.commands.items() if not command.hidden}
        panels = {name: getattr(command, "rich_help_panel", None) or "Other" for name, command in visible.items()}
        width = max((len(name) for name in visible), default=0)
        for heading in (*HEADINGS, *sorted(set(panels.values()) - set(HEADINGS))):
            rows = [
                # Padded to one width, so that the texts of all sections begin in one column.
                (name.ljust(width), visible[name].get_short_help_str(formatter.width - width - 6))
                for name in sorted(visible)
                if panels[name] == heading
            ]
            if rows:
                with formatter.section(heading):
                    formatter.write_dl(rows)
