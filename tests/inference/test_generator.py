"""Generation on any layout: the cache, batches, draws, cancelled requests, scores."""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from qwen_megatron.errors import ConfigError, DataError
from qwen_megatron.inference.completion import FinishReason, Request
from qwen_megatron.inference.extension import parse_extension
from qwen_megatron.inference.generator import Generator
from qwen_megatron.inference.loading import logits
from qwen_megatron.inference.running_batch import RunningBatch
from qwen_megatron.inference.sampling import Sampling, choose
from qwen_megatron.model.builder import build_model, unwrapped
from qwen_megatron.model.qwen_model import QwenModel
from qwen_megatron.parallel.groups import Groups
from tests.support.ranks import RankPool
from tests.support.trainables import groups_of, tiny_config

VOCABULARY = 161
# Ids that the made-up tokenizer makes: less than the rows.
NUM_TOKENS = 150
PROMPTS = [[5, 9, 2], [7], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11], [140, 3, 3, 90]]


def tiny_model(groups: Groups, **changed: Any) -> QwenModel:
    """In evaluation mode, with grouped queries and weights that make the next token hang on the text."""
    config = dataclasses.replace(tiny_config().model, num_query_groups=2, init_method_std=0.2, **changed)
    return unwrapped(build_model(config, groups, precision="fp32", seed=3)).eval()


class Letters:
    """A stand-in for a tokenizer: one character a token."""

    num_tokens = NUM_TOKENS
    end_ids: tuple[int, ...] = ()
    chat_ids = None

    def encode(self, text: str) -> list[int]:
        return [ord(letter) for letter in text]

    def decode(self, ids: Any) -> str:
        return "".join(chr(number) for number in ids)


@pytest.fixture(scope="module")
def groups() -> Iterator[Groups]:
    with groups_of() as groups:
        yield groups


@pytest.fixture(scope="module")
def model(groups: Groups) -> QwenModel:
    return tiny_model(groups)


@pytest.fixture(scope="module")
def generator(model: QwenModel, groups: Groups) -> Generator:
    return Generator(model, groups, Letters())


def by_full_forward(model: QwenModel, prompt: list[int], count: int) -> list[int]:
    """Greedy search that runs the whole text for every token."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(logits(model, torch.tensor([tokens]))[0, -1, :NUM_TOKENS].argmax()))
    return tokens[len(prompt) :]


def greedy(count: int) -> Sampling:
    return Sampling(max_new_tokens=count, stop_token_ids=())


def greedy_job(tensor_size: int, pipeline_size: int) -> list[list[int]]:
    with groups_of(tensor_size, pipeline_size) as groups:
        generator = Generator(tiny_model(groups), groups, Letters())
        return [one.tokens for one in generator.generate(PROMPTS, greedy(9))]


def test_greedy_is_the_argmax_of_a_full_forward(generator: Generator, model: QwenModel) -> None:
    found = generator.generate(PROMPTS, greedy(9))
    assert [one.tokens for one in found] == [by_full_forward(model, prompt, 9) for prompt in PROMPTS]
    assert len({tuple(one.tokens) for one in found}) == len(PROMPTS)
    for prompt, one in zip(PROMPTS, found, strict=True):
        whole = logits(model, torch.tensor([[*prompt, *one.tokens]]))[0, len(prompt) - 1 : -1, :NUM_TOKENS]
        expected = whole.log_softmax(dim=-1).gather(1, torch.tensor(one.tokens)[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(one.log_probabilities), expected, rtol=0, atol=1e-5)
        assert one.finish_reason is FinishReason.LENGTH


@pytest.mark.parametrize(("tensor_size", "pipeline_size"), [(2, 1), (1, 2), (2, 2)])
def test_layouts_give_the_same(ranks: RankPool, generator: Generator, tensor_size: int, pipeline_size: int) -> None:
    expected = [one.tokens for one in generator.generate(PROMPTS, greedy(9))]
    for found in ranks.run(
        tensor_size * pipeline_size, greedy_job, tensor_size=tensor_size, pipeline_size=pipeline_size
    ):
        assert found == expected


def test_a_text_does_not_depend_on_its_batch(model: QwenModel, groups: Groups) -> None:
    """Alone, with others, and joining while others go on; sampled too."""
    sampling = [Sampling(max_new_tokens=3 + 4 * i, temperature=0.9, top_p=0.8, seed=i) for i in range(len(PROMPTS))]
    together = Generator(model, groups, Letters()).generate(PROMPTS, sampling)
    few = Generator(model, groups, Letters(), max_rows=2).generate(PROMPTS, sampling)
    assert [one.tokens for one in few] == [one.tokens for one in together]
    assert [len(one.tokens) for one in together] == [3, 7, 11, 15]
    for number, (prompt, settings) in enumerate(zip(PROMPTS, sampling, strict=True)):
        batch = RunningBatch(Generator(model, groups).staged, NUM_TOKENS, 1)
        batch.add(Request(number=number, prompt=tuple(prompt), sampling=settings))
        alone = []
        while not batch.is_done:
            alone += [step.token for step in batch.step()]
        assert alone == together[number].tokens


def test_long_prompts_are_run_in_pieces(
    generator: Generator, monkeypatch: pytest.MonkeyPatch, model: QwenModel
) -> None:
    whole = generator.generate(PROMPTS, greedy(4))
    monkeypatch.setattr("qwen_megatron.inference.running_batch.PREFILL_TOKENS", 4)
    assert [one.tokens for one in generator.generate(PROMPTS, greedy(4))] == [one.tokens for one in whole]


def test_stop_tokens_and_stop_texts_end_a_text(generator: Generator) -> None:
    (whole,) = generator.generate(PROMPTS[:1], greedy(9))
    third = whole.tokens[2]
    until = whole.tokens.index(third)
    (stopped,) = generator.generate(PROMPTS[:1], dataclasses.replace(greedy(9), stop_token_ids=(third,)))
    assert (stopped.tokens, stopped.finish_reason) == (whole.tokens[:until], FinishReason.STOP)
    assert whole.text is not None
    stop = whole.text[3:5]
    (cut,) = generator.generate(PROMPTS[:1], dataclasses.replace(greedy(9), stop=("never seen", stop)))
    assert (cut.text, cut.finish_reason) == (whole.text[: whole.text.index(stop)], FinishReason.STOP)


def test_a_stream_gives_the_text_of_the_completion(generator: Generator) -> None:
    whole = generator.generate(PROMPTS, greedy(6))
    texts: dict[int, str] = collections.defaultdict(str)
    reasons = {}
    for piece in generator.stream(PROMPTS, greedy(6)):
        texts[piece.index] += piece.text
        reasons[piece.index] = piece.finish_reason
    assert [texts[i] for i in range(len(PROMPTS))] == [one.text for one in whole]
    assert set(reasons.values()) == {FinishReason.LENGTH}


def test_cancelled_requests_free_their_cache(model: QwenModel, groups: Groups) -> None:
    batch = RunningBatch(Generator(model, groups).staged, NUM_TOKENS, 3)
    for number, prompt in enumerate(PROMPTS):
        batch.add(Request(number=number, prompt=tuple(prompt), sampling=greedy(50)))
    kept = []
    kept += [step.token for step in batch.step() if step.number == 1]
    full = batch.cache.num_bytes
    for number in (0, 2, 3):
        batch.cancel(number)
    assert [row.request.number for row in batch.rows] == [1]
    assert not batch.waiting
    assert 0 < batch.cache.num_bytes <= full / 2
    kept += [batch.step()[0].token for _ in range(4)]
    assert kept == by_full_forward(model, PROMPTS[1], 5)
    batch.cancel(1)
    assert batch.is_done
    assert batch.cache.num_bytes == 0


def test_dynamic_ntk_keeps_its_base_while_decoding(groups: Groups) -> None:
    """The base is that of the prompt; of the released code's own choice, see tests/convert/test_qwen1_mini.py."""
    model = tiny_model(groups, seq_length=8, use_dynamic_ntk=True, use_logn_attn=True)
    prompts = [list(range(1, 6)), list(range(20, 40))]
    generator = Generator(model, groups, Letters())
    found = generator.generate(prompts, greedy(8))
    for prompt, one in zip(prompts, found, strict=True):
        generator.read_with(parse_extension("ntk+logn"), longest=len(prompt))
        assert one.tokens == by_full_forward(model, prompt, 8)


@pytest.mark.parametrize("groups_of_keys", [2, 4])
def test_windows_are_those_of_a_full_forward(groups: Groups, groups_of_keys: int) -> None:
    """Prompts run in pieces, rows of unequal length, and token by token."""
    config = dataclasses.replace(tiny_config().model, num_query_groups=groups_of_keys, init_method_std=0.2)
    model = unwrapped(build_model(config, groups, precision="fp32", seed=3)).eval()
    generator = Generator(model, groups, Letters())
    plain = generator.generate(PROMPTS, greedy(9))
    windows = (3, 5, 0, 7)[: config.num_layers]
    generator.read_with(None, longest=0, windows=windows)
    found = generator.generate(PROMPTS, greedy(9))
    assert [one.tokens for one in found] == [by_full_forward(model, prompt, 9) for prompt in PROMPTS]
    assert [one.tokens for one in found] != [one.tokens for one in plain]
    generator.read_with(None, longest=0)
    assert [one.tokens for one in generator.generate(PROMPTS, greedy(9))] == [one.tokens for one in plain]


def test_draws_follow_the_distribution_that_top_p_leaves(model: QwenModel) -> None:
    """Chi-square over many requests; 0.001 of right samplers would be caught too."""
    scores = logits(model, torch.tensor([PROMPTS[0]]))[0, -1, :NUM_TOKENS] * 0.5
    probabilities = (scores / 0.7).softmax(dim=0)
    ordered, ids = probabilities.sort(descending=True)
    kept = int((ordered.cumsum(dim=0) < 0.6).sum()) + 1
    assert 5 < kept < NUM_TOKENS // 2
    expected = dict(zip(ids[:kept].tolist(), (ordered[:kept] / ordered[:kept].sum()).tolist(), strict=True))
    sampling = Sampling(temperature=0.7, top_p=0.6, seed=11)
    draws = 4000
    counts = collections.Counter(choose(scores, [], sampling, request, 0).token for request in range(draws))
    assert set(counts) <= set(expected)
    statistic = sum((counts[token] - draws * share) ** 2 / (draws * share) for token, share in expected.items())
    freedom = kept - 1
    # Wilson and Hilferty's approximation of the quantile at 0.999.
    limit = freedom * (1 - 2 / (9 * freedom) + 3.09 * math.sqrt(2 / (9 * freedom))) ** 3
    assert statistic < limit


def test_classes_draw_what_sorting_would(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = torch.randn(500, generator=torch.Generator().manual_seed(0))
    scores[::3] = -math.inf
    sampling = Sampling(temperature=1.0, top_p=0.9, seed=1)
    for flattened in (scores, scores * 0.1):
        found = []
        for first_look in (500, 1):
            monkeypatch.setattr("qwen_megatron.inference.sampling.FIRST_LOOK", first_look)
            found.append([choose(flattened, [], sampling, request, 0) for request in range(100)])
        assert found[0] == found[1]
        assert len({draw.token for draw in found[0]}) > 30


def test_top_k_and_penalty() -> None:
    scores = torch.tensor([2.0, 1.0, 3.0, -1.0])
    drawn = {choose(scores, [], Sampling(temperature=5.0, top_k=2), request, 0).token for request in range(50)}
    assert drawn == {0, 2}
    assert choose(scores, [2], Sampling(repetition_penalty=2.0), 0, 0).token == 0
    assert choose(-scores - 4, [3], Sampling(repetition_penalty=3.0), 0, 0).token == 1
    draw = choose(scores, [2], Sampling(repetition_penalty=2.0), 0, 0)
    assert draw.log_probability == pytest.approx(float(scores.log_softmax(dim=0)[0]))


def test_scores_are_those_of_a_full_forward(generator: Generator, model: QwenModel) -> None:
    likely = by_full_forward(model, PROMPTS[0], 3)
    rows = [(PROMPTS[0], likely), (PROMPTS[2], [4, 140]), (PROMPTS[1], [3]), (PROMPTS[2], [4, 9])]
    found = generator.score(rows)
    for (context, continuation), score in zip(rows, found, strict=True):
        whole = logits(model, torch.tensor([[*context, *continuation]]))[0].log_softmax(dim=-1)
        expected = sum(float(whole[len(context) - 1 + i, token]) for i, token in enumerate(continuation))
        assert score.log_probability == pytest.approx(expected, abs=1e-4)
        assert score.num_tokens == len(continuation)
    assert [score.is_greedy for score in found] == [True, False, False, False]


def score_job(tensor_size: int, pipeline_size: int) -> list[float]:
    with groups_of(tensor_size, pipeline_size) as groups:
        rows = [(prompt, [3, 4]) for prompt in PROMPTS]
        return [score.log_probability for score in Generator(tiny_model(groups), groups).score(rows)]


def test_scores_are_the_same_on_layouts(ranks: RankPool, generator: Generator) -> None:
    expected = [score.log_probability for score in generator.score([(prompt, [3, 4]) for prompt in PROMPTS])]
    for found in ranks.run(4, score_job, tensor_size=2, pipeline_size=2):
        assert found == pytest.approx(expected, abs=1e-4)


def test_wrong_prompts_and_settings_are_named(generator: Generator, model: QwenModel, groups: Groups) -> None:
    with pytest.raises(DataError, match="prompt 1 has no tokens"):
        generator.generate([[3], []])
    with pytest.raises(DataError, match=r"prompt 0: id 161 is not in the model's vocabulary \(0 to 160\)"):
        generator.generate([[161]])
    with pytest.raises(DataError, match="stop texts need a tokenizer"):
        Generator(model, groups).generate([[3]], Sampling(stop=("x",)))
    with pytest.raises(ConfigError) as caught:
        Sampling(temperature=-1.0, top_p=0.0, top_k=-1, max_new_tokens=0, stop=("",), repetition_penalty=0.0)
    assert len(caught.value.problems) == 6
