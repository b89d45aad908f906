"""Python files as rules look at them: their nodes, what they import, and what the names in them stand for."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("data_tools", "qwen_megatron")


@dataclass(frozen=True)
class Source:
    """A file's module name and syntax tree; what several rules ask of it is worked out once."""

    module: str
    tree: ast.Module
    path: Path | None = None

    @cached_property
    def nodes(self) -> list[ast.AST]:
        """All nodes, outer ones first."""
        return list(ast.walk(self.tree))

    @cached_property
    def imports(self) -> list[tuple[int, str, str]]:
        """(line, full name of what is imported, local name it is bound to), wherever in the file the import stands."""
        return [found for node in self.nodes for found in imported_names(self.module, node)]

    @cached_property
    def bound(self) -> dict[str, str]:
        """What local names stand for: imports, and names for names (`module: Any = distributed_c10d`)."""
        # `import a.b` binds a; every other form binds the whole name.
        bound = {local: local if full.startswith(f"{local}.") else full for _, full, local in self.imports}
        pairs = list(assignments(self.nodes))
        # A chain of names takes several rounds.
        for _ in range(len(pairs)):
            new = {name: full for name, value in pairs if name not in bound and (full := meaning(value, bound))}
            if not new:
                break
            bound |= new
        return bound

    def resolve(self, node: ast.expr) -> str:
        """An attribute chain through the file's names: `dist.barrier` is `torch.distributed.barrier`; "" if unknown."""
        return meaning(node, self.bound)


def sources() -> Iterator[Source]:
    """Every file of both packages."""
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            yield Source(module, ast.parse(path.read_text(encoding="utf-8"), str(path)), path)


@cache
def all_sources() -> list[Source]:
    """The same as a list, parsed once for all rules."""
    return list(sources())


Finding = tuple[int, str]
Rule = Callable[[Source], Iterator[Finding]]


def all_findings(rule: Rule, files: list[Source]) -> str:
    """What breaks a rule, a line each."""
    return "\n".join(
        f"{source.path and source.path.relative_to(ROOT)}:{line}: {problem}"
        for source in files
        for line, problem in rule(source)
    )


def require_kept(rule: Rule) -> None:
    """Fails with every place in both packages that breaks a rule."""
    files = all_sources()
    assert len(files) > 50
    found = all_findings(rule, files)
    assert not found, found


def findings(rule: Rule, module: str, text: str) -> list[Finding]:
    """What breaks a rule in a few lines, as if they stood in a module."""
    return list(rule(Source(module, ast.parse(text))))


def layer_of(module: str) -> str | None:
    """Layer of a module of this project; None for the package itself and for other libraries."""
    top, _, rest = module.partition(".")
    if top == "data_tools":
        return top
    return rest.partition(".")[0] or None if top == "qwen_megatron" else None


def is_below(module: str, package: str) -> bool:
    """Whether a module is a package or stands in it."""
    return module == package or module.startswith(package + ".")


def dotted(node: ast.expr) -> str:
    """`a.b.c` of an attribute chain; "" for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        value = dotted(node.value)
        return f"{value}.{node.attr}" if value else ""
    return ""


def imported_names(module: str, node: ast.AST) -> Iterator[tuple[int, str, str]]:
    """(line, full name of what is imported, local name it is bound to) of one node."""
    if isinstance(node, ast.Import):
        for alias in node.names:
            yield node.lineno, alias.name, alias.asname or alias.name.partition(".")[0]
    elif isinstance(node, ast.ImportFrom):
        parents = module.split(".")[: -node.level] if node.level else []
        source = ".".join([*parents, *([node.module] if node.module else [])])
        for alias in node.names:
            yield node.lineno, f"{source}.{alias.name}", alias.asname or alias.name
    elif isinstance(node, ast.Call) and dotted(node.func) in ("importlib.import_module", "import_module"):
        name = node.args[0] if node.args else None
        if isinstance(name, ast.Constant) and isinstance(name.value, str):
            yield node.lineno, name.value, ""


def meaning(node: ast.expr, bound: dict[str, str]) -> str:
    """What an expression names, given what local names stand for; "" if that is not known."""
    if isinstance(node, ast.Attribute):
        value = meaning(node.value, bound)
        return f"{value}.{node.attr}" if value else ""
    if isinstance(node, ast.NamedExpr):
        return meaning(node.value, bound)
    if isinstance(node, ast.Call):
        return module_of_call(node, bound)
    if isinstance(node, ast.Subscript) and meaning(node.value, bound) == "sys.modules":
        return text_of(node.slice)
    return bound.get(node.id, "") if isinstance(node, ast.Name) else ""


def module_of_call(node: ast.Call, bound: dict[str, str]) -> str:
    """What `import_module("torch")`, `getattr(torch, "x")` and `cast(Any, torch)` are, too."""
    name = dotted(node.func).rpartition(".")[2]
    if name == "import_module" and node.args:
        return text_of(node.args[0])
    if name == "getattr" and len(node.args) > 1 and (of := meaning(node.args[0], bound)):
        return f"{of}.{text_of(node.args[1])}"
    return meaning(node.args[1], bound) if name == "cast" and len(node.args) == 2 else ""


def text_of(node: ast.expr) -> str:
    """A text that stands as such; "" for anything else."""
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def assignments(nodes: list[ast.AST]) -> Iterator[tuple[str, ast.expr]]:
    """(name, value) of everything that gives a value a local name; a call's arguments are not followed."""
    for node in nodes:
        if isinstance(node, ast.Assign):
            for target in node.targets:
                yield from matched(target, node.value)
        elif isinstance(node, ast.AnnAssign | ast.NamedExpr) and node.value is not None:
            yield from matched(node.target, node.value)
        elif isinstance(node, ast.For | ast.comprehension) and isinstance(node.iter, ast.Tuple | ast.List | ast.Set):
            for value in node.iter.elts:
                yield from matched(node.target, value)
        elif isinstance(node, ast.arguments):
            named = [*node.posonlyargs, *node.args]
            given = [*zip(named[len(named) - len(node.defaults) :], node.defaults, strict=True)]
            given += [(name, value) for name, value in zip(node.kwonlyargs, node.kw_defaults, strict=True) if value]
            yield from ((argument.arg, value) for argument, value in given)


def matched(target: ast.expr, value: ast.expr) -> Iterator[tuple[str, ast.expr]]:
    """Names and values of an assignment, of tuples one by one."""
    if isinstance(target, ast.Name):
        yield target.id, value
    elif isinstance(target, ast.Tuple | ast.List) and isinstance(value, ast.Tuple | ast.List):
        for one, other in zip(target.elts, value.elts, strict=False):
            yield from matched(one, other)
