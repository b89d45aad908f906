"""The direction of imports between the folders of data_tools; see tests/test_source_rules.py too."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.source_names import Finding, Source, all_sources, findings, require_kept

# A module may import from its own folder and from those before it; folders of one line know nothing of each other.
LAYERS = (
    ("_native", "version", "errors", "allocator"),
    ("io",),
    ("text",),
    ("readers",),
    ("tokenizer",),
    ("settings",),
    ("corpus",),
    ("chat",),
    ("filters", "dedup", "decontamination", "quality", "sources"),
    ("engine",),
    ("stages",),
    ("pipeline",),
    ("commands",),
    ("cli",),
    ("__main__",),
)
# Settings know less than their place allows.
MAY_IMPORT = {"settings": ("version", "errors", "io")}


def data_layer_of(module: str) -> str | None:
    """Folder or module right below data_tools; None for the package itself and for everything else."""
    top, _, rest = module.partition(".")
    return rest.partition(".")[0] or None if top == "data_tools" else None


def data_rank(layer: str) -> int:
    """Place of a layer of data_tools, from below."""
    return next(place for place, layers in enumerate(LAYERS) if layer in layers)


def wrong_direction(source: Source) -> Iterator[Finding]:
    """Imports of a later folder of data_tools, or of another one on the same line."""
    here = data_layer_of(source.module)
    if source.module.partition(".")[0] != "data_tools":
        return
    for line, name, _ in source.imports:
        there = data_layer_of(name)
        if there is None or there == here:
            continue
        if here is None and there != "version":
            # The package's own __init__ is loaded before everything in it; its version is looked up when asked for.
            yield line, f"data_tools must not import {name}"
        elif here is not None and there not in MAY_IMPORT.get(here, (there,)):
            yield line, f"{here} must not import {name}"
        elif here is not None and data_rank(there) >= data_rank(here) and not {here, there} <= {*LAYERS[0]}:
            yield line, f"{here} must not import {name}: {there} does not stand before it"


def test_folders_import_from_those_before_them() -> None:
    require_kept(wrong_direction)
    found = {data_layer_of(source.module) for source in all_sources()}
    assert found - {None} <= {layer for layers in LAYERS for layer in layers}, "every folder has its place"


# A rule that finds nothing proves nothing.
BREAKS = [
    ("data_tools.io.streams", "from data_tools.readers.files import find_files"),
    ("data_tools.errors", "from data_tools.io import lock"),
    ("data_tools.io.lock", "from data_tools import readers"),
    ("data_tools.io.lock", "def f():\n    import data_tools.corpus.reader"),
    ("data_tools.corpus.reader", "from ..stages import read"),
    ("data_tools.dedup.minhash", "from data_tools.quality import QualityModel"),
    ("data_tools.quality.model", "from data_tools.dedup.minhash import band_keys"),
    ("data_tools.engine.task", "from data_tools.stages.read import Read"),
    ("data_tools.stages.read", "from data_tools.pipeline.run import run_pipeline"),
    ("data_tools.pipeline.run", "from data_tools.commands import stage"),
    ("data_tools.commands.stage", "importlib.import_module('data_tools.cli')"),
    ("data_tools.settings", "from data_tools.text.words import words"),
    ("data_tools.tokenizer.qwen", "from data_tools.settings import rule"),
    ("data_tools", "from data_tools.errors import DataError"),
]


@pytest.mark.parametrize(("module", "text"), BREAKS)
def test_what_is_found(module: str, text: str) -> None:
    assert len(findings(wrong_direction, module, text)) == 1


def test_what_is_not_found() -> None:
    text = (
        "from data_tools.corpus.reader import Corpus\nfrom data_tools.settings import rule\nimport data_tools.errors\n"
        "from data_tools import _native\nfrom data_tools.dedup import buckets"
    )
    assert findings(wrong_direction, "data_tools.dedup.x", text) == []
    assert findings(wrong_direction, "qwen_megatron.data.x", text) == []
    text = "from data_tools.errors import DataError\nfrom data_tools.io import small_json\nimport data_tools.version"
    assert findings(wrong_direction, "data_tools.settings", text) == []
