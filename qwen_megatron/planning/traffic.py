"""Bytes that a rank sends in an optimizer step, by axis and collective.

Of a collective, the size of its whole tensor; of a transfer between stages, what is sent or received. T tokens of a
micro-batch on a context-parallel rank, h hidden, e bytes of a number, G' key/value channels as attention reads them.

- `tensor`, for each layer and micro-batch, T h e each time. Without sequence parallelism an all-reduce after attention
  and feed-forward layer, forward, and two in the backward pass. With it two gathers and two scatters forward, four and
  two backward: inputs are gathered again for the gradients of weights. Recomputation does the forward ones again.
  Besides the embedding's, the output layer's, and of the softmax three fp32 numbers a token; once a step the gradients
  of norms, which sequence parallelism leaves as parts.
- `context`: keys and values of all slices are gathered forward, their gradients scattered backward, T G' e x size each.
- `pipeline`: T h e a piece and direction, divided by t under sequence parallelism; sums of a step.
- `data`: gradients in fp32 are scattered, weights gathered, once a step, with the padding of Megatron-Core's buffers.
- `embedding`: the gradient of a tied matrix, between first and last stage.
- `all`: numbers that every rank of the job adds up.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator

from qwen_megatron.config.arithmetic.memory import bytes_per_number, tokens_of_microbatch
from qwen_megatron.config.arithmetic.parameters import layer_norm_parameters
from qwen_megatron.config.resolve import ResolvedConfig
from qwen_megatron.planning.place import Place, is_last, place_of

# Of Megatron-Core's parameter buffers: numbers that a parameter, and a bucket, begin at multiples of.
PARAMETER_UNIT, BUCKET_UNIT = 64, 128
SMALLEST_BUCKET, BUCKET_PER_RANK = 40_000_000, 1_000_000


def step_traffic(config: ResolvedConfig, rank: int, num_microbatches: int | None = None) -> dict[str, int]:
    """Bytes by `axis collective` of a rank; groups of one are left out.

    Args:
        config: Of the job.
        rank: Of the job.
        num_microbatches: None for the configured ones.
    """
    count = config.num_microbatches if num_microbatches is None else num_microbatches
    place, parallel = place_of(config, rank), config.parallel
    found: Counter[str] = Counter()
    if parallel.tensor_model_parallel_size > 1:
        found.update(tensor_traffic(config, place, count))
    if parallel.context_parallel_size > 1:
        found.update(context_traffic(config, place, count))
    if parallel.pipeline_model_parallel_size > 1:
        found.update(pipeline_traffic(config, place, count))
    if config.data_parallel_size * parallel.context_parallel_size > 1:
        found.update(data_traffic(config, place))
    if config.world_size > 1:
        # The squared norm of the gradient, and what the guard of a step says.
        found["all all_reduce"] += 16
    return dict(found)


def tensor_traffic(config: ResolvedConfig, place: Place, count: int) -> Counter[str]:
    """Among tensor-parallel ranks."""
    parallel, found = config.parallel, Counter[str]()
    tokens = tokens_of_microbatch(config)
    size = tokens * config.model.hidden_size * bytes_per_number(config)
    layers = config.layers_per_stage[place.stage]
    again = 1 if parallel.recompute_granularity == "full" else 0
    last = is_last(config, place.stage)
    if parallel.sequence_parallel:
        ends = (1 if place.stage == 0 else 0) + (1 if last else 0)
        found["tensor all_gather"] = count * size * (layers * (6 + 2 * again) + ends)
        found["tensor reduce_scatter"] = count * size * (layers * (4 + 2 * again) + ends)
    else:
        ends = (1 if place.stage == 0 else 0) + (1 if last else 0)
        found["tensor all_reduce"] = count * size * (layers * (4 + 2 * again) + ends)
    if last:
        found["tensor all_reduce"] += count * 3 * 4 * tokens
    if parallel.sequence_parallel or config.model.qk_layernorm:
        found["tensor all_reduce"] += 4 * divided_norms(config, layers, last)
    return found


def divided_norms(config: ResolvedConfig, layers: int, last: bool) -> int:
    """Weights of norms whose gradients are parts on every tensor-parallel rank."""
    heads = 2 * config.model.kv_channels if config.model.qk_layernorm else 0
    if not config.parallel.sequence_parallel:
        return layers * heads
    return layers * layer_norm_parameters(config.model) + (config.model.hidden_size if last else 0)


def context_traffic(config: ResolvedConfig, place: Place, count: int) -> Counter[str]:
    """Among context-parallel ranks."""
    model, parallel = config.model, config.parallel
    heads = model.num_attention_heads if model.num_query_groups < model.num_attention_heads else model.num_query_groups
    channels = heads * model.kv_channels // parallel.tensor_model_parallel_size
    whole = tokens_of_microbatch(config) * parallel.context_parallel_size * channels * bytes_per_number(config)
    layers = config.layers_per_stage[place.stage]
    again = 1 if parallel.recompute_granularity != "none" else 0
    return Counter(
        {
            "context all_gather": count * layers * 2 * whole * (1 + again),
            "context reduce_scatter": count * layers * 2 * whole,
        }
    )


def pipeline_traffic(config: ResolvedConfig, place: Place, count: int) -> Counter[str]:
    """Between stages, and the sums that the last one tells the others."""
    parallel, found = config.parallel, Counter[str]()
    stages, pieces = parallel.pipeline_model_parallel_size, parallel.virtual_pipeline_model_parallel_size or 1
    split = parallel.tensor_model_parallel_size if parallel.sequence_parallel else 1
    size = tokens_of_microbatch(config) * config.model.hidden_size * bytes_per_number(config) // split
    received = pieces - (1 if place.stage == 0 else 0)
    passed = pieces - (1 if place.stage == stages - 1 else 0)
    # Forward what is received and passed on, backward the gradients of both.
    found["pipeline send"] = count * size * (received + passed)
    found["pipeline receive"] = count * size * (received + passed)
    # Tokens that counted, int32; loss and count, fp64.
    found["pipeline broadcast"] = 4 + 16
    if config.model.tie_word_embeddings and place.stage in (0, stages - 1):
        rows = config.padded_vocab_size // parallel.tensor_model_parallel_size
        found["embedding all_reduce"] = 4 * rows * config.model.hidden_size
    return found


def data_traffic(config: ResolvedConfig, place: Place) -> Counter[str]:
    """Among the ranks that hold the same weights."""
    numbers = sum(sum(buckets_of(config, sizes, place)) for sizes in chunks_of(config, place))
    found = Counter(
        {
            "data reduce_scatter": 4 * numbers,
            "data all_gather": bytes_per_number(config) * numbers,
            "data all_reduce": 4,
        }
    )
    if is_last(config, place.stage):
        found["data all_reduce"] += 16
    return found


def chunks_of(config: ResolvedConfig, place: Place) -> Iterator[list[tuple[int, bool]]]:
    """Parameters of each piece of a stage, first to last: how many numbers, and whether it is a shared matrix."""
    model, parallel = config.model, config.parallel
    size, stages = parallel.tensor_model_parallel_size, parallel.pipeline_model_parallel_size
    pieces = parallel.virtual_pipeline_model_parallel_size or 1
    query, key = model.num_attention_heads * model.kv_channels, model.num_query_groups * model.kv_channels
    h, branch = model.hidden_size, model.ffn_hidden_size
    matrix = config.padded_vocab_size // size * h
    is_shared = model.tie_word_embeddings and stages > 1
    layer = [h, query // size * h]
    layer += [h * (query + 2 * key) // size] + ([(query + 2 * key) // size] if model.add_qkv_bias else [])
    layer += [model.kv_channels] * 2 if model.qk_layernorm else []
    layer += [h, 2 * branch // size * h, branch // size * h]
    for piece in range(pieces):
        sizes = [(matrix, is_shared)] if place.stage == 0 and piece == 0 else []
        sizes += [(count, False) for count in layer] * (config.layers_per_stage[place.stage] // pieces)
        if is_last(config, place.stage) and piece == pieces - 1:
            sizes.append((h, False))
            if stages > 1 or not model.tie_word_embeddings:
                sizes.append((matrix, is_shared))
        yield sizes


def buckets_of(config: ResolvedConfig, sizes: list[tuple[int, bool]], place: Place) -> list[int]:
    """Numbers of each bucket of a piece, padding included, as Megatron-Core's buffers lay them out: last ones first."""
    sharing = config.data_parallel_size * config.parallel.context_parallel_size
    unit = math.lcm(sharing, BUCKET_UNIT)
    largest = None
    if config.parallel.overlap_grad_reduce and place.stage == 0:
        largest = max(SMALLEST_BUCKET, BUCKET_PER_RANK * sharing)
    ends: list[int] = []
    start = place_in_buffer = 0
    is_open = False

    def close(end: int) -> int:
        ends.append(-(-end // unit) * unit - start)
        return start + ends[-1]

    for count, is_alone in reversed(sizes):
        place_in_buffer = -(-place_in_buffer // PARAMETER_UNIT) * PARAMETER_UNIT
        if is_alone and is_open:
            start = place_in_buffer = close(place_in_buffer)
        place_in_buffer += count
        is_open = True
        if is_alone or (largest is not None and place_in_buffer - start >= largest):
            start = place_in_buffer = close(place_in_buffer)
            is_open = False
    if is_open:
        close(place_in_buffer)
    return ends
