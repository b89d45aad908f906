"""A quality model: weights, calibration, and how they lie in a folder (JSON and safetensors, nothing that runs)."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import orjson
from annotated_types import Interval

from data_tools.errors import DataError
from data_tools.io.atomic_file import write_atomically
from data_tools.io.small_json import SmallFileError, parse_json, read_bytes
from data_tools.quality.calibration import Calibration
from data_tools.quality.features import FEWEST_BITS, LONGEST_NGRAM, MOST_BITS, FeatureConfig, feature_scores
from data_tools.settings.check import checked
from data_tools.settings.problems import Problems
from data_tools.settings.records import NonNegativeFloat, Rule, record

# Under which a score lies in records and in the metadata of documents.
SCORE_KEY = "quality"
MODEL_FILE = "model.json"
WEIGHTS_FILE = "weights.safetensors"
_FORMAT = "qwen-data quality model"
_VERSION = 2
_MAX_JSON_BYTES = 1024 * 1024
_MAX_HEADER_BYTES = 4096
_AGAIN = "train the model again"


@dataclass(frozen=True, kw_only=True)
class QualityModel:
    """Scores texts.

    Attributes:
        features: what a text is to the model.
        weights: [2**bits] float32.
        intercept: added to the weighted sum.
        calibration: from logits to probabilities.
        training: a report for people: counts, AUC, reliability.
    """

    features: FeatureConfig
    weights: npt.NDArray[np.float32]
    intercept: float
    calibration: Calibration
    training: Mapping[str, Any] = field(default_factory=dict)

    def logits(self, texts: Sequence[str], threads: int = 1) -> npt.NDArray[np.float64]:
        """[n] weights times features, plus the intercept. The same bits whatever the batch and the threads.

        Raises:
            UnicodeEncodeError: a text holds a lone surrogate.
        """
        return feature_scores(texts, self.weights, self.features, threads) + self.intercept

    def scores(self, texts: Sequence[str], threads: int = 1) -> npt.NDArray[np.float64]:
        """[n] probability that a text drawn as the held-out ones were has label 1."""
        return self.calibration.probabilities(self.logits(texts, threads))

    @cached_property
    def checksum(self) -> str:
        """SHA-256 of all that scores depend on; not of the report."""
        return hashlib.sha256(orjson.dumps(self._scoring(), option=orjson.OPT_SORT_KEYS)).hexdigest()

    def _scoring(self) -> dict[str, Any]:
        return {
            "max_ngram": self.features.max_ngram,
            "bits": self.features.bits,
            "intercept": self.intercept,
            **asdict(self.calibration),
            "weights_sha256": hashlib.sha256(self._weight_bytes).hexdigest(),
        }

    @cached_property
    def _weight_bytes(self) -> bytes:
        from safetensors.numpy import save

        return save({"weights": self.weights})

    def save(self, folder: Path) -> None:
        """Writes ``folder``, model.json last; a model that was there is replaced.

        Raises:
            OSError: the folder cannot be written to.
        """
        folder.mkdir(parents=True, exist_ok=True)
        # Gone before the weights change: it never stands beside those of another model.
        (folder / MODEL_FILE).unlink(missing_ok=True)
        write_atomically(folder / WEIGHTS_FILE, self._weight_bytes)
        content = {
            "format": _FORMAT,
            "version": _VERSION,
            "scoring": self._scoring(),
            "checksum": self.checksum,
            "training": self.training,
        }
        write_atomically(folder / MODEL_FILE, orjson.dumps(content, option=orjson.OPT_INDENT_2) + b"\n")

    @classmethod
    def load(cls, folder: Path) -> "QualityModel":
        """Reads and checks what `save` wrote.

        Raises:
            DataError: a file is missing, too large, damaged, or of another form; nothing is allocated for sizes that
                a file only claims to have.
        """
        path = folder / MODEL_FILE
        try:
            content = parse_json(_read(path, _MAX_JSON_BYTES), str(path))
        except SmallFileError as error:
            raise DataError(f"{error}; {_AGAIN}") from error
        if not isinstance(content, dict):
            raise DataError(f"{path}: must be a JSON object; {_AGAIN}")
        problems = Problems()
        head = checked(_Head, content, "", problems)
        if problems.messages:
            raise DataError("\n".join(f"{path}: {message}" for message in problems.messages))
        scoring = head.scoring
        weights = _load_weights(folder / WEIGHTS_FILE, scoring.bits, scoring.weights_sha256)
        model = cls(
            features=FeatureConfig(max_ngram=scoring.max_ngram, bits=scoring.bits),
            weights=weights,
            intercept=scoring.intercept,
            calibration=Calibration(slope=scoring.slope, offset=scoring.offset),
            training=head.training,
        )
        if model.checksum != head.checksum:
            raise DataError(f"{path}: the checksum of its values is {model.checksum}, not {head.checksum}; {_AGAIN}")
        return model


@record
class _Scoring:
    max_ngram: Annotated[int, Interval(ge=1, le=LONGEST_NGRAM)]
    bits: Annotated[int, Interval(ge=FEWEST_BITS, le=MOST_BITS)]
    intercept: float
    slope: NonNegativeFloat
    offset: float
    weights_sha256: str


@record
class _Head:
    format: Annotated[str, Rule(lambda value: value == _FORMAT, f"must be {_FORMAT!r}")]
    version: Annotated[int, Rule(lambda value: value == _VERSION, f"must be {_VERSION}")]
    scoring: _Scoring
    checksum: str
    training: Any


def _read(path: Path, max_bytes: int) -> bytes:
    try:
        return read_bytes(path, max_bytes)
    except SmallFileError as error:
        raise DataError(f"{error}; name the folder of a trained model, or train it again") from error


def _load_weights(path: Path, bits: int, sha256: str) -> npt.NDArray[np.float32]:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    weight_bytes = 4 << bits
    content = _read(path, weight_bytes + _MAX_HEADER_BYTES)
    header_bytes = int.from_bytes(content[:8], "little")
    if len(content) < 8 or 8 + header_bytes + weight_bytes != len(content):
        raise DataError(
            f"{path}: {len(content)} bytes with a header of {header_bytes}, not 8 + header + 4 x 2^{bits}; {_AGAIN}"
        )
    if (found := hashlib.sha256(content).hexdigest()) != sha256:
        raise DataError(f"{path}: its SHA-256 is {found}, but {MODEL_FILE} says {sha256}; {_AGAIN}")
    try:
        tensors = load(content)
    except (SafetensorError, KeyError) as error:  # KeyError: a type that numpy does not have.
        raise DataError(f"{path}: not a safetensors file: {error}; {_AGAIN}") from error
    weights = tensors.get("weights")
    if weights is None or len(tensors) != 1 or weights.dtype != np.float32 or weights.shape != (1 << bits,):
        found = ", ".join(f"{name} {one.dtype} {list(one.shape)}" for name, one in sorted(tensors.items()))
        raise DataError(f"{path}: holds {found}, not weights float32 [{1 << bits}]; {_AGAIN}")
    if not np.isfinite(weights).all():
        raise DataError(f"{path}: a weight is not finite; {_AGAIN}")
    return weights
