"""Planted duplicates are found, and nothing else; the survivors do not depend on how the work is split."""

import math
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_tools import _native
from data_tools.dedup import (
    BucketWriter,
    MinHashConfig,
    band_keys,
    components,
    group_bucket,
    jaccard,
    match_probability,
    normalized_hashes,
    read_edges,
    signatures,
    write_edges,
)
from data_tools.dedup.minhash import shingle_sets
from data_tools.dedup.shingle_sets import ShingleSets, set_files, write_shingle_sets
from data_tools.errors import DataError
from tests.support import text_oracle as oracle
from tests.support.text_strategies import texts

GOLDEN = 0x9E3779B97F4A7C15


def random_words(generator: random.Random, count: int) -> list[str]:
    return ["".join(generator.choices("abcdefghijklmnop", k=7)) for _ in range(count)]


def signature_in_python(text: str, config: MinHashConfig) -> list[int]:
    shingles = list(oracle.shingles(oracle.normalize(text), config.num_words))
    out = []
    for k in range(config.bands * config.rows):
        a = oracle.mix64((config.seed + (2 * k + 1) * GOLDEN) & oracle.MASK) | 1
        b = oracle.mix64((config.seed + (2 * k + 2) * GOLDEN) & oracle.MASK)
        out.append(min(((a * x + b) & oracle.MASK for x in shingles), default=oracle.MASK))
    return out


@settings(max_examples=150, deadline=None)
@given(texts(), st.integers(0, 2**64 - 1))
def test_signatures_equal_the_oracle(text: str, seed: int) -> None:
    config = MinHashConfig(bands=5, rows=7, num_words=3, seed=seed)
    assert signatures([text], config)[0].tolist() == signature_in_python(text, config)


def test_signatures_do_not_depend_on_batches_or_threads(texts: list[str]) -> None:
    alone = np.vstack([signatures([text]) for text in texts])
    assert alone.shape == (len(texts), 112)
    assert np.array_equal(signatures(texts, threads=3), alone)


def test_band_keys_equal_the_oracle() -> None:
    rows = np.random.default_rng(1).integers(0, 2**64, (3, 12), dtype=np.uint64)
    expected = []
    for row in rows.tolist():
        keys = []
        for band in range(4):
            key = oracle.mix64(band + 1)
            for value in row[3 * band : 3 * band + 3]:
                key = oracle.mix64(key ^ value) * GOLDEN & oracle.MASK
            keys.append(key)
        expected.append(keys)
    assert band_keys(rows, 4).tolist() == expected
    with pytest.raises(ValueError, match="bands=5"):
        band_keys(rows, 5)


@pytest.mark.parametrize("similarity", [0.5, 0.6, 0.7, 0.8, 0.9])
def test_recall_lies_in_the_binomial_interval(similarity: float) -> None:
    generator = random.Random(round(100 * similarity))
    config = MinHashConfig(num_words=1)  # Sets of words, so that the similarity can be set exactly.
    trials, union = 500, 200
    first, second = [], []
    for _ in range(trials):
        words = random_words(generator, union)
        common = round(similarity * union)
        half = (union - common) // 2
        first.append(" ".join(words[: common + half]))
        second.append(" ".join(words[:common] + words[common + half :]))
    assert np.allclose(jaccard(first, second, config), similarity)
    keys = [band_keys(signatures(side, config)) for side in (first, second)]
    found = int((keys[0] == keys[1]).any(axis=1).sum())
    probability = match_probability(similarity, config)
    tails = [
        sum(math.comb(trials, k) * probability**k * (1 - probability) ** (trials - k) for k in counts)
        for counts in (range(found + 1), range(found, trials + 1))
    ]
    assert min(tails) > 0.0005, f"{found} of {trials} found, probability {probability:.4f}"


def edited(generator: random.Random, words: Sequence[str], edits: int) -> str:
    out = list(words)
    for _ in range(edits):
        out[generator.randrange(len(out))] = random_words(generator, 1)[0]
    return " ".join(out)


def test_recall_on_edited_texts_is_that_of_their_similarities() -> None:
    generator = random.Random(5)
    pairs = []
    for number in range(400):
        words = random_words(generator, 300)
        pairs.append((" ".join(words), edited(generator, words, 2 + number % 24)))
    first, second = map(list, zip(*pairs, strict=True))
    probabilities = [match_probability(s) for s in jaccard(first, second)]
    found = int((band_keys(signatures(first)) == band_keys(signatures(second))).any(axis=1).sum())
    deviation = math.sqrt(sum(p * (1 - p) for p in probabilities))
    assert abs(found - sum(probabilities)) < 3.5 * deviation
    assert deviation > 3  # The similarities are spread over the range where the outcome is open.


@pytest.mark.parametrize("language", ["en", "zh"])
def test_nothing_unrelated_is_a_candidate(language: str) -> None:
    generator = random.Random(7)
    if language == "en":
        documents = [" ".join(random_words(generator, 60)) for _ in range(2000)]
    else:
        documents = ["".join(chr(generator.randrange(0x4E00, 0x5200)) for _ in range(100)) for _ in range(2000)]
    keys = band_keys(signatures(documents))
    assert all(len(np.unique(keys[:, band])) == len(documents) for band in range(14))


def planted(generator: random.Random) -> tuple[list[str], dict[int, int]]:
    """Documents, and for each planted near-copy the number of the earliest document like it."""
    documents: list[str] = []
    copies: dict[int, int] = {}
    for _ in range(120):
        words = random_words(generator, 200)
        original = len(documents)
        documents.append(" ".join(words))
        for _ in range(generator.randrange(3)):
            copies[len(documents)] = original
            documents.append(edited(generator, words, 1).upper())
    documents += ["", "...", ""]
    return documents, copies


def survivors(
    folder: Path, documents: Sequence[str], shards: Sequence[Sequence[int]], num_parts: int = 1
) -> npt.NDArray[np.uint64]:
    folder.mkdir()
    for number, shard in enumerate(shards):
        with BucketWriter(folder, f"shard-{number}", num_parts=num_parts, buffer_bytes=4096) as writer:
            for start in range(0, len(shard), 16):
                batch = shard[start : start + 16]
                writer.add(np.array(batch, dtype=np.uint64), signatures([documents[index] for index in batch]))
    paths = []
    for bucket in range(14 * num_parts):
        paths.append(folder.parent / f"{folder.name}-{bucket}.npy")
        write_edges(paths[-1], group_bucket(sorted(folder.iterdir()), bucket))
    return components(read_edges(paths)).removed


def test_survivors_do_not_depend_on_shards_or_order(tmp_path: Path) -> None:
    generator = random.Random(11)
    documents, copies = planted(generator)
    order = list(range(len(documents)))
    expected = survivors(tmp_path / "one", documents, [order])
    assert expected.tolist() == sorted(copies)
    for count, num_parts in ((3, 1), (7, 4)):
        split = [order[number::count] for number in range(count)]
        assert survivors(tmp_path / str(count), documents, split, num_parts).tolist() == expected.tolist()
    generator.shuffle(order)
    assert survivors(tmp_path / "shuffled", documents, [order[:50], order[50:]], 2).tolist() == expected.tolist()


def test_exact_duplicates_are_found_all_and_only() -> None:
    generator = random.Random(3)
    originals = [" ".join(random_words(generator, generator.randrange(1, 30))) for _ in range(3000)]
    documents = originals + [text.upper().replace(" ", " \n") for text in originals[::3]]
    hashes = [tuple(row) for row in normalized_hashes(documents, threads=2).tolist()]
    seen: set[tuple[int, ...]] = set()
    removed = [index for index, value in enumerate(hashes) if value in seen or seen.add(value)]
    assert removed == list(range(3000, 4000))


def test_the_exact_check_splits_a_bucket_into_its_clusters(tmp_path: Path) -> None:
    with BucketWriter(tmp_path, "a", MinHashConfig(bands=1, rows=1)) as writer:
        writer.add(np.arange(10, 16, dtype=np.uint64), np.full((6, 1), 5, dtype=np.uint64))
    calls = []

    def same_parity(pairs: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
        calls.append(pairs.tolist())
        return (pairs[:, 0] - pairs[:, 1]) % 2 == 0

    files = [tmp_path / "a.bands"]
    assert group_bucket(files, 0).tolist() == [[10, 11], [10, 12], [10, 13], [10, 14], [10, 15]]
    assert group_bucket(files, 0, same_parity).tolist() == [[10, 12], [10, 14], [11, 13], [11, 15]]
    assert calls[1] == [[11, 13], [11, 15]]


def test_a_failed_shard_leaves_no_file(tmp_path: Path) -> None:
    def fail() -> None:
        with BucketWriter(tmp_path, "a", num_parts=2) as writer:
            writer.add(np.array([1], dtype=np.uint64), signatures(["some words"]))
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_damaged_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.bands").write_bytes(b"x" * 17)
    with pytest.raises(DataError, match=r"a\.bands: 17 bytes are no file of"):
        group_bucket([tmp_path / "a.bands"], 0)
    (tmp_path / "e.npy").write_bytes(b"no numpy file")
    with pytest.raises(DataError, match=r"e\.npy: not a file of edges"):
        read_edges([tmp_path / "e.npy"])
    np.save(tmp_path / "f.npy", np.zeros(3))
    with pytest.raises(DataError, match=r"f\.npy: holds float64 \(3,\)"):
        read_edges([tmp_path / "f.npy"])
    with pytest.raises(DataError, match="num_parts=3 must be a power of two"):
        BucketWriter(tmp_path, "a", num_parts=3)
    with pytest.raises(DataError, match="rows=0 must be at least 1"):
        MinHashConfig(rows=0)


def test_shingle_sets_on_disk_give_the_jaccard_of_the_texts(tmp_path: Path) -> None:
    generator = random.Random(4)
    words = random_words(generator, 60)
    documents = [edited(generator, words, edits) for edits in (0, 1, 3, 9, 30)] + ["", "one two"]
    numbers = np.array([5, 2**63, 1, 9, 3, 7, 8], dtype=np.uint64)
    files = []
    for name, rows in (("a", [0, 1, 2]), ("none", []), ("b", [3, 4, 5, 6])):
        batch = (numbers[rows], shingle_sets([documents[row] for row in rows]))
        assert write_shingle_sets(tmp_path, name, [batch]) == len(rows)
        files.append(set_files(tmp_path, name))
    pairs = [(first, second) for first in range(7) for second in range(7)]
    expected = jaccard([documents[first] for first, _ in pairs], [documents[second] for _, second in pairs])
    found = ShingleSets(files).similarities(numbers[np.array(pairs)])
    assert np.array_equal(found, expected)
    assert 0 < expected[4] < expected[3] < expected[1] < 1
    with pytest.raises(DataError, match="document 6 is in no part"):
        ShingleSets(files).similarities(np.array([[5, 6]], dtype=np.uint64))


def components_in_python(edges: Sequence[tuple[int, int]]) -> dict[int, int]:
    root = {vertex: vertex for edge in edges for vertex in edge}
    for _ in root:
        for a, b in edges:
            root[a] = root[b] = min(root[a], root[b])
    return root


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 25), st.integers(0, 25)).map(lambda e: (e[0] << 58, e[1] << 58)), max_size=40))
def test_components_equal_the_oracle(edges: list[tuple[int, int]]) -> None:
    array = np.array(edges, dtype=np.uint64).reshape(-1, 2)
    expected = components_in_python(edges)
    for parts in ([array], [array[::-1][::2], array[::-1][1::2], array[:0]]):
        found = components([np.ascontiguousarray(part) for part in parts])
        assert dict(zip(found.documents.tolist(), found.survivors.tolist(), strict=True)) == expected
    removed = [vertex for vertex, root in sorted(expected.items()) if vertex != root]
    assert found.removed.tolist() == removed
    assert found.is_removed(array[:, 0]).tolist() == [edge[0] in removed for edge in edges]
    sizes = dict(zip(*(part.tolist() for part in found.cluster_sizes()), strict=True))
    assert sizes == {root: list(expected.values()).count(root) for root in expected.values()}
    # Vertex v stands for v + 1 documents already; one that is in no cluster is named too.
    copies = np.array([[v << 58, v + 1] for v in range(30)], dtype=np.uint64)
    sizes = dict(zip(*(part.tolist() for part in found.cluster_sizes(copies)), strict=True))
    assert sizes == {root: sum((v >> 58) + 1 for v, of in expected.items() if of == root) for root in expected.values()}


def test_a_long_chain_takes_linear_time() -> None:
    chain = np.arange(1_000_001, dtype=np.uint64)
    edges = np.stack([chain[1:], chain[:-1]], axis=1)
    for order in (edges, edges[::-1]):
        assert (components([np.ascontiguousarray(order)]).survivors == 0).all()


def test_edges_to_no_vertex_are_refused() -> None:
    with pytest.raises(IndexError, match="an edge names vertex 2 of 2"):
        _native.join_components(np.array([[0, 2]]), np.arange(2))
    with pytest.raises(IndexError, match="root 1 of vertex 0"):
        _native.join_components(np.array([[0, 1]]), np.array([1, 1]))
