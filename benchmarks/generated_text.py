"""Text for large runs of the data engine, with what its stages should find planted in it and counted.

Documents are drawn word by word from tables of common words and compounds of them, so that they fall to the right
language, pass the filters, and share nothing by accident. The documents of a block follow from source and number of the
block alone: copies are made of any block before, whichever shard it is in, without that being kept.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt
import orjson
import zstandard

_ENGLISH = (
    "the of and to in that was he it his is with as for had on be at by this which not or have from but were her she "
    "they an all their one we there been has when who will more no if out so what up said its about into than them can "
    "only other time new some could these two may first then do any like my now over such our man me even most made "
    "after also did many must before through years where much your way well down should because each just those people "
    "how too little state good very make world still see own work long here get both between life being under never "
    "day same another know year while last might great old off come since against right came take used himself few "
    "house use place during without high again home around small however found thought part school once general upon "
    "water river letter stone garden winter morning mother village window paper market bridge island weather story"
)
_GERMAN = (
    "der die und in den von zu das mit sich des auf für ist im dem nicht ein eine als auch es an werden aus er hat "
    "dass sie nach wird bei einer um am sind noch wie einem über einen so zum war haben nur oder aber vor zur bis "
    "mehr durch man sein wurde sei prozent hatte kann gegen vom können schon wenn habe seine mark ihre dann unter wir "
    "soll ich eines jahr zwei jahren diese dieser wieder keine seiner worden will zwischen immer millionen was sagte "
    "haus straße wasser"
)
_FRENCH = (
    "de la le et les des en un du une que est pour qui dans par plus pas au sur ne se ce il sont avec elle mais ou son "
    "ont aux nous comme cette leur être fait était même sans peut ses tout après deux bien depuis avait entre encore "
    "toujours temps années monde contre autres dont ainsi moins avant ces sous pendant vie très jour elles maison ville"
)
_RUSSIAN = (
    "и в не на что он с как это по но они мы все из у она так его за был от то же бы для вы только ее мне было вот "
    "меня еще нет о ему теперь когда даже ну если уже или ни быть него до вас опять вам ведь там потом себя ничего "
    "может тут где есть надо ней тебя их чем была сам чтоб без будто чего раз тоже себе под будет тогда кто этот того "
    "потому дом"
)
_HANZI = (
    "的一是不了在人有我他这个们中来上大为和国地到以说时要就出会可也你对生能而子那得于着下自之年过发后作里用道行所然家种事成方"
    "多经么去法学如都同现当没动面起看定天分还进好小部其些主样理心她本前开但因只从想实日军者意无力它与长把机十民第公此已工使情"
    "明性知全三又关点正业外将两高间由问很最重并物手应战向头文体政美相见被利什二等产或新己制身果加西斯月话合回特代内信表化老给"
    "世位次度门任常先海通教儿原东声提立及比员解水名真论处走义各入几口认条平系气题活尔更别打女变四神总何电数安少报才结反受目太"
    "量再感建务做接必场件计管期市直德资命山金指克许统区保至队形社便空决治展马科司五基眼书非则听白却界达光放强即像难且权思王象"
)


@dataclass(frozen=True)
class Language:
    """Words, and how they stand in a text.

    Attributes:
        words: the most frequent first.
        forms: what becomes of a word by its place, `{}` and `{:title}` standing for it.
        places: takes a generator; forms of the words of one document, in order.
    """

    words: tuple[str, ...]
    forms: tuple[str, ...]
    places: Callable[[np.random.Generator], npt.NDArray[np.int64]]
    table: npt.NDArray[np.object_] = field(init=False)
    drawn: npt.NDArray[np.int32] = field(init=False)

    def __post_init__(self) -> None:
        forms = [[_formed(form, word) for word in self.words] for form in self.forms]
        object.__setattr__(self, "table", np.array(forms, dtype=object))
        # Zipf's law, with a million places to draw from.
        shares = (np.arange(len(self.words)) + 2.7) ** -1.1
        ends = np.round(np.cumsum(shares / shares.sum()) * (1 << 20)).astype(np.int64)
        object.__setattr__(self, "drawn", np.searchsorted(ends, np.arange(1 << 20), side="right").astype(np.int32))

    def texts(self, generator: np.random.Generator, count: int) -> list[str]:
        """So many documents."""
        places = [self.places(generator) for _ in range(count)]
        ends = np.cumsum([len(one) for one in places]).tolist()
        words = self.drawn[generator.integers(0, 1 << 20, ends[-1], dtype=np.uint32)]
        pieces = self.table[np.concatenate(places), words].tolist()
        return ["".join(pieces[first:stop]).rstrip() for first, stop in zip([0, *ends[:-1]], ends, strict=True)]


def _formed(form: str, word: str) -> str:
    return form.replace("{:title}", word.title()).replace("{}", word)


def _compounds(common: str, seed: int, count: int) -> tuple[str, ...]:
    """The common words and, less frequent, two of them in one with an ending."""
    words = common.split()
    chooser = random.Random(seed)
    stems = [word for word in words if len(word) > 2]
    endings = ("", "", "s", "er", "en", "ing") if words[0].isascii() else ("",)
    made = {chooser.choice(stems) + chooser.choice(stems) + chooser.choice(endings): None for _ in range(count)}
    return (*words, *(word for word in made if word not in words))


def _prose(generator: np.random.Generator) -> npt.NDArray[np.int64]:
    """Sentences of 6 to 21 words: 0 inside, 1 first, 2 last, 3 last of its line, which has some four sentences."""
    return _sentences(generator, 8 + int(generator.exponential(36)), 6, 22)


def _chinese(generator: np.random.Generator) -> npt.NDArray[np.int64]:
    """As `_prose`, but longer: characters drawn at random are Chinese for sure when there are some hundred."""
    return _sentences(generator, 20 + int(generator.exponential(36)), 6, 22)


def _sentences(generator: np.random.Generator, count: int, least: int, most: int) -> npt.NDArray[np.int64]:
    lengths = generator.integers(least, most, count)
    ends = np.cumsum(lengths)
    places = np.zeros(int(ends[-1]), dtype=np.int64)
    places[ends - lengths] = 1
    places[ends - 1] = 2 + (generator.random(count) < 0.25)
    return places


def _program(generator: np.random.Generator) -> npt.NDArray[np.int64]:
    """Functions of a few assignments each: forms 0 to 2 are a head, 3 to 7 an assignment, 8 what is returned."""
    bodies = generator.integers(2, 9, 4 + int(generator.exponential(10)))
    head, line = np.arange(3), np.arange(3, 8)
    return np.concatenate([part for size in bodies for part in (head, np.tile(line, size), [8])])


PROSE_FORMS = ("{} ", "{:title} ", "{}. ", "{}.\n")
LANGUAGES = {
    "en": Language(_compounds(_ENGLISH, 1, 60_000), PROSE_FORMS, _prose),
    "de": Language(_compounds(_GERMAN, 2, 20_000), PROSE_FORMS, _prose),
    "fr": Language(_compounds(_FRENCH, 3, 20_000), PROSE_FORMS, _prose),
    "ru": Language(_compounds(_RUSSIAN, 4, 20_000), PROSE_FORMS, _prose),
    "zh": Language(
        (*_HANZI, *(first + second for first in _HANZI[:120] for second in _HANZI[40:280])),
        ("{}", "{}，", "{}。", "{}。\n"),
        _chinese,
    ),
    "code": Language(
        _compounds(_ENGLISH, 5, 60_000),
        ("def {}_", "{}(", "{}):\n", "    {} = ", "{}.", "{}(", "{}, ", "{})\n", "    return {}\n\n\n"),
        _program,
    ),
}
FOREIGN = ("de", "fr", "ru")
BLOCK_DOCUMENTS = 256
# Of a block of prose, beside its own documents; of code the exact copies only.
EXACT, NEAR, SHORT, REPEATED, OTHER_LANGUAGE = 12, 12, 4, 3, 6
NEAR_LEAST_WORDS = 300
ITEMS = 200
# Of what is too short, or repeated, to have a language by its drawn words alone.
_BEGINNINGS = {
    "en": "This is one of the stories that we have from the old ",
    "zh": "这是一个关于我们城市历史的小故事，他们都很喜欢，",
}
# Of a file.
SHARD_BLOCKS = 192


@dataclass(frozen=True)
class Source:
    """A data set: its language, its share of all bytes, the ending of its files, and about how large a block is."""

    name: str
    language: str
    share: float
    suffix: str
    block_bytes: float


SOURCES = (
    Source("web", "en", 0.70, ".jsonl", 1.34e6),
    Source("china", "zh", 0.25, ".jsonl.zst", 1.03e6),
    Source("code", "code", 0.05, ".jsonl.zst", 1.01e6),
)


def own_documents(source: Source, block: int) -> list[str]:
    """The documents that a block is the first to have."""
    generator = np.random.default_rng([SOURCES.index(source), block, 0])
    return LANGUAGES[source.language].texts(generator, BLOCK_DOCUMENTS)


def benchmark_items() -> list[str]:
    """Questions that must not be in a corpus, of 25 words each."""
    language = LANGUAGES["en"]
    generator = np.random.default_rng(99)
    draws = language.drawn[generator.integers(0, 1 << 20, (ITEMS, 25))]
    return [" ".join(language.words[word] for word in row) for row in draws]


def block_lines(source: Source, block: int, items: list[str], planted: Counter[str]) -> list[bytes]:
    """The lines of a block in random order; ``planted`` gets what is among them, by kind, and the bytes to keep."""
    own = own_documents(source, block)
    planted["own"] += len(own)
    planted["own_bytes"] += sum(len(text.encode()) for text in own)
    chooser = random.Random(f"{source.name} {block}")
    others: dict[str, list[str]] = {}
    before = own_documents(source, chooser.randrange(block)) if block else []
    others["exact"] = [_exact(text) for text in chooser.sample(before, EXACT if before else 0)]
    if source.language != "code":
        long = [text for text in before if _num_words(text) >= NEAR_LEAST_WORDS]
        others["near"] = [_near(text, chooser) for text in chooser.sample(long, min(NEAR, len(long)))]
        others |= _unwanted(source, block, items, chooser)
    planted.update({kind: len(texts) for kind, texts in others.items()})
    lines = [orjson.dumps({"text": text}) for text in (*own, *(text for texts in others.values() for text in texts))]
    bad = {
        "not_json": lines[0][:-2],
        "invalid_utf8": b'{"text": "\xff"}',
        "missing_text": b'{"content": "elsewhere"}',
        "empty": b'{"text": ""}',
    }
    planted.update({f"bad {reason}": 1 for reason in bad})
    lines += bad.values()
    chooser.shuffle(lines)
    return lines


def _unwanted(source: Source, block: int, items: list[str], chooser: random.Random) -> dict[str, list[str]]:
    """Documents that filters, the language and benchmarks decide about."""
    generator = np.random.default_rng([SOURCES.index(source), block, 1])
    language = LANGUAGES[source.language]
    foreign = LANGUAGES[FOREIGN[block % len(FOREIGN)]].texts(generator, OTHER_LANGUAGE)
    # Long enough to stay in its language with a question in another.
    contaminated = "\n".join([*language.texts(generator, 4), f"{chooser.choice(items).capitalize()}."])
    sentences = language.texts(generator, REPEATED + SHORT)
    begin = _BEGINNINGS[source.language]
    return {
        "contaminated": [contaminated],
        "repeated": ["\n".join([begin + text.split("\n")[0]] * 30) for text in sentences[:REPEATED]],
        "short": [_short(begin + text, source.language) for text in sentences[REPEATED:]],
        "other_language": foreign,
    }


def _short(text: str, language: str) -> str:
    """The beginning of a text, too short for the filters."""
    return (" ".join(text.split()[:30]) if language == "en" else text[:60]).rstrip(".。") + "."


def _num_words(text: str) -> int:
    return text.count(" ") if text.isascii() else len(text)


def _exact(text: str) -> str:
    """The same text to whom case says nothing, in as many bytes."""
    return text[:40].upper() + text[40:] if text.isascii() else text


def _near(text: str, chooser: random.Random) -> str:
    """One word, or Chinese character, replaced by another of as many bytes."""
    if not text.isascii():
        place = chooser.choice([number for number, one in enumerate(text) if one in _HANZI_SET])
        other = chooser.choice(_HANZI)
        return text[:place] + (other if other != text[place] else "石") + text[place + 1 :]
    words = text.split(" ")
    place = chooser.choice([number for number, word in enumerate(words) if word.isalpha() and word.islower()])
    same = _BY_LENGTH[len(words[place])]
    words[place] = chooser.choice([word for word in chooser.sample(same, min(2, len(same))) if word != words[place]])
    return " ".join(words)


_HANZI_SET = frozenset(_HANZI)
_BY_LENGTH: dict[int, list[str]] = {}
for _word in LANGUAGES["en"].words:
    _BY_LENGTH.setdefault(len(_word), []).append(_word)


def shards_of(source: Source, num_bytes: float) -> list[range]:
    """The blocks of each file of a source, in a run of about so many bytes of all sources."""
    num_blocks = max(2, round(num_bytes * source.share / source.block_bytes))
    return [range(first, min(first + SHARD_BLOCKS, num_blocks)) for first in range(0, num_blocks, SHARD_BLOCKS)]


def write_shard(folder: Path, source: Source, shard: int, blocks: range) -> Counter[str]:
    """Writes some blocks to one file.

    Returns:
        What was planted, by kind; under `bytes` those of the file before compression.
    """
    planted: Counter[str] = Counter()
    items = benchmark_items()
    path = folder / source.name / f"{shard:05d}{source.suffix}"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as stream, ExitStack() as stack:
        out: IO[bytes] = stream
        if path.suffix == ".zst":
            out = stack.enter_context(zstandard.ZstdCompressor(level=1).stream_writer(stream, closefd=False))
        for block in blocks:
            content = b"\n".join([*block_lines(source, block, items, planted), b""])
            planted["bytes"] += len(content)
            out.write(content)
    return planted
