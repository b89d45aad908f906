"""How often program text is told from prose, on files of this machine: precision, recall, each language by itself.

Every language gives at most --files files; of each its beginning and a listing of a dozen to forty lines out of its
middle are judged. Files whose path has an even hash are the ones --fit finds the numbers of
data_tools/text/code_model.json on; the tables are about the others. Prose: Markdown, reStructuredText,
plain text, licences, manual pages.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import os
import random
import re
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from results import write_section

from data_tools.io.atomic_file import write_atomically
from data_tools.text import code_marks

ROOTS = ("/usr/include", "/usr/share", "/usr/lib", "/usr/local", sysconfig.get_paths()["stdlib"])
CODE = {
    "Python": "py",
    "Cython": "pyx pxd",
    "C": "c h",
    "C++": "cpp cc hpp cxx",
    "CUDA": "cu cuh",
    "JavaScript": "js mjs",
    "TypeScript": "ts",
    "Perl": "pl pm",
    "PHP": "php",
    "Ruby": "rb",
    "Go": "go",
    "Rust": "rs",
    "Java": "java",
    "C#": "cs",
    "shell": "sh bash bats",
    "PowerShell": "ps1",
    "awk": "awk",
    "CMake": "cmake",
    "SQL": "sql",
    "Tcl": "tcl",
    "Fortran": "f90 f",
    "Vim script": "vim",
    "Emacs Lisp": "el",
    "Protocol Buffers": "proto",
    "CSS": "css",
    "HTML": "html",
    "XML": "xml svg",
    "JSON": "json",
    "YAML": "yaml yml",
    "TOML, INI": "toml ini",
    "Makefile, Dockerfile": "mk Makefile Dockerfile",
    "Python sessions": "doctest",
}
PROSE = {"Markdown": "md", "reStructuredText": "rst", "plain text": "txt", "licences": "copyright"}
MANUALS = "manual pages in other languages"
LISTINGS = "listings in Markdown"
_LISTING = re.compile(r"^```(?!text|txt|markdown|md|output|plain)[a-z+#]+\n(.*?)\n```$", flags=re.MULTILINE | re.DOTALL)
# Plain text that is none: lists, tables, builds.
NO_PROSE = ("CMakeLists", "requirements", "top_level", "entry_points", "SOURCES", "test", "rgb.txt", "examples/")
# Tables that programs were made of.
NO_CODE = ("unicore", "Unicode/Collate")
_CHARACTERS = 200_000
HIDDEN, STEPS, PENALTY, SEED, FEW_LINES = 8, 500, 2e-4, 1, 4
# Prose that is lost costs more than program text that is kept.
CAUTION = 0.6


@dataclass(frozen=True)
class Example:
    """A labelled text."""

    kind: str
    is_code: bool
    for_fit: bool
    size: str  # beginning, piece, or few: a few lines, which are only fitted
    text: str


def files_by_suffix(roots: Sequence[str]) -> dict[str, list[str]]:
    """Suffix (or the name, of files without one) -> paths."""
    wanted = {suffix for table in (CODE, PROSE) for names in table.values() for suffix in names.split()}
    found: dict[str, list[str]] = {}
    for root in dict.fromkeys(roots):
        for folder, _, names in os.walk(root):
            for name in names:
                suffix = name.rpartition(".")[2]
                if suffix in wanted:
                    found.setdefault(suffix, []).append(os.path.join(folder, name))
    return found


def _hash(path: str) -> int:
    return int.from_bytes(hashlib.blake2b(path.encode("utf-8", "replace"), digest_size=8).digest(), "little")


def examples(roots: Sequence[str], most: int) -> Iterator[Example]:
    """Beginnings and pieces; no two files of equal content, at most three of one folder."""
    files = files_by_suffix(roots)
    seen: set[int] = set()
    for table, is_code in ((CODE, True), (PROSE, False)):
        for kind, suffixes in table.items():
            paths = [path for suffix in suffixes.split() for path in files.get(suffix, [])]
            folders: dict[str, int] = {}
            taken = 0
            for path in sorted(paths, key=_hash):
                if taken == most * (1 if is_code else 8):
                    break
                folder = os.path.dirname(path)
                if folders.get(folder, 0) == 3 or any(word in path for word in (NO_CODE if is_code else NO_PROSE)):
                    continue
                text = _read(path)
                if text is None or hash(text) in seen:
                    continue
                seen.add(hash(text))
                folders[folder] = folders.get(folder, 0) + 1
                taken += 1
                yield from _examples(kind, is_code, path, text)


def listings(roots: Sequence[str], most: int) -> Iterator[Example]:
    """What stands between fences with the name of a language, of three lines or more."""
    for path in sorted(files_by_suffix(roots).get("md", []), key=_hash)[: 8 * most]:
        found = [one for one in _LISTING.findall(_read(path) or "") if one.count("\n") >= 2 and len(one) > 60]
        for listing in found[:4]:
            size = "piece" if listing.count("\n") >= 11 else "few"
            yield Example(LISTINGS, True, _hash(path) % 2 == 0, size, listing)


def manuals(most: int) -> Iterator[Example]:
    """Manual pages of this machine in languages other than English, without the marks of their format."""
    for folder in sorted(Path("/usr/share/man").glob("*/man[1-8]")):
        paths = sorted(folder.glob("*.gz"), key=lambda path: _hash(str(path)))
        for path in paths[:most]:
            try:
                text = gzip.decompress(path.read_bytes()).decode("utf-8")
            except (OSError, UnicodeDecodeError, EOFError):
                continue
            lines = [line for line in text.splitlines() if not line.startswith((".", "'", "\\"))]
            plain = re.sub(r"\\f.|\\&|\\(?=-)|\\", "", "\n".join(lines))
            if len(plain) > 600:
                yield from _examples(MANUALS, False, str(path), plain)


def _examples(kind: str, is_code: bool, path: str, text: str) -> Iterator[Example]:
    for_fit = _hash(path) % 2 == 0
    yield Example(kind, is_code, for_fit, "beginning", text)
    if (piece := _piece(path, text, is_code, 12, 40)) is not None:
        yield Example(kind, is_code, for_fit, "piece", piece)
    for number in range(FEW_LINES if for_fit else 0):
        if (piece := _piece(f"{path}{number}", text, is_code, 4, 12)) is not None:
            yield Example(kind, is_code, for_fit, "few", piece)


def _piece(seed: str, text: str, is_code: bool, least: int, most: int) -> str | None:
    """Lines out of the middle; none of prose with listings, nor of programs what is mostly comments."""
    lines = text.splitlines()
    if len(lines) < 40 or (not is_code and any(mark in text for mark in ("```", "::\n", "{", "\n    "))):
        return None
    generator = random.Random(_hash(seed))
    start = generator.randrange(len(lines) // 4, len(lines) - 20)
    piece = lines[start : start + generator.randrange(least, most)]
    comments = sum(line.lstrip().startswith(("#", "//", "*", "/*", '"', "--", "%", ";")) for line in piece)
    joined = "\n".join(piece)
    has_pod = re.search(r"^=(item|head|over|back|pod)", joined, flags=re.MULTILINE)
    return None if len(joined) < 10 * least or (is_code and (has_pod or comments > len(piece) / 2)) else joined


def _read(path: str) -> str | None:
    try:
        if not 300 < os.path.getsize(path) < 2_000_000:
            return None
        return Path(path).read_text("utf-8")[:_CHARACTERS]
    except (OSError, UnicodeDecodeError):
        return None


def fit(
    found: dict[str, npt.NDArray[np.float64]], labels: npt.NDArray[np.bool_], weights: npt.NDArray[np.float64]
) -> code_marks.CodeModel:
    """The model with the least cross entropy and a small penalty, by Adam."""
    raw = np.stack(list(found.values()), axis=1)
    mean, scale = raw.mean(axis=0), raw.std(axis=0) + 1e-9
    rows, share = (raw - mean) / scale, weights / weights.sum()
    generator = np.random.default_rng(SEED)
    parameters = [
        generator.normal(0, 0.4, (rows.shape[1], HIDDEN)),
        np.zeros(HIDDEN),
        generator.normal(0, 0.4, HIDDEN),
        np.zeros(1),
    ]
    first, second = [np.zeros_like(one) for one in parameters], [np.zeros_like(one) for one in parameters]
    for step in range(1, STEPS + 1):
        hidden = np.tanh(rows @ parameters[0] + parameters[1])
        probability = 1 / (1 + np.exp(-(hidden @ parameters[2] + parameters[3])))
        error = share * (probability - labels)
        inner = np.outer(error, parameters[2]) * (1 - hidden**2)
        gradients = [
            rows.T @ inner + PENALTY * parameters[0],
            inner.sum(axis=0),
            hidden.T @ error + PENALTY * parameters[2],
            np.array([error.sum()]),
        ]
        for number, gradient in enumerate(gradients):
            first[number] = 0.9 * first[number] + 0.1 * gradient
            second[number] = 0.999 * second[number] + 0.001 * gradient**2
            corrected = first[number] / (1 - 0.9**step), second[number] / (1 - 0.999**step)
            rate = 0.02 * (1 - step / (STEPS + 1))
            parameters[number] = parameters[number] - rate * corrected[0] / (np.sqrt(corrected[1]) + 1e-8)
    scaled = parameters[0] / scale[:, None]
    return code_marks.CodeModel(
        weights={name: _rounded(row) for name, row in zip(found, scaled, strict=True)},
        hidden_bias=_rounded(parameters[1] - mean @ scaled),
        output=_rounded(parameters[2]),
        bias=round(float(parameters[3][0]) - CAUTION, 3),
    )


def _rounded(values: npt.NDArray[np.float64]) -> list[float]:
    return [round(float(value), 3) for value in values]


def write_model(model: code_marks.CodeModel) -> None:
    """Puts the model beside the module that reads it, one line for each feature."""
    weights = ",\n    ".join(f"{json.dumps(name)}: {row}" for name, row in model.weights.items())
    rest = f'"hidden_bias": {model.hidden_bias},\n  "output": {model.output},\n  "bias": {model.bias}'
    write_atomically(code_marks.MODEL_FILE, f'{{\n  "weights": {{\n    {weights}\n  }},\n  {rest}\n}}\n'.encode())


def balanced(kinds: Sequence[Example]) -> npt.NDArray[np.float64]:
    """Weights by which every kind counts the same, and code as much as prose."""
    counts: dict[str, int] = {}
    for one in kinds:
        counts[one.kind] = counts.get(one.kind, 0) + 1
    weights = np.array([1 / counts[one.kind] for one in kinds])
    is_code = np.array([one.is_code for one in kinds])
    for label in (False, True):
        weights[is_code == label] /= weights[is_code == label].sum()
    return weights * len(kinds) / 2


def table(judged: Sequence[tuple[Example, bool]]) -> list[str]:
    """Precision and recall over all, right decisions by kind."""
    lines = ["| | beginnings of files | pieces of a dozen to forty lines |", "|---|---|---|"]
    cells: dict[str, list[str]] = {"precision": [], "recall": []}
    for size in ("beginning", "piece"):
        rows = [(one, said) for one, said in judged if one.size == size]
        weights = balanced([one for one, _ in rows])
        said = np.array([said for _, said in rows])
        truth = np.array([one.is_code for one, _ in rows])
        right = weights[said & truth].sum()
        cells["precision"].append(f"{right / weights[said].sum():.3f}")
        cells["recall"].append(f"{right / weights[truth].sum():.3f}")
    lines += [f"| **{name}** | {' | '.join(values)} |" for name, values in cells.items()]
    for kind in [*CODE, LISTINGS, *PROSE, MANUALS]:
        row = []
        for size in ("beginning", "piece"):
            right = [said == one.is_code for one, said in judged if (one.kind, one.size) == (kind, size)]
            row.append(f"{sum(right)} of {len(right)}")
        if row != ["0 of 0"] * 2:
            lines.append(f"| {kind} | {' | '.join(row)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--roots", nargs="+", default=ROOTS, help="folders whose files are judged")
    parser.add_argument("--files", type=int, default=100, help="files of a language")
    parser.add_argument("--fit", action="store_true", help="find the numbers of the model anew and write them")
    parser.add_argument("--wrong", type=int, default=0, help="print so many texts that are judged wrongly")
    parser.add_argument("--write", action="store_true", help="put the table into docs/benchmarks.md")
    arguments = parser.parse_args()
    found = [*examples(arguments.roots, arguments.files), *manuals(arguments.files // 4)]
    found += listings(arguments.roots, arguments.files)
    if arguments.fit:
        kept = [one for one in found if one.for_fit]
        marks = code_marks.count_marks([one.text for one in kept])
        model = fit(code_marks.features(marks), np.array([one.is_code for one in kept]), balanced(kept))
        write_model(model)
        code_marks.code_model.cache_clear()
    held_out = [one for one in found if not one.for_fit and one.size != "few"]
    said = code_marks.are_code([one.text for one in held_out]).tolist()
    judged = list(zip(held_out, said, strict=True))
    lines = ["## Program text and prose (`benchmarks/bench_code.py`)", "", *table(judged)]
    print("\n".join(lines))
    wrong = [one for one, is_code in judged if one.is_code != is_code]
    for one in random.Random(1).sample(wrong, min(arguments.wrong, len(wrong))):
        print(f"===== {one.kind}, {one.size}\n{one.text[:700]}")
    if arguments.write:
        write_section("bench-code", lines)


if __name__ == "__main__":
    main()
