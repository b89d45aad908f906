"""Program text told from prose by a small model of marks that one native call counts.

The numbers in code_model.json were found by `benchmarks/bench_code.py --fit` on files of some thirty programming and
markup languages and on prose in as many natural ones; docs/filters.md says how often the decision is right on files
that were not among them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from data_tools import _native
from data_tools.io.small_json import build, read_object
from data_tools.text.characters import character_table

# No more of a text is looked at; nor, when comments and white space are taken off, more than the second number.
CHARACTERS_USED = 12_000
COUNTED_CHARACTERS = 4000
# Shorter texts hold too few marks.
_FEWEST_CHARACTERS = 30
# Chinese or Japanese prose has more of its characters; programs have them in strings and comments only.
_CJK_SHARE = 0.25

# Column: what it counts. White space is not counted; lines are those that are not blank. A name is a run of letters,
# numbers, marks and underscores, a word a name of letters alone. Comments are passed over, and listings in Markdown.
MARKS = {
    "characters": "all characters",
    "letters": "characters of words",
    "cjk": "Chinese characters and kana",
    "braces": "{ }",
    "parentheses": "( )",
    "brackets": "[ ]",
    "equals": "=",
    "semicolons": ";",
    "angles": "< >",
    "operators": "& | \\ $ @ % ^ ~ + * / #",
    "quotes": "\" ' `",
    "underscores": "_",
    "lines": "lines",
    "indented_lines": "lines that begin with a tab or two spaces",
    "code_ends": "lines that end in one of ; { } ( ) [ ] > = \\",
    "list_ends": "lines that end in a comma or a colon",
    "sentence_ends": "lines that end a sentence",
    "tag_lines": "lines that begin with < and no space behind it",
    "closing_tags": "</",
    "bullet_lines": "lines that begin with - * + or U+2022 and a space",
    "words": "words",
    "word_pairs": "words behind one space behind a word, not capitalised",
    "keywords": "names of KEYWORDS",
    "function_words": "words of FUNCTION_WORDS",
    "joined_names": "names with an underscore or a capital in them",
    "calls": "names with ( behind them",
    "members": "names with a letter behind . :: or -> behind them",
    "numbers": "names that begin with a digit",
    "comment_lines": "lines that are comments, and docstrings that begin a line",
    "key_lines": "lines that begin with NAME: or with a string and a colon",
    "assignments": "lines that begin with NAME = or the like",
    "openers": "lines that begin with one of OPENERS",
    "prose_lines": "lines with three word pairs or more, on half of the words",
    "code_lines": "lines with one at most, and a code end, an assignment, a call, a key, a joined name or an opener",
}
_CJK_COLUMN = list(MARKS).index("cjk")

_KEYWORDS = """
    def elif lambda self cls nil null None True False NULL import const var int void char bool float str struct enum
    typedef namespace println printf fprintf sprintf print echo endif endfor elseif elsif fi esac fn pub impl mut func
    async await len std auto extern inline unsigned uint8_t uint32_t int64_t size_t sizeof typename virtual readonly
    foreach isset undefined typeof instanceof constexpr noexcept nullptr ifdef ifndef undef pragma args kwargs argv
    argc isinstance enumerate console exports SELECT FROM WHERE INSERT CREATE TABLE VARCHAR INTEGER PRIMARY xml xmlns
    html div span href src br td tr li ul px rgb rgba subroutine proc puts setlocal endfunction mkdir grep sudo cout
    endl fmt err ctx obj ptr idx tmp buf params config init return static public private protected override
"""
_FUNCTION_WORDS = """
    the The of and to in is that it It for on with as was by be are this This an at from or have not but which they you
    we We he He she She his her their its has had were been will would can more when there There so than then what who
    my your our all one some do does did about into out up over after before because I
    de la le les des et un une du que qui est dans pour par sur au aux il elle nous vous ne pas ce cette
    der die das und den von zu mit auf ist im dem nicht ein eine als auch sich es aus Der Die Das
    el los las del se por con una para lo su como pero no y di che per non gli della nel sono
    van het een en op te dat zijn voor niet os um uma em da na ao mais
    \u0438 \u0432 \u043d\u0435 \u043d\u0430 \u0447\u0442\u043e \u0441 \u043f\u043e \u043a\u0430\u043a
    w z si\u0119 nie jest och att det som \u00e4r og til ve bir bu
"""
_OPENERS = """
    import from return def class function var let const public private protected static end endif fi done set echo
    export local my our use package include switch case try catch foreach while else elif elseif elsif sub print
    printf struct enum typedef namespace using template inline void int char bool float double long
    unsigned auto async await yield
    raise throw new delete if for with do begin then elsif endfunction proc syn hi autocmd module type fn pub impl func
    RUN COPY WORKDIR ENV CMD ADD ENTRYPOINT option message rpc add_test target_link_libraries install select insert
    create
"""
# What programs are written with and prose is not.
KEYWORDS = tuple(_KEYWORDS.split())
# The words that bind sentences together, of a dozen languages.
FUNCTION_WORDS = tuple(_FUNCTION_WORDS.split())
# What lines of programs begin with.
OPENERS = tuple(_OPENERS.split())

MODEL_FILE = Path(__file__).with_name("code_model.json")


@dataclass(frozen=True, kw_only=True)
class CodeModel:
    """A layer of tanh and a sum: score = output . tanh(features . weights + hidden_bias) + bias; above 0 is code."""

    weights: dict[str, list[float]]
    """Feature -> [h], one for each hidden unit."""
    hidden_bias: list[float]
    output: list[float]
    bias: float

    def scores(self, found: dict[str, npt.NDArray[np.float64]]) -> npt.NDArray[np.float64]:
        """[n] scores of `features`."""
        rows = np.stack([found[name] for name in self.weights], axis=1)
        hidden = np.tanh(rows @ np.array(list(self.weights.values())) + np.array(self.hidden_bias))
        return hidden @ np.array(self.output) + self.bias


@cache
def code_model() -> CodeModel:
    """The model that comes with the package."""
    return build(CodeModel, read_object(MODEL_FILE), str(MODEL_FILE))


def count_marks(texts: Sequence[str], threads: int = 1) -> npt.NDArray[np.int64]:
    """[n, 34] counts of `MARKS` at the beginning of each text.

    Raises:
        UnicodeEncodeError: a text holds a lone surrogate.
    """
    starts = [text[:CHARACTERS_USED] for text in texts]
    words = (list(KEYWORDS), list(FUNCTION_WORDS), list(OPENERS))
    return _native.code_marks(character_table(), starts, *words, COUNTED_CHARACTERS, threads)


def features(marks: npt.NDArray[np.int64]) -> dict[str, npt.NDArray[np.float64]]:
    """[n] each: shares of characters, lines and words; roots of the rare ones, so that the first few count most."""
    column = {name: marks[:, number].astype(np.float64) for number, name in enumerate(MARKS)}
    characters, lines, words = (np.maximum(column[name], 1) for name in ("characters", "lines", "words"))
    found = {"line_length": np.log(characters / lines), "letters": column["letters"] / characters}
    found["cjk"] = column["cjk"] / characters
    for name in ("braces", "parentheses", "brackets", "equals", "semicolons", "angles", "operators", "quotes"):
        found[name] = np.sqrt(column[name] / characters)
    for name in (
        "indented_lines",
        "code_ends",
        "list_ends",
        "sentence_ends",
        "tag_lines",
        "bullet_lines",
        "prose_lines",
        "code_lines",
    ):
        found[name] = column[name] / lines
    for name in ("key_lines", "assignments", "openers", "closing_tags"):
        found[name] = np.sqrt(np.minimum(column[name] / lines, 1))
    found["comment_lines"] = np.sqrt(column["comment_lines"] / (lines + column["comment_lines"]))
    found["numbers"] = column["numbers"] / (words + column["numbers"])
    found["word_pairs"] = column["word_pairs"] / words
    for name in ("keywords", "function_words", "joined_names", "calls", "members"):
        found[name] = np.sqrt(np.minimum(column[name] / words, 1))
    return found


def are_code(texts: Sequence[str], threads: int = 1) -> npt.NDArray[np.bool_]:
    """[n] whether each text is program text, or data or markup written for programs.

    Raises:
        UnicodeEncodeError: a text holds a lone surrogate.
    """
    if not texts:
        return np.zeros(0, dtype=np.bool_)
    marks = count_marks(texts, threads)
    may_be = (marks[:, 0] >= _FEWEST_CHARACTERS) & (marks[:, _CJK_COLUMN] <= _CJK_SHARE * marks[:, 0])
    return may_be & (code_model().scores(features(marks)) > 0)
