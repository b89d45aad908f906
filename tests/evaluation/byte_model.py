"""A tiny random model of bytes in a Hugging Face folder that transformers and we can read, and tasks for lm-eval."""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path

from qwen_megatron.cli.main import main
from qwen_megatron.convert.from_hf import write_weights
from tests.convert.random_weights import TINY, RandomWeights

END = "<|endoftext|>"
# As many rows as tokens: transformers would choose padding rows too.
MODEL = dataclasses.replace(TINY, vocab_size=259, seq_length=128)


def write_byte_model(folder: Path, model: object = MODEL) -> Path:
    """A checkpoint, `checkpoint`, and its export with a tokenizer of bytes, `hf`, which is returned."""
    write_weights(RandomWeights(model), folder / "checkpoint")  # type: ignore[arg-type]
    hf = folder / "hf"
    assert main(["convert", "to-hf", str(folder / "checkpoint"), str(hf), "--format", "qwen2"]) == 0
    write_byte_tokenizer(hf)
    return hf


def write_byte_tokenizer(hf: Path) -> None:
    """tokenizer.json of the 256 bytes, a token that ends documents, and the marks of ChatML."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: number for number, letter in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in (END, "<|im_start|>", "<|im_end|>")])
    tokenizer.save(str(hf / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END, "pad_token": END}
    (hf / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    for name in ("config.json", "generation_config.json"):
        config = json.loads((hf / name).read_text(encoding="utf-8"))
        (hf / name).write_text(json.dumps({**config, "eos_token_id": 256}), encoding="utf-8")


CHOICE = """task: {name}
dataset_path: json
dataset_kwargs:
  data_files: {{test: {data}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}\\nAnswer:"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list:
  - metric: acc
  - metric: acc_norm
"""
TEXTS = """task: {name}
dataset_path: json
dataset_kwargs:
  data_files: {{test: {data}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{question}}}}"
metric_list:
  - metric: byte_perplexity
"""
COMPLETIONS = """task: {name}
dataset_path: json
dataset_kwargs:
  data_files: {{test: {data}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{choices[0]}}}}"
generation_kwargs: {{until: ["e"], max_gen_toks: 12, do_sample: false}}
metric_list:
  - metric: exact_match
"""
WORDS = ("the", "of", "and", "to", "in", "is", "was", "for", "that", "with", "as", "are", "this", "by", "from", "not")


def write_tasks(folder: Path, count: int, words: tuple[int, int] = (3, 12), choices: tuple[str, ...] = ()) -> Path:
    """Tasks of lm-eval over made-up questions: `our_choice`, `our_texts`, `our_completions`."""
    draw = random.Random(0)
    data = folder / "questions.jsonl"
    with data.open("w", encoding="utf-8") as stream:
        for _ in range(count):
            question = " ".join(draw.choices(WORDS, k=draw.randint(*words)))
            answers = choices or tuple(" ".join(draw.choices(WORDS, k=draw.randint(1, 3))) for _ in range(4))
            record = {"question": question, "choices": answers, "answer": draw.randrange(len(answers))}
            stream.write(json.dumps(record) + "\n")
    for name, text in (("our_choice", CHOICE), ("our_texts", TEXTS), ("our_completions", COMPLETIONS)):
        (folder / f"{name}.yaml").write_text(text.format(name=name, data=data), encoding="utf-8")
    return folder
