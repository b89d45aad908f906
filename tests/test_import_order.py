"""Rules that hold for the source as text: direction of imports, patching, environment, unsafe readers."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("data_tools", "qwen_megatron")

# A module may import from its own layer and from those before it.
LAYERS = (
    "data_tools",
    "errors",
    "recipes",
    "libraries",
    "config",
    "_kernels",
    "platforms",
    "parallel",
    "model",
    "data",
    "train",
    "checkpoint",
    "convert",
    "inference",
    "serving",
    "evaluation",
    "alignment",
    "jobs",
    "planning",
    "report",
    "api",
    "cli",
    "__main__",
)
WITHOUT_TORCH = ("data_tools", "errors", "recipes", "libraries", "config")
SHIMS = "qwen_megatron.platforms.shims"
# Beside parallel/ and cli/: launchers' variables, and those that CUDA's libraries read.
READS_ENVIRONMENT = ("qwen_megatron.jobs.launcher", "qwen_megatron.platforms.environment")
UNPICKLER = "qwen_megatron.checkpoint.unpickler"
PICKLES = ("pickle", "_pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib")
PICKLE_ERRORS = ("PickleError", "PicklingError", "UnpicklingError")
OBJECT_COLLECTIVES = (
    "all_gather_object",
    "gather_object",
    "broadcast_object_list",
    "scatter_object_list",
    "send_object_list",
    "recv_object_list",
)
REBINDERS = ("setattr", "delattr", "__setattr__", "__delattr__")
EVALUATORS = ("eval", "exec", "compile", "__import__")

Finding = tuple[int, str]
Rule = Callable[[str, ast.Module], Iterator[Finding]]


def layer_of(module: str) -> str | None:
    """Layer of a module of this project; None for the package itself and for other libraries."""
    top, _, rest = module.partition(".")
    if top == "data_tools":
        return top
    return rest.partition(".")[0] or None if top == "qwen_megatron" else None


def is_below(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def imported_names(module: str, tree: ast.Module) -> Iterator[tuple[int, str, str]]:
    """(line, full name of what is imported, local name it is bound to), wherever in the file the import stands."""
    for node in ast.walk(tree):
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


def dotted(node: ast.expr) -> str:
    """`a.b.c` of an attribute chain; "" for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        value = dotted(node.value)
        return f"{value}.{node.attr}" if value else ""
    return ""


def full_names(module: str, tree: ast.Module) -> Callable[[ast.expr], str]:
    """Resolves attribute chains through the file's imports: `dist.barrier` to `torch.distributed.barrier`."""
    # `import a.b` binds a; every other form binds the whole name.
    bound = {local: local if full.startswith(f"{local}.") else full for _, full, local in imported_names(module, tree)}

    def resolve(node: ast.expr) -> str:
        if isinstance(node, ast.Attribute):
            value = resolve(node.value)
            return f"{value}.{node.attr}" if value else ""
        if isinstance(node, ast.NamedExpr):
            return resolve(node.value)
        if isinstance(node, ast.Call):
            return module_of_call(node)
        if isinstance(node, ast.Subscript) and resolve(node.value) == "sys.modules":
            return text_of(node.slice)
        return bound.get(node.id, "") if isinstance(node, ast.Name) else ""

    def module_of_call(node: ast.Call) -> str:
        """What `import_module("torch")`, `getattr(torch, "x")` and `cast(Any, torch)` are, too."""
        name = dotted(node.func).rpartition(".")[2]
        if name == "import_module" and node.args:
            return text_of(node.args[0])
        if name == "getattr" and len(node.args) > 1 and resolve(node.args[0]):
            return f"{resolve(node.args[0])}.{text_of(node.args[1])}"
        return resolve(node.args[1]) if name == "cast" and len(node.args) == 2 else ""

    # Names for names: `module: Any = distributed_c10d`. A chain of them takes several rounds.
    pairs = list(assignments(tree))
    for _ in range(len(pairs)):
        new = {name: full for name, value in pairs if name not in bound and (full := resolve(value))}
        if not new:
            break
        bound |= new
    return resolve


def text_of(node: ast.expr) -> str:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def assignments(tree: ast.Module) -> Iterator[tuple[str, ast.expr]]:
    """(name, value) of everything that gives a value a local name; a call's arguments are not followed."""
    for node in ast.walk(tree):
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
    if isinstance(target, ast.Name):
        yield target.id, value
    elif isinstance(target, ast.Tuple | ast.List) and isinstance(value, ast.Tuple | ast.List):
        for one, other in zip(target.elts, value.elts, strict=False):
            yield from matched(one, other)


def wrong_direction(module: str, tree: ast.Module) -> Iterator[Finding]:
    """Imports of a later layer, and of torch or Megatron in the layers that stand before them."""
    here = layer_of(module)
    if here is None:
        here = "errors"  # The package's own __init__ is loaded before everything in it.
    for line, name, _ in imported_names(module, tree):
        if here in WITHOUT_TORCH and name.partition(".")[0] in ("torch", "megatron"):
            yield line, f"{here} must not import {name}"
        there = layer_of(name)
        if there is not None and LAYERS.index(there) > LAYERS.index(here):
            yield line, f"{here} must not import {name}: {there} stands later"
        if there is None and is_below(name, "qwen_megatron") and here == "data_tools":
            yield line, f"data_tools must not import {name}"


def group_look_up(module: str, tree: ast.Module) -> Iterator[Finding]:
    """Megatron's global groups outside of parallel/: groups are arguments."""
    if layer_of(module) == "parallel":
        return
    for line, name, _ in imported_names(module, tree):
        if is_below(name, "megatron.core.parallel_state") or is_below(name, "megatron.core.mpu"):
            yield line, f"{name} is looked up outside of parallel/"


def patching(module: str, tree: ast.Module) -> Iterator[Finding]:
    """Attributes of torch or Megatron, and of functions' code, rebound outside of platforms/shims."""
    if is_below(module, SHIMS):
        return
    resolve = full_names(module, tree)

    def foreign(node: ast.expr) -> bool:
        return resolve(node).partition(".")[0] in ("torch", "megatron", "transformer_engine")

    def names_of(node: ast.expr) -> bool:
        """Whether it is the dictionary of a library's names."""
        if isinstance(node, ast.Call) and dotted(node.func) == "vars":
            return bool(node.args) and foreign(node.args[0])
        return foreign(node) and resolve(node).endswith("__dict__")

    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store | ast.Del):
            if foreign(node.value) or node.attr in ("__code__", "__globals__", "__class__"):
                yield node.lineno, f"{ast.unparse(node)} is rebound"
        elif isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store | ast.Del):
            if resolve(node.value) == "sys.modules" or names_of(node.value):
                yield node.lineno, f"{ast.unparse(node)} is rebound"
        elif isinstance(node, ast.Call) and dotted(node.func).rpartition(".")[2] in REBINDERS:
            yield node.lineno, f"{dotted(node.func)} hides what it rebinds"
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and names_of(node.func.value):
            yield node.lineno, f"{ast.unparse(node.func)} may rebind"
        elif isinstance(node, ast.Call) and is_below(resolve(node.func), "unittest.mock"):
            yield node.lineno, f"{ast.unparse(node.func)} patches"


def cuda_calls(module: str, tree: ast.Module) -> Iterator[Finding]:
    """torch.cuda outside of platforms/."""
    if layer_of(module) == "platforms":
        return
    resolve = full_names(module, tree)
    for line, name, _ in imported_names(module, tree):
        if is_below(name, "torch.cuda"):
            yield line, f"imports {name}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and resolve(node) == "torch.cuda":
            yield node.lineno, "names torch.cuda"


def environment_reads(module: str, tree: ast.Module) -> Iterator[Finding]:
    """The environment is configuration that nobody sees: only launchers' variables are read, in a few places."""
    if layer_of(module) in ("parallel", "cli") or module in READS_ENVIRONMENT:
        return
    names = ("os.environ", "os.environb", "os.getenv", "os.getenvb", "os.putenv")
    resolve = full_names(module, tree)
    for line, name, _ in imported_names(module, tree):
        if name in names:
            yield line, f"imports {name}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and resolve(node) in names:
            yield node.lineno, f"names {resolve(node)}"


def unsafe_readers(module: str, tree: ast.Module) -> Iterator[Finding]:
    """Readers and evaluators that run what a file says; handlers that hide every error."""
    resolve = full_names(module, tree)
    may_unpickle = module == UNPICKLER
    for line, name, _ in imported_names(module, tree):
        top, _, rest = name.partition(".")
        if top in PICKLES and not may_unpickle and not (top == "pickle" and rest in ("", *PICKLE_ERRORS)):
            yield line, f"imports {name}"
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler) and node.type is None:
            yield node.lineno, "bare except"
        if isinstance(node, ast.Attribute) and not may_unpickle:
            top, _, rest = resolve(node).partition(".")
            if top == "pickle" and rest and rest not in PICKLE_ERRORS:
                yield node.lineno, f"names pickle.{rest}"
        if isinstance(node, ast.Call):
            keywords = {keyword.arg: keyword.value for keyword in node.keywords}
            if isinstance(node.func, ast.Name) and node.func.id in EVALUATORS:
                yield node.lineno, f"calls {node.func.id}"
            if resolve(node.func).startswith(("yaml.load", "yaml.unsafe_load", "yaml.full_load")):
                yield node.lineno, f"calls {resolve(node.func)}"
            if not is_constant(keywords.get("allow_pickle"), False, None):
                yield node.lineno, "allow_pickle is not False"
            if resolve(node.func) == "torch.load" and not is_constant(keywords.get("weights_only"), True):
                yield node.lineno, "torch.load without weights_only=True"


def object_collectives(module: str, tree: ast.Module) -> Iterator[Finding]:
    """Collectives of torch.distributed that unpickle what a peer sends; small objects travel by parallel/objects.py."""
    for line, name, _ in imported_names(module, tree):
        if name.rpartition(".")[2] in OBJECT_COLLECTIVES:
            yield line, f"imports {name}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in OBJECT_COLLECTIVES:
            yield node.lineno, f"names {ast.unparse(node)}"
        elif isinstance(node, ast.Constant) and node.value in OBJECT_COLLECTIVES:
            yield node.lineno, f"hides {node.value} in a text"


def is_constant(node: ast.expr | None, *values: object) -> bool:
    """Whether a keyword's value is one of the constants; None among them stands for a keyword not given."""
    if node is None:
        return None in values
    return isinstance(node, ast.Constant) and node.value is not None and node.value in values


RULES: tuple[Rule, ...] = (
    wrong_direction,
    group_look_up,
    patching,
    cuda_calls,
    environment_reads,
    unsafe_readers,
    object_collectives,
)


def sources() -> Iterator[tuple[str, Path]]:
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            yield module.removesuffix(".__init__"), path


@pytest.fixture(scope="module")
def trees() -> list[tuple[str, Path, ast.Module]]:
    """Every file with its syntax tree, for all rules."""
    return [(module, path, ast.parse(path.read_text(encoding="utf-8"), str(path))) for module, path in sources()]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_source_keeps_the_rule(rule: Rule, trees: list[tuple[str, Path, ast.Module]]) -> None:
    broken = [
        f"{path.relative_to(ROOT)}:{line}: {problem}"
        for module, path, tree in trees
        for line, problem in rule(module, tree)
    ]
    assert len(trees) > 50
    assert not broken, "\n".join(broken)


def test_every_package_has_a_layer() -> None:
    found = {layer for module, _ in sources() if (layer := layer_of(module)) is not None}
    assert found <= set(LAYERS)


# One line that breaks each rule, with the module it stands in: a rule that finds nothing proves nothing.
BREAKS = [
    (wrong_direction, "qwen_megatron.model.loss", "from qwen_megatron.train.step import train_step"),
    (wrong_direction, "qwen_megatron.convert.to_hf", "from qwen_megatron import inference"),
    (wrong_direction, "qwen_megatron.convert.to_hf", "def f():\n    import qwen_megatron.inference.loading"),
    (wrong_direction, "qwen_megatron.data.loader", "from ..train import step"),
    (wrong_direction, "qwen_megatron.data.loader", "importlib.import_module('qwen_megatron.cli.main')"),
    (wrong_direction, "qwen_megatron.config.load", "import torch"),
    (wrong_direction, "qwen_megatron.config.load", "from megatron.core import parallel_state"),
    (wrong_direction, "data_tools.readers.jsonl", "import qwen_megatron"),
    (wrong_direction, "data_tools.readers.jsonl", "from qwen_megatron.errors import DataError"),
    (wrong_direction, "data_tools.readers.jsonl", "import torch.utils"),
    (wrong_direction, "qwen_megatron", "from qwen_megatron.config import load"),
    (group_look_up, "qwen_megatron.model.loss", "from megatron.core import parallel_state"),
    (patching, "qwen_megatron.train.step", "import torch\ntorch.cuda.current_device = None"),
    (patching, "qwen_megatron.train.step", "import torch.distributed as dist\ndist.barrier = None"),
    (patching, "qwen_megatron.train.step", "from megatron.core.models.gpt import GPTModel\nGPTModel.forward = None"),
    (patching, "qwen_megatron.train.step", "from megatron.core import utils\nutils.depth += 1"),
    (patching, "qwen_megatron.train.step", "import torch\ndel torch.load"),
    (patching, "qwen_megatron.train.step", "import torch\nsetattr(torch, 'load', None)"),
    (patching, "qwen_megatron.train.step", "import torch\ntorch.__dict__['load'] = None"),
    (patching, "qwen_megatron.train.step", "import sys\nsys.modules['apex'] = None"),
    (patching, "qwen_megatron.train.step", "function.__code__ = other"),
    (patching, "qwen_megatron.train.step", "from unittest import mock\nmock.patch('torch.load')"),
    (
        patching,
        "qwen_megatron.parallel.groups",
        "from torch.distributed import distributed_c10d as c\nmodule: Any = c\nmodule.ProcessGroupGloo = None",
    ),
    (
        patching,
        "qwen_megatron.train.step",
        "import torch\nfirst = torch\nsecond = first.distributed\nsecond.barrier = None",
    ),
    (patching, "qwen_megatron.train.step", "import torch\na, b = 1, torch\nb.load = None"),
    (patching, "qwen_megatron.train.step", "import torch\n(t := torch).load = None"),
    (
        patching,
        "qwen_megatron.train.step",
        "import torch\nfor library in (torch, torch.cuda):\n    library.load = None",
    ),
    (patching, "qwen_megatron.train.step", "import torch\ndef f(library=torch):\n    library.load = None"),
    (patching, "qwen_megatron.train.step", "import torch\ndef f(*, library=torch):\n    library.load = None"),
    (patching, "qwen_megatron.train.step", "import importlib\nimportlib.import_module('torch').load = None"),
    (patching, "qwen_megatron.train.step", "import importlib\nt = importlib.import_module('torch')\nt.load = None"),
    (patching, "qwen_megatron.train.step", "import sys\nt = sys.modules['torch']\nt.load = None"),
    (patching, "qwen_megatron.train.step", "import torch\nt = cast(Any, torch)\nt.load = None"),
    (patching, "qwen_megatron.train.step", "import torch\nt = getattr(torch, 'distributed')\nt.barrier = None"),
    (patching, "qwen_megatron.train.step", "import torch\nvars(torch)['load'] = None"),
    (patching, "qwen_megatron.train.step", "import torch\nnames = torch.__dict__\nnames.update(load=None)"),
    (patching, "qwen_megatron.train.step", "import torch\ntype.__setattr__(torch.Tensor, 'x', None)"),
    (cuda_calls, "qwen_megatron.train.step", "import torch\nt = torch\nt.cuda.synchronize()"),
    (environment_reads, "qwen_megatron.train.step", "import os\nsystem = os\nsystem.environ['RANK']"),
    (cuda_calls, "qwen_megatron.train.step", "import torch\ntorch.cuda.synchronize()"),
    (cuda_calls, "qwen_megatron.train.step", "import torch as t\nt.cuda.synchronize()"),
    (cuda_calls, "qwen_megatron.train.step", "from torch import cuda"),
    (cuda_calls, "qwen_megatron.train.step", "import torch.cuda.nvtx"),
    (environment_reads, "qwen_megatron.train.step", "import os\nos.environ['RANK']"),
    (environment_reads, "qwen_megatron.config.load", "import os as system\nsystem.getenv('RANK')"),
    (environment_reads, "data_tools.cli", "from os import environ"),
    (unsafe_readers, "qwen_megatron.checkpoint.load", "import pickle\npickle.load(stream)"),
    (unsafe_readers, "qwen_megatron.checkpoint.load", "from pickle import loads"),
    (unsafe_readers, "data_tools.readers.jsonl", "eval(text)"),
    (unsafe_readers, "qwen_megatron.config.load", "import yaml\nyaml.load(text, Loader=yaml.Loader)"),
    (unsafe_readers, "data_tools.corpus.reader", "import numpy as np\nnp.load(path, allow_pickle=True)"),
    (unsafe_readers, "data_tools.corpus.reader", "import numpy as np\nnp.load(path, allow_pickle=flag)"),
    (unsafe_readers, "qwen_megatron.convert.from_hf", "import torch\ntorch.load(path)"),
    (unsafe_readers, "qwen_megatron.convert.from_hf", "try:\n    f()\nexcept:\n    pass"),
    (
        object_collectives,
        "qwen_megatron.train.step_guard",
        "import torch.distributed as dist\ndist.all_gather_object(a, b)",
    ),
    (
        object_collectives,
        "qwen_megatron.train.step_guard",
        "from torch.distributed import broadcast_object_list as tell",
    ),
    (
        object_collectives,
        "qwen_megatron.train.step_guard",
        "import torch\nd: Any = torch.distributed\nd.gather_object(a)",
    ),
    (object_collectives, "qwen_megatron.train.step_guard", "getattr(dist, 'scatter_object_list')(a, b)"),
]


@pytest.mark.parametrize(("rule", "module", "text"), BREAKS, ids=lambda value: getattr(value, "__name__", None))
def test_rule_finds_what_breaks_it(rule: Rule, module: str, text: str) -> None:
    assert len(list(rule(module, ast.parse(text)))) >= 1


KEEPS = [
    "import torch.distributed as dist\ndist.barrier()",
    "from megatron.core.models.gpt import GPTModel\nmodel = GPTModel()\nmodel.depth = 1",
    "from megatron.core.models.gpt import GPTModel\nkind = GPTModel\nmodel = kind()\nmodel.depth = 1",
    "import torch\nload = torch.load\nload(path, weights_only=True)",
    "import pickle\ntry:\n    f()\nexcept pickle.UnpicklingError:\n    raise",
    "import torch\ntorch.load(path, weights_only=True)",
    "import numpy as np\nnp.load(path, allow_pickle=False)",
    "from qwen_megatron.model.loss import summed_loss\nfrom data_tools.corpus.reader import Corpus",
    "import re\nre.compile('x')\nmodel.eval()",
]


@pytest.mark.parametrize("text", KEEPS)
def test_rules_find_nothing_in_good_code(text: str) -> None:
    assert [list(rule("qwen_megatron.train.step", ast.parse(text))) for rule in RULES] == [[]] * len(RULES)


def test_only_bindings_know_pybind11() -> None:
    """Kernels are plain C++: the files of csrc/ that name pybind11 or Python are the bindings."""
    sources = [path for path in (ROOT / "csrc").rglob("*") if path.is_file()]
    foreign = [path.name for path in sources if re.search(r"pybind11|Python\.h", path.read_text())]
    assert len(foreign) >= 5
    assert {name for name in foreign if not name.startswith("bindings")} == set()


@pytest.mark.parametrize("package", PACKAGES)
def test_package_imports_without_torch(package: str) -> None:
    program = f"import {package}, sys; print(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    loaded = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    ).stdout.split()
    assert package in loaded
    assert not {"torch", "megatron"} & set(loaded)
