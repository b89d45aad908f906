"""Texts of two kinds that a quality model can tell apart."""

import random

_COMMON = ("the", "of", "and", "to", "in", "a", "is", "it", "that", "was", "for", "on", "with", "as", "at", "by")
_GOOD = ("river", "stone", "garden", "letter", "evening", "winter", "forest", "church", *"河山花园早晨冬天书信")
_BAD = ("click", "buy", "cheap", "free", "offer", "subscribe", "login", "cart", *"点击免费购买优惠注册")


def quality_text(seed: int, *, good: bool, share: float = 0.3, num_words: int = 50) -> str:
    """``share`` of the words are those of its kind, the others common to both."""
    generator = random.Random(seed)
    own = _GOOD if good else _BAD
    return " ".join(generator.choice(own if generator.random() < share else _COMMON) for _ in range(num_words))


def labelled_texts(count: int, share: float = 0.3) -> list[tuple[str, bool]]:
    """``count`` texts of each kind, none twice."""
    return [(quality_text(2 * n + good, good=good, share=share), good) for n in range(count) for good in (False, True)]
