"""The learned quality score of every document, and the choice of documents by it."""

import hashlib
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from data_tools.engine.document import Document, Drop
from data_tools.errors import DataError
from data_tools.quality.model import SCORE_KEY, QualityModel


@lru_cache(maxsize=1)
def _model(folder: str, checksum: str) -> QualityModel:
    model = QualityModel.load(Path(folder))
    if model.checksum != checksum:
        raise DataError(f"{folder}: the model was replaced while the pipeline ran; run it again")
    return model


class QualityTransform:
    """What the stage does with a batch of documents."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        """Loads the model, once in a process."""
        self._model = _model(options["model"], options["checksum"])
        self._min_score: float | None = options["min_score"]
        self._alpha: float | None = options["pareto_alpha"]
        self._seed = f"{options['seed']}:".encode()
        self._skipped = frozenset(options["skip_languages"])

    def __call__(self, batch: list[Document]) -> list[Document | Drop]:
        """Writes the score into `metadata` of every document that is scored, dropped ones too."""
        asked = [document for document in batch if document.language not in self._skipped]
        scores = self._model.scores([document.text for document in asked]).tolist()
        for document, score in zip(asked, scores, strict=True):
            document.metadata[SCORE_KEY] = score
        return [document if document.language in self._skipped else self._judged(document) for document in batch]

    def _judged(self, document: Document) -> Document | Drop:
        score = document.metadata[SCORE_KEY]
        if self._min_score is not None and score < self._min_score:
            return Drop("low_quality", f"score {score:.4f}, below {self._min_score:g}")
        if self._alpha is not None and (draw := lomax(self._seed, document.text, self._alpha)) <= 1 - score:
            return Drop("quality_draw", f"score {score:.4f}, draw {draw:.4f}")
        return document


def lomax(seed: bytes, text: str, alpha: float) -> float:
    """A draw with P(X > x) = (1 + x)^-alpha, which is numpy.random.pareto's, by the hash of ``text``.

    Source: Brown et al. 2020 (arXiv 2005.14165), appendix A: keep if numpy.random.pareto(9) > 1 - document_score.
    """
    digest = hashlib.blake2b(seed + text.encode("utf-8"), digest_size=8).digest()
    uniform = (int.from_bytes(digest, "little") + 1) / 2**64
    return float(uniform ** (-1 / alpha) - 1)
