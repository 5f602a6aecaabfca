"""The state of the house in numbers: rooms, imports up or in circles, what parts of the model read undeclared.

    python tools/house.py            # this checkout
    python tools/house.py PATH       # another one, by the same counting

The levels of the rooms are those that the checkout's own ``tests/test_layout.py`` states.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import sys
import textwrap
from collections.abc import Hashable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

PACKAGE = "cfmvc_scvi"
Node = TypeVar("Node", bound=Hashable)

# ---- rooms ----------------------------------------------------------------------------------------------------------


def room_of(relative: Path) -> str:
    """Top-level folder or file that a file of the package belongs to."""
    return relative.parts[0].removesuffix(".py")


def room_lines(package: Path) -> dict[str, int]:
    """Lines of every room, the largest first; files at the top of the package are one room each."""
    lines: dict[str, int] = {}
    for path in package.rglob("*.py"):
        room = room_of(path.relative_to(package))
        lines[room] = lines.get(room, 0) + len(path.read_text(encoding="utf-8").splitlines())
    return dict(sorted(lines.items(), key=lambda item: -item[1]))


# ---- imports --------------------------------------------------------------------------------------------------------


def imported_names(tree: ast.AST, relative: Path) -> Iterator[tuple[int, str]]:
    """Line and full dotted name of all imports, wherever they stand, and of attributes read from scvi."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            source = _source(node, relative)
            yield from ((node.lineno, f"{source}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Attribute):
            name = ast.unparse(node)
            if name.startswith("scvi.") and name.replace(".", "").isidentifier():
                yield node.lineno, name


def _source(node: ast.ImportFrom, relative: Path) -> str:
    """Absolute name of the module that ``from ... import`` reads from."""
    if not node.level:
        return node.module
    package = [PACKAGE, *relative.parts[:-1]]
    parents = package[: len(package) - node.level + 1]
    return ".".join([*parents, *([node.module] if node.module else [])])


def import_graph(package: Path) -> dict[str, set[str]]:
    """For every file of the package, by its path in it, the files that it imports."""
    files = {path.relative_to(package).as_posix() for path in package.rglob("*.py")}
    graph: dict[str, set[str]] = {}
    for file in sorted(files):
        tree = ast.parse((package / file).read_text(encoding="utf-8"))
        targets = (_file_of(name, files) for _, name in imported_names(tree, Path(file)))
        graph[file] = {target for target in targets if target is not None} - {file}
    return graph


def _file_of(name: str, files: set[str]) -> str | None:
    """File that a dotted name is imported from: the longest part of the name that is one."""
    parts = name.split(".")
    if parts[0] != PACKAGE:
        return None
    for end in range(len(parts), 0, -1):
        stem = "/".join(parts[1:end])
        for file in (f"{stem}.py", f"{stem}/__init__.py".lstrip("/")):
            if file in files:
                return file
    return None


def upward_imports(package: Path, levels: Mapping[str, int]) -> list[str]:
    """Imports of a file of a room with a level that is not lower, other than within a room or between level 0."""
    found = []
    for file, targets in import_graph(package).items():
        for target in sorted(targets):
            rooms = room_of(Path(file)), room_of(Path(target))
            if rooms[0] != rooms[1] and "__init__" not in rooms:
                here, there = (levels.get(room, -1) for room in rooms)
                if there >= here and (here, there) != (0, 0):
                    found.append(f"{file} imports {target}")
    return found


def declared_levels(root: Path) -> dict[str, int]:
    """Levels that ``tests/test_layout.py`` of a checkout states."""
    tree = ast.parse((root / "tests" / "test_layout.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "LEVELS":
            return ast.literal_eval(node.value)
    return {}


def circles(graph: Mapping[Node, Iterable[Node]]) -> list[set[Node]]:
    """Groups of more than one node of which each can be reached from each, the largest first."""
    reached = {node: _reachable(node, graph) for node in graph}
    groups = {frozenset(n for n in reached[node] if node in reached.get(n, ())) | {node} for node in graph}
    return sorted((set(group) for group in groups if len(group) > 1), key=len, reverse=True)


def _reachable(start: Node, graph: Mapping[Node, Iterable[Node]]) -> set[Node]:
    found: set[Node] = set()
    waiting = list(graph[start])
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting += graph.get(node, ())
    return found


# ---- what the parts of a class read of each other, which imports do not show ----------------------------------------


def parts_of(kind: type) -> list[type]:
    """A class and those of its bases that this package defines."""
    return [base for base in kind.__mro__ if base.__module__.startswith(f"{PACKAGE}.")]


def own_attributes(kind: type) -> Iterator[tuple[str, bool]]:
    """Attributes of ``self`` that the methods of a class name, and whether each is set there."""
    for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(kind)))):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self":
            yield node.attr, isinstance(node.ctx, ast.Store)


def declared(kind: type) -> set[str]:
    """Names that a class or one of its bases defines, annotates or sets."""
    names = set(dir(kind))
    for base in kind.__mro__:
        names |= set(vars(base).get("__annotations__", {}))
        if base.__module__.startswith(f"{PACKAGE}."):
            names |= {name for name, is_set in own_attributes(base) if is_set}
        elif hasattr(vars(base).get("__init__"), "__code__"):  # scvi-tools' own bases set theirs in __init__
            names |= set(vars(base)["__init__"].__code__.co_names)
    return names


def undeclared_reads(kinds: Iterable[type]) -> list[str]:
    """Every read of an attribute that neither the class nor its bases declare, as ``Class.attribute``, with repeats."""
    found = []
    for kind in kinds:
        known = declared(kind)
        found += [f"{kind.__name__}.{name}" for name, _ in own_attributes(kind) if name not in known]
    return sorted(found)


def needs_of(kinds: Iterable[type]) -> dict[str, set[str]]:
    """For every class the others it needs: its bases, and those that hold what it reads without declaring it."""
    kinds = list(kinds)
    owned = {kind: set(vars(kind)) | {name for name, is_set in own_attributes(kind) if is_set} for kind in kinds}
    graph: dict[str, set[str]] = {}
    for kind in kinds:
        missing = {name for name, _ in own_attributes(kind)} - declared(kind)
        others = [other for other in kinds if other is not kind]
        graph[kind.__name__] = {other.__name__ for other in others if issubclass(kind, other) or missing & owned[other]}
    return graph


# ---- the report -----------------------------------------------------------------------------------------------------


def report(root: Path) -> list[str]:
    """Lines of the report on a checkout, whose package is imported from there."""
    sys.path.insert(0, str(root))
    model = importlib.import_module(PACKAGE)
    package = Path(model.__file__).parent
    if package.parent != root.resolve():
        raise ImportError(f"{PACKAGE} was imported from {package}, not from {root}.")
    rooms, levels, parts = room_lines(package), declared_levels(root), parts_of(model.CFMVC)
    total, (largest, most) = sum(rooms.values()), next(iter(rooms.items()))
    reads, upward = undeclared_reads(parts), upward_imports(package, levels)
    files, mixins = circles(import_graph(package)), circles(needs_of(part for part in parts if part is not model.CFMVC))
    return [
        *(f"{n:6d}  {room}" for room, n in rooms.items()),
        f"{total:6d}  in all; the biggest room, {largest}, has {100 * most / total:.0f} %",
        f"{len(upward):6d}  imports that go up or sideways {upward[:5]}",
        f"{sum(map(len, files)):6d}  files in circles of imports {[sorted(group) for group in files]}",
        f"{len(parts):6d}  classes make up the model's",
        f"{len(reads):6d}  reads of attributes that these do not declare, of {len(set(reads))} names in a class",
        f"{sum(map(len, mixins)):6d}  of its mixins need each other in a circle {[sorted(group) for group in mixins]}",
    ]


if __name__ == "__main__":
    print("\n".join(report(Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parents[1]).resolve())))  # noqa: T201
