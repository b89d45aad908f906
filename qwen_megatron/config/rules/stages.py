"""Rules of pipeline stages."""

from __future__ import annotations

import math

from data_tools.settings.problems import Problems, nearest_divisors, use
from qwen_megatron.config.arithmetic.stages import layers_per_stage
from qwen_megatron.config.fill import Sections

PIPELINE = "parallel.pipeline_model_parallel_size"
VIRTUAL = "parallel.virtual_pipeline_model_parallel_size"
FIRST = "parallel.num_layers_in_first_pipeline_stage"
LAST = "parallel.num_layers_in_last_pipeline_stage"
LAYERS = "model.num_layers"


def check_stages(sections: Sections, problems: Problems) -> None:
    """Every stage has layers, and interleaved, whole pieces of them."""
    parallel = sections.parallel
    given = {
        key: count
        for key, count in (
            (FIRST, parallel.num_layers_in_first_pipeline_stage),
            (LAST, parallel.num_layers_in_last_pipeline_stage),
        )
        if count is not None
    }
    if given:
        check_uneven_stages(sections, given, problems)
    else:
        check_even_stages(sections, problems)
    check_virtual_stages(sections, problems)


def check_even_stages(sections: Sections, problems: Problems) -> None:
    """The stages divide the layers."""
    num_layers, num_stages = sections.model.num_layers, sections.parallel.pipeline_model_parallel_size
    if problems.usable(PIPELINE, LAYERS) and num_layers % num_stages != 0:
        advice = nearest_divisors(num_layers, num_stages)
        problems.add(PIPELINE, num_stages, f"must divide {LAYERS}({num_layers}); {advice}")


def check_uneven_stages(sections: Sections, given: dict[str, int], problems: Problems) -> None:
    """What the stages set apart leave is shared evenly by those between, at least one layer each."""
    num_layers, num_stages = sections.model.num_layers, sections.parallel.pipeline_model_parallel_size
    if not problems.usable(PIPELINE, LAYERS, *given):
        return
    if num_stages == 1:
        for key, count in given.items():
            problems.add(key, count, f"sets a pipeline stage apart, but {PIPELINE} is 1; leave it out")
        return
    # The last one named gives way.
    key, count = list(given.items())[-1]
    rest, between = num_layers - sum(given.values()), num_stages - len(given)
    if (rest == 0) if not between else (rest >= between and rest % between == 0):
        return
    others = "".join(f" - {other}({value})" for other, value in given.items() if other != key)
    left = f"{LAYERS}({num_layers}){others}"
    free = num_layers - (sum(given.values()) - count)
    good = [free] if not between else list(range(free - between, 0, -between))
    rule = f"must be {left}"
    if between:
        rule = f"must leave equal parts of {left} to {between} other stage{'s' if between > 1 else ''}"
    nearest = [value for value in good if value < count][:1] + [value for value in good if value > count][-1:]
    advice = use(nearest) if nearest and free > 0 else f"lower {others[3:].partition('(')[0] or PIPELINE}"
    problems.add(key, count, f"{rule}; {advice}")


def check_virtual_stages(sections: Sections, problems: Problems) -> None:
    """Interleaved pieces divide the layers of every stage."""
    model, parallel = sections.model, sections.parallel
    pipeline, virtual = parallel.pipeline_model_parallel_size, parallel.virtual_pipeline_model_parallel_size
    if virtual is None or not problems.usable(VIRTUAL, PIPELINE, FIRST, LAST):
        return
    if pipeline == 1:
        problems.add(VIRTUAL, virtual, f"interleaves pipeline stages, but {PIPELINE} is 1; leave it out")
        return
    if not problems.usable(LAYERS):
        return
    first, last = parallel.num_layers_in_first_pipeline_stage, parallel.num_layers_in_last_pipeline_stage
    if first is None and last is None:
        if model.num_layers % (pipeline * virtual) != 0:
            rule = f"times {PIPELINE}({pipeline}) must divide {LAYERS}({model.num_layers})"
            advice = "leave it out"
            if model.num_layers % pipeline == 0 and model.num_layers // pipeline > 1:
                advice = nearest_divisors(model.num_layers // pipeline, virtual)
            problems.add(VIRTUAL, virtual, f"{rule}; {advice}")
        return
    stages = layers_per_stage(model.num_layers, pipeline, first, last)
    if any(count % virtual != 0 for count in stages):
        common = math.gcd(*stages)
        advice = nearest_divisors(common, virtual) if common > 1 else "leave it out"
        counts = ", ".join(str(count) for count in stages)
        problems.add(VIRTUAL, virtual, f"must divide the layers of every stage ({counts}); {advice}")
