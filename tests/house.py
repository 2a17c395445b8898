"""The structure and the language of the code base as numbers: `python -m tests.house` prints them.

`test_architecture.py` and `test_language.py` hold the limits. Nothing here imports the product: it is read as text.
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import mean, median, quantiles

REPOSITORY = Path(__file__).parents[1]
PACKAGES = ("lvt_pipeline", "stages")
Function = ast.FunctionDef | ast.AsyncFunctionDef


# Rooms ---------------------------------------------------------------------------------------------------------------

# What each room may import, next to the ground floor and itself. A room is a folder of `lvt_pipeline`; `stages` and the
# two entry points are rooms of their own.
ROOMS: dict[str, frozenset[str]] = {}
for _room, _below in {
    "video": "",
    "manifest": "video",
    "frames": "video",
    "demo": "video",
    "models": "",
    "codes": "video frames",
    "runs": "video frames codes models",
    "training": "video frames codes models runs",
    "jobs": "video manifest frames codes models runs training",
    "evaluation": "video frames codes models runs training jobs",
    "workspace": "video manifest frames codes models runs training jobs evaluation demo",
    "report": "video manifest frames codes models runs training jobs evaluation workspace",
    "play": "video codes models runs jobs workspace report",
    "pipeline": "video manifest frames codes models runs training jobs evaluation workspace report",
    "reproduce": "video manifest frames codes models runs training jobs evaluation workspace report pipeline demo",
}.items():
    ROOMS[_room] = frozenset(_below.split())
ROOMS["stages"] = frozenset({*ROOMS})
ROOMS["entry"] = frozenset({*ROOMS})
GROUND = "ground"
GROUND_FOLDERS = ("storage",)
ENTRY = ("lvt_pipeline", "lvt_pipeline.cli", "lvt_pipeline.__main__")


@dataclass(frozen=True)
class Import:
    """One of our modules imports another."""

    importer: str
    imported: str
    line: int
    in_function: str  # name of the function that holds the import, "" at the top of a module
    for_types_only: bool


@cache
def modules() -> dict[str, Path]:
    """Every module of the product, by dotted name."""
    found = {}
    for package in PACKAGES:
        for path in sorted((REPOSITORY / package).rglob("*.py")):
            name = ".".join(path.relative_to(REPOSITORY).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = path
    return found


@cache
def tree_of(module: str) -> ast.Module:
    return ast.parse(modules()[module].read_text())


def room_of(module: str) -> str:
    """The room of a module: a folder, the ground floor, the stages or an entry point."""
    if module in ENTRY:
        return "entry"
    parts = module.split(".")
    if parts[0] == "stages":
        return "stages"
    is_folder = len(parts) > 2 and parts[1] not in GROUND_FOLDERS
    return parts[1] if is_folder or parts[1] in ROOMS else GROUND


@cache
def imports() -> tuple[Import, ...]:
    """Every import of our own modules, also inside functions and for type checking."""
    return tuple(found for module in modules() for found in _imports_in(module, tree_of(module), "", False))


def _imports_in(module: str, node: ast.AST, function: str, for_types: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ImportFrom | ast.Import):
            for name in _imported(child):
                yield Import(module, name, child.lineno, function, for_types)
        inner = child.name if isinstance(child, Function) else function
        typing_only = for_types or (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test))
        yield from _imports_in(module, child, inner, typing_only)


def _imported(node: ast.ImportFrom | ast.Import) -> Iterator[str]:
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif node.level == 0 and node.module:
        names = [f"{node.module}.{alias.name}" for alias in node.names]
    else:
        raise AssertionError(f"relative import in line {node.lineno}: imports are absolute")
    for name in names:
        if name.split(".")[0] in PACKAGES:
            yield name if name in modules() else name.rsplit(".", 1)[0]


def against_the_arrows() -> list[str]:
    """Imports that go from a lower room to a higher one."""
    wrong = []
    for item in imports():
        importer, imported = room_of(item.importer), room_of(item.imported)
        if imported in (GROUND, importer) or (importer != GROUND and imported in ROOMS[importer]):
            continue
        if item.imported == "lvt_pipeline" or (item.importer, imported) == ("lvt_pipeline.cli", "stages"):
            continue
        wrong.append(f"{item.importer}:{item.line} ({importer}) imports {item.imported} ({imported})")
    return wrong


def cycles() -> list[list[str]]:
    """Groups of modules that import each other, in whatever way (Tarjan's strongly connected components)."""
    edges: dict[str, set[str]] = {name: set() for name in modules()}
    for item in imports():
        if item.imported != item.importer and item.imported not in ENTRY:
            edges[item.importer].add(item.imported)
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for other in sorted(edges[name]):
            if other not in index:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], index[other])
        if low[name] == index[name]:
            group = stack[stack.index(name) :]
            del stack[stack.index(name) :]
            if len(group) > 1:
                found.append(sorted(group))

    for name in edges:
        if name not in index:
            visit(name)
    return found


def imports_in_functions() -> list[Import]:
    """Imports of our own modules inside functions of the library (stage commands do so on purpose)."""
    return [item for item in imports() if item.in_function and room_of(item.importer) not in ("stages", "entry")]


# Sizes ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measured:
    """A function: its place, its lines, and what it takes."""

    module: str
    name: str
    lines: int
    num_arguments: int
    is_signature: bool  # a click command: most of it is the list of its options


@cache
def functions() -> tuple[Measured, ...]:
    """Every function of the product, methods and inner functions included."""
    found = []
    for module in modules():
        for node in ast.walk(tree_of(module)):
            if isinstance(node, Function):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                found.append(Measured(module, node.name, lines, _num_arguments(node), _is_click_command(node)))
    return tuple(found)


def _num_arguments(node: Function) -> int:
    every = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    return len([argument for argument in every if argument.arg not in ("self", "cls")])


def _is_click_command(node: Function) -> bool:
    return any("command" in ast.unparse(decorator) for decorator in node.decorator_list)


def num_lines(module: str) -> int:
    return modules()[module].read_text().count("\n")


def modules_in_folders() -> Counter[Path]:
    return Counter(path.parent.relative_to(REPOSITORY) for path in modules().values() if path.name != "__init__.py")


def public_names() -> Iterator[tuple[str, bool]]:
    """Public modules, classes and functions (methods of public classes too), and whether each has a docstring."""
    for module in modules():
        tree = tree_of(module)
        yield module, ast.get_docstring(tree) is not None
        yield from _public_in(tree, module)


def _public_in(node: ast.Module | ast.ClassDef, where: str) -> Iterator[tuple[str, bool]]:
    for child in node.body:
        if isinstance(child, Function | ast.ClassDef) and not child.name.startswith("_"):
            yield f"{where}.{child.name}", ast.get_docstring(child) is not None
            if isinstance(child, ast.ClassDef):
                yield from _public_in(child, f"{where}.{child.name}")


def silent_raises() -> list[str]:
    """Public functions that raise an error themselves which no docstring announces, theirs or that of their class.

    Settings classes refuse wrong combinations in `__post_init__`; a command reports its errors in one line.
    """
    return [name for module in modules() for name in _silent_in(tree_of(module), module, "")]


def _silent_in(node: ast.Module | ast.ClassDef, where: str, announced: str) -> Iterator[str]:
    for child in node.body:
        text = announced + (ast.get_docstring(child) or "") if isinstance(child, Function | ast.ClassDef) else ""
        if isinstance(child, ast.ClassDef) and not child.name.startswith("_"):
            yield from _silent_in(child, f"{where}.{child.name}", text)
        elif isinstance(child, Function) and _raises(child) and not _ANNOUNCED.search(text):
            is_public = child.name in ("__init__", "__call__") or not child.name.startswith("_")
            if is_public and not _is_click_command(child):
                yield f"{where}.{child.name}"


_ANNOUNCED = re.compile(r"Raises:|errors as in|with the same errors", re.IGNORECASE)


def _raises(node: ast.AST) -> bool:
    """Whether a function has a `raise` of its own, apart from one that passes an error on."""
    inner = [
        child for child in ast.iter_child_nodes(node) if not isinstance(child, Function | ast.Lambda | ast.ClassDef)
    ]
    return any((isinstance(child, ast.Raise) and child.exc is not None) or _raises(child) for child in inner)


@dataclass(frozen=True)
class Numbers:
    """The sizes of the whole product."""

    lines: int
    functions: int
    median_lines: float
    ninetieth_percentile: float
    over_40: int
    over_60: int
    mean_arguments: float
    documented: float


def numbers() -> Numbers:
    """Measure everything."""
    lengths = [item.lines for item in functions()]
    documented = [has for _, has in public_names()]
    return Numbers(
        lines=sum(map(num_lines, modules())),
        functions=len(lengths),
        median_lines=median(lengths),
        ninetieth_percentile=quantiles(lengths, n=10)[-1],
        over_40=sum(item.lines > 40 and not item.is_signature for item in functions()),
        over_60=sum(item.lines > 60 and not item.is_signature for item in functions()),
        mean_arguments=mean(item.num_arguments for item in functions()),
        documented=sum(documented) / len(documented),
    )


# Language ------------------------------------------------------------------------------------------------------------

HABITS: dict[str, re.Pattern[str]] = {
    name: re.compile(pattern, re.IGNORECASE)
    for name, pattern in {
        "go on with": r"\b(go|goes|going|went) on\b",
        "beside": r"\bbesides?\b",
        # "there is no X" is plain; "a GIF is no video" is not
        "is no X": r"(?<!there )\b(is|are|was|were) no (?!longer\b|more\b)",
        "what ... as a noun": r"\bwhat (is|are|was|came|comes|lies|it|they|we|you|there)\b",
        # "to tell two things apart" is plain
        "told, said, spoken": r"\b(?!tells? (\w+ ){0,3}apart)(told(?! apart)|tells?|telling|said|says?|spoken|speaks?)\b",  # noqa: E501
        "learnt": r"\blearnt\b",
        "anew": r"\banew\b",
        "mend": r"\bmend(s|ed|ing)?\b",
        "so many times": r"\bso many\b",
        "ever after": r"\bever after\b",
        "lies": r"\b(lies|lie|lay|lying)\b",
    }.items()
}


def texts() -> Iterator[tuple[str, str]]:
    """What users and contributors read: pages, and every string and comment of the product, with where it is."""
    for page in sorted([REPOSITORY / "README.md", *REPOSITORY.glob("docs/*.md"), *REPOSITORY.glob("data_manifests/*")]):
        yield str(page.relative_to(REPOSITORY)), page.read_text()
    for path in sorted((REPOSITORY / "lvt_pipeline").rglob("*.j2")):
        yield str(path.relative_to(REPOSITORY)), path.read_text()
    for name, path in modules().items():
        parts = []
        for token in tokenize.generate_tokens(io.StringIO(path.read_text()).readline):
            if token.type in (tokenize.STRING, tokenize.COMMENT, getattr(tokenize, "FSTRING_MIDDLE", -1)):
                parts.append(token.string)
        yield name, "\n".join(parts)


def habits() -> Counter[str]:
    """How often each habit occurs in all texts."""
    counts: Counter[str] = Counter(dict.fromkeys(HABITS, 0))
    for _, text in texts():
        for name, pattern in HABITS.items():
            counts[name] += len(pattern.findall(text))
    return counts


def _print(line: object) -> None:
    sys.stdout.write(f"{line}\n")


if __name__ == "__main__":
    _print(numbers())
    for item in sorted(functions(), key=lambda one: -one.lines)[:40]:
        _print(f"  {item.lines:4} {item.module}.{item.name}")
    for module in sorted(modules(), key=num_lines)[-12:]:
        _print(f"  {num_lines(module):4} {module}")
    for line in [*against_the_arrows(), *map(str, cycles())]:
        _print(line)
    for item in imports_in_functions():
        _print(f"in a function: {item.importer}.{item.in_function} imports {item.imported}")
    _print(dict(habits()))
    if sys.argv[1:]:  # the places of the habits, for whoever rewrites them
        for where, text in texts():
            for name, pattern in HABITS.items():
                for match in pattern.finditer(text):
                    _print(f"{where}: {name}: ...{text[max(0, match.start() - 30) : match.end() + 30]!r}")
