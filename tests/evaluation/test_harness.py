"""lm-evaluation-harness on our models: the numbers of plain logits, and the scores of its own `hf` model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from qwen_megatron.errors import ConfigError
from qwen_megatron.evaluation.language_model import GeneratorModel, TextModel
from qwen_megatron.inference.loading import logits
from qwen_megatron.inference.opening import Opening, open_generator
from tests.evaluation.byte_model import write_byte_model, write_tasks

if TYPE_CHECKING:
    from qwen_megatron.evaluation.harness import HarnessModel

LENGTH = 128


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model and tasks; data sets are cached below."""
    folder = tmp_path_factory.mktemp("harness")
    write_byte_model(folder)
    return write_tasks(folder, 40)


@pytest.fixture(autouse=True)
def cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "cache")


@pytest.fixture(scope="module")
def model(folder: Path) -> Iterator[TextModel]:
    with open_generator(folder / "hf", Opening(tensor_size=1)) as generator:
        found = GeneratorModel(generator)
        yield TextModel(found, found.vocabulary, LENGTH)


def adapted(model: TextModel, *, is_chat: bool = False) -> HarnessModel:
    """The model as lm-eval asks it; importing lm-eval takes seconds, and not in processes that only collect tests."""
    from qwen_megatron.evaluation.harness import HarnessModel

    return HarnessModel(model, is_chat=is_chat)


def requests(*arguments: tuple[Any, ...]) -> list[Any]:
    return [SimpleNamespace(args=one, task_name="mine") for one in arguments]


def by_logits(model: TextModel, context: list[int], new: list[int]) -> tuple[float, bool]:
    """Of one forward pass of the whole text."""
    assert isinstance(model.model, GeneratorModel)
    values_sv = logits(model.model.generator.staged.model, torch.tensor([[*context, *new]]))[0].log_softmax(dim=-1)
    places = range(len(context) - 1, len(context) + len(new) - 1)
    found = [values_sv[place] for place in places]
    total = sum(float(value_v[token]) for value_v, token in zip(found, new, strict=True))
    return total, [int(value_v.argmax()) for value_v in found] == new


def test_log_probabilities_are_those_of_the_logits(model: TextModel) -> None:
    texts = [
        ("The sum is", " four"),
        ("The sum is", " four"),
        ("The sum is", " f"),
        ("The sum is", " "),
        ("", "alone"),
        ("x" * 300, "end"),
    ]
    # A space moves to the continuation, as lm-eval has it.
    texts.append(("The sum is ", "five"))
    answers = adapted(model).loglikelihood(requests(*texts), disable_tqdm=True)
    encode = model.vocabulary.encode
    texts[-1] = ("The sum is", " five")
    for (context, new), (log_probability, is_greedy) in zip(texts, answers, strict=True):
        before = encode(context)[-(LENGTH + 1 - len(new)) :] if context else [256]
        expected = by_logits(model, before, encode(new))
        assert log_probability == pytest.approx(expected[0], abs=1e-4)
        assert is_greedy == expected[1]


def test_what_is_generated_is_greedy(model: TextModel) -> None:
    adapter = adapted(model)
    (text,) = adapter.generate_until(requests(("The sum", {"until": [], "max_gen_toks": 5})))
    new = model.vocabulary.encode("The sum")
    assert isinstance(model.model, GeneratorModel)
    for _ in range(5):
        new.append(int(logits(model.model.generator.staged.model, torch.tensor([new]))[0, -1, :259].argmax()))
    assert text == model.vocabulary.decode(new[7:])
    answers = adapter.loglikelihood(requests(("The sum", text)), disable_tqdm=True)
    assert answers[0][1] or "\ufffd" in text


def test_whole_texts_are_scored_in_windows(model: TextModel) -> None:
    text = "abc" * 100
    (found,) = adapted(model).loglikelihood_rolling(requests((text,)))
    ids = [256, *model.vocabulary.encode(text)]
    windows = [ids[0 : LENGTH + 1], ids[LENGTH : 2 * LENGTH + 1]]
    total = sum(by_logits(model, window[:1], window[1:])[0] for window in windows)
    # The last window is a whole one, of which only what is new counts.
    total += by_logits(model, ids[-LENGTH - 1 : -(300 - 2 * LENGTH)], ids[-(300 - 2 * LENGTH) :])[0]
    assert found == pytest.approx(total, abs=2e-3)


def test_scores_equal_those_of_lm_evals_own_model(
    model: TextModel, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    from qwen_megatron.evaluation.harness import run_harness

    tasks = ["our_choice", "our_texts", "our_completions"]
    ours = run_harness(adapted(model), tasks, include=folder)
    arguments = {"pretrained": str(folder / "hf"), "dtype": "float32", "max_length": LENGTH}
    theirs = simple_evaluate(
        model="hf",
        model_args=arguments,
        tasks=tasks,
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        device="cpu",
        batch_size=8,
        bootstrap_iters=1000,
    )
    for task in tasks:
        assert ours["results"][task].keys() == theirs["results"][task].keys()
        for name, value in theirs["results"][task].items():
            assert ours["results"][task][name] == (value if isinstance(value, str) else pytest.approx(value, rel=1e-5))
    assert 0.0 < ours["results"]["our_choice"]["acc,none"] < 1.0
    for one, other in zip(ours["samples"]["our_choice"], theirs["samples"]["our_choice"], strict=True):
        assert [pair[0] for pair in one["filtered_resps"]] == pytest.approx(
            [pair[0] for pair in other["filtered_resps"]], abs=1e-3
        )
    for one, other in zip(ours["samples"]["our_completions"], theirs["samples"]["our_completions"], strict=True):
        assert one["filtered_resps"] == other["filtered_resps"]


def test_chat(model: TextModel) -> None:
    adapter = adapted(model, is_chat=True)
    text = adapter.apply_chat_template([{"role": "user", "content": "Hi"}])
    assert text == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    ids = adapter.tok_encode(text)
    assert (ids.count(257), ids.count(258)) == (3, 2)
    assert adapted(model).tok_encode(text).count(257) == 0
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "So"}]
    assert adapter.apply_chat_template(turns, add_generation_prompt=False).endswith("<|im_start|>assistant\nSo")


def test_tasks_that_run_code_unconfined_are_refused(model: TextModel, folder: Path) -> None:
    from qwen_megatron.evaluation.harness import run_harness

    text = (folder / "our_completions.yaml").read_text(encoding="utf-8").replace("our_completions", "our_code")
    (folder / "our_code.yaml").write_text(f"{text}unsafe_code: true\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"our_code.*unconfined; take the task files humaneval"):
        run_harness(adapted(model), ["our_code"], include=folder)


def test_how_long() -> None:
    from qwen_megatron.evaluation.harness import how_long

    assert how_long({"until": "x", "max_gen_toks": 7}, "t") == (7, ("x",))
    assert how_long({"until": ["x", ""], "do_sample": False, "temperature": 1.0}, "t") == (256, ("x",))
    with pytest.raises(ConfigError, match="--tasks=lm-eval:t: asks for sampled completions"):
        how_long({"do_sample": True, "temperature": 0.7}, "t")
