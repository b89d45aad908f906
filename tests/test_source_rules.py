"""What the source may not do: rebind a library's names, read the environment, unpickle, evaluate text."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

from tests.support.source_names import (
    Finding,
    Rule,
    Source,
    dotted,
    findings,
    is_below,
    layer_of,
    require_kept,
)

SHIMS = "qwen_megatron.platforms.shims"
# Beside parallel/ and cli/: launchers' variables, and those that CUDA's libraries read.
READS_ENVIRONMENT = (
    "data_tools.allocator",
    "qwen_megatron.jobs.launcher",
    "qwen_megatron.platforms.environment",
)
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


def patching(source: Source) -> Iterator[Finding]:
    """Attributes of torch or Megatron, and of functions' code, rebound outside of platforms/shims."""
    if is_below(source.module, SHIMS):
        return
    resolve = source.resolve

    def foreign(node: ast.expr) -> bool:
        return resolve(node).partition(".")[0] in ("torch", "megatron", "transformer_engine")

    def names_of(node: ast.expr) -> bool:
        """Whether it is the dictionary of a library's names."""
        if isinstance(node, ast.Call) and dotted(node.func) == "vars":
            return bool(node.args) and foreign(node.args[0])
        return foreign(node) and resolve(node).endswith("__dict__")

    for node in source.nodes:
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


def cuda_calls(source: Source) -> Iterator[Finding]:
    """torch.cuda outside of platforms/."""
    if layer_of(source.module) == "platforms":
        return
    resolve = source.resolve
    for line, name, _ in source.imports:
        if is_below(name, "torch.cuda"):
            yield line, f"imports {name}"
    for node in source.nodes:
        if isinstance(node, ast.Attribute) and resolve(node) == "torch.cuda":
            yield node.lineno, "names torch.cuda"


def environment_reads(source: Source) -> Iterator[Finding]:
    """The environment is configuration that nobody sees: only launchers' variables are read, in a few places."""
    if layer_of(source.module) in ("parallel", "cli") or source.module in READS_ENVIRONMENT:
        return
    names = ("os.environ", "os.environb", "os.getenv", "os.getenvb", "os.putenv")
    resolve = source.resolve
    for line, name, _ in source.imports:
        if name in names:
            yield line, f"imports {name}"
    for node in source.nodes:
        if isinstance(node, ast.Attribute) and resolve(node) in names:
            yield node.lineno, f"names {resolve(node)}"


def unsafe_readers(source: Source) -> Iterator[Finding]:
    """Readers and evaluators that run what a file says; handlers that hide every error."""
    resolve = source.resolve
    may_unpickle = source.module == UNPICKLER
    for line, name, _ in source.imports:
        top, _, rest = name.partition(".")
        if top in PICKLES and not may_unpickle and not (top == "pickle" and rest in ("", *PICKLE_ERRORS)):
            yield line, f"imports {name}"
    for node in source.nodes:
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


def object_collectives(source: Source) -> Iterator[Finding]:
    """Collectives of torch.distributed that unpickle what a peer sends; small objects travel by parallel/objects.py."""
    for line, name, _ in source.imports:
        if name.rpartition(".")[2] in OBJECT_COLLECTIVES:
            yield line, f"imports {name}"
    for node in source.nodes:
        if isinstance(node, ast.Attribute) and node.attr in OBJECT_COLLECTIVES:
            yield node.lineno, f"names {ast.unparse(node)}"
        elif isinstance(node, ast.Constant) and node.value in OBJECT_COLLECTIVES:
            yield node.lineno, f"hides {node.value} in a text"


def is_constant(node: ast.expr | None, *values: object) -> bool:
    """Whether a keyword's value is one of the constants; None among them stands for a keyword not given."""
    if node is None:
        return None in values
    return isinstance(node, ast.Constant) and node.value is not None and node.value in values


RULES: tuple[Rule, ...] = (patching, cuda_calls, environment_reads, unsafe_readers, object_collectives)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_source_keeps_the_rule(rule: Rule) -> None:
    require_kept(rule)


# One line that breaks each rule, with the module it stands in: a rule that finds nothing proves nothing.
BREAKS = [
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
    assert findings(rule, module, text)


KEEPS = [
    "import torch.distributed as dist\ndist.barrier()",
    "from megatron.core.models.gpt import GPTModel\nmodel = GPTModel()\nmodel.depth = 1",
    "from megatron.core.models.gpt import GPTModel\nkind = GPTModel\nmodel = kind()\nmodel.depth = 1",
    "import torch\nload = torch.load\nload(path, weights_only=True)",
    "import pickle\ntry:\n    f()\nexcept pickle.UnpicklingError:\n    raise",
    "import torch\ntorch.load(path, weights_only=True)",
    "import numpy as np\nnp.load(path, allow_pickle=False)",
    "import re\nre.compile('x')\nmodel.eval()",
]


@pytest.mark.parametrize("text", KEEPS)
def test_rules_find_nothing_in_good_code(text: str) -> None:
    assert [findings(rule, "qwen_megatron.train.step", text) for rule in RULES] == [[]] * len(RULES)
