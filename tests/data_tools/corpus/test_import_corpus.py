"""Corpora of other Megatron tools get a sidecar, or a reason why not."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data_tools.corpus.import_corpus import import_corpus
from data_tools.corpus.index import CorpusIndex
from data_tools.corpus.reader import Corpus
from data_tools.corpus.sidecar import Sidecar
from data_tools.corpus.verify import verify
from data_tools.errors import DataError

END = 151643
DOCUMENTS = [[[1, 2], [3, END]], [[4, END]], [[5], [6, 7], [8, END]]]


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_documents_of_several_sequences(write_megatron_corpus: Callable[..., Path], dtype: type[np.number]) -> None:
    prefix = write_megatron_corpus(DOCUMENTS, dtype)
    before = {suffix: Path(f"{prefix}.{suffix}").read_bytes() for suffix in ("bin", "idx")}
    imported = import_corpus(prefix)
    assert imported.unended_documents == 0
    assert {suffix: Path(f"{prefix}.{suffix}").read_bytes() for suffix in ("bin", "idx")} == before
    sidecar = imported.sidecar
    assert sidecar == Sidecar.read(prefix) == verify(prefix)
    assert (sidecar.dtype, sidecar.num_documents, sidecar.num_tokens) == (np.dtype(dtype).name, 3, 11)
    assert (sidecar.tokenizer, sidecar.shuffle_seed, sidecar.end_of_document) == (None, None, END)
    corpus, index = Corpus.open(prefix), CorpusIndex.open(prefix)
    documents = [corpus.tokens(*index.document(number)).tolist() for number in range(3)]
    assert documents == [[token for sequence in document for token in sequence] for document in DOCUMENTS]


@pytest.mark.parametrize("dtype", [np.uint16, np.int16, np.uint8, np.int8])
def test_narrow_types(write_megatron_corpus: Callable[..., Path], dtype: type[np.number]) -> None:
    prefix = write_megatron_corpus([[[1, 2, 100]], [[3, 100]]], dtype)
    sidecar = import_corpus(prefix, end_of_document=100, vocab_size=101).sidecar
    assert (sidecar.dtype, sidecar.end_of_document) == (np.dtype(dtype).name, 100)
    assert Corpus.open(prefix).tokens(0, 5).tolist() == [1, 2, 100, 3, 100]


def test_uint16_ids_above_the_signed_range(write_megatron_corpus: Callable[..., Path]) -> None:
    prefix = write_megatron_corpus([[[40000, 50256]], [[50000, 50256]]], np.uint16)
    import_corpus(prefix, end_of_document=50256, vocab_size=50257)
    assert Corpus.open(prefix).tokens(0, 4).tolist() == [40000, 50256, 50000, 50256]


def test_no_end_of_document_names_the_common_last_tokens(write_megatron_corpus: Callable[..., Path]) -> None:
    prefix = write_megatron_corpus([[[1, 7]], [[2, 7]], [[3, 9]], [[4, 9]], [[5, 9]], [[6, 8]]])
    with pytest.raises(
        DataError, match=r"none of 6 documents .* 151643; most end with 9 \(3 times\) and 7 \(2 times\)"
    ):
        import_corpus(prefix)
    assert not Path(f"{prefix}.json").exists()
    imported = import_corpus(prefix, end_of_document=9)
    assert imported.sidecar.end_of_document == 9
    assert imported.unended_documents == 3
    verify(prefix)


def test_documents_without_tokens_are_passed_over(write_megatron_corpus: Callable[..., Path]) -> None:
    imported = import_corpus(write_megatron_corpus([[[]], [[1, END]], [[], []], [[END]], [[2]], [[]]]))
    assert imported.sidecar.num_documents == 6
    assert imported.unended_documents == 1


@pytest.mark.parametrize(("bad", "dtype"), [(151851, np.int32), (-1, np.int32), (2**40, np.int64)])
def test_ids_out_of_range_are_named(
    write_megatron_corpus: Callable[..., Path], bad: int, dtype: type[np.number]
) -> None:
    prefix = write_megatron_corpus([[[1, 2, END]], [[3, bad, END]]], dtype)
    with pytest.raises(DataError, match=rf"megatron\.bin: token 4 \(document 1\) is {bad}, ids must be 0 to 151850"):
        import_corpus(prefix)
    if bad > 0:
        assert import_corpus(prefix, vocab_size=bad + 1).sidecar.num_tokens == 6


def test_many_documents_across_pieces(
    write_megatron_corpus: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data_tools.io.checksums.READ_BYTES", 65536)
    generator = np.random.default_rng(3)
    documents = [[[*generator.integers(0, 1000, size).tolist(), END]] for size in generator.integers(0, 200, 1000)]
    documents[10], documents[900] = [[5]], [[6]]
    imported = import_corpus(write_megatron_corpus(documents))
    assert imported.sidecar.bin.size_bytes > 5 * 65536
    assert imported.unended_documents == 2


def test_files_that_do_not_belong_together(write_megatron_corpus: Callable[..., Path]) -> None:
    prefix = write_megatron_corpus(DOCUMENTS)
    other = write_megatron_corpus(DOCUMENTS[:2], name="other")
    content = Path(f"{prefix}.bin").read_bytes()
    Path(f"{prefix}.bin").write_bytes(content[:20])
    with pytest.raises(
        DataError, match=r"megatron\.bin: 20 bytes, but .*megatron\.idx ends at byte 44 \(11 tokens of 4"
    ):
        import_corpus(prefix)
    Path(f"{prefix}.bin").write_bytes(content)
    Path(f"{prefix}.idx").write_bytes(Path(f"{other}.idx").read_bytes())
    with pytest.raises(DataError, match=r"44 bytes, but .* ends at byte 24"):
        import_corpus(prefix)
    Path(f"{prefix}.bin").unlink()
    with pytest.raises(DataError, match=r"megatron\.bin: cannot be read: No such file"):
        import_corpus(prefix)
    Path(f"{prefix}.idx").unlink()
    with pytest.raises(DataError, match=r"megatron\.idx: cannot be read: No such file"):
        import_corpus(prefix)


def test_gaps_between_sequences_are_refused(write_megatron_corpus: Callable[..., Path]) -> None:
    prefix = write_megatron_corpus([[[1, 2, END]], [[3, END]], [[4, END]]])
    path = Path(f"{prefix}.idx")
    content = bytearray(path.read_bytes())
    content[34 + 12 + 8] += 4  # Byte offset of sequence 1.
    path.write_bytes(content)
    with pytest.raises(DataError, match="sequence 1 begins at byte 16 but the ones before it end at 12"):
        import_corpus(prefix)


def test_empty_corpus_is_refused(write_megatron_corpus: Callable[..., Path]) -> None:
    with pytest.raises(DataError, match="the corpus is empty"):
        import_corpus(write_megatron_corpus([]))


def test_sidecar_that_is_there_is_kept(make_corpus: Callable[..., Path]) -> None:
    prefix = make_corpus(["a"])
    before = Path(f"{prefix}.json").read_bytes()
    with pytest.raises(DataError, match=r"corpus\.json: already there; use --overwrite"):
        import_corpus(prefix)
    assert Path(f"{prefix}.json").read_bytes() == before
    assert import_corpus(prefix, overwrite=True).sidecar.tokenizer is None
