"""One script of a recipe and the parts that it imports: the recipe first, each part below it under a ruled heading."""

from __future__ import annotations

import ast
import textwrap
from collections.abc import Callable
from dataclasses import dataclass, field

PACKAGE = "parts."
_WIDTH = 120


@dataclass(slots=True)
class _Source:
    """A module taken apart: what it imports, the parts it builds on, and its text without either."""

    sentence: str
    imports: dict[str, set[str]]
    parts: list[str]
    body: str
    names: set[str] = field(default_factory=set)


def bundle(recipe: str, read: Callable[[str], str]) -> str:
    """The recipe with what it imports of `parts.NAME` below it, whose text `read(NAME)` gives, the needed ones first.

    Imports are merged at the top. What ends the recipe (`if __name__ == …`) ends the script. Raises `ValueError` where
    two parts define one name, or a part imports another than by `from parts.NAME import …`.
    """
    head, body, last = _open_recipe(recipe)
    top = _take_apart(recipe)
    order: dict[str, _Source] = {}

    def add(name: str) -> None:
        if name not in order:
            source = _take_apart(read(name))
            for needed in source.parts:
                add(needed)
            order[name] = source

    for name in top.parts:
        add(name)
    imports: dict[str, set[str]] = {}
    owners: dict[str, str] = {}
    for name, source in {"the recipe": top, **order}.items():
        for module, members in source.imports.items():
            imports.setdefault(module, set()).update(members)
        for defined in source.names:
            if owners.setdefault(defined, name) != name:
                raise ValueError(f"{defined} is defined in {owners[defined]} and in {name}: give one another name")
    sections = [_heading(name, source.sentence) + source.body for name, source in order.items()]
    return "\n\n\n".join([head.rstrip() + "\n\n" + _write_imports(imports), body, *sections, last]) + "\n"


def _take_apart(text: str) -> _Source:
    tree = ast.parse(text)
    sentence = (ast.get_docstring(tree) or "").partition("\n")[0]
    found = _Source(sentence, {}, [], "")
    dropped: list[ast.stmt] = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    if sentence:
        dropped.append(tree.body[0])
    for node in tree.body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            _note_import(node, found)
        found.names |= _defined(node)
    lines = text.splitlines()
    for node in dropped:
        lines[node.lineno - 1 : node.end_lineno] = [""] * ((node.end_lineno or node.lineno) - node.lineno + 1)
    found.body = "\n".join(lines).strip("\n")
    return found


def _note_import(node: ast.Import | ast.ImportFrom, found: _Source) -> None:
    for alias in node.names:
        written = f"{alias.name} as {alias.asname}" if alias.asname else alias.name
        if isinstance(node, ast.Import):
            if alias.name.startswith(PACKAGE) or alias.name == PACKAGE[:-1]:
                raise ValueError(f"import {alias.name}: write `from parts.NAME import …`")
            found.imports[f"import {written}"] = set()
        elif (node.module or "").startswith(PACKAGE):
            if alias.asname or alias.name == "*":
                raise ValueError(f"from {node.module} import {written}: a part keeps its names")
            found.parts.append((node.module or "").removeprefix(PACKAGE))
        else:
            found.imports.setdefault(f"from {node.module} import", set()).add(written)


def _defined(node: ast.stmt) -> set[str]:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {node.name}
    if isinstance(node, ast.Assign | ast.AnnAssign):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        return {name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)}
    return set()


def _open_recipe(text: str) -> tuple[str, str, str]:
    """The recipe's head until its imports, its body, and what ends it."""
    tree, lines = ast.parse(text), text.splitlines()
    imports = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    first, ends = imports[0].lineno - 1, imports[-1].end_lineno or imports[-1].lineno
    last = tree.body[-1]
    if not isinstance(last, ast.If):
        raise ValueError('a recipe ends with `if __name__ == "__main__":`')
    body = "\n".join(lines[ends : last.lineno - 1]).strip("\n")
    return "\n".join(lines[:first]), body, "\n".join(lines[last.lineno - 1 :]).rstrip()


def _heading(name: str, sentence: str) -> str:
    title = f"# ---- {name.replace('_', ' ').capitalize()} "
    told = textwrap.fill(sentence, _WIDTH, initial_indent="# ", subsequent_indent="# ")
    return f"{title}{'-' * (_WIDTH - len(title))}\n{told}\n\n\n"


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
