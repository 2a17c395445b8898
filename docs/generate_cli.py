"""Write docs/cli.md from the commands themselves: `python docs/generate_cli.py`. A test compares the two."""

from __future__ import annotations

from pathlib import Path

import click

from lvt_pipeline.cli import COMMANDS, lvt

TARGET = Path(__file__).with_name("cli.md")
WIDTH = 100
INTRODUCTION = """# Commands

Generated from the commands' `--help` by `python docs/generate_cli.py`; do not edit.

Every command ends with exit code 0 (done, or nothing to do), 1 (an error, in one line), 2 (wrong options),
3 (finished, but too many clips failed), 75 (stopped by SIGTERM, SIGUSR1 or SIGHUP after saving) or 130 (Ctrl-C).
After 75 and 130, run the same command again to resume. `lvt --version` prints the version.
"""


def render() -> str:
    """The whole page."""
    root = lvt.make_context("lvt", [], resilient_parsing=True)
    parts = [INTRODUCTION]
    for name in COMMANDS:
        command = lvt.get_command(root, name)
        assert command is not None
        parts.append(_section(command, name, root))
    return "\n".join(parts)


def _section(command: click.Command, name: str, parent: click.Context) -> str:
    context = click.Context(command, info_name=name, parent=parent, max_content_width=WIDTH, terminal_width=WIDTH)
    text = f"## {context.command_path}\n\n```text\n{command.get_help(context).rstrip()}\n```\n"
    if isinstance(command, click.Group):
        for child_name in command.list_commands(context):
            child = command.get_command(context, child_name)
            assert child is not None
            text += "\n" + _section(child, child_name, context)
    return text


if __name__ == "__main__":
    TARGET.write_text(render())
