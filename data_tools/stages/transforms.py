"""What the document-by-document stages do; each is made from the stage's options, once in a task."""

import bisect
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from data_tools.engine.document import Document, Drop, Repeat, cluster_size
from data_tools.errors import DataError
from data_tools.quality.model import SCORE_KEY
from data_tools.stages.filter_transform import FilterTransform
from data_tools.stages.quality_transform import QualityTransform
from data_tools.text.languages import LanguageDetector
from data_tools.text.normalization import nfc

Transform = Callable[[list[Document]], Sequence[Document | Drop | Repeat]]


def _normalise(options: Mapping[str, Any]) -> Transform:
    def transform(batch: list[Document]) -> list[Document | Drop]:
        for document in batch:
            document.text = nfc(document.text)
        return list(batch)

    return transform


def _language(options: Mapping[str, Any]) -> Transform:
    detector = LanguageDetector()
    wanted, min_score = frozenset(options["keep"]), float(options["min_score"])

    def one(document: Document, language: str, score: float) -> Document | Drop:
        document.language = language
        if wanted and language not in wanted:
            return Drop("other_language", f"{language} with {score:.2f}")
        if score < min_score:
            return Drop("language_uncertain", f"{language} with {score:.2f}, below {min_score:g}")
        return document

    def transform(batch: list[Document]) -> list[Document | Drop]:
        found = detector.detect_all([document.text for document in batch])
        return [one(document, *answer) for document, answer in zip(batch, found, strict=True)]

    return transform


def _sample(options: Mapping[str, Any]) -> Transform:
    fractions: Mapping[str, float] = options["fractions"]
    salt = f"{options['seed']}:".encode()

    by_quality, by_cluster_size = sorted(options["quality"]), sorted(options["cluster_size"])
    max_epochs: int = options["max_epochs"]

    def one(document: Document) -> Document | Drop | Repeat:
        epochs = fractions.get(document.source, 1.0)
        if (score := _score(document)) is not None:
            epochs *= _of_band(by_quality, score)
        epochs = min(epochs * _of_band(by_cluster_size, cluster_size(document)), max_epochs)
        digest = hashlib.blake2b(salt + document.id.encode("utf-8"), digest_size=8).digest()
        # A document's number depends on its id alone, so that the choice is the same however the input is cut.
        once_more = int.from_bytes(digest, "little") < (epochs - int(epochs)) * 2**64
        times = int(epochs) + once_more
        if times == 0:
            return Drop("not_sampled", f"{epochs:g} of such documents are kept")
        return Repeat(document, times)

    return lambda batch: [one(document) for document in batch]


def _score(document: Document) -> float | None:
    score = document.metadata.get(SCORE_KEY)
    if score is not None and (isinstance(score, bool) or not isinstance(score, int | float) or not 0 <= score <= 1):
        raise DataError(f"{document.id}: {SCORE_KEY}={score!r} must be a number of 0 to 1; do not keep it")
    return score


def _of_band(bands: Sequence[Sequence[float]], value: float) -> float:
    """The factor of the last band that begins at or below ``value``; 1 below all of them."""
    place = bisect.bisect_right(bands, value, key=lambda band: band[0])
    return bands[place - 1][1] if place else 1.0


TRANSFORMS: dict[str, Callable[[Mapping[str, Any]], Transform]] = {
    "normalise": _normalise,
    "language": _language,
    "filter": FilterTransform,
    "quality": QualityTransform,
    "sample": _sample,
}
