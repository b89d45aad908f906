"""Dialogues to tokens in ChatML, and the rules that say which tokens are learned.

`assistant`, the paper's: what the assistant says and the end of its turn; nothing of a header, a line end after a turn,
a system or a user turn, or an observation. `qwen_official`, that of the released finetune.py: the same, and of every
turn, whoever's it is, the control token at its beginning, the one at its end and the line end.

Source: Qwen Technical Report (arXiv 2309.16609), section 3.1; Qwen's released finetune.py, `preprocess`.
"""

from data_tools.chat.chatml import ChatML
from data_tools.chat.dialogue import Dialogue, Utterance
from data_tools.chat.rendered import Rendered, rendered
from data_tools.errors import DataError

ASSISTANT_LABELS, QWEN_OFFICIAL_LABELS = "assistant", "qwen_official"
LABELS = (ASSISTANT_LABELS, QWEN_OFFICIAL_LABELS)


def render(dialogue: Dialogue, vocabulary: ChatML, *, labels: str = ASSISTANT_LABELS) -> Rendered:
    """The tokens of all turns, with their targets.

    Args:
        dialogue: What is said; a system turn only if it has one.
        vocabulary: Encodes; all text is ordinary text, whatever control token it may spell.
        labels: One of `LABELS`.
    Raises:
        DataError: naming the turn (from 0) whose role or text cannot be encoded, or if there is no such rule.
    """
    if labels not in LABELS:
        raise DataError(f"labels={labels!r:.100}: must be one of {', '.join(LABELS)}")
    tokens: list[int] = []
    targets: list[bool] = []
    for number, turn in enumerate(dialogue.turns):
        try:
            _add(turn, vocabulary, labels == QWEN_OFFICIAL_LABELS, tokens, targets)
        except DataError as error:
            raise DataError(f"turn {number}: {error}") from error
    return rendered(tokens, targets)


def render_prompt(dialogue: Dialogue, vocabulary: ChatML) -> Rendered:
    """The tokens of all turns and the beginning of the assistant's answer; nothing is a target.

    Raises:
        DataError: as `render`.
    """
    tokens = render(dialogue, vocabulary).tokens.tolist() + vocabulary.header("assistant")
    return rendered(tokens, [False] * len(tokens))


def _add(turn: Utterance, vocabulary: ChatML, is_official: bool, tokens: list[int], targets: list[bool]) -> None:
    header = vocabulary.header(turn.role)
    is_learned = turn.role == "assistant"
    tokens += header
    targets += [is_official] + [False] * (len(header) - 1)
    for part in turn.parts:
        ids = vocabulary.encode(part.text)
        tokens += ids
        targets += [is_learned and part.is_said] * len(ids)
    tokens += [vocabulary.im_end, *vocabulary.line_end]
    targets += [is_learned or is_official] + [is_official] * len(vocabulary.line_end)
