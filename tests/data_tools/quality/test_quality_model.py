"""Training finds what is planted and nothing else; figures are honest; a model survives its folder, bit by bit."""

import hashlib
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import orjson
import pytest
from safetensors.numpy import save

from data_tools.errors import DataError
from data_tools.quality import FeatureConfig, QualityModel, TrainingConfig, train
from data_tools.quality.calibration import Calibration, auc, calibration_error, platt, reliability
from tests.support.quality_texts import labelled_texts, quality_text

Damage = Callable[[Path], object]
CONFIG = TrainingConfig(features=FeatureConfig(bits=14))


@pytest.fixture(scope="module")
def model() -> QualityModel:
    return train(labelled_texts(300), CONFIG)


def test_planted_difference_is_found(model: QualityModel) -> None:
    assert model.training["auc"] > 0.95
    assert model.training["gradient_ratio"] <= CONFIG.tolerance
    unseen = [quality_text(seed, good=seed % 2 == 1) for seed in range(10**6, 10**6 + 200)]
    labels = np.arange(200, dtype=np.uint8) % 2
    assert auc(model.logits(unseen), labels) > 0.95
    assert model.scores(unseen)[1::2].mean() > 0.8
    assert model.scores(unseen)[::2].mean() < 0.2
    counts = model.training["documents"]
    assert sum(sum(part.values()) for part in counts.values()) == 600
    assert counts["training"]["positive"] + counts["training"]["negative"] == pytest.approx(480, abs=40)


def test_random_labels_teach_nothing() -> None:
    generator = random.Random(1)
    texts = [(text, generator.random() < 0.5) for text, _ in labelled_texts(600)]
    model = train(texts, TrainingConfig(features=FeatureConfig(bits=14), held_out=0.6))
    unseen = sum(model.training["documents"]["test"].values())
    # Four standard deviations of the rank-sum statistic with halves of n.
    assert abs(model.training["auc"] - 0.5) < 4 / np.sqrt(3 * unseen)
    scores = model.scores([text for text, _ in texts[:100]])
    assert scores.min() > 0.3
    assert scores.max() < 0.7


def test_neither_order_nor_threads_nor_copies_count(model: QualityModel) -> None:
    examples = labelled_texts(300)
    random.Random(2).shuffle(examples)
    both = quality_text(999, good=True)
    examples += [*examples[:7], (both, True), (both, False)]
    other = train(examples, CONFIG, threads=3)
    assert other.checksum == model.checksum
    assert other.training["rejected"] == {"both_labels": 1, "duplicate": 8}
    assert {**other.training, "rejected": {}} == {**model.training, "rejected": {}}


def test_copies_of_a_text_are_on_one_side() -> None:
    # Noise with labels at random, and every text again in capitals: a split by record would let the model remember.
    generator = random.Random(3)
    examples = []
    for _ in range(400):
        text = " ".join(f"w{generator.randrange(10**9)}" for _ in range(20))
        label = bool(generator.randrange(2))
        examples += [(text, label), (text.upper(), label), (f"{text}  ", label), (f" {text}", label)]
    found = train(examples, TrainingConfig(features=FeatureConfig(bits=18), held_out=0.5)).training
    assert abs(found["auc"] - 0.5) < 4 * 2 / np.sqrt(3 * sum(found["documents"]["test"].values()))


def test_scores_are_calibrated_where_the_kinds_overlap() -> None:
    model = train(labelled_texts(2000, share=0.04), TrainingConfig(features=FeatureConfig(bits=14), held_out=0.5))
    assert 0.7 < model.training["auc"] < 0.99
    assert len(model.training["reliability"]) >= 8
    for one in model.training["reliability"]:
        deviation = np.sqrt(one["mean_score"] * (1 - one["mean_score"]) / one["documents"])
        assert abs(one["mean_score"] - one["share_positive"]) < 4 * deviation + 0.03, one
    assert model.training["calibration_error"] < 0.05


def test_platt_finds_the_curve_that_drew_the_labels() -> None:
    rng = np.random.default_rng(4)
    logits = rng.normal(0, 2, 20000)
    labels = (rng.random(20000) < Calibration(slope=0.7, offset=-0.4).probabilities(logits)).astype(np.uint8)
    found = platt(logits, labels)
    assert found.slope == pytest.approx(0.7, abs=0.04)
    assert found.offset == pytest.approx(-0.4, abs=0.06)
    against = platt(-logits, labels)
    assert against.slope == 0
    assert against.probabilities(logits) == pytest.approx(labels.mean(), abs=1e-3)


def test_auc_counts_pairs() -> None:
    rng = np.random.default_rng(5)
    logits, labels = rng.integers(0, 9, 80).astype(float), rng.integers(0, 2, 80, dtype=np.uint8)
    pairs = [(high > low) + (high == low) / 2 for high in logits[labels == 1] for low in logits[labels == 0]]
    assert auc(logits, labels) == pytest.approx(np.mean(pairs), rel=1e-12)


def test_reliability_table() -> None:
    bins = reliability(np.array([0.0, 0.05, 0.55, 1.0]), np.array([0, 1, 1, 1], dtype=np.uint8))
    assert [(one.low, one.documents, one.share_positive) for one in bins] == [(0, 2, 0.5), (0.5, 1, 1), (0.9, 1, 1)]
    assert calibration_error(bins) == pytest.approx((2 * 0.475 + 0.45 + 0) / 4)


def test_saved_and_loaded_scores_have_the_same_bits(model: QualityModel, tmp_path: Path, texts: list[str]) -> None:
    model.save(tmp_path / "model")
    loaded = QualityModel.load(tmp_path / "model")
    assert loaded.scores(texts, threads=2).tobytes() == model.scores(texts).tobytes()
    assert (loaded.checksum, loaded.training) == (model.checksum, model.training)
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == ["model.json", "weights.safetensors"]


def edit(path: Path, change: Callable[[dict], object]) -> None:
    content = orjson.loads(path.read_bytes())
    change(content)
    path.write_bytes(orjson.dumps(content))


def resealed(folder: Path, weights: bytes) -> None:
    """Other weights, with the checksum that belongs to them: what is in the file must be looked at too."""
    (folder / "weights.safetensors").write_bytes(weights)
    edit(folder / "model.json", lambda c: c["scoring"].update(weights_sha256=hashlib.sha256(weights).hexdigest()))


def edit_json(change: Callable[[dict], object]) -> Damage:
    return lambda folder: edit(folder / "model.json", change)


def set_scoring(**values: object) -> Damage:
    return edit_json(lambda content: content["scoring"].update(values))


def write(name: str, content: bytes) -> Damage:
    return lambda folder: (folder / name).write_bytes(content)


def reseal(weights: bytes) -> Damage:
    return lambda folder: resealed(folder, weights)


JSON, TENSORS = "model.json", "weights.safetensors"
GOOD = np.zeros(1 << 14, dtype=np.float32)
DAMAGE: dict[str, tuple[Damage, str]] = {
    "no model": (lambda folder: (folder / JSON).unlink(), r"model\.json: cannot be read: No such file"),
    "no weights": (lambda folder: (folder / TENSORS).unlink(), r"weights\.safetensors: cannot be read"),
    "not JSON": (write(JSON, b"{"), r"model\.json: not valid JSON"),
    "a list": (write(JSON, b"[]"), "must be a JSON object"),
    "huge JSON": (write(JSON, b" " * (1 << 21)), "2097152 bytes, more than the 1048576"),
    "a key is gone": (edit_json(lambda content: content["scoring"].pop("bits")), "scoring.bits: is missing"),
    "a key too many": (edit_json(lambda content: content.update(x=1)), "x=1: unknown key"),
    "a type": (set_scoring(slope="1"), "slope=1: must be a number"),
    "bits": (set_scoring(bits=60), "bits=60: must be at most 24"),
    "version": (edit_json(lambda content: content.update(version=1)), "version=1: must be 2"),
    "calibration": (set_scoring(offset=0.5), "the checksum of its values is"),
    "a bit": (lambda folder: flip(folder / TENSORS), r"weights\.safetensors: its SHA-256 is"),
    "cut short": (write(TENSORS, save({"weights": GOOD})[:-1]), "bytes with a header"),
    "empty": (write(TENSORS, b""), "0 bytes with a header of 0"),
    "huge file": (lambda folder: truncate(folder / TENSORS, 1 << 40), "1099511627776 bytes, more than the 69632"),
    "huge header": (reseal((2**63).to_bytes(8, "little") + bytes(65536)), "header of 9223372036854775808"),
    "no header": (reseal((16).to_bytes(8, "little") + b"{" * 16 + bytes(65536)), "not a safetensors file"),
    "other name": (reseal(save({"weight": GOOD})), r"holds weight float32 \[16384\], not weights"),
    "other shape": (reseal(save({"weights": GOOD.reshape(2, -1)})), r"holds weights float32 \[2, 8192\]"),
    "other type": (reseal(save({"weights": GOOD.astype(np.int32)})), "holds weights int32"),
    "not finite": (reseal(save({"weights": np.full_like(GOOD, np.nan)})), "a weight is not finite"),
}


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def truncate(path: Path, size: int) -> None:
    with path.open("r+b") as stream:
        stream.truncate(size)  # A sparse file: it only claims to be so long.


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_models_are_refused(model: QualityModel, tmp_path: Path, name: str) -> None:
    damage, message = DAMAGE[name]
    model.save(tmp_path)
    damage(tmp_path)
    with pytest.raises(DataError, match=message):
        QualityModel.load(tmp_path)


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        ([], "0 positive documents for test"),
        ([(f"text {number}", True) for number in range(500)], "0 negative documents for test, at least 5 are needed"),
        (labelled_texts(12), "documents for test, at least 5 are needed; give more documents or change held_out"),
    ],
)
def test_too_few_documents(examples: list[tuple[str, bool]], message: str) -> None:
    with pytest.raises(DataError, match=message):
        train(examples, CONFIG)


def test_bounds() -> None:
    with pytest.raises(DataError, match=r"l2=0 must be above 0"):
        TrainingConfig(l2=0)
    with pytest.raises(DataError, match=r"held_out=1 must be above 0 and below 1"):
        TrainingConfig(held_out=1)
