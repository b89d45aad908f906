"""EleutherAI's lm-evaluation-harness on a model of ours: its tasks, our weights on any layout.

Source: lm-eval 0.4 (github.com/EleutherAI/lm-evaluation-harness). Contexts are joined, cut and shortened as its own
`hf` model does, so that the same weights give the same scores.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lm_eval import simple_evaluate
from lm_eval.api.model import TemplateLM
from lm_eval.tasks import TaskManager
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from qwen_megatron.errors import ConfigError, DataError
from qwen_megatron.evaluation.chat import IM_END, IM_START, SYSTEM, chat_marks
from qwen_megatron.evaluation.language_model import Advance, TextModel, unseen

# Of a completion whose task names no number, as lm-eval's own models have it.
MAX_NEW_TOKENS = 256
CHAT_MARKS = re.compile(f"({re.escape(IM_START)}|{re.escape(IM_END)})")


class HarnessModel(TemplateLM):
    """A model of ours as lm-eval asks it.

    Args:
        model: With its codec.
        is_chat: Whether marks of ChatML in a prompt are control tokens, as lm-eval's chat form needs.
        advance: Told how many requests are done.
    """

    backend = "causal"

    def __init__(self, model: TextModel, *, is_chat: bool = False, advance: Advance = unseen) -> None:
        super().__init__()
        self.model = model
        self.is_chat = is_chat
        self.advance = advance

    @property
    def eot_token_id(self) -> int:
        """Id that ends a document, and stands before a text that has no context.

        Raises:
            DataError: if none is known.
        """
        ends = self.model.vocabulary.end_ids
        if not ends:
            raise DataError(
                "no token is known to end a document, which lm-eval puts before texts; name it in config.json as "
                "eos_token_id"
            )
        return ends[0]

    @property
    def tokenizer_name(self) -> str:
        """What lm-eval files requests under."""
        return type(self.model.vocabulary).__name__

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **unused: Any) -> list[int]:
        """Ids of a text; no token is added."""
        vocabulary = self.model.vocabulary
        if not self.is_chat:
            return vocabulary.encode(string)
        marks = dict(zip((IM_START, IM_END), chat_marks(vocabulary), strict=True))
        parts = [part for part in CHAT_MARKS.split(string) if part]
        return [token for part in parts for token in ([marks[part]] if part in marks else vocabulary.encode(part))]

    def chat_template(self, chat_template: bool | str = False) -> str:
        """Name of the chat form."""
        return "ChatML" if chat_template else ""

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A dialogue in ChatML; an assistant's last turn stays open where it is to be continued."""
        turns = [(turn["role"], turn["content"]) for turn in chat_history]
        if not turns or turns[0][0] != "system":
            turns.insert(0, ("system", SYSTEM))
        texts = [f"{IM_START}{role}\n{text}{IM_END}\n" for role, text in turns]
        if add_generation_prompt:
            return "".join([*texts, f"{IM_START}assistant\n"])
        return "".join(texts).removesuffix(f"{IM_END}\n")

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[tuple[str, str], list[int], list[int]]], **unused: Any
    ) -> list[tuple[float, bool]]:
        scores = self.model.score([(context, new) for _, context, new in requests], advance=self.advance)
        answers = [(score.log_probability, score.is_greedy) for score in scores]
        for (texts, _, _), answer in zip(requests, answers, strict=True):
            self.cache_hook.add_partial("loglikelihood", texts, answer)
        return answers

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-probability of whole texts, in windows of the model's length."""
        windows = [self._windows(request.args[0]) for request in requests]
        scores = iter(self.model.score([window for text in windows for window in text], advance=self.advance))
        return [sum(next(scores).log_probability for _ in text) for text in windows]

    def _windows(self, text: str) -> list[tuple[list[int], list[int]]]:
        rolling = get_rolling_token_windows(
            token_list=self.tok_encode(text),
            prefix_token=self.eot_token_id,
            max_seq_len=self.model.max_length,
            context_len=1,
        )
        return [make_disjoint_window(window) for window in rolling]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Greedy completions.

        Raises:
            ConfigError: if a task asks for sampled ones.
        """
        groups: dict[tuple[int, tuple[str, ...]], list[int]] = {}
        for number, request in enumerate(requests):
            groups.setdefault(how_long(request.args[1], request.task_name), []).append(number)
        answers = [""] * len(requests)
        for (max_new_tokens, stop), numbers in groups.items():
            prompts = [self.tok_encode(requests[number].args[0]) for number in numbers]
            texts = self.model.complete(prompts, max_new_tokens, stop, is_chat=self.is_chat, advance=self.advance)
            for number, text in zip(numbers, texts, strict=True):
                answers[number] = text
                self.cache_hook.add_partial("generate_until", requests[number].args, text)
        return answers


def how_long(options: Mapping[str, Any], task: str | None) -> tuple[int, tuple[str, ...]]:
    """Tokens of a completion at most, and the texts that end it.

    Raises:
        ConfigError: if the task asks for sampling.
    """
    if options.get("do_sample") and float(options.get("temperature", 1.0)) > 0.0:
        raise ConfigError(
            f"--tasks=lm-eval:{task}: asks for sampled completions, and evaluation is greedy; take a task with "
            "do_sample: false"
        )
    until = options.get("until") or ()
    stop = (until,) if isinstance(until, str) else tuple(str(text) for text in until)
    lengths = [options[key] for key in ("max_gen_toks", "max_new_tokens", "max_tokens") if key in options]
    return int(lengths[0]) if lengths else MAX_NEW_TOKENS, tuple(text for text in stop if text)


def manager_of(tasks: Sequence[str], include: Path | None) -> TaskManager:
    """What finds tasks: in the given folder alone if all are there, for reading lm-eval's own files takes long."""
    if include is not None:
        manager = TaskManager(include_path=str(include), include_defaults=False)
        if all(task in manager.all_tasks for task in tasks):
            return manager
    return TaskManager(include_path=None if include is None else str(include))


def run_harness(
    model: HarnessModel,
    tasks: Sequence[str],
    *,
    include: Path | None = None,
    limit: int | None = None,
    shots: int | None = None,
) -> dict[str, Any]:
    """Runs tasks of lm-eval.

    Args:
        model: Is asked.
        tasks: As lm-eval names them.
        include: Folder of further task files, in lm-eval's format. They may hold code, which is run.
        limit: Questions of each task at most.
        shots: Examples before each question; None for what the task says.
    Returns:
        What lm-eval returns: `results`, `versions`, `samples` and so on; no results on ranks beside a node's first.
    Raises:
        ConfigError: if there is no such task, or one that would run generated code in this process.
    """
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    manager = manager_of(tasks, include)
    unknown = [task for task in tasks if task not in manager.all_tasks]
    if unknown:
        raise ConfigError(
            [f"--tasks=lm-eval:{task}: lm-eval has no such task; lm-eval ls tasks lists them" for task in unknown]
        )
    try:
        found = simple_evaluate(
            model=model,
            tasks=list(tasks),
            task_manager=manager,
            limit=limit,
            num_fewshot=shots,
            apply_chat_template=model.is_chat,
            bootstrap_iters=1000,
            # Generated code that lm-eval runs is not confined.
            confirm_run_unsafe_code=False,
        )
    except ValueError as error:
        if "marked as unsafe" not in str(error):
            raise
        raise ConfigError(
            f"--tasks: {error.args[0].split(' which')[0]}, which runs generated code unconfined; take the task files "
            "humaneval, humanevalpack or mbpp, with --allow-code-execution"
        ) from error
    # Ranks beside the first are told nothing.
    return dict(found or {"results": {}})
