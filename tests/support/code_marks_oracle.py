"""The counts of `data_tools.text.code_marks.MARKS` in plain Python."""

import re
from collections import Counter
from itertools import pairwise

from data_tools.text.characters import CJK, LETTER, MARK, NUMBER, kind
from data_tools.text.code_marks import FUNCTION_WORDS, KEYWORDS, OPENERS
from tests.support.text_oracle import TERMINALS

_SYMBOLS = {
    "braces": "{}",
    "parentheses": "()",
    "brackets": "[]",
    "equals": "=",
    "semicolons": ";",
    "angles": "<>",
    "operators": "&|\\$@%^~+*/#",
    "quotes": "\"'`",
}
_BLOCKS = {
    "/*": "*/",
    "<!--": "-->",
    "#[[": "]]",
    "#[=": "#]=",
    '"""': '"""',
    'r"""': '"""',
    "'''": "'''",
}
_CODE_SIGNS = ("code_ends", "assignments", "calls", "key_lines", "joined_names", "openers")


def code_marks(text: str, max_characters: int) -> Counter[str]:
    counts = _count(text, max_characters, with_all=False)
    return counts if counts["lines"] else counts + _count(text, max_characters, with_all=True)


def _comment_sign(stripped: str) -> str:
    if stripped.startswith("//"):
        return "/"
    if re.match(r"[#;%!](?:[ \t!]|$)|([#;%!])\1|\"(?:[ \t]|$)", stripped):
        return stripped[0]
    return "-" if stripped == "--" or stripped.startswith("-- ") else ""


def _count(text: str, max_characters: int, with_all: bool) -> Counter[str]:
    counts: Counter[str] = Counter()
    lines = text.split("\n")
    signs = [_comment_sign(line.strip()) for line in lines]
    is_fenced, block_end = False, ""
    for number, (line, sign) in enumerate(zip(lines, signs, strict=True)):
        stripped = line.strip()
        if counts["characters"] >= max_characters:
            break
        if not stripped:
            continue
        if not with_all:
            fences = stripped.startswith(("```", "~~~"))
            is_fenced ^= fences
            if fences or is_fenced:
                continue
            block_end, is_comment = _block(stripped, block_end, lines[number + 1 :])
            neighbours = [*signs[max(number - 1, 0) : number], *signs[number + 1 : number + 2]]
            if is_comment or sign == "/" or (sign and sign in neighbours):
                counts["comment_lines"] += 1
                continue
        added = _of_line(line, stripped)
        pairs = added["word_pairs"]
        added["prose_lines"] += pairs >= 3 and 2 * pairs >= added["words"]
        added["code_lines"] += pairs <= 1 and any(added[name] for name in _CODE_SIGNS)
        counts.update(added)
    return counts


def _block(stripped: str, block_end: str, below: list[str]) -> tuple[str, bool]:
    """What ends the comment that is open after this line, and whether the line belongs to one."""
    if block_end:
        return ("" if block_end in stripped else block_end), True
    for begin, end in _BLOCKS.items():
        if stripped.startswith(begin):
            if end in stripped[len(begin) :]:
                return "", True
            if any(end in line for line in below):
                return end, True
            break
    if re.match("=[a-z]", stripped) and len(stripped) > 3 and stripped != "=cut":
        return "=cut", True
    return "", False


def _of_line(line: str, stripped: str) -> Counter[str]:
    added: Counter[str] = Counter()
    added["lines"] += 1
    added["indented_lines"] += line.startswith(("\t", "  "))
    added["code_ends"] += stripped[-1] in ";{}()[]>=\\"
    added["list_ends"] += stripped[-1] in ",:"
    added["sentence_ends"] += stripped.endswith((*TERMINALS, "\u201d"))
    added["tag_lines"] += stripped[0] == "<" and stripped[1:2] != " "
    added["closing_tags"] += stripped.count("</")
    added["bullet_lines"] += stripped[0] in "-*+\u2022" and stripped[1:2] == " "
    opener = re.match(r"[^a-zA-Z\x80-\U0010ffff]{0,3}([a-zA-Z_]*)", stripped)
    assert opener is not None
    added["openers"] += opener[1] in OPENERS
    _count_key(stripped.removeprefix("- "), added)
    _count_names(stripped, added)
    return added


def _count_key(rest: str, added: Counter[str]) -> None:
    key = re.match(r"(?:\"[^\"]*\"|'[^']*'|[\w.$@/\[\]-]+)", rest, flags=re.ASCII)
    if key is None:
        return
    rest = rest[key.end() :]
    added["key_lines"] += rest == ":" or rest.startswith((": ", " : "))
    added["assignments"] += re.match(r" *(?:[:+*/|&?.-]=|=(?!=)|<- )", rest) is not None


def _count_names(line: str, added: Counter[str]) -> None:
    added["characters"] += sum(not character.isspace() for character in line)
    added["cjk"] += sum(kind(character) == CJK for character in line)
    added["underscores"] += line.count("_")
    for name, symbols in _SYMBOLS.items():
        added[name] += sum(character in symbols for character in line)
    position = 0
    after_word = -1
    while position < len(line):
        start = position
        while position < len(line) and kind(line[position]) in (LETTER, NUMBER, MARK):
            position += 1
        name, rest = line[start:position], line[position:]
        if not name:
            position += 1
            continue
        capital_inside = any("a" <= a <= "z" and "A" <= b <= "Z" for a, b in pairwise(name))
        is_joined = "_" in name[1:] or capital_inside
        added["joined_names"] += is_joined
        added["keywords"] += name in KEYWORDS
        added["calls"] += rest[:1] == "("
        added["members"] += re.match(r"\.[a-zA-Z_]|::|->", rest) is not None
        if any(kind(c) == NUMBER or c == "_" for c in name):
            added["numbers"] += "0" <= name[0] <= "9"
            continue
        added["letters"] += len(name)
        added["words"] += 1
        added["function_words"] += name in FUNCTION_WORDS
        added["word_pairs"] += start == after_word and not "A" <= name[0] <= "Z" and not is_joined
        after_word = position + 1 if rest[:1] == " " and not is_joined else -1
