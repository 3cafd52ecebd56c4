"""The command-line reference, from the ``sgpo`` command itself."""

import re
from collections.abc import Iterator
from typing import Any

import typer

from sgpo_verl.cli import app

HEAD = """# Command line

Made from the command itself when this page was built. Bad input is one line and exit code 2.

Where a command takes `[OVERRIDES]`, these are the arguments of your training command: Hydra overrides, `--config-dir`,
`--config-path` and `--config-name`.
"""


def page() -> str:
    return HEAD + "".join(_section(path, command) for path, command in commands(typer.main.get_command(app), "sgpo"))


def commands(command: Any, path: str) -> Iterator[tuple[str, Any]]:
    """("sgpo profile merge", its command) for every command that does something. Typer's, or click's: they look alike."""
    if not hasattr(command, "commands"):
        yield path, command
        return
    for name in command.list_commands(None):
        yield from commands(command.commands[name], f"{path} {name}")


def _section(path: str, command: Any) -> str:
    arguments = [parameter for parameter in command.params if parameter.param_type_name == "argument"]
    options = [parameter for parameter in command.params if parameter.param_type_name != "argument"]
    usage = [path, *(["[OPTIONS]"] if options else []), *map(_place, arguments)]
    usage += ["[OVERRIDES]..."] if command.context_settings.get("allow_extra_args") else []
    text, example = _help(command)
    rows = [(f"`{_name(argument)}`", argument) for argument in arguments]
    rows += [(_names(option), option) for option in options if not option.hidden]
    table = "".join(f"| {name} | {_said(parameter)} |\n" for name, parameter in rows)
    table = f"\n| | |\n|---|---|\n{table}" if rows else ""
    return f"\n## {path}\n\n{text}\n\n```\n{' '.join(usage)}\n```\n{table}{example}"


def _help(command: Any) -> tuple[str, str]:
    """(the help in paragraphs, its example as a block of code)."""
    paragraphs = [" ".join(paragraph.split()) for paragraph in (command.help or "").split("\n\n")]
    before, found, line = "\n\n".join(paragraphs).partition("Example: ")
    return before.strip(), f"\n```bash\n{line.strip()}\n```\n" if found else ""


def _name(parameter: Any) -> str:
    return parameter.metavar or parameter.name.upper()


def _place(argument: Any) -> str:
    """An argument in the usage line."""
    name = f"{_name(argument)}..." if argument.nargs == -1 else _name(argument)
    return name if argument.required else f"[{name}]"


def _names(option: Any) -> str:
    names = ", ".join(f"`{name}`" for name in sorted(option.opts, key=len))
    return names if option.is_flag else f"{names} `{_name(option)}`"


def _said(parameter: Any) -> str:
    text = re.sub(r"(?<![.!?])$", ".", (parameter.help or "").replace("|", r"\|"))
    if parameter.default in (None, False, "") or callable(parameter.default):
        return text
    return f"{text} Default: `{parameter.default}`."
