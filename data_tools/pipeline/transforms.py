"""What the document-by-document stages do; each is made from the stage's options, once in a task."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from data_tools.languages import LanguageDetector
from data_tools.normalization import nfc
from data_tools.pipeline.document import Document, Drop

Transform = Callable[[list[Document]], Sequence[Document | Drop]]


def _normalise(options: Mapping[str, Any]) -> Transform:
    def transform(batch: list[Document]) -> list[Document | Drop]:
        for document in batch:
            document.text = nfc(document.text)
        return list(batch)

    return transform


def _language(options: Mapping[str, Any]) -> Transform:
    detector = LanguageDetector()
    wanted, min_score = frozenset(options["keep"]), float(options["min_score"])

    def one(document: Document) -> Document | Drop:
        language, score = detector.detect(document.text)
        document.language = language
        if wanted and language not in wanted:
            return Drop("other_language", f"{language} with {score:.2f}")
        if score < min_score:
            return Drop("language_uncertain", f"{language} with {score:.2f}, below {min_score:g}")
        return document

    return lambda batch: [one(document) for document in batch]


def _sample(options: Mapping[str, Any]) -> Transform:
    fractions: Mapping[str, float] = options["fractions"]
    salt = f"{options['seed']}:".encode()

    def one(document: Document) -> Document | Drop:
        fraction = fractions.get(document.source, 1.0)
        digest = hashlib.blake2b(salt + document.id.encode("utf-8"), digest_size=8).digest()
        # A document's number depends on its id alone, so that the choice is the same however the input is cut.
        if int.from_bytes(digest, "little") >= fraction * 2**64:
            return Drop("not_sampled", f"{fraction:g} of {document.source} is kept")
        return document

    return lambda batch: [one(document) for document in batch]


TRANSFORMS: dict[str, Callable[[Mapping[str, Any]], Transform]] = {
    "normalise": _normalise,
    "language": _language,
    "sample": _sample,
}
