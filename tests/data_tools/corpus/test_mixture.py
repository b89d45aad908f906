"""Mixtures: weights, caps, instruction data, the file training reads."""

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from data_tools.corpus import mixture
from data_tools.corpus.mixture import ingredients, write_mixture
from data_tools.engine.executor import InProcessExecutor
from data_tools.engine.runner import Runner
from data_tools.engine.task import Manifest
from data_tools.errors import DataError
from data_tools.pipeline.pipeline_file import NamedStage
from data_tools.pipeline.run import stage_summary
from data_tools.stages.mixture import MixtureStage

TOKENS = {"web": 1000, "books": 100, "chat": 10}


def mix(tokens: Mapping[str, int], weights: Mapping[str, float], **options: Any) -> dict[str, float]:
    """Shares of all tokens that are seen."""
    seen = mixture.mix(tokens, weights, **options)
    return {name: amount / sum(seen.values()) for name, amount in seen.items()}


def test_weights_are_epochs_relative_to_each_other() -> None:
    shares = mix(TOKENS, {"books": 2.0, "chat": 0.0})
    assert shares == pytest.approx({"web": 1000 / 1200, "books": 200 / 1200})


def test_epochs_are_capped_and_the_rest_is_shared() -> None:
    shares = mix(TOKENS, {"books": 50.0}, train_tokens=2000, max_epochs=4)
    assert shares["books"] == pytest.approx(400 / 2000)
    assert shares["web"] / shares["chat"] == pytest.approx(100)
    assert sum(shares.values()) == pytest.approx(1)
    with pytest.raises(DataError, match=r"at most 4,440 tokens with max_epochs=4, but train_tokens is 5,000"):
        mix(TOKENS, {}, train_tokens=5000, max_epochs=4)


def test_instruction_data_takes_its_share() -> None:
    shares = mix(TOKENS, {}, train_tokens=1000, instruction=["chat"], instruction_share=0.03)
    assert shares["chat"] == pytest.approx(0.03)
    assert shares["web"] / shares["books"] == pytest.approx(10)
    capped = mix(TOKENS, {}, train_tokens=1000, max_epochs=2, instruction=["chat"], instruction_share=0.1)
    assert capped["chat"] == pytest.approx(0.02)


def test_without_train_tokens_no_source_passes_its_cap() -> None:
    """Before, shares were reckoned with one total and epochs with another: 10 to 17 epochs under a cap of 4."""
    generator = random.Random(5)
    for _ in range(300):
        tokens = {name: int(10 ** generator.uniform(1, 6)) for name in "abcde"}
        weights = {name: generator.choice((0.2, 1.0, 1.0, 3.0, 9.0)) for name in "abc"}
        max_epochs = generator.choice((1.0, 2.0, 4.0))
        share = generator.choice((0.01, 0.1, 0.5, 0.9))
        instruction = generator.choice((["d"], ["d", "e"], ["e", "a"]))
        seen = mixture.mix(tokens, weights, max_epochs=max_epochs, instruction=instruction, instruction_share=share)
        parts = ingredients({name: name for name in tokens}, tokens, seen)
        assert sum(part.share for part in parts) == pytest.approx(1)
        total = sum(seen.values())
        for name, part in zip(seen, parts, strict=True):
            assert part.epochs <= max_epochs * (1 + 1e-12)
            assert part.epochs * part.tokens == pytest.approx(part.share * total)
            if name not in instruction:
                assert part.epochs == pytest.approx(min(weights.get(name, 1.0), max_epochs))
        taken = sum(part.share for name, part in zip(seen, parts, strict=True) if name in instruction)
        is_capped = all(seen[name] >= max_epochs * tokens[name] * (1 - 1e-9) for name in instruction)
        assert taken < share if is_capped and taken != pytest.approx(share) else taken == pytest.approx(share)


def test_little_data_beside_much_instruction_data_is_no_mistake() -> None:
    seen = mixture.mix({"web": 10, "chat": 1000}, {}, instruction=["chat"], instruction_share=0.1)
    assert seen == pytest.approx({"web": 10, "chat": 10 / 9})


def corpora() -> list[Manifest]:
    """What `tokenize` leaves, as far as the mixture looks at it."""
    empty: dict[str, Any] = {"inputs": [], "outputs": {}, "statistics": {}, "examples": {}, "rejected": {}}
    return [
        Manifest(
            key="",
            folder="",
            name=name,
            operation="tokenize_seal",
            tool_version="",
            records_in=tokens,
            records_out=tokens,
            values={"tokens": tokens, "prefix": f"corpora/{name}"},
            **empty,
        )
        for name, tokens in TOKENS.items()
    ]


def test_realised_shares_are_reported(tmp_path: Path) -> None:
    def realised(share: float) -> tuple[dict[str, Any], str]:
        stage = MixtureStage(train_tokens=1000, max_epochs=2, instruction=("chat",), instruction_share=share)
        named = NamedStage("mixture", "mixture", stage)
        parts = stage.run(Runner(InProcessExecutor()), tmp_path / "stages" / "03-mixture", corpora())
        return stage_summary(named, parts), (tmp_path / "mixture.yaml").read_text()

    summary, text = realised(0.01)
    tokens = {name: summary["epochs"][name] * count for name, count in TOKENS.items()}
    assert sum(tokens.values()) == pytest.approx(1000)
    assert tokens["chat"] == pytest.approx(10)
    assert {name: count / 1000 for name, count in tokens.items()} == pytest.approx(summary["shares"])
    assert "asked for" not in text
    summary, text = realised(0.1)
    assert summary["shares"]["chat"] == pytest.approx(0.02)
    assert summary["epochs"]["chat"] == pytest.approx(2)
    assert "# instruction data takes 2.0000% of the tokens, not the 10.0000% asked for" in text
    assert yaml.safe_load(text)["data"]["blend"]["corpora/chat"] == pytest.approx(0.02)


def test_mistakes() -> None:
    with pytest.raises(DataError, match="wiki: no such source; there are books, chat, web"):
        mix(TOKENS, {"wiki": 1})
    with pytest.raises(DataError, match="nothing is left"):
        mix({"web": 10}, {"web": 0})
    with pytest.raises(DataError, match="instruction=chat but no instruction_share; say how much they take"):
        mix(TOKENS, {}, instruction=["chat"])
    with pytest.raises(DataError, match="no instruction source has tokens"):
        mix(TOKENS, {"chat": 0}, instruction=["chat"], instruction_share=0.1)
    with pytest.raises(DataError, match="no other source has tokens; leave instruction and instruction_share out"):
        mix({"chat": 9}, {}, instruction=["chat"], instruction_share=0.1)


def test_training_accepts_the_file(tmp_path: Path) -> None:
    from data_tools.settings.problems import Problems
    from qwen_megatron.config.rules.blend import check_blend

    prefixes = {name: f"corpora/{name}" for name in TOKENS}
    seen = mixture.mix(TOKENS, {}, train_tokens=1000)
    shares = {name: amount / 1000 for name, amount in seen.items()}
    write_mixture(tmp_path / "mixture.yaml", ingredients(prefixes, TOKENS, seen))
    blend = yaml.safe_load((tmp_path / "mixture.yaml").read_text())["data"]["blend"]
    problems = Problems()
    assert check_blend(blend, problems) == pytest.approx({prefixes[name]: share for name, share in shares.items()})
    assert problems.usable("data.blend")
