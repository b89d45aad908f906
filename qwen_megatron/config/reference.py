"""The reference of all settings, docs/configuration.md, written from the records."""

from __future__ import annotations

import dataclasses
from typing import Any

from data_tools.settings.records import docs_of, hints_of
from data_tools.settings.words import bounds, show, type_name
from qwen_megatron.config.presets import PRESETS
from qwen_megatron.config.schema import SECTIONS, is_open
from qwen_megatron.config.sections.model import ModelConfig

HEAD = """# Configuration

Written from the records in `qwen_megatron/config/sections/`; do not edit. To write it again:
`qwen-megatron show-config --reference > docs/configuration.md`.

A configuration is a YAML file with the sections below, dotted overrides after it, or both:

```
qwen-megatron pretrain examples/qwen-7b.yaml training.train_iters=1000 'data.blend={data/web: 0.7, data/code: 0.3}'
```

Overrides win over the file, later ones over earlier ones. Values are YAML (core schema 1.2: `010` is ten, `3e-4` a
number). `${section.key}` stands for another value that is given or has a default here; the environment is never read.
`--dry-run` checks everything without training, `show-config` prints every value and what follows from it. All problems
are listed at once, each with key, value, rule and the nearest value that is allowed.
"""


def reference() -> str:
    """The whole reference in Markdown."""
    parts = [HEAD]
    for name, kind in SECTIONS.items():
        parts.append(section_reference(name, kind))
        if name == "model":
            parts.append(preset_table())
    return "\n".join(parts)


def section_reference(name: str, kind: Any) -> str:
    """Heading and one table row for each setting."""
    hints, docs = hints_of(kind), docs_of(kind)
    lines = [f"## {name}", "", "| key | type | default | meaning |", "|---|---|---|---|"]
    # What a subclass adds to a section comes first.
    for field in sorted(dataclasses.fields(kind), key=lambda field: field.name not in kind.__annotations__):
        default = default_text(field)
        hint = hints[field.name]
        if name == "model" and field.name != "preset":
            default = default_in_presets(field.name)
        elif is_open(f"{name}.{field.name}"):
            hint = hint | None
        words = f"{type_name(hint)}{f' ({bounds(hint)})' if bounds(hint) else ''}"
        lines.append(f"| `{name}.{field.name}` | {words} | {default} | {docs[field.name]} |")
    return "\n".join([*lines, ""])


def default_text(field: dataclasses.Field[Any]) -> str:
    """A field's default as a user would type it."""
    if field.default is dataclasses.MISSING:
        return "`null`"
    return "`[]`" if field.default == () else f"`{show(field.default) or repr('')}`"


def default_in_presets(name: str) -> str:
    """The default of a model's setting: a value if all presets have it, otherwise `preset`."""
    values = {getattr(preset, name) for preset in PRESETS.values()}
    default = next(field.default for field in dataclasses.fields(ModelConfig) if field.name == name)
    return f"`{show(default)}`" if values == {default} else "preset"


def preset_table() -> str:
    """The values of every preset, and of a model without one."""
    names = tuple(PRESETS)
    defaults = {field.name: field.default for field in dataclasses.fields(ModelConfig)}
    lines = [
        "### Presets",
        "",
        f"| | {' | '.join(names)} | without preset |",
        f"|---|{'---|' * (len(names) + 1)}",
    ]
    derived = {"num_query_groups": "num_attention_heads", "kv_channels": "hidden_size / num_attention_heads"}
    for name, default in defaults.items():
        values = [show(getattr(PRESETS[preset], name)) for preset in names]
        without = derived.get(name, "needed") if default is dataclasses.MISSING else show(default)
        lines.append(f"| {name} | {' | '.join(values)} | {without} |")
    return "\n".join([*lines, ""])
