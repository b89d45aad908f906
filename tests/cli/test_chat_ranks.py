"""`qwen-megatron chat` on several ranks."""

from __future__ import annotations

import os

from qwen_megatron.cli.chat import Chat
from qwen_megatron.inference.conversation import Conversation
from qwen_megatron.inference.generator import Generator
from qwen_megatron.inference.sampling import Sampling
from tests.cli.test_chat import Letters, Script
from tests.inference.test_generator import tiny_model
from tests.support.ranks import RankPool
from tests.support.trainables import groups_of


def chat_job(tensor_size: int, pipeline_size: int) -> list[str]:
    """A chat of which only the first rank reads the lines."""
    with groups_of(tensor_size, pipeline_size) as groups:
        generator = Generator(tiny_model(groups), groups, Letters((140, 141)))
        conversation = Conversation(generator, Sampling(max_new_tokens=5))
        is_first = os.environ.get("RANK", "0") == "0"
        Chat(conversation, Script(*(["Hi", "", "/reset", "you", "/exit"] if is_first else [])), 999).run()
        return [message.content for message in conversation.messages][-1:]


def test_several_ranks_answer_together(ranks: RankPool) -> None:
    (alone,) = ranks.run(1, chat_job, tensor_size=1, pipeline_size=1)
    found = ranks.run(2, chat_job, tensor_size=1, pipeline_size=2)
    assert found == [alone, alone]
    assert len(alone[0]) > 0
