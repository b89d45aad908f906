"""One stage on its own: files, or the documents that another run left, through a stage of any kind."""

import dataclasses
import os
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson
import yaml

from data_tools.engine.task import STAGE_FILE, Manifest, read_manifest
from data_tools.errors import DataError, RefusedError
from data_tools.io.owned_paths import require_below, require_plain_name
from data_tools.io.small_json import SmallFileError, fits, read_object
from data_tools.pipeline.pipeline_file import CORPUS_KINDS, NamedStage, Pipeline
from data_tools.pipeline.run import SUMMARY
from data_tools.pipeline.summary_file import check_statistics, read_summary
from data_tools.settings.nodes import list_node, mapping_node, read_record, text_node, written
from data_tools.settings.problems import Problems
from data_tools.settings.records import docs_of, hints_of
from data_tools.settings.words import members
from data_tools.settings.yaml_text import pairs
from data_tools.stages.read import DataSet, ReadStage
from data_tools.stages.registry import NEEDS, STAGES

READ = "read"
# Of documents whose source is not named.
_SOURCE = "data"


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
    hints, meanings = hints_of(stage), docs_of(stage)
    for field in dataclasses.fields(stage):
        record = next((kind for kind in members(hints[field.name]) if dataclasses.is_dataclass(kind)), None)
        key = f"{prefix}{field.name}"
        if record is not None:
            yield StageOption(key, "", meanings.get(field.name, f"the options below; {key}=null leaves it out"))
            yield from _options_of(typing.cast(type[Any], record), f"{key}.")
            continue
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        shown = "required" if default is dataclasses.MISSING else orjson.dumps(default).decode()
        yield StageOption(key, shown, meanings.get(field.name, ""))


def single_stage(
    kind: str,
    inputs: Sequence[str],
    output: Path,
    options: yaml.MappingNode,
    problems: Problems,
) -> tuple[Pipeline, list[Manifest]]:
    """The pipeline that reads ``inputs`` and does one stage, and the parts it begins with.

    Args:
        kind: of the stage. One that needs another before it (`NEEDS`) gets that with its defaults.
        inputs: files, folders, patterns, URLs; or the output folder of an earlier run, whose documents are taken as
            they are, with identity, source and language, without being read again.
        output: folder of this run.
        options: of the stage, as in a pipeline file (`nodes.assembled`); under "read" how files are read: keys of an
            entry of `inputs` but path, and of the stage `read` but inputs.
        problems: gets every mistake; the pipeline is only good if there is none.
    Raises:
        DataError: the earlier run is not finished, or is this one.
    """
    earlier = [path for path in inputs if Path(path, SUMMARY).is_file()]
    if earlier and len(inputs) > 1:
        raise RefusedError(f"{earlier[0]}: the output of a run must be the only input; of several name their shards")
    if earlier and Path(earlier[0]).resolve() == output.resolve():
        raise RefusedError(f"{output}: is the input too; choose another folder for --output")
    parts = finished_parts(Path(earlier[0]), corpora=kind == "mixture") if earlier else []
    kinds = [kind]
    if kind in NEEDS and not (kind == "mixture" and parts):
        kinds.insert(0, NEEDS[kind])
    if not parts and kind != READ:
        kinds.insert(0, READ)
    own = {key: node for key, node, _ in pairs(options)}
    reading = own.pop(READ, mapping_node({}))
    if not isinstance(reading, yaml.MappingNode):
        problems.add(READ, written(reading), "must have keys: read.text_key=content")
        reading = mapping_node({})
    of_read = {key: node for key, node, _ in pairs(reading)}
    stages = []
    for one in kinds:
        values = own if one == kind else {}
        if one == READ:
            values = _reading(inputs, {**own, **of_read} if kind == READ else of_read)
        stages.append(NamedStage(one, one, read_record(STAGES[one], mapping_node(values), "", "", problems)))
    return Pipeline(name=kind, output=output, max_bad=None, stages=tuple(stages)), parts


def _reading(inputs: Sequence[str], values: Mapping[str, yaml.Node]) -> dict[str, yaml.Node]:
    """Options of `read`: some belong to every data set, the others to the stage."""
    of_data_set = {field.name for field in dataclasses.fields(DataSet)}
    data_set = {"source": text_node(_SOURCE), **{key: node for key, node in values.items() if key in of_data_set}}
    others = {key: node for key, node in values.items() if key not in of_data_set}
    sets = [mapping_node({**data_set, "path": text_node(path)}) for path in inputs]
    return {**others, "inputs": list_node(sets)}


def finished_parts(output: Path, *, corpora: bool = False) -> list[Manifest]:
    """The parts of the last stage of a finished run that wrote documents (or corpora), in order.

    Raises:
        DataError: there is no such stage, or a part is missing or damaged.
    """
    stages = read_summary(output)["stages"]
    numbers = [
        number
        for number, stage in enumerate(stages, 1)
        if (stage["kind"] in CORPUS_KINDS) == corpora and stage["kind"] != "mixture"
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
