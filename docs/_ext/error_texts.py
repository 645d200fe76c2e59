"""Directive ``error-texts``: the messages of the package that belong to an entry of the page on troubleshooting.

Its content says which: one line per module (``io._mpp``) or package (``pl.*``), with the pattern of a message after a colon
where a module serves several entries. A pattern goes before a module, and a module before a package.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from docutils import nodes
from sphinx.util.docutils import SphinxDirective

import st_predict

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from docutils.nodes import Node
    from sphinx.application import Sphinx

SRC = Path(st_predict.__file__).parent
PAGE = "troubleshooting"
HEADING = re.compile(r"^#{2,3} (.+)$", re.MULTILINE)
FENCE = re.compile(r"^```\{error-texts\}\n(.*?)^```$", re.MULTILINE | re.DOTALL)

ADVISED = {"InvalidValueError", "NotFoundError", "InvalidTypeError", "LeakageError"}
WARNINGS = {"warning", "warn"}
GAP = "…"
TOO_LONG = 60


@dataclass(frozen=True)
class Site:
    """A place that raises or warns.

    Parameters
    ----------
    module
        Name below ``st_predict``, such as ``io._mpp``.
    line
        Number of the line.
    kind
        Class of the error, ``"warning"``, or an empty string where the error was made elsewhere.
    text
        Message with placeholders in angle brackets; empty where the error was made elsewhere.
    code
        Source of the place, which patterns can match too.
    """

    module: str
    line: int
    kind: str
    text: str
    code: str


@dataclass(frozen=True)
class Rule:
    """A line of the directive: the messages of a module, or those that a pattern matches."""

    entry: str
    module: str
    pattern: str = ""

    @property
    def rank(self) -> int:
        """How much the rule says: a pattern is more than a module, and a module more than a package."""
        return 2 if self.pattern else 0 if self.module.endswith(".*") else 1

    def fits(self, site: Site) -> bool:
        """Whether a place belongs to the rule."""
        package = self.module.removesuffix("*")
        if self.module != site.module and not (
            package != self.module and site.module.startswith(package)
        ):
            return False
        found = site.text if _told(site) else site.code
        return not self.pattern or re.search(self.pattern, found) is not None


# the sources


@cache
def sites(root: Path = SRC) -> tuple[Site, ...]:
    """Every place of the package that raises, makes an error, or warns."""
    return tuple(
        site
        for path in sorted(root.rglob("*.py"))
        for site in _sites_of(
            ".".join(path.relative_to(root).with_suffix("").parts),
            path.read_text(encoding="utf-8"),
        )
    )


def _sites_of(module: str, source: str) -> Iterator[Site]:
    tree = _WithTexts().visit(ast.parse(source))
    made = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    for call in made:
        if kind := _kind(call):
            yield Site(module, call.lineno, kind, _message(call), ast.unparse(call))
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise) and node.exc is not None:
            if isinstance(node.exc, ast.Call) and _kind(node.exc):
                continue  # found above
            yield Site(module, node.lineno, "", "", ast.unparse(node))


class _WithTexts(ast.NodeTransformer):
    """Puts texts that a function gave a name into the places that use the name."""

    def __init__(self) -> None:
        self.texts: list[dict[str, ast.expr]] = []

    def visit_Module(self, node: ast.Module) -> ast.AST:
        return self._inside(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        return self._inside(node)

    def visit_Name(self, node: ast.Name) -> ast.AST:
        if isinstance(node.ctx, ast.Load):
            for names in reversed(self.texts):
                if node.id in names:
                    return names[node.id]
        return node

    def _inside(self, node: ast.Module | ast.FunctionDef) -> ast.AST:
        given = [
            (one.targets[0].id, one.value)
            for one in node.body
            if isinstance(one, ast.Assign) and isinstance(one.targets[0], ast.Name)
        ]
        names = [name for name, _ in given]
        self.texts.append(
            {
                name: value
                for name, value in given
                if names.count(name) == 1 and _is_text(value)
            }
        )
        self.generic_visit(node)
        self.texts.pop()
        return node


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.JoinedStr) or (
        isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and " " in node.value
    )


def _kind(call: ast.Call) -> str:
    """Class of the error that a call makes; ``"warning"`` if it warns, empty if neither."""
    function = call.func
    if isinstance(function, ast.Attribute):
        if function.attr in WARNINGS:
            return "warning"
        return "error" if function.attr == "about" else ""
    if isinstance(function, ast.Call):
        return "error" if ast.unparse(function) == "type(error)" else ""
    name = getattr(function, "id", "")
    is_error = name in ADVISED or (name.endswith("Error") and name != "StPredictError")
    return name if is_error else ""


def _message(call: ast.Call) -> str:
    texts = [_words(argument) for argument in call.args]
    if isinstance(call.func, ast.Attribute) and call.func.attr == "warning":
        return _fill(texts)
    if _kind(call) in {*ADVISED, "error"}:
        return _advised(call, texts)
    told = [text for text in texts if text.strip(f"{GAP} .")]
    return _tidy(max(told, key=len) if told else "")


def _fill(texts: list[str]) -> str:
    """Put the arguments of a log record in the place of its %s."""
    if not texts:
        return ""
    rest = iter(texts[1:])
    filled = re.sub(r"%[-.\d]*[sdrfg]", lambda _: _short(next(rest, GAP)), texts[0])
    return _tidy(filled.replace("%%", "%"))


def _short(text: str) -> str:
    return text if len(text) < TOO_LONG else GAP


def _advised(call: ast.Call, texts: list[str]) -> str:
    if not texts:
        return ""
    ways = [
        _advice(argument, text)
        for argument, text in zip(call.args[1:], texts[1:], strict=True)
    ]
    joined = ", or ".join(way for way in ways if way)
    text = f"{texts[0]} {joined[0].upper()}{joined[1:]}." if joined else texts[0]
    return _tidy(text)


def _advice(argument: ast.expr, text: str) -> str:
    if not (
        isinstance(argument, ast.Call) and getattr(argument.func, "id", "") == "Advice"
    ):
        return text
    names = ("text", "argument", "value")
    values = dict(zip(names, argument.args, strict=False))
    values |= {keyword.arg: keyword.value for keyword in argument.keywords}
    value = values.get("value")
    shown = "" if value is None else ast.unparse(value)
    if value is not None and not isinstance(value, ast.Constant):
        shown = GAP
    if isinstance(value, ast.Constant) and isinstance(value.value, str):
        shown = f'"{value.value}"'
    return _words(values["text"]).replace("{}", f"{_words(values['argument'])}={shown}")


def _words(node: ast.expr) -> str:
    """Text of an expression; what is computed is a placeholder."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=parts):
            return "".join(_words(part) for part in parts)
        case ast.FormattedValue(value=value):
            return _words(value) if isinstance(value, ast.Constant) else _gap(value)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return _words(left) + _words(right)
        case ast.BinOp(left=left, op=ast.Mod()):
            return re.sub(r"%[-.\d]*[sdrfg]", GAP, _words(left))
    return _gap(node)


def _gap(node: ast.expr) -> str:
    """Short name of what is computed, in angle brackets."""
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return f"<{name.strip('_').lower()}>"
        case ast.Call(func=ast.Name(id="str" | "list" | "sorted" | "repr"), args=[one]):
            return _gap(one)
        case ast.Call(func=ast.Name(id="len")):
            return "<number>"
        case ast.Subscript(value=ast.Name(id=name)):
            return f"<{name.strip('_').lower()}>"
    return GAP


def _tidy(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()


# the page


def rules(page: str) -> list[Rule]:
    """Rules of all entries, read from the text of the page."""
    found = []
    for match in FENCE.finditer(page):
        heading = HEADING.findall(page[: match.start()])[-1]
        found += [_rule(heading, line) for line in match[1].splitlines() if line]
    return found


def _rule(entry: str, line: str) -> Rule:
    module, _, pattern = line.partition(":")
    return Rule(entry, module.strip(), pattern.strip())


def entries_of(site: Site, among: Iterable[Rule]) -> set[str]:
    """Entries that a place belongs to: exactly one, if the page is right."""
    fitting = [rule for rule in among if rule.fits(site)]
    most = max((rule.rank for rule in fitting), default=0)
    return {rule.entry for rule in fitting if rule.rank == most}


def faults(page: str, root: Path = SRC) -> list[str]:
    """What is wrong: places without an entry or with several, and rules that fit nothing."""
    among, every = rules(page), sites(root)
    wrong = []
    for site in every:
        if len(entries := entries_of(site, among)) != 1:
            where = f"{site.module}:{site.line}: {(site.text or site.code)[:90]!r}"
            wrong.append(f"{where} is in {sorted(entries) or 'no entry'}")
    wrong += [
        f"{rule.entry!r}: {rule.module} {rule.pattern!r} fits nothing"
        for rule in among
        if not any(rule.fits(site) for site in every)
    ]
    return wrong


def texts_of(page: str) -> dict[str, list[Site]]:
    """Messages of each entry, each once, sorted."""
    among = rules(page)
    found: dict[str, dict[tuple[str, bool], Site]] = {rule.entry: {} for rule in among}
    for site in sites():
        if _told(site):
            for entry in entries_of(site, among):
                found[entry][site.text, site.kind == "warning"] = site
    return {entry: sorted(texts.values(), key=_order) for entry, texts in found.items()}


def _order(site: Site) -> tuple[str, str]:
    """Place in the alphabet, by the first words that are always the same."""
    return re.sub(r"<[^>]*>|[^a-z ]", "", site.text.lower()).strip(), site.text


def _told(site: Site) -> bool:
    return len(re.findall(r"[a-z]{2,}", re.sub(r"<[^>]*>", "", site.text))) > 1


class ErrorTexts(SphinxDirective):
    """Write the messages of the entry that holds the directive, folded."""

    has_content = True

    def run(self) -> list[Node]:
        """Return a folded list."""
        source = Path(self.env.doc2path(self.env.docname))
        page = source.read_text(encoding="utf-8")
        self.env.note_dependency(__file__)
        above = "\n".join(page.splitlines()[: self.lineno])
        entry = HEADING.findall(above)[-1]
        found = texts_of(page)[entry]
        many = f"{len(found)} messages" if len(found) > 1 else "1 message"
        items = [
            nodes.list_item("", nodes.paragraph("", "", *_shown(site)))
            for site in found
        ]
        return [
            _html(f'<details class="error-texts"><summary>{many}</summary>'),
            nodes.bullet_list("", *items),
            _html("</details>"),
        ]


class ErrorIndex(SphinxDirective):
    """Write all messages in the order of the alphabet, each with a link to its entry."""

    def run(self) -> list[Node]:
        """Return a list."""
        source = Path(self.env.doc2path(PAGE))
        self.env.note_dependency(str(source))
        page = source.read_text(encoding="utf-8")
        address = self.env.app.builder.get_relative_uri(self.env.docname, PAGE)
        pairs = [
            (site, entry) for entry, found in texts_of(page).items() for site in found
        ]
        items = []
        for site, entry in sorted(pairs, key=lambda pair: _order(pair[0])):
            link = nodes.reference(
                "", entry, refuri=f"{address}#{nodes.make_id(entry)}"
            )
            text = nodes.paragraph("", "", *_shown(site), nodes.Text(" → "), link)
            items.append(nodes.list_item("", text))
        return [nodes.bullet_list("", *items, classes=["error-index"])]


def _html(text: str) -> nodes.raw:
    return nodes.raw("", text, format="html")


def _shown(site: Site) -> list[Node]:
    """Nodes of a message, with placeholders in italics."""
    parts = re.split(r"<([^<>]*)>", site.text)
    shown: list[Node] = [
        nodes.emphasis("", part) if number % 2 else nodes.Text(part)
        for number, part in enumerate(parts)
    ]
    if site.kind == "warning":
        shown.insert(0, nodes.strong("", "Warning: "))
    return shown


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directives."""
    app.add_directive("error-texts", ErrorTexts)
    app.add_directive("error-index", ErrorIndex)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
