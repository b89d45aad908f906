"""One stage on its own: files, or the documents that another run left, through a stage of any kind."""

import dataclasses
import os
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from data_tools.engine.task import STAGE_FILE, Manifest, read_manifest
from data_tools.errors import DataError
from data_tools.io.owned_paths import require_below, require_plain_name
from data_tools.io.small_json import SmallFileError, fits, read_object
from data_tools.pipeline.pipeline_file import NamedStage, Pipeline, parse_yaml
from data_tools.pipeline.run import SUMMARY
from data_tools.pipeline.settings import Problems, build
from data_tools.pipeline.summary_file import check_statistics, read_summary
from data_tools.stages.read import DataSet, ReadStage
from data_tools.stages.registry import NEEDS, STAGES

READ = "read"
# Of documents whose source is not named.
_SOURCE = "data"
# Their parts are corpora, not documents.
_CORPUS_KINDS = ("tokenize", "mixture")


@dataclasses.dataclass(frozen=True)
class StageOption:
    """One option of a stage, as help shows it."""

    key: str
    default: str
    meaning: str


def stage_options(kind: str) -> Iterator[StageOption]:
    """The options of a stage with their defaults, nested ones by dotted keys; ``inputs`` of `read` is left out."""
    for option in _options_of(STAGES[kind], ""):
        if (kind, option.key) != (READ, "inputs"):
            yield option


def _options_of(stage: type[Any], prefix: str) -> Iterator[StageOption]:
    hints = typing.get_type_hints(stage)
    meanings = _meanings(stage.__doc__ or "")
    for field in dataclasses.fields(stage):
        hint = hints[field.name]
        if isinstance(hint, types.UnionType):
            hint = typing.get_args(hint)[0]
        key = f"{prefix}{field.name}"
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            yield StageOption(key, "", meanings.get(field.name, f"the options below; {key}=null leaves it out"))
            yield from _options_of(hint, f"{key}.")
            continue
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        shown = "required" if default is dataclasses.MISSING else orjson.dumps(default).decode()
        yield StageOption(key, shown, meanings.get(field.name, ""))


def _meanings(docstring: str) -> dict[str, str]:
    """Field -> meaning, from the section Attributes."""
    found: dict[str, str] = {}
    section = docstring.partition("Attributes:\n")[2]
    for match in re.finditer(r"^ +([a-z_]+(?:, [a-z_]+)*): (.+(?:\n {12,}.+)*)", section, flags=re.MULTILINE):
        for name in match[1].split(", "):
            found[name] = " ".join(match[2].split())
    return found


def parse_assignments(assignments: Sequence[str], problems: Problems) -> dict[str, Any]:
    """KEY=VALUE arguments to what a pipeline file would hold: dotted keys nest, values are YAML.

    Args:
        assignments: as "min_score=0.8", "keep=[en, zh]", "rules.c4=null".
        problems: gets values that are not YAML, and keys that contradict each other.
    """
    values: dict[str, Any] = {}
    for assignment in assignments:
        key, _, text = assignment.partition("=")
        *parents, last = key.split(".")
        try:
            value = parse_yaml(text, f"{problems.path}: {key}")
        except DataError as error:
            problems.lines.append(str(error))
            continue
        place = values
        for parent in parents:
            place = place.setdefault(parent, {})
            if not isinstance(place, dict):
                break
        if not isinstance(place, dict) or last in place:
            problems.add(key, text, "contradicts an earlier argument")
        else:
            place[last] = value
    return values


def single_stage(
    kind: str,
    inputs: Sequence[str],
    output: Path,
    options: Mapping[str, Any],
    problems: Problems,
) -> tuple[Pipeline, list[Manifest]]:
    """The pipeline that reads ``inputs`` and does one stage, and the parts it begins with.

    Args:
        kind: of the stage. One that needs another before it (`NEEDS`) gets that with its defaults.
        inputs: files, folders, patterns, URLs; or the output folder of an earlier run, whose documents are taken as
            they are, with identity, source and language, without being read again.
        output: folder of this run.
        options: of the stage, as in a pipeline file; under "read" how files are read: keys of an entry of `inputs` but
            path, and of the stage `read` but inputs.
        problems: gets every mistake; the pipeline is only good if there is none.
    Raises:
        DataError: the earlier run is not finished, or is this one.
    """
    earlier = [path for path in inputs if Path(path, SUMMARY).is_file()]
    if earlier and len(inputs) > 1:
        raise DataError(f"{earlier[0]}: the output of a run must be the only input; of several name their shards")
    if earlier and Path(earlier[0]).resolve() == output.resolve():
        raise DataError(f"{output}: is the input too; choose another folder for --output")
    parts = finished_parts(Path(earlier[0]), corpora=kind == "mixture") if earlier else []
    kinds = [kind]
    if kind in NEEDS and not (kind == "mixture" and parts):
        kinds.insert(0, NEEDS[kind])
    if not parts and kind != READ:
        kinds.insert(0, READ)
    own = dict(options)
    reading = own.pop(READ, {})
    if not isinstance(reading, dict):
        problems.add(READ, reading, "must have keys: read.text_key=content")
        reading = {}
    stages = []
    for one in kinds:
        values = own if one == kind else {}
        if one == READ:
            values = _reading(inputs, {**own, **reading} if kind == READ else reading)
        stages.append(NamedStage(one, one, build(STAGES[one], values, "", problems)))
    return Pipeline(output=output, max_bad=None, stages=tuple(stages)), parts


def _reading(inputs: Sequence[str], values: Mapping[str, Any]) -> dict[str, Any]:
    """Options of `read`: some belong to every data set, the others to the stage."""
    of_data_set = {field.name for field in dataclasses.fields(DataSet)}
    data_set = {"source": _SOURCE, **{key: value for key, value in values.items() if key in of_data_set}}
    others = {key: value for key, value in values.items() if key not in of_data_set}
    return {**others, "inputs": [{**data_set, "path": path} for path in inputs]}


def finished_parts(output: Path, *, corpora: bool = False) -> list[Manifest]:
    """The parts of the last stage of a finished run that wrote documents (or corpora), in order.

    Raises:
        DataError: there is no such stage, or a part is missing or damaged.
    """
    stages = read_summary(output)["stages"]
    numbers = [
        number
        for number, stage in enumerate(stages, 1)
        if (stage["kind"] in _CORPUS_KINDS) == corpora and stage["kind"] != "mixture"
    ]
    if not numbers:
        wanted = "corpora; tokenize its documents first" if corpora else "documents"
        raise DataError(f"{output}: no stage of this run left {wanted}")
    number = numbers[-1]
    name = require_plain_name(stages[number - 1]["name"], f"{output / SUMMARY}: name of a stage")
    folder = output / "stages" / f"{number:02d}-{name}"
    try:
        names: Any = read_object(folder / STAGE_FILE).get("manifests")
        if not fits(names, list[str]):
            raise SmallFileError(f"{folder / STAGE_FILE}: manifests must be a list of names")
        return [_part(folder / name, output) for name in names]
    except (OSError, ValueError, SmallFileError) as error:
        raise DataError(f"{folder}: not a finished stage ({error}); run it again") from error


def _part(path: Path, output: Path) -> Manifest:
    require_below(path, output)
    manifest = read_manifest(Path(os.path.normpath(path.parent)), path.name.removesuffix(".manifest.json"))
    if manifest.statistics:
        check_statistics(manifest.statistics, str(path))
    for name, entry in manifest.outputs.items():
        size_bytes = manifest.path(name).stat().st_size
        if size_bytes != entry["size_bytes"]:
            raise DataError(f"{manifest.path(name)}: {size_bytes} bytes, its manifest says {entry['size_bytes']}")
    return manifest


def data_set_options() -> list[StageOption]:
    """How files are read: the keys of an entry of `inputs` but path, and of `read` itself."""
    options = [option for kind in (DataSet, ReadStage) for option in _options_of(kind, "")]
    return [
        dataclasses.replace(option, default=_SOURCE) if option.key == "source" else option
        for option in options
        if option.key not in ("path", "inputs")
    ]
