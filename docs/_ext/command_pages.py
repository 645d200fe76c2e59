"""One page per command of ``st-predict``, written into ``docs/cli`` from the application when the documentation is built."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import generated_pages
import typer
from rich.text import Text
from typer.main import get_command

from st_predict.cli import app as application

if TYPE_CHECKING:
    from sphinx.application import Sphinx

FOLDER = "cli"
PROGRAM = "st-predict"
CODE = re.compile(r"('\{.*?\}'|--[a-z][a-z-]*)")


def write_pages(app: Sphinx) -> None:
    """Write the page of each command, and of the options that precede any command."""
    generated_pages.write_pages(Path(app.srcdir) / FOLDER, pages())


def pages() -> dict[str, str]:
    """Markdown of each page, by command."""
    group = get_command(application)
    context = typer.Context(group, info_name=PROGRAM, **group.context_settings)
    commands = {
        name: _page(
            f"{PROGRAM} {name}",
            command,
            typer.Context(command, info_name=name, parent=context),
        )
        for name, command in group.commands.items()
    }
    return {"options": _page(PROGRAM, group, context), **commands}


def _page(call: str, command: Any, context: typer.Context) -> str:
    title = (
        call.removeprefix(f"{PROGRAM} ")
        if call != PROGRAM
        else "Options of all commands"
    )
    records = [
        (param, *param.get_help_record(context))
        for param in command.get_params(context)
        if not param.hidden
    ]
    parts = [
        f"# {title}",
        _plain(command.help),
        f"```console\n$ {call} {' '.join(command.collect_usage_pieces(context))}\n```",
        f"```{{program}} {call}\n```",
    ]
    for heading, kind in (("Arguments", "argument"), ("Options", "option")):
        entries = [
            _entry(*record) for record in records if record[0].param_type_name == kind
        ]
        parts += [f"## {heading}", *entries] if entries else []
    return "\n\n".join(parts) + "\n"


def _entry(param: Any, names: str, text: str) -> str:
    """Directive of one parameter: its names and type, its help, and its default or that it is required."""
    help_text = param.help or ""
    signature = re.sub(r"<list\[(\w+)\]>", lambda found: f"<{found[1].lower()}>", names)
    facts = text.removeprefix(help_text).strip().removeprefix("[").removesuffix("]")
    sentences = [
        _plain(help_text),
        *(_fact(fact.strip()) for fact in facts.split("; ") if fact),
    ]
    if param.multiple or param.nargs == -1:
        sentences.append("May be given several times.")
    return (
        f"````{{option}} {signature.replace(' / ', ', ')}\n{' '.join(sentences)}\n````"
    )


def _fact(text: str) -> str:
    name, colon, value = text.partition(": ")
    return f"{name.capitalize()}: `{value}`." if colon else f"{text.capitalize()}."


def _plain(text: str) -> str:
    """Markdown of a help text: no markup of the terminal, special characters escaped, options and JSON as code."""
    parts = CODE.split(Text.from_markup(text).plain)
    parts[::2] = [re.sub(r"([\\`*_\[\]<>$])", r"\\\1", part) for part in parts[::2]]
    parts[1::2] = [f"`{part}`" for part in parts[1::2]]
    return "".join(parts)


def setup(app: Sphinx) -> dict[str, Any]:
    """Write the pages before sources are read."""
    app.connect("builder-inited", write_pages)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
