"""Corpora of dialogues: written whole, read as they were written, damage and other kinds named."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from data_tools.chat.chat_corpus import ChatCorpus
from data_tools.chat.chat_writer import write_chat_corpus
from data_tools.chat.inspect import read_sample
from data_tools.chat.rendered import Rendered, rendered
from data_tools.chat.verify import verify_chat
from data_tools.corpus.reader import Corpus
from data_tools.errors import DataError, RefusedError
from data_tools.stages.tokenize_files import tokenize


def documents(count: int = 6, seed: int = 1) -> list[Rendered]:
    random = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        size = int(random.integers(2, 30))
        targets = random.integers(0, 2, size).astype(np.bool_)
        targets[-1] = True
        made.append(Rendered(tokens=random.integers(0, 64, size).astype(np.int32), targets=targets))
    return made


def test_documents_are_read_as_they_were_written(tmp_path: Path) -> None:
    written = documents()
    sidecar = write_chat_corpus(tmp_path / "a.b", written, kind="pairs", tokenizer="toy", end_of_turn=2)
    corpus = ChatCorpus.open(tmp_path / "a.b", kind="pairs")
    assert (corpus.kind, corpus.num_documents, corpus.tokenizer, corpus.end_of_turn) == ("pairs", 6, "toy", 2)
    assert corpus.lengths.dtype == np.int32
    assert corpus.lengths.tolist() == [len(one) for one in written]
    assert corpus.vocab_size == max(int(one.tokens.max()) for one in written) + 1
    for number, one in reversed(list(enumerate(written))):
        document = corpus.document(number)
        assert (document.tokens.dtype, document.targets.dtype) == (np.int32, np.bool_)
        assert document.tokens.tolist() == one.tokens.tolist()
        assert document.targets.tolist() == one.targets.tolist()
    assert (sidecar.records_in, sidecar.num_documents) == (3, 6)
    assert verify_chat(tmp_path / "a.b") == sidecar
    corpus.check_unchanged()
    corpus.verify_again()
    for number in (-1, 6):
        with pytest.raises(DataError, match=f"document {number} does not exist, there are 6"):
            corpus.document(number)


def test_the_fingerprint_is_of_tokens_targets_and_where_documents_end(tmp_path: Path) -> None:
    one, two = rendered([1, 2, 3, 4], [False, True, True, True]), rendered([5, 6], [False, True])
    joined = rendered([1, 2, 3, 4, 5, 6], [False, True, True, True, False, True])
    other = rendered([1, 2, 3, 4], [False, False, True, True])
    prints = set()
    for name, content in {"a": [one, two], "b": [joined], "c": [other, two], "d": [two, one]}.items():
        write_chat_corpus(tmp_path / name, content, kind="dialogues")
        prints.add(ChatCorpus.open(tmp_path / name).fingerprint)
    assert len(prints) == 4
    write_chat_corpus(tmp_path / "e", [one, two], kind="dialogues")
    assert ChatCorpus.open(tmp_path / "e").fingerprint == ChatCorpus.open(tmp_path / "a").fingerprint


def test_a_copy_in_another_process_is_of_the_same_corpus(tmp_path: Path) -> None:
    write_chat_corpus(tmp_path / "a", documents(), kind="dialogues")
    sent = pickle.dumps(ChatCorpus.open(tmp_path / "a"))
    assert pickle.loads(sent).document(3).tokens.tolist() == documents()[3].tokens.tolist()
    write_chat_corpus(tmp_path / "a", documents(seed=2), kind="dialogues", overwrite=True)
    with pytest.raises(DataError, match="was rebuilt while it was in use"):
        pickle.loads(sent)


def test_corpora_of_another_kind_are_refused_by_name(tmp_path: Path) -> None:
    write_chat_corpus(tmp_path / "a", documents(), kind="dialogues")
    with pytest.raises(DataError, match=r"a: is a corpus of dialogues, not of pairs; make one with: qwen-data chat .*"):
        ChatCorpus.open(tmp_path / "a", kind="pairs")
    with pytest.raises(DataError, match=r"no corpus there; make one with: .* --kind prompts"):
        ChatCorpus.open(tmp_path / "none", kind="prompts")
    (tmp_path / "t.jsonl").write_text('{"text": "a"}\n')
    tokenize([tmp_path / "t.jsonl"], tmp_path / "t")
    with pytest.raises(DataError, match="t: is a corpus of text, not of dialogues, pairs or prompts"):
        ChatCorpus.open(tmp_path / "t")
    assert Corpus.open(tmp_path / "t").sidecar.chat is None
    assert b'"chat"' not in (tmp_path / "t.json").read_bytes()


@pytest.mark.parametrize(
    ("kind", "content", "message"),
    [
        ("dialogues", [], "no documents"),
        ("pairs", documents(3), "3 documents of pairs; chosen and rejected make an even number"),
        ("dialogues", [rendered([], [])], "document 0: must have tokens"),
        ("dialogues", [rendered([1], [True]), rendered([-1], [True])], "document 1: must have tokens, none of them n"),
        ("poems", documents(), "kind='poems': must be one of dialogues, pairs, prompts"),
    ],
)
def test_nothing_is_left_of_what_is_no_corpus(tmp_path: Path, kind: str, content: list[Rendered], message: str) -> None:
    with pytest.raises(DataError, match=message):
        write_chat_corpus(tmp_path / "a", content, kind=kind)
    assert list(tmp_path.iterdir()) == []


def test_a_source_that_fails_leaves_the_old_corpus(tmp_path: Path) -> None:
    def failing() -> Iterator[Rendered]:
        yield documents()[0]
        raise DataError("no more")

    write_chat_corpus(tmp_path / "a", documents(), kind="dialogues")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(RefusedError, match="already there; use --overwrite"):
        write_chat_corpus(tmp_path / "a", documents(), kind="dialogues")
    with pytest.raises(DataError, match="no more"):
        write_chat_corpus(tmp_path / "a", failing(), kind="dialogues", overwrite=True)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["a.bin", "a.targets.bin"])
def test_damage_is_found_when_it_is_read(tmp_path: Path, name: str) -> None:
    write_chat_corpus(tmp_path / "a", documents(), kind="dialogues")
    flip(tmp_path / name, 5)
    corpus = ChatCorpus.open(tmp_path / "a")
    with pytest.raises(DataError, match=rf"{name}: block 0 .* the file is damaged"):
        corpus.document(0)
    with pytest.raises(DataError, match=rf"{name}: block 0 .*is damaged"):
        verify_chat(tmp_path / "a")


def test_parts_of_two_corpora_are_none(tmp_path: Path) -> None:
    write_chat_corpus(tmp_path / "a", documents(), kind="dialogues")
    changed = [Rendered(tokens=one.tokens, targets=np.ones(len(one), np.bool_)) for one in documents()]
    write_chat_corpus(tmp_path / "b", changed, kind="dialogues")
    for suffix in ("bin", "idx", "crc", "json"):
        (tmp_path / f"b.targets.{suffix}").replace(tmp_path / f"a.targets.{suffix}")
    with pytest.raises(DataError, match=r"a\.targets: does not belong to .*a\.json"):
        ChatCorpus.open(tmp_path / "a")
    (tmp_path / "a.targets.json").unlink()
    with pytest.raises(DataError, match=r"a\.targets\.json: missing"):
        ChatCorpus.open(tmp_path / "a")


def test_verify_knows_what_a_mask_must_be(tmp_path: Path) -> None:
    """Whole files that say nonsense: a prompt to be learned, a dialogue without a target."""
    write_chat_corpus(tmp_path / "a", documents(), kind="prompts")
    with pytest.raises(DataError, match="document 0 is a prompt but has something to learn"):
        verify_chat(tmp_path / "a")
    write_chat_corpus(tmp_path / "b", [*documents(2), rendered([1, 2], [True, False])], kind="dialogues")
    with pytest.raises(DataError, match="document 2 has nothing to learn"):
        verify_chat(tmp_path / "b")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"dialogues"', '"poems"', "field chat.kind must be one of dialogues, pairs, prompts, found 'poems'"),
        ('"dialogues"', '"pairs"', "field num_documents must be even: a pair is two documents, found 5"),
        ('"truncated": 0', '"truncated": -1', "field chat.truncated must not be negative"),
        ('"labels"', '"tables"', "field chat.labels is missing"),
    ],
)
def test_a_sidecar_that_is_wrong(tmp_path: Path, old: str, new: str, message: str) -> None:
    write_chat_corpus(tmp_path / "a", documents(5), kind="dialogues")
    path = tmp_path / "a.json"
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(DataError, match=message):
        ChatCorpus.open(tmp_path / "a")


def test_another_vocabulary_has_no_text(tmp_path: Path) -> None:
    write_chat_corpus(tmp_path / "a", [rendered([7, 8], [False, True])], kind="dialogues", tokenizer="toy")
    sample = read_sample(tmp_path / "a", 0)
    assert sample["text"] is None
    assert (sample["tokens"], sample["targets"]) == ([7, 8], [0, 1])
