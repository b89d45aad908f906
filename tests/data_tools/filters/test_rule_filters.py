"""A text on each side of every threshold; Chinese prose is kept; decisions are those of datatrove."""

import re
from dataclasses import replace
from typing import Any

import pytest
from datatrove.data import Document
from datatrove.pipeline.filters import (
    C4QualityFilter,
    FineWebQualityFilter,
    GopherQualityFilter,
    GopherRepetitionFilter,
)
from datatrove.utils.word_tokenizers import WordTokenizer

from data_tools.filters import C4, Drop, FilterConfig, FilterSuite, FineWeb, GopherQuality, GopherRepetition, c4_clean
from data_tools.filters.histograms import EDGES, RuleHistograms, merged
from data_tools.sources.python_stdlib import source_files
from data_tools.text import words

NONE = FilterConfig(gopher_quality=None, gopher_repetition=None, c4=None, fineweb=None)
QUALITY = replace(NONE, gopher_quality=GopherQuality())
REPETITION = replace(NONE, gopher_repetition=GopherRepetition())
ONLY_C4 = replace(NONE, c4=C4())
FINEWEB = replace(NONE, fineweb=FineWeb())

CHINESE = (
    "清晨的阳光照在院子里，老人坐在门前的石阶上，慢慢地喝着一杯热茶。他的孙女从屋里跑出来，手里拿着一本旧书，"
    "问他书上的故事是不是真的。老人笑了笑，说很多年以前，这个村子里只有十几户人家，大家都认识对方，也常常互相帮助。"
    "后来修了公路，年轻人就到城里去工作，只有过年的时候才回来。\n"
    "“那您为什么不去城里住呢？”孙女问。老人想了一会儿，指着远处的山说：“因为我的根在这里。”\n"
    "风吹过树叶，发出沙沙的声音，好像也在回答她的问题。孩子似懂非懂地点了点头，又翻开了书的下一页。\n"
)


def drop(text: str, config: FilterConfig) -> Drop | None:
    (decision,) = FilterSuite(config).apply([text])
    return decision


def breaks(text: str, config: FilterConfig, reason: str) -> bool:
    """Whether ``text`` breaks this one rule, whatever the others say."""
    verdicts = [verdict for verdict in FilterSuite(config).verdicts([text]) if verdict.reason == reason]
    assert verdicts
    return any(bool(verdict.drops[0]) for verdict in verdicts)


def different(count: int, length: int = 5) -> list[str]:
    """Words of one length, all different."""
    out = []
    for number in range(count):
        letters = ""
        for _ in range(length):
            letters += "abcdefghijklmnopqrstuvwxyz"[number % 26]
            number //= 26
        out.append(letters)
    return out


def prose(count: int, length: int = 5) -> str:
    return " ".join(["the", "of", *different(count - 2, length)])


@pytest.mark.parametrize(
    ("rule", "kept", "dropped"),
    [
        ("few_words", prose(50), prose(49)),
        ("many_words", prose(100_000), prose(100_001)),
        ("short_words", "the " + " ".join(["abc"] * 60), "the " + " ".join(["abc"] * 60) + " a"),
        ("long_words", " ".join(["the that have"] + ["a" * 10] * 57), "the of " + " ".join(["a" * 11] * 58)),
        ("hashes", prose(90) + " #" * 10, prose(90) + " # " + "#" * 10),
        ("ellipses", prose(90) + " ..." * 10, prose(90) + " \u2026" * 9 + " ......"),
        (
            "bullet_lines",
            "\n".join([prose(55)] + ["  - " + "word"] * 9),
            "\n".join([prose(56)] + ["\u2022 word", "- word"] * 5),
        ),
        (
            "ellipsis_lines",
            "\n".join([prose(55)] * 7 + [prose(12) + "... "] * 3),
            "\n".join([prose(55)] * 7 + [prose(12) + " ...", prose(12) + "\u2026"] * 2),
        ),
        ("letters", prose(80) + " 1234" * 20, prose(79) + " 1234" * 20),
        ("stop_words", prose(60), " ".join(["the", *different(59)])),
    ],
)
def test_gopher_quality_rule(rule: str, kept: str, dropped: str) -> None:
    assert not breaks(kept, QUALITY, f"gopher_quality_{rule}")
    assert breaks(dropped, QUALITY, f"gopher_quality_{rule}")


def gram_text(repeated: int, times: int, total: int) -> str:
    """`times` runs of the same `repeated` words, kept apart by single words, in `total` words of five letters."""
    fill = iter(different(total))
    block = different(repeated, 5)[::-1]
    block = [word.upper() for word in block]
    parts: list[str] = []
    for _ in range(times):
        parts += [*block, next(fill)]
    return " ".join(parts + [next(fill) for _ in range(total - len(parts))])


@pytest.mark.parametrize(
    ("rule", "kept", "dropped"),
    [
        (
            "paragraphs",
            "\n\n".join([*different(7), *["x"] * 4, *"abc"]),
            "\n\n".join([*different(7), *["x"] * 5, *"a"]),
        ),
        (
            "paragraph_characters",
            "\n\n".join([prose(40), "y" * 20, "y" * 20]),
            "\n\n".join([prose(9), "y" * 20] * 2),
        ),
        ("lines", "\n".join([*different(7, 9), *"xxxx"]), "\n".join([*different(7, 9), *"xxxxx"])),
        (
            "line_characters",
            "\n".join([prose(70), "y" * 80, "y" * 80]),
            "\n".join([prose(20), *different(5, 9), "y" * 80, "y" * 80]),
        ),
        ("top_2_gram", gram_text(2, 10, 100), gram_text(2, 12, 100)),
        ("top_3_gram", gram_text(3, 6, 105), gram_text(3, 7, 105)),
        ("top_4_gram", gram_text(4, 4, 105), gram_text(4, 5, 105)),
        *[
            (f"{n}_grams", gram_text(n, 2, round(5 * n / 6 / below)), gram_text(n, 2, round(5 * n / 6 / above)))
            for n, below, above in (
                (5, 0.147, 0.155),
                (6, 0.137, 0.144),
                (7, 0.128, 0.133),
                (8, 0.117, 0.123),
                (9, 0.107, 0.113),
                (10, 0.098, 0.104),
            )
        ],
    ],
)
def test_gopher_repetition_rule(rule: str, kept: str, dropped: str) -> None:
    assert not breaks(kept, REPETITION, f"gopher_repetition_{rule}")
    assert breaks(dropped, REPETITION, f"gopher_repetition_{rule}")


SENTENCE = "This line has some words in it."


@pytest.mark.parametrize(
    ("rule", "kept", "dropped"),
    [
        ("few_sentences", "\n".join([SENTENCE] * 5), "\n".join([SENTENCE] * 4)),
        ("few_sentences", SENTENCE + " One. Two! Three? Four.", SENTENCE + " One. Two! Version 3.5 is out."),
        ("few_sentences", "\n".join(["Just three words."] * 5), "\n".join(["Only two."] * 5)),
        ("few_sentences", "\n".join(['He said "no way"'] * 5), "\n".join(["No mark at the end"] * 5)),
        ("few_sentences", "\n".join([SENTENCE] * 5), "\n".join(["It goes on and on..."] * 5)),
        ("few_sentences", "\n".join(["Cited words here.[1]"] * 5), "\n".join(["Cited words here.[x]"] * 5)),
        (
            "few_sentences",
            "\n".join([SENTENCE] * 5),
            "\n".join([SENTENCE] * 4 + ["Please enable JavaScript to see this."]),
        ),
        ("few_sentences", "\n".join([SENTENCE] * 5), "\n".join([SENTENCE] * 4 + ["See our Cookie Policy for more."])),
        (
            "few_sentences",
            "\n".join([SENTENCE] * 4 + [f"One word of {'x' * 1000} letters."]),
            "\n".join([SENTENCE] * 4 + [f"One word of {'x' * 1001} letters."]),
        ),
        (
            "page_phrase",
            "\n".join([SENTENCE] * 5 + ["Lorem ipsum without an end"]),
            "\n".join([SENTENCE] * 5 + ["And Lorem Ipsum dolor sit."]),
        ),
        ("curly_bracket", "\n".join([SENTENCE] * 5 + ["if (x) {"]), "\n".join([SENTENCE] * 5 + ["Use a { here."])),
    ],
)
def test_c4_rule(rule: str, kept: str, dropped: str) -> None:
    assert not breaks(kept, ONLY_C4, f"c4_{rule}")
    assert breaks(dropped, ONLY_C4, f"c4_{rule}")


def test_c4_keeps_the_good_lines() -> None:
    text = f"{SENTENCE}\r\nmenu\n  Cited words here.[12] [edit]\n不错的一行。\nUses cookies all the time.\n"
    assert c4_clean([text, ""]) == [f"{SENTENCE}\n不错的一行。", ""]
    assert c4_clean(["Cited [citation needed] words[3] here. [a]."]) == ["Cited  words here. [a]."]


@pytest.mark.parametrize(
    ("rule", "kept", "dropped"),
    [
        ("empty", SENTENCE, " \n\t\n"),
        (
            "punctuation",
            "\n".join([f"{word} is a line of more than thirty letters" for word in different(22)] + [SENTENCE] * 3),
            "\n".join([f"{word} is a line of more than thirty letters" for word in different(23)] + [SENTENCE] * 3),
        ),
        (
            "short_lines",
            "\n".join([f"{word} 123456789 123456789 123." for word in different(2)] + ["x" * 30 + "."]),
            "\n".join([f"{word} 123456789 123456789 123." for word in different(3)] + ["x" * 30 + "."]),
        ),
        (
            "duplicate_lines",
            "\n".join([prose(580) + ".", SENTENCE, SENTENCE]),
            "\n".join([prose(200) + ".", SENTENCE, SENTENCE]),
        ),
        (
            "newlines",
            "\n".join(["Abcdefghijk abcdefghijk abcdefghijk." + word for word in different(3)]) + ".",
            "\n\n\n".join(["Abcdefghijk abcdefghijk abcdefghijk." + word for word in different(3)]) + ".",
        ),
    ],
)
def test_fineweb_rule(rule: str, kept: str, dropped: str) -> None:
    assert not breaks(kept, FINEWEB, f"fineweb_{rule}")
    assert breaks(dropped, FINEWEB, f"fineweb_{rule}")


def test_good_chinese_is_kept_and_bad_chinese_dropped() -> None:
    assert drop(CHINESE, FilterConfig()) is None
    assert drop(CHINESE[:90], FilterConfig(fineweb=None, c4=None)) is None
    short = drop(CHINESE[:70], FilterConfig())
    assert short is not None
    assert short.reason == "gopher_quality_few_words"
    names = drop("北京上海广州深圳天津重庆成都杭州武汉西安" * 6, QUALITY)
    assert names == Drop("gopher_quality_stop_words", 1.0)
    repeated = drop(CHINESE.splitlines()[0] * 3, REPETITION)
    assert repeated is not None
    assert repeated.reason == "gopher_repetition_8_grams"


SPECIFICATION = (
    "Title: Rules for `names` - a draft\n=====\n\nThe function ``load(path, *, mode='r')`` returns a list of pairs (k, "
    "value); see [1]_ for what `mode` means. A call such as ``load('a.txt')[0]`` is an error if the file is empty, and "
    'so is ``load(\'\')``.\n\n- `key` -- a name, [a-z_]+\n- `value` -- one of ("on", "off"), or `None` to have it left '
    "out of what is written.\n\nNothing else changes for those who have no `mode` in their calls.\n"
)


def test_a_text_full_of_symbols_has_letters_between_white_space() -> None:
    """Specifications were dropped because each bracket and quotation mark was a word without a letter."""
    assert drop(SPECIFICATION, QUALITY) is None
    found = drop(SPECIFICATION, replace(NONE, gopher_quality=GopherQuality(letter_words="segmented")))
    assert found is not None
    assert found.reason == "gopher_quality_letters"


ENGLISH_NEWS = (
    "The weekly letter describes how people grow vegetables at home this year.",
    "A reader wrote about city traffic and wants a wider lane for bicycles.",
    "Astronomers found a small planet whose orbit is close to that of Earth.",
    "A bookshop opened on a mountain and visitors walk two hours to reach it.",
    "Research shows that students who sleep early do better in their exams.",
    "A town by the sea decided to close its airport and build a park.",
    "New language models translate ancient writing and historians are curious.",
    "An engineer made a lighthouse of old batteries to light the harbour.",
)
CHINESE_NEWS = (
    "每周分享值得关注的科技内容，今天刊登的新文章介绍了怎样在家里种植蔬菜。",
    "有读者来信讨论城市交通的变化，认为自行车道应当加宽一些。",
    "天文学家发现了一颗新的小行星，轨道离地球很近却没有危险。",
    "一家书店开到了山顶，游客要走两个小时才能到达那里。",
    "研究显示早睡的学生考试成绩更好，老师们并不感到意外。",
    "海边的小镇决定关闭机场，把土地改成公园和湖泊。",
)


@pytest.mark.parametrize("lines", [ENGLISH_NEWS, CHINESE_NEWS])
@pytest.mark.parametrize(
    "link", ["![](https://cdn.example.org/img/asset/202301/bg{}.webp)", "www.example.org/p?id={}&l=1"]
)
def test_links_do_not_make_a_text_repetitive(lines: tuple[str, ...], link: str) -> None:
    """A URL was ten words, of which most were the same in every link of a page."""
    text = "\n".join(f"{line} {link.format(2023010600 + number)}" for number, line in enumerate(lines))
    assert drop(text, REPETITION) is None
    # The same link in every line is a repetition still.
    assert drop("\n".join(f"{line[:20]} {link.format(1)} and {link.format(1)}" for line in lines), REPETITION)


def test_the_first_rule_broken_is_named_with_what_was_measured() -> None:
    assert drop("the cat sat", FilterConfig()) == Drop("gopher_quality_few_words", 3.0)
    assert drop("the cat sat", replace(FilterConfig(), gopher_quality=None)) == Drop(
        "gopher_repetition_top_2_gram", 7 / 11
    )
    assert drop("the cat sat", NONE) is None


def test_a_threshold_of_none_switches_its_rule_off() -> None:
    off = GopherQuality(min_words=None, min_stop_words=None)
    assert drop("several words here", replace(NONE, gopher_quality=off)) is None


def test_histograms_count_every_text_on_its_side_of_the_threshold(texts: list[str]) -> None:
    batch = [*texts, CHINESE, CHINESE[:60], prose(70), prose(50), prose(49), "", *(prose(n) for n in range(60, 90))]
    watched, alone = RuleHistograms(), RuleHistograms()
    decisions = FilterSuite(QUALITY).apply(batch, watched.add)
    assert decisions == FilterSuite(QUALITY).apply(batch)
    for text in batch:
        FilterSuite(QUALITY).apply([text], alone.add)
    found = watched.as_dict()
    few = found["gopher_quality_few_words"]
    assert sum(few["counts"]) == len(batch)
    below = sum(few["counts"][: EDGES.index(1.0) + 1])
    assert below == sum(one is not None and one.reason == "gopher_quality_few_words" for one in decisions)
    for reason, rule in alone.as_dict().items():
        assert rule["counts"] == found[reason]["counts"]
    total: dict[str, dict[str, Any]] = {}
    merged(total, found)
    merged(total, found)
    assert total["gopher_quality_few_words"]["counts"] == [2 * count for count in few["counts"]]


def test_batches_decide_as_single_texts_do(texts: list[str]) -> None:
    batch = [*texts, CHINESE, prose(70), ""] * 3
    assert FilterSuite(threads=3).apply(batch) == [drop(text, FilterConfig()) for text in batch]
    assert FilterSuite().apply([]) == []


class OurWords(WordTokenizer):
    """Our segmentation for datatrove's filters, so that the rules alone are compared."""

    def word_tokenize(self, text: str) -> list[str]:
        return words(text)

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        ends = [match.end() for match in re.finditer(r"[.!?][\"')\]\u201d\u2019.!?]*(?=\s|$)", text)]
        if text[ends[-1] if ends else 0 :].strip():
            ends.append(len(text))
        return list(zip([0, *ends[:-1]], ends, strict=True)) if ends else []

    def sent_tokenize(self, text: str) -> list[str]:
        return [text[start:end] for start, end in self.span_tokenize(text)]


@pytest.fixture(scope="module")
def real_documents() -> list[str]:
    """Modules of the standard library, and their paragraphs and runs of paragraphs."""
    documents = []
    for path in list(source_files())[:120]:
        text = path.read_text(encoding="utf-8")
        documents.append(text)
        paragraphs = text.split("\n\n")
        for size in (3, 12):
            for start in range(0, min(len(paragraphs), 90), size):
                documents.append("\n\n".join(paragraphs[start : start + size]))
    return [text for text in documents if text.strip()]


@pytest.mark.parametrize(
    ("config", "peer"),
    [
        (replace(NONE, gopher_quality=GopherQuality(letter_words="segmented")), GopherQualityFilter),
        (REPETITION, GopherRepetitionFilter),
        (ONLY_C4, C4QualityFilter),
        (FINEWEB, FineWebQualityFilter),
    ],
)
def test_decisions_equal_those_of_datatrove(config: FilterConfig, peer: type, real_documents: list[str]) -> None:
    documents = real_documents
    assert len(documents) > 2000
    theirs = peer(language=OurWords())
    keeps = [theirs.filter(Document(text=text, id="")) is True for text in documents]
    ours = [decision is None for decision in FilterSuite(config).apply(documents)]
    assert [number for number, (a, b) in enumerate(zip(keeps, ours, strict=True)) if a != b] == []
    assert 20 < sum(keeps) < len(documents) - 20
