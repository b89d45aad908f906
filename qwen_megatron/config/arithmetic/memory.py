"""Memory a rank needs to train, by arithmetic.

N parameters of the rank, D ranks that share the optimizer's state (data x context parallel).

State, bytes a parameter: bf16 weights 2, fp32 gradients 4, fp32 masters and two moments 12 / D. In fp32 the weights are
their own masters: 4, 4, 8 / D.

Activations: what layers keep for the backward pass is in `kept.py`. `full` recomputation keeps what a layer reads, and
all of one layer while it is computed again.

A stage of the 1F1B schedule holds as many micro-batches at once as there are stages from it to the last one.
Interleaved, with v pieces of a stage, stage i of p holds 2 (p - 1 - i) + (v - 1) p + 1 pieces. On the CPU, pieces also
keep what they pass on; torch's norms keep no view of what a piece was given, which stays besides.

On top of that passes, at the fullest moment, the larger of two things. Loss: for a block of tokens logits (in the
weights' precision), on the CPU with buffers of its cache; hidden states whole on every tensor-parallel rank, and their
gradient; then memory of the size of the output layer's weight, which takes the place of its gradient. A scalar head:
the last hidden states and their gradient in fp32 besides. Work: in the backward pass of a norm five fp32 tensors
(torch); in that of a feed-forward layer gradients of its branches, of its largest weight, and under sequence
parallelism its input, whole on every rank; at the end of the first stage memory of the size of the embedding's weight.

Left out: the device's context and the collectives' buffers, which a hardware file names (`planning/hardware`), and
fragmentation. A micro-batch of pairs is two sequences a pair.
Source: Korthikanti et al. 2022 (arXiv 2205.05198), section 4, for the method; Rajbhandari et al. 2020 (arXiv
1910.02054) for the state; Megatron-Core's schedules for what is in flight; checked against dry runs of the program.
"""

from __future__ import annotations

from dataclasses import dataclass

from qwen_megatron.config.arithmetic.kept import CPU, FUSED, Kernels, kernels_of, layer_share, norm_share
from qwen_megatron.config.arithmetic.ppo import other_models
from qwen_megatron.config.resolve import ResolvedConfig

# As `platforms/vocabulary.py` has them.
LOSS_BLOCK_TOKENS = 512
LARGEST_LOSS_BLOCK = 8192
SHARE_OF_DEVICE = 64
SOFTMAX_ELEMENTS = 1 << 20
WEIGHT_ROWS = 1024
# For the squares of gradients in fp64 (`platforms/norms.py`).
NORM_BUFFER_BYTES = 8 << 18
# Residual streams that the interleaved schedule receives ahead, or still sends; the CPU frees none early.
ON_THE_WAY, ON_THE_WAY_CPU = 3, 6
# Of one micro-batch: tokens, labels, mask, positions.
BATCH_BYTES_A_TOKEN = 28


@dataclass(frozen=True, kw_only=True)
class RankMemory:
    """Bytes of the largest rank of a stage.

    Attributes:
        weights, gradients, optimizer: State.
        activations: What waits for the backward pass at the fullest moment.
        loss: Output layer and loss, on the last stage.
        work: What a layer's backward pass makes on the way.
        update: What the optimizer makes, when activations are gone.
        other_models: What PPO holds besides the policy; see `arithmetic.ppo`.
        cache: Keys and values of responses under way; then nothing waits for a backward pass.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    loss: int
    work: int = 0
    update: int = 0
    other_models: int = 0
    cache: int = 0

    @property
    def total(self) -> int:
        """All together; the device's context, the collectives' buffers and fragmentation come on top."""
        return self.state + max(self.activations + max(self.loss, self.work), self.cache, self.update)

    @property
    def state(self) -> int:
        """What is there all the time: weights, gradients and optimizer of all models."""
        return self.weights + self.gradients + self.optimizer + self.other_models


def rank_memory(config: ResolvedConfig, kernels: Kernels | None = None) -> tuple[RankMemory, ...]:
    """Memory of one rank of each pipeline stage; kernels None for those of the configuration."""
    return tuple(stage_memory(config, stage, kernels) for stage in range(len(config.layers_per_stage)))


def stage_memory(config: ResolvedConfig, stage: int, kernels: Kernels | None = None) -> RankMemory:
    """Memory of one rank of a pipeline stage, the first is 0."""
    kernels = kernels or kernels_of(config.model.implementation, config.parallel.platform)
    is_bf16 = config.training.precision == "bf16"
    parameters = config.num_parameters_per_rank[stage]
    sharing = config.data_parallel_size * config.parallel.context_parallel_size
    others = other_models(config, stage) if config.shape.has_ppo_models else None
    is_last = stage == len(config.layers_per_stage) - 1
    return RankMemory(
        weights=(2 if is_bf16 else 4) * parameters,
        gradients=4 * parameters,
        optimizer=-(-(12 if is_bf16 else 8) * parameters // sharing),
        activations=activation_bytes(config, stage, kernels),
        loss=loss_bytes(config, kernels) if is_last else 0,
        work=work_bytes(config, stage, kernels),
        update=NORM_BUFFER_BYTES if kernels.name == CPU else 0,
        other_models=0 if others is None else others.value + others.frozen,
        cache=0 if others is None else others.cache,
    )


def pieces_in_flight(config: ResolvedConfig, stage: int) -> int:
    """Pieces of a stage (all of it, unless interleaved) whose activations are alive at the fullest moment."""
    stages, pieces = len(config.layers_per_stage), config.parallel.virtual_pipeline_model_parallel_size
    after = stages - 1 - stage
    if pieces is None:
        return min(after + 1, config.num_microbatches)
    return min(2 * after + (pieces - 1) * stages + 1, pieces * config.num_microbatches)


def activation_bytes(config: ResolvedConfig, stage: int, kernels: Kernels) -> int:
    """What a stage keeps at the fullest moment."""
    model, parallel, e = config.model, config.parallel, bytes_per_number(config)
    is_last = stage == len(config.layers_per_stage) - 1
    stream = model.hidden_size * e / (parallel.tensor_model_parallel_size if parallel.sequence_parallel else 1)
    layer = layer_share(model, parallel, config.training, e, kernels).of(parallel)
    is_recomputed = parallel.recompute_granularity == "full"
    kept, again = (stream, layer) if is_recomputed else (layer, 0.0)
    in_flight = pieces_in_flight(config, stage)
    pieces = parallel.virtual_pipeline_model_parallel_size or 1
    passed_on = stream * passed_on_pieces(config, stage, in_flight, kernels)
    batches = BATCH_BYTES_A_TOKEN * -(-in_flight // pieces) if stage == 0 or is_last else 0
    a_token = in_flight / pieces * config.layers_per_stage[stage] * kept + again + passed_on + batches
    if is_last:
        a_token += norm_share(stream / e, e, kernels)
    # Angles of all positions, cosine and sine in fp32.
    angles = 8 * model.kv_channels * (1 << (config.training.seq_length - 1).bit_length())
    return round((a_token + gathered_bytes(config, kernels)) * tokens_of_microbatch(config)) + angles


def kept_by_piece(config: ResolvedConfig, stage: int, kernels: Kernels) -> float:
    """Bytes a token that a piece of a stage keeps of one micro-batch."""
    model, parallel, e = config.model, config.parallel, bytes_per_number(config)
    kept = model.hidden_size * e / (parallel.tensor_model_parallel_size if parallel.sequence_parallel else 1)
    if parallel.recompute_granularity != "full":
        kept = layer_share(model, parallel, config.training, e, kernels).of(parallel)
    return config.layers_per_stage[stage] / (parallel.virtual_pipeline_model_parallel_size or 1) * kept


def gathered_bytes(config: ResolvedConfig, kernels: Kernels) -> int:
    """Bytes a token of the buffer into which Megatron-Core's linears gather split sequences; it is kept."""
    is_split = config.parallel.sequence_parallel and config.parallel.tensor_model_parallel_size > 1
    return config.model.hidden_size * bytes_per_number(config) if is_split and kernels.name != FUSED else 0


def passed_on_pieces(config: ResolvedConfig, stage: int, in_flight: int, kernels: Kernels) -> float:
    """Residual streams kept at the borders of the pieces in flight, besides what layers keep of them."""
    stages, pieces = len(config.layers_per_stage), config.parallel.virtual_pipeline_model_parallel_size or 1
    if stages == 1:
        return 0.0
    # The first and the last piece of the model are given, or pass on, nothing.
    given = in_flight - (in_flight / pieces if stage == 0 else 0)
    passed = in_flight - (in_flight / pieces if stage == stages - 1 else 0)
    keeps_input = (
        kernels.name != FUSED and bytes_per_number(config) == 2 and config.parallel.recompute_granularity != "full"
    )
    on_the_way = 0 if pieces == 1 else (ON_THE_WAY_CPU if kernels.name == CPU else ON_THE_WAY)
    return (given if keeps_input else 0.0) + (passed if kernels.name == CPU else 0.0) + on_the_way


def loss_block_tokens(config: ResolvedConfig, kernels: Kernels) -> int:
    """Tokens whose logits are alive at a time."""
    if kernels.name == CPU:
        block = LOSS_BLOCK_TOKENS
    else:
        rows = config.padded_vocab_size // config.parallel.tensor_model_parallel_size
        most = kernels.device_bytes // SHARE_OF_DEVICE // (rows * bytes_per_number(config))
        block = min(max(LOSS_BLOCK_TOKENS, 1 << max(most, 1).bit_length() - 1), LARGEST_LOSS_BLOCK)
    return min(block, tokens_of_microbatch(config))


def loss_bytes(config: ResolvedConfig, kernels: Kernels) -> int:
    """What the last stage makes on top of its layers' activations: the fuller of forward and backward pass."""
    model, parallel, e = config.model, config.parallel, bytes_per_number(config)
    hidden = tokens_of_microbatch(config) * model.hidden_size
    if config.shape.has_scalar_head:
        return 3 * hidden * e + 2 * hidden * 4
    rows = config.padded_vocab_size // parallel.tensor_model_parallel_size
    split = parallel.tensor_model_parallel_size if parallel.sequence_parallel else 1
    block = loss_block_tokens(config, kernels)
    logits = block * rows * e
    # A product, and that times a factor in fp32.
    passing = block * model.hidden_size * (e + 4)
    if kernels.name == CPU and e == 2:
        softmax = 4 * min(SOFTMAX_ELEMENTS, block * rows)
        passing = max(softmax, passing, min(WEIGHT_ROWS, rows) * model.hidden_size * (e + 4))
    gathered = hidden * e if split > 1 else 0
    forward = gathered + hidden * e + logits + passing
    kept = logits if kernels.name == CPU else 0
    # A matrix tied on the same rank gets its gradient elsewhere.
    is_tied = model.tie_word_embeddings and len(config.layers_per_stage) == 1
    backward = hidden * e / split + kept + (0 if is_tied else rows * model.hidden_size * e)
    return round(max(forward, backward))


def work_bytes(config: ResolvedConfig, stage: int, kernels: Kernels) -> int:
    """What the backward pass of a stage's last layers makes on top of its activations, less what is gone by then."""
    model, parallel, e = config.model, config.parallel, bytes_per_number(config)
    size = parallel.tensor_model_parallel_size
    split = size if parallel.sequence_parallel else 1
    tokens, branch = tokens_of_microbatch(config), e * model.ffn_hidden_size / size
    stream, weight = e * model.hidden_size / split, e * model.hidden_size * model.ffn_hidden_size / size
    whole = e * model.hidden_size if split > 1 else 0.0
    # The input of the branches goes into the buffer of `gathered_bytes`, where there is one.
    gathers = 2 if kernels.name == FUSED else 1
    gone = 0.0
    moments = []
    if stage == len(config.layers_per_stage) - 1:
        gone = norm_share(stream / e, e, kernels)
        if kernels.name == FUSED:
            moments.append(tokens * 2 * stream)
        else:
            # Five in fp32; what the norm wrote is gone.
            moments.append(tokens * (20 * stream / e - (gone - 4 * stream / e)))
    activation = (2 if kernels.name == CPU else 1) * branch
    made = (4 if kernels.name == CPU else 3) * branch
    moments.append(tokens * (stream + whole + branch - gone) + weight)
    moments.append(tokens * (stream + activation - gone))
    moments.append(
        tokens * (stream + gathers * whole + 2 * branch - made - gone + (0 if whole else stream)) + 2 * weight
    )
    if stage == 0:
        # Of the embedding's weight, when all but one micro-batch are still there.
        rows = config.padded_vocab_size // size
        moments.append(rows * model.hidden_size * e - tokens * kept_by_piece(config, stage, kernels))
    kept = 0
    if kernels.name == CPU and stage == len(config.layers_per_stage) - 1 and not config.shape.has_scalar_head:
        kept = loss_block_tokens(config, kernels) * (config.padded_vocab_size // size) * e
    return round(max(0.0, *moments)) + kept


def tokens_of_microbatch(config: ResolvedConfig) -> int:
    """Tokens of a micro-batch on one context-parallel rank."""
    rows = config.training.micro_batch_size * config.shape.rows_per_sample
    return rows * config.training.seq_length // config.parallel.context_parallel_size


def bytes_per_number(config: ResolvedConfig) -> int:
    """Of weights and activations."""
    return 2 if config.training.precision == "bf16" else 4
