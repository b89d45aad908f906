"""What the document-by-document stages do; each is made from the stage's options, once in a task."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from data_tools.filters.config import FilterConfig
from data_tools.filters.suite import FilterSuite
from data_tools.languages import LanguageDetector
from data_tools.normalization import nfc
from data_tools.pipeline.document import Document, Drop
from data_tools.pipeline.settings import Problems, build

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


def _filter(options: Mapping[str, Any]) -> Transform:
    problems = Problems("options of the filter stage")
    suite = FilterSuite(build(FilterConfig, options["rules"], "", problems))
    skipped = frozenset(options["skip_languages"])

    def transform(batch: list[Document]) -> list[Document | Drop]:
        asked = [document for document in batch if document.language not in skipped]
        found = iter(suite.apply([document.text for document in asked]))
        results: list[Document | Drop] = []
        for document in batch:
            drop = next(found) if document.language not in skipped else None
            results.append(document if drop is None else Drop(drop.reason, f"{drop.value:.4g}"))
        return results

    return transform


TRANSFORMS: dict[str, Callable[[Mapping[str, Any]], Transform]] = {
    "normalise": _normalise,
    "language": _language,
    "filter": _filter,
    "sample": _sample,
}
