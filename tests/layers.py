"""Reads who imports whom from the sources, and finds what the table of parts does not allow.

Used by `test_layers.py`; nothing here imports roboreel, so that a broken package can be judged too.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

FREE = frozenset({"errors", "_optional"})
"""Parts that every other part may import."""
FACE = "__init__"
"""The part that the package's own `__init__.py` is."""
ANYTHING = "anything"


@dataclass(frozen=True)
class Import:
    """One import as it stands in a file; `import_module("package.x")` and its like count."""

    importer: str
    imported: str
    """The full dotted name, e.g. `roboreel.store.ring`: a module of the package, or a foreign one."""
    names: tuple[str, ...]
    """What `from ... import` took out of `imported`."""
    line: int


@dataclass(frozen=True)
class Tree:
    """The modules of one package and their imports."""

    package: str
    files: Mapping[str, Path]
    imports: tuple[Import, ...]

    def part(self, module: str) -> str:
        """Return the part of a module: `roboreel.store.ring` -> `store`, `roboreel` -> `__init__`."""
        return module.split(".")[1] if "." in module else FACE

    def own(self, imported: str) -> bool:
        return imported.split(".")[0] == self.package


def read_tree(root: Path) -> Tree:
    """Read every `*.py` under `root`, the folder of the package."""
    files: dict[str, Path] = {}
    for path in sorted(root.rglob("*.py")):
        parts = [root.name, *path.relative_to(root).with_suffix("").parts]
        files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    # A folder without an __init__.py is a package to Python all the same.
    modules = set(files) | {name.rpartition(".")[0] for name in files if "." in name}
    imports = tuple(found for name, path in files.items() for found in read_imports(name, path, modules))
    return Tree(root.name, files, imports)


def read_imports(module: str, path: Path, modules: set[str]) -> Iterator[Import]:
    """Yield every import of a file, wherever it stands: in a function, under `TYPE_CHECKING`, in a `try`."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        match node:
            case ast.Import(names=aliases):
                for alias in aliases:
                    yield Import(module, alias.name, (), node.lineno)
            case ast.ImportFrom(module=name, names=aliases, level=level):
                base = name or ""
                if level:
                    above = package.split(".")[: len(package.split(".")) - level + 1]
                    base = ".".join([*above, *([name] if name else [])])
                yield from split_from(module, base, [alias.name for alias in aliases], modules, node.lineno)
            case ast.Call(
                func=ast.Name(id=called) | ast.Attribute(attr=called), args=[ast.Constant(value=str(name)), *_]
            ):
                if called in {"import_module", "__import__", "require"}:
                    yield Import(module, f"{package}{name}" if name.startswith(".") else name, (), node.lineno)


def split_from(module: str, base: str, names: list[str], modules: set[str], line: int) -> Iterator[Import]:
    """Tell modules from names: `from roboreel import store, __version__` imports `roboreel.store` and `roboreel`."""
    taken = [name for name in names if f"{base}.{name}" not in modules]
    for name in names:
        if name not in taken:
            yield Import(module, f"{base}.{name}", (), line)
    if taken:
        yield Import(module, base, tuple(taken), line)


def parse_table(markdown: str) -> dict[str, frozenset[str]]:
    """Return {part: parts that it may import} from the first table with a column `may import`.

    | part     | what | may import |        {"schema": frozenset(),
    | `schema` | ...  | –          |   ->    "store": frozenset({"schema"})}
    | `store/` | ...  | schema     |
    """
    rows = [[cell.strip() for cell in line.strip("| ").split("|")] for line in markdown.splitlines() if line[:1] == "|"]
    heads = [number for number, row in enumerate(rows) if row[0] == "part" and row[-1] == "may import"]
    assert len(heads) == 1, f"one table with the columns `part` and `may import` is wanted, found {len(heads)}"
    table: dict[str, frozenset[str]] = {}
    for row in rows[heads[0] + 2 :]:
        allowed = re.findall(r"\w+", row[-1])
        for part in re.findall(r"`(\w+)/?`", row[0]):
            assert part not in table, f"two rows for {part}"
            table[part] = frozenset(allowed)
    known = {ANYTHING, *table}
    unknown = {f"{part}: {name}" for part, allowed_ in table.items() for name in allowed_ - known}
    assert not unknown, f"the table allows parts that have no row: {sorted(unknown)}"
    return table


def foundation(table: Mapping[str, frozenset[str]], top: str) -> frozenset[str]:
    """Return every part that `top` stands on, directly or not, without `top` itself."""
    found: set[str] = set()
    queue = [top]
    while queue:
        for part in table[queue.pop()] - found:
            found.add(part)
            queue.append(part)
    return frozenset(found - {top})


def violations(tree: Tree, table: Mapping[str, frozenset[str]]) -> list[str]:
    """Return a sentence for each import that the table does not allow, and for each part without a row."""
    found = [
        f"{tree.files[module]}: the part `{tree.part(module)}` has no row in the table of parts"
        for module in tree.files
        if tree.part(module) not in table
    ]
    for item in tree.imports:
        if not tree.own(item.imported):
            continue
        source, target = tree.part(item.importer), tree.part(item.imported)
        if source == target:
            continue
        place = f"{tree.files[item.importer]}:{item.line}: `{source}`"
        allowed = table.get(source, frozenset())
        if target not in FREE | allowed and ANYTHING not in allowed:
            found.append(f"{place} may not import `{target}` ({item.imported})")
        if source in FREE and target not in allowed:
            found.append(f"{place} is free for all and so may not import `{target}` ({item.imported})")
        private = [name for name in item.names if re.match(r"_[^_]", name)]
        private += [name for name in item.imported.split(".")[2:] if name.startswith("_")]
        found += [f"{place} takes the private name `{name}` out of `{target}`" for name in private]
    return found


def foreign(tree: Tree, parts: frozenset[str], package: str) -> list[str]:
    """Return a sentence for each import of a foreign `package` in one of `parts`."""
    return [
        f"{tree.files[item.importer]}:{item.line}: `{tree.part(item.importer)}` imports {item.imported}"
        for item in tree.imports
        if item.imported.split(".")[0] == package and tree.part(item.importer) in parts
    ]


def cycle(tree: Tree) -> list[str]:
    """Return the modules of one import cycle, the first one again at the end, or nothing."""
    graph: dict[str, set[str]] = {module: set() for module in tree.files}
    for item in tree.imports:
        if item.imported in graph:
            graph[item.importer].add(item.imported)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []
