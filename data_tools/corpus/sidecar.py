"""The sidecar PREFIX.json of a corpus: what it holds, where it came from, checksums of its files.

It is written last, so a corpus without a valid sidecar does not exist. docs/data-format.md lists the fields.
"""

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from data_tools.errors import DataError
from data_tools.io.atomic_file import write_atomically
from data_tools.io.checksums import BLOCK_BYTES, UNSTATED_BLOCK_BYTES, StreamChecksums, num_blocks
from data_tools.io.small_json import LARGEST_INTEGER, MissingFileError, SmallFileError, read_json

FORMAT = "qwen-megatron-corpus"
VERSION = 1
# Of corpora whose .bin has a SHA-256 for each segment, so that earlier versions do not call them damaged.
SEGMENTS_VERSION = 2
TOKEN_DTYPES = ("uint8", "int8", "int16", "int32", "int64", "uint16")

# What a document of a chat corpus is: a dialogue; chosen and rejected dialogue in turn; a dialogue up to an answer.
DIALOGUES, PAIRS, PROMPTS = "dialogues", "pairs", "prompts"
CHAT_KINDS = (DIALOGUES, PAIRS, PROMPTS)


def corpus_path(prefix: str | Path, suffix: str) -> Path:
    """The corpus file with ``suffix`` (bin, idx, crc, json, lock); dots inside the prefix are kept."""
    return Path(f"{prefix}.{suffix}")


@dataclass(frozen=True, kw_only=True)
class FileDigest:
    """Size and SHA-256 of one file of the corpus.

    Attributes:
        size_bytes: of the file.
        sha256: hexadecimal.
        segment_bytes: None: ``sha256`` is that of the file; else that of the SHA-256s of its segments of so many bytes
            (see `checksums.root_of_segments`).
    """

    size_bytes: int
    sha256: str
    segment_bytes: int | None = None


def digest_of(checksums: StreamChecksums) -> FileDigest:
    """What ``checksums`` took of a file."""
    return FileDigest(size_bytes=checksums.size_bytes, sha256=checksums.sha256(), segment_bytes=checksums.segment_bytes)


@dataclass(frozen=True, kw_only=True)
class InputFile:
    """One input as it was when it was read."""

    path: str
    size_bytes: int
    mtime_ns: int


@dataclass(frozen=True, kw_only=True)
class ChatContent:
    """What a corpus of dialogues says beyond what every corpus says.

    Attributes:
        kind: dialogues, pairs or prompts.
        labels: the rule by which tokens are targets.
        end_of_turn: token id that ends a turn; None if there is none.
        vocab_size: every token id is below it.
        truncated: documents that were cut at the end of a turn.
        targets: fingerprint of PREFIX.targets, the corpus of one 0 or 1 a token.
    """

    kind: str
    labels: str
    end_of_turn: int | None
    vocab_size: int
    truncated: int
    targets: str


@dataclass(frozen=True, kw_only=True)
class Sidecar:
    """The content of PREFIX.json.

    Attributes:
        dtype: numpy name of the token type in .bin; stored little-endian.
        num_tokens: tokens in .bin, end-of-document tokens included.
        num_documents: documents in .idx.
        end_of_document: token id that ends each document.
        tokenizer: fingerprint of the tokenizer; None for an imported corpus, whose tokenizer is not known.
        shuffle_seed: seed of the document order; None if the order of the input was kept.
        records_in: records read; always the documents (of pairs: half of them) plus all of ``rejected``.
        rejected: reason -> number of records.
        bin, idx, crc: sizes and checksums of the other three files.
        inputs: the files that were read, in order.
        tool_version: version of the package that wrote the corpus.
        created: time of writing, ISO 8601, UTC.
        crc_block_bytes: bytes of .bin under each checksum of .crc.
        chat: of a corpus of dialogues, pairs or prompts; None for one of text.
    """

    dtype: str
    num_tokens: int
    num_documents: int
    end_of_document: int
    tokenizer: str | None
    shuffle_seed: int | None
    records_in: int
    rejected: Mapping[str, int]
    bin: FileDigest
    idx: FileDigest
    crc: FileDigest
    inputs: tuple[InputFile, ...]
    tool_version: str
    created: str
    crc_block_bytes: int = BLOCK_BYTES
    chat: ChatContent | None = None

    @property
    def fingerprint(self) -> str:
        """Identity of the corpus content: equal for two corpora exactly if they hold the same tokens."""
        kind = "sha256" if self.bin.segment_bytes is None else "sha256tree"
        return f"{self.dtype}-{kind}-{self.bin.sha256}"

    @classmethod
    def read(cls, prefix: str | Path) -> "Sidecar":
        """Reads and checks PREFIX.json.

        Raises:
            DataError: the sidecar is missing, is not JSON, has another version, or a field is missing, has the wrong
                type or contradicts another one.
        """
        path = corpus_path(prefix, "json")
        try:
            document = read_json(path)
        except MissingFileError as error:
            raise DataError(_missing(prefix, path)) from error
        except SmallFileError as error:
            raise DataError(f"{error}; make the corpus again") from error
        return _Fields(path, document).sidecar()

    def write(self, path: Path) -> None:
        """Writes the sidecar to ``path`` atomically."""
        number = VERSION if self.bin.segment_bytes is None else SEGMENTS_VERSION
        document = {"format": FORMAT, "version": number, **dataclasses.asdict(self)}
        if self.chat is None:
            del document["chat"]
        for name in ("bin", "idx", "crc"):
            if document[name]["segment_bytes"] is None:
                del document[name]["segment_bytes"]
        write_atomically(path, orjson.dumps(document, option=orjson.OPT_INDENT_2) + b"\n")


def _missing(prefix: str | Path, path: Path) -> str:
    if corpus_path(prefix, "bin").exists() and corpus_path(prefix, "idx").exists():
        return (
            f"{path}: missing, so {prefix}.bin and {prefix}.idx are not yet a corpus; if other Megatron tools made "
            f"them run: qwen-data import-corpus {prefix} (if a run of qwen-data tokenize was cut short, run it again)"
        )
    return f"{path}: no corpus there; make one with: qwen-data tokenize INPUT.jsonl --output {prefix}"


class _Fields:
    """Typed access to the parsed JSON; every error names file, field, rule and value."""

    def __init__(self, path: Path, document: Any, where: str = "") -> None:
        self.path = path
        self.where = where
        if not isinstance(document, dict):
            raise self.error(where or "the top level", "must be an object", document)
        self.document = document

    def error(self, name: str, rule: str, value: object) -> DataError:
        shown = repr(value)
        shown = shown if len(shown) <= 80 else f"{shown[:77]}..."
        return DataError(f"{self.path}: field {name} {rule}, found {shown}; make the corpus again")

    def get(self, name: str, kinds: tuple[type, ...], rule: str) -> Any:
        full_name = self.where + name
        if name not in self.document:
            raise DataError(f"{self.path}: field {full_name} is missing; make the corpus again")
        value = self.document[name]
        if not isinstance(value, kinds) or isinstance(value, bool):
            raise self.error(full_name, rule, value)
        return value

    def count(self, name: str) -> int:
        value = self.get(name, (int,), "must be an integer")
        if value < 0:
            raise self.error(self.where + name, "must not be negative", value)
        if value > LARGEST_INTEGER:
            raise self.error(self.where + name, f"must be at most {LARGEST_INTEGER}", value)
        return int(value)

    def text(self, name: str) -> str:
        return str(self.get(name, (str,), "must be a string"))

    def child(self, name: str) -> "_Fields":
        return _Fields(self.path, self.get(name, (dict,), "must be an object"), f"{self.where}{name}.")

    def digest(self, name: str) -> FileDigest:
        fields = self.child(name)
        sha256 = fields.text("sha256")
        if not re.fullmatch("[0-9a-f]{64}", sha256):
            raise self.error(f"{name}.sha256", "must be 64 hexadecimal digits", sha256)
        segment = fields.count("segment_bytes") if "segment_bytes" in fields.document else None
        if segment is not None and (segment < 1 or segment % BLOCK_BYTES or name != "bin"):
            raise self.error(f"{name}.segment_bytes", f"must be a multiple of {BLOCK_BYTES}, for bin alone", segment)
        return FileDigest(size_bytes=fields.count("size_bytes"), sha256=sha256, segment_bytes=segment)

    def block_bytes(self) -> int:
        if "crc_block_bytes" not in self.document:
            return UNSTATED_BLOCK_BYTES
        value = self.count("crc_block_bytes")
        if value not in (BLOCK_BYTES, UNSTATED_BLOCK_BYTES):
            raise self.error("crc_block_bytes", f"must be {BLOCK_BYTES} or {UNSTATED_BLOCK_BYTES}", value)
        return value

    def inputs(self) -> tuple[InputFile, ...]:
        entries = self.get("inputs", (list,), "must be a list")
        fields = [_Fields(self.path, entry, f"inputs[{number}].") for number, entry in enumerate(entries)]
        return tuple(
            InputFile(path=entry.text("path"), size_bytes=entry.count("size_bytes"), mtime_ns=entry.count("mtime_ns"))
            for entry in fields
        )

    def chat(self) -> ChatContent | None:
        if "chat" not in self.document:
            return None
        fields = self.child("chat")
        content = ChatContent(
            kind=fields.text("kind"),
            labels=fields.text("labels"),
            end_of_turn=None if fields.document.get("end_of_turn") is None else fields.count("end_of_turn"),
            vocab_size=fields.count("vocab_size"),
            truncated=fields.count("truncated"),
            targets=fields.text("targets"),
        )
        if content.kind not in CHAT_KINDS:
            raise self.error("chat.kind", f"must be one of {', '.join(CHAT_KINDS)}", content.kind)
        return content

    def sidecar(self) -> Sidecar:
        if self.document.get("format") != FORMAT:
            raise self.error("format", f"must be {FORMAT!r}", self.document.get("format"))
        if self.document.get("version") not in (VERSION, SEGMENTS_VERSION):
            raise DataError(
                f"{self.path}: version {self.document.get('version')!r} of the format is neither {VERSION} nor "
                f"{SEGMENTS_VERSION}, which this version of qwen-data reads; make the corpus again or use the version "
                "that wrote it"
            )
        rejected = self.child("rejected")
        none = type(None)
        sidecar = Sidecar(
            dtype=self.text("dtype"),
            num_tokens=self.count("num_tokens"),
            num_documents=self.count("num_documents"),
            end_of_document=self.count("end_of_document"),
            tokenizer=self.get("tokenizer", (str, none), "must be a string or null"),
            shuffle_seed=self.get("shuffle_seed", (int, none), "must be an integer or null"),
            records_in=self.count("records_in"),
            rejected={reason: rejected.count(reason) for reason in rejected.document},
            bin=self.digest("bin"),
            idx=self.digest("idx"),
            crc=self.digest("crc"),
            inputs=self.inputs(),
            tool_version=self.text("tool_version"),
            created=self.text("created"),
            crc_block_bytes=self.block_bytes(),
            chat=self.chat(),
        )
        self._check_agreement(sidecar)
        return sidecar

    def _check_agreement(self, sidecar: Sidecar) -> None:
        if sidecar.dtype not in TOKEN_DTYPES:
            raise self.error("dtype", f"must be one of {', '.join(TOKEN_DTYPES)}", sidecar.dtype)
        bin_bytes = sidecar.num_tokens * np.dtype(sidecar.dtype).itemsize
        if sidecar.bin.size_bytes != bin_bytes:
            rule = f"must be {bin_bytes} for num_tokens={sidecar.num_tokens} of dtype={sidecar.dtype}"
            raise self.error("bin.size_bytes", rule, sidecar.bin.size_bytes)
        crc_bytes = 4 * num_blocks(bin_bytes, sidecar.crc_block_bytes)
        if sidecar.crc.size_bytes != crc_bytes:
            rule = f"must be {crc_bytes} for bin.size_bytes={bin_bytes} in blocks of {sidecar.crc_block_bytes}"
            raise self.error("crc.size_bytes", rule, sidecar.crc.size_bytes)
        is_pairs = sidecar.chat is not None and sidecar.chat.kind == PAIRS
        if is_pairs and sidecar.num_documents % 2:
            raise self.error("num_documents", "must be even: a pair is two documents", sidecar.num_documents)
        good = sidecar.num_documents // 2 if is_pairs else sidecar.num_documents
        records = good + sum(sidecar.rejected.values())
        if sidecar.records_in != records:
            name = "num_documents / 2" if is_pairs else "num_documents"
            raise self.error("records_in", f"must be {name} plus all rejected = {records}", sidecar.records_in)
