"""Seconds of an optimizer step, part by part.

A micro-batch on a stage takes the time of its products at the rate of their size, of attention, of kernels that only
move bytes, of the host's work for each operation, and of the communication that nothing hides. The step: m
micro-batches on the slowest stage; the filling and emptying of the pipeline, the other stages' time once (Narayanan et
al. 2021, arXiv 2104.04473; divided by v pieces of a stage where they are interleaved); transfers between stages; what
of the data-parallel reduction is not hidden; the optimizer.

Bytes that fused kernels move for a token and layer, in numbers, forward and backward: 22 h for norms, residual sums and
the sums of their gradients, 8 F for SwiGLU, 4 (P + G) for the rotation, 3 (P + 2G) for biases and the joining of
gradients; for a token 3 v for the softmax of the output layer, and 8 bytes a weight and block for the sum of its
gradient. The
optimizer: 12 bytes a parameter for clearing and scaling gradients, 34 for the norm and the update of its share.

Tensor parallelism: with sequence parallelism six of a layer's ten collectives wait, the others pass while a product
runs; without it two of four all-reduces. Context parallelism: half of it waits with fused kernels, all of it with
torch's. A reduction of gradients that overlaps is hidden by the last backward pass, a gathering of weights by the first
forward pass.

Left out: loading of data, evaluation, checkpoints, stragglers, contention of the network, sizes below a tile of a
product, power limits.
Source: constants from hardware files and measurements of one H200 (docs/gpu.md); see
docs/benchmarks.md for the comparison.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, fields

from qwen_megatron.config.arithmetic.kept import CPU
from qwen_megatron.config.arithmetic.memory import bytes_per_number, loss_block_tokens, tokens_of_microbatch
from qwen_megatron.config.resolve import ResolvedConfig
from qwen_megatron.planning.kernels import kernels_on
from qwen_megatron.planning.machine import Machine
from qwen_megatron.planning.place import Place, is_last, span_of
from qwen_megatron.planning.traffic import buckets_of, chunks_of
from qwen_megatron.planning.work import BACKWARD_PRODUCTS, FORWARD_PRODUCTS, head_product, layer_products, stage_work


@dataclass(frozen=True, kw_only=True)
class Engine:
    """What a program costs beside the machine's work.

    Attributes:
        name: Of the program.
        launches: Operations that the host starts for a layer and micro-batch, forward and backward.
        launch_us: Microseconds that each leaves the device idle.
        head_gradient_bytes: Moved for each weight of the output layer and block of tokens, to sum its gradient.
        loss_block_tokens: Tokens of such a block; None for as many as the device's memory says.
    """

    name: str
    launches: float
    launch_us: float
    head_gradient_bytes: float = 8.0
    loss_block_tokens: int | None = None


# 5,028 operations in a step of 24 layers and 4 micro-batches, 215 ms of which the GPU was idle (docs/gpu.md).
OURS = Engine(name="qwen-megatron", launches=52, launch_us=43)


@dataclass(frozen=True, kw_only=True)
class PieceTime:
    """Seconds of one micro-batch on a stage, forward and backward.

    Attributes:
        products, attention, memory, launches: Computing.
        tensor, context: Communication inside layers, as far as it waits.
    """

    products: float
    attention: float
    memory: float
    launches: float
    tensor: float
    context: float

    @property
    def total(self) -> float:
        """All of it."""
        return sum(getattr(self, field.name) for field in fields(self))


@dataclass(frozen=True, kw_only=True)
class StepTime(PieceTime):
    """Seconds of a step by part; the parts of a micro-batch are the slowest stage's, all micro-batches together.

    Attributes:
        bubble: Filling and emptying the pipeline.
        transfers: Between stages.
        data: Reduction of gradients and gathering of weights, as far as they wait.
        optimizer: Norm and update.
    """

    bubble: float
    transfers: float
    data: float
    optimizer: float

    @property
    def limit(self) -> str:
        """The largest part besides products and attention."""
        others = [field.name for field in fields(self) if field.name not in ("products", "attention")]
        return max(others, key=lambda name: getattr(self, name))


def step_time(config: ResolvedConfig, machine: Machine, engine: Engine = OURS) -> StepTime:
    """Of an optimizer step of the full batch."""
    stages = config.parallel.pipeline_model_parallel_size
    # Stages between the first and the last are alike.
    of_stage = functools.cache(lambda stage: microbatch_time(config, machine, engine, stage))
    pieces = [of_stage(stage if stage in (0, stages - 1) else 1) for stage in range(stages)]
    slowest = max(pieces, key=lambda piece: piece.total)
    count = config.num_microbatches
    virtual = config.parallel.virtual_pipeline_model_parallel_size or 1
    bubble = (sum(piece.total for piece in pieces) - slowest.total) / virtual
    data = max(data_time(config, machine, slowest, stage) for stage in sorted({0, stages - 1}))
    return StepTime(
        **{field.name: count * getattr(slowest, field.name) for field in fields(slowest)},
        bubble=bubble,
        transfers=transfer_time(config, machine),
        data=data,
        optimizer=optimizer_time(config, machine),
    )


def microbatch_time(config: ResolvedConfig, machine: Machine, engine: Engine, stage: int) -> PieceTime:
    """Of one micro-batch on a stage."""
    place = Place(tensor=0, context=0, data=0, stage=stage)
    work = stage_work(config, place)
    again = 1 if work.products_again else 0
    products = work.layers * sum(
        (3 + again) * product.flops / machine.product_rate(product.flops) for product in layer_products(config)
    )
    if work.head:
        head = head_product(config, 0)
        block = block_tokens(config, machine, engine)
        products += 3 * head.flops / machine.product_rate(head.flops * block / head.m)
    attention = work.attention / FORWARD_PRODUCTS * (FORWARD_PRODUCTS + BACKWARD_PRODUCTS) + work.attention_again
    launch_us = engine.launch_us if machine.launch_us is None else machine.launch_us
    return PieceTime(
        products=products,
        attention=attention / machine.attention_rate,
        memory=moved_bytes(config, machine, engine, stage) / machine.memory_rate,
        launches=engine.launches * work.layers * (1 + again / 3) * launch_us * 1e-6,
        tensor=tensor_time(config, machine, stage),
        context=context_time(config, machine, stage),
    )


def moved_bytes(config: ResolvedConfig, machine: Machine, engine: Engine, stage: int) -> float:
    """What kernels between products read and write for a micro-batch on a stage."""
    model, parallel, e = config.model, config.parallel, bytes_per_number(config)
    size = parallel.tensor_model_parallel_size
    query, key = model.num_attention_heads * model.kv_channels, model.num_query_groups * model.kv_channels
    stream = 22 * model.hidden_size / (size if parallel.sequence_parallel else 1)
    split = 8 * model.ffn_hidden_size + 4 * (query + key) + 3 * (query + 2 * key)
    again = 4 / 3 if parallel.recompute_granularity == "full" else 1
    tokens = tokens_of_microbatch(config)
    moved = config.layers_per_stage[stage] * tokens * e * again * (stream + split / size) * machine.pass_factor
    if is_last(config, stage) and not config.shape.has_scalar_head:
        head = head_product(config, 0)
        blocks = -(-tokens // block_tokens(config, machine, engine))
        moved += 3 * e * head.m * head.n * machine.pass_factor + engine.head_gradient_bytes * head.k * head.n * blocks
    return moved


def block_tokens(config: ResolvedConfig, machine: Machine, engine: Engine) -> int:
    """Tokens whose logits are made at a time."""
    if engine.loss_block_tokens is not None:
        return min(engine.loss_block_tokens, tokens_of_microbatch(config))
    return loss_block_tokens(config, kernels_on(config, machine))


def tensor_time(config: ResolvedConfig, machine: Machine, stage: int) -> float:
    """What waits of a micro-batch's collectives among tensor-parallel ranks."""
    parallel, size = config.parallel, config.parallel.tensor_model_parallel_size
    if size == 1:
        return 0.0
    whole = tokens_of_microbatch(config) * config.model.hidden_size * bytes_per_number(config)
    one_way = whole * (size - 1) / size / machine.wire_rate(span_of(config, "tensor")) + machine.latency_us * 1e-6
    layers = config.layers_per_stage[stage]
    again = 1 if parallel.recompute_granularity == "full" else 0
    ends = (1 if stage == 0 else 0) + (1 if is_last(config, stage) else 0)
    # An all-reduce is a scatter and a gather; on the CPU nothing is hidden.
    if parallel.sequence_parallel:
        waiting = layers * ((10 if machine.kernels == CPU else 6) + 4 * again) + 2 * ends
    else:
        waiting = layers * ((8 if machine.kernels == CPU else 4) + 4 * again) + 2 * ends
    return waiting * one_way


def context_time(config: ResolvedConfig, machine: Machine, stage: int) -> float:
    """What waits of a micro-batch's keys and values on their way among context-parallel ranks."""
    parallel, model, size = config.parallel, config.model, config.parallel.context_parallel_size
    if size == 1:
        return 0.0
    channels = 2 * model.num_query_groups * model.kv_channels // parallel.tensor_model_parallel_size
    others = tokens_of_microbatch(config) * (size - 1) * channels * bytes_per_number(config)
    again = 1 if parallel.recompute_granularity != "none" else 0
    share = 0.5 if machine.kernels == "fused" else 1.0
    one = others / machine.wire_rate(span_of(config, "context")) + (size - 1) * machine.latency_us * 1e-6
    return share * config.layers_per_stage[stage] * (2 + again) * one


def transfer_time(config: ResolvedConfig, machine: Machine) -> float:
    """Between stages: there and back for every micro-batch; a quarter of it waits where pieces are interleaved."""
    parallel = config.parallel
    stages, pieces = parallel.pipeline_model_parallel_size, parallel.virtual_pipeline_model_parallel_size
    if stages == 1:
        return 0.0
    split = parallel.tensor_model_parallel_size if parallel.sequence_parallel else 1
    size = tokens_of_microbatch(config) * config.model.hidden_size * bytes_per_number(config) / split
    one = size / machine.wire_rate(span_of(config, "pipeline")) + machine.latency_us * 1e-6
    return 2 * one * (config.num_microbatches + stages - 1) * (1.0 if pieces is None else pieces / 4)


def data_time(config: ResolvedConfig, machine: Machine, slowest: PieceTime, stage: int) -> float:
    """What waits of the reduction of gradients and of the gathering of weights."""
    parallel = config.parallel
    size = config.data_parallel_size * parallel.context_parallel_size
    if size == 1:
        return 0.0
    place = Place(tensor=0, context=0, data=0, stage=stage)
    numbers = sum(sum(buckets_of(config, sizes, place)) for sizes in chunks_of(config, place))
    rate = machine.wire_rate(span_of(config, "data"))
    latency = size.bit_length() * machine.latency_us * 1e-6
    reduce = 4 * numbers * (size - 1) / size / rate + latency
    gather = bytes_per_number(config) * numbers * (size - 1) / size / rate + latency
    if parallel.overlap_grad_reduce:
        reduce = max(latency, reduce - 2 / 3 * slowest.total)
    if parallel.overlap_param_gather:
        gather = max(latency, gather - 1 / 3 * slowest.total)
    return reduce + gather


def optimizer_time(config: ResolvedConfig, machine: Machine) -> float:
    """Clearing, scaling and norm of gradients, and the update of this rank's share."""
    numbers = max(config.num_parameters_per_rank)
    sharing = config.data_parallel_size * config.parallel.context_parallel_size
    return (12 * numbers + 34 * numbers / sharing) / machine.memory_rate
