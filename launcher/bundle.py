"""One script of a recipe and the parts that it imports: the recipe first, each part below it under a ruled heading."""

from __future__ import annotations

import ast
import textwrap
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache

PACKAGE = "parts."
_WIDTH = 120


@dataclass(frozen=True, slots=True)
class _Statement:
    """One at a module's top: its text with what stands above it, the names that it defines and those it mentions."""

    node: ast.stmt
    text: str
    defines: set[str]
    mentions: set[str]


@dataclass(slots=True)
class _Source:
    """A module taken apart: its head down to the imports, these as (name here, module, name there), and the rest."""

    head: str
    sentence: str
    imports: list[tuple[str, str, str]] = field(default_factory=list)
    parts: list[str] = field(default_factory=list)
    statements: list[_Statement] = field(default_factory=list)

    def body(self) -> str:
        return "\n".join(statement.text for statement in self.statements).strip("\n")


def bundle(recipe: str, read: Callable[[str], str]) -> str:
    """The recipe with what it uses of `parts.NAME` below it, whose text `read(NAME)` gives, the needed ones first.

    What of a part nothing uses is left out, and so are its imports; the rest are merged at the top. What ends the
    recipe (`if __name__ == …`) ends the script. Raises `ValueError` where two parts define one name, or a part imports
    another than by `from parts.NAME import …`.
    """
    top = _take_apart(recipe)
    *_, last = top.statements
    if not last.text.lstrip().startswith("if "):
        raise ValueError('a recipe ends with `if __name__ == "__main__":`')
    order: dict[str, _Source] = {}

    def add(name: str) -> None:
        if name not in order:
            source = _take_apart(read(name))
            for needed in source.parts:
                add(needed)
            order[name] = source

    for name in top.parts:
        add(name)
    _refuse_twins({"the recipe": top, **order})
    used = _keep_used(top, list(order.values()))
    imports: dict[str, set[str]] = {}
    for source in (top, *order.values()):
        for name, module, member in source.imports:
            if name in used or "__future__" in module:
                imports.setdefault(module, set()).update({member} - {""})
    sections = [_heading(name, source) + source.body() for name, source in order.items() if source.statements]
    top.statements.pop()
    return "\n\n\n".join([f"{top.head}\n\n{_write_imports(imports)}", top.body(), *sections, last.text.strip()]) + "\n"


def _refuse_twins(sources: dict[str, _Source]) -> None:
    owners: dict[str, str] = {}
    for name, source in sources.items():
        for defined in {each for statement in source.statements for each in statement.defines}:
            if owners.setdefault(defined, name) != name:
                raise ValueError(f"{defined} is defined in {owners[defined]} and in {name}: give one another name")


def _keep_used(top: _Source, parts: list[_Source]) -> set[str]:
    """Leave in the parts what the recipe mentions, and what that mentions in its turn; all these names."""
    waiting = [*top.statements, *(each for part in parts for each in part.statements if not each.defines)]
    rest = {name: statement for part in parts for statement in part.statements for name in statement.defines}
    used: set[str] = set()
    while waiting:
        used |= waiting.pop().mentions
        waiting += [rest.pop(name) for name in used & rest.keys()]
    for part in parts:
        part.statements = [
            statement for statement in part.statements if not statement.defines or statement.defines & used
        ]
    return used


def _take_apart(text: str) -> _Source:
    """A copy of it that may lose statements: the parts are the same for every script."""
    found = _parse(text)
    return replace(found, statements=[*found.statements])


@lru_cache(128)
def _parse(text: str) -> _Source:
    tree, lines = ast.parse(text), text.splitlines()
    imports = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    sentence = (ast.get_docstring(tree) or "").partition("\n")[0]
    ends = (tree.body[0].end_lineno or 0) if sentence else 0
    head = "\n".join(lines[: imports[0].lineno - 1] if imports else lines[:ends]).rstrip()
    found = _Source(head, sentence)
    for node in tree.body:
        last = node.end_lineno or node.lineno
        if isinstance(node, ast.Import | ast.ImportFrom):
            _note_import(node, found)
        elif node.lineno > ends:
            mentions = {each.id for each in ast.walk(node) if isinstance(each, ast.Name)}
            found.statements.append(_Statement(node, "\n".join(lines[ends:last]), _defined(node), mentions))
        ends = last
    return found


def _note_import(node: ast.Import | ast.ImportFrom, found: _Source) -> None:
    for alias in node.names:
        written = f"{alias.name} as {alias.asname}" if alias.asname else alias.name
        name = (alias.asname or alias.name).split(".")[0]
        if isinstance(node, ast.Import):
            if alias.name.startswith(PACKAGE) or alias.name == PACKAGE[:-1]:
                raise ValueError(f"import {alias.name}: write `from parts.NAME import …`")
            found.imports.append((name, f"import {written}", ""))
        elif (node.module or "").startswith(PACKAGE):
            if alias.asname or alias.name == "*":
                raise ValueError(f"from {node.module} import {written}: a part keeps its names")
            found.parts.append((node.module or "").removeprefix(PACKAGE))
        else:
            found.imports.append((name, f"from {node.module} import", written))


def _defined(node: ast.stmt) -> set[str]:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {node.name}
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return {name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)}


def _heading(name: str, source: _Source) -> str:
    title = f"# ---- {name.replace('_', ' ').capitalize()} "
    told = textwrap.fill(source.sentence, _WIDTH, initial_indent="# ", subsequent_indent="# ")
    # As ruff has it: further from a function than from a value.
    space = "\n\n" if isinstance(source.statements[0].node, ast.Assign | ast.AnnAssign) else "\n\n\n"
    return f"{title}{'-' * (_WIDTH - len(title))}\n{told}{space}"


def _write_imports(imports: dict[str, set[str]]) -> str:
    """As isort has it: the future, then modules, then names out of them."""
    future = [module for module in imports if "__future__" in module]
    plain = sorted(module for module in imports if module.startswith("import "))
    names = sorted(module for module in imports if module.startswith("from ") and module not in future)
    lines = [f"{module} {', '.join(sorted(imports[module]))}" for module in future]
    if future:
        lines.append("")
    lines += plain
    for module in names:
        line = f"{module} {', '.join(sorted(imports[module], key=_member))}"
        if len(line) > _WIDTH:
            line = f"{module} (\n" + "".join(f"    {name},\n" for name in sorted(imports[module], key=_member)) + ")"
        lines.append(line)
    return "\n".join(lines)


def _member(name: str) -> tuple[int, str]:
    return (0 if name.isupper() else 1 if name[0].isupper() else 2), name
