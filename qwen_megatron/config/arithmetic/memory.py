"""Memory a rank needs to train, by arithmetic; nothing here has been compared with a GPU.

N parameters of the rank, D ranks that share the optimizer's state (data x context parallel), s sequence on this rank
(the sequence over the context-parallel size), b micro-batch, h hidden, F width of a feed-forward branch, P query heads
x head size, G key/value heads x head size, V padded vocabulary, t tensor-parallel size.

State, bytes a parameter: bf16 weights 2, fp32 gradients 4, fp32 masters and two moments 12 / D. In fp32 the weights are
their own masters: 4, 4, 8 / D.

Activations kept for the backward pass, numbers a token and layer: what the two norms read and write 4h; queries, keys
and values as attention reads them P + 2G; what norms of queries and keys read, where there are any, P + G; its output
P; gate and up projection 2F; their product F. Two bytes each in bf16. Of these the norms' 4h is whole on each
tensor-parallel rank, unless sequence parallelism divides it; the rest is divided by t. Attention keeps no probabilities
(flash attention), so that `selective` recomputation saves nothing here. `full` keeps what a layer
reads, h, and one layer's activations while it is computed again.

A stage of the 1F1B schedule holds as many micro-batches at once as there are stages from it to the last one; the
interleaved schedule holds (1 + (p - 1) / (p v)) times as much on the first stage.

Around the layers: the embedding's output; the last norm; for 512 tokens at a time logits (in the weights' precision)
and hidden states; the gradient of the last hidden states. A scalar head: the last hidden states and their gradient in
fp32 besides. A micro-batch of pairs is two sequences a pair.
Source: Korthikanti et al. 2022 (arXiv 2205.05198), section 4, for the method and the schedules' factors; Rajbhandari et
al. 2020 (arXiv 1910.02054) for the state; the layer's own terms are counted from `model/layer_spec.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

from qwen_megatron.config.arithmetic.ppo import other_models
from qwen_megatron.config.resolve import ResolvedConfig

LOSS_BLOCK_TOKENS = 512


@dataclass(frozen=True, kw_only=True)
class RankMemory:
    """Bytes of the largest rank of a stage.

    Attributes:
        weights, gradients, optimizer: State.
        activations: What waits for the backward pass at the fullest moment.
        loss: Output layer and loss, on the last stage.
        other_models: What PPO holds besides the policy; see `arithmetic.ppo`.
        cache: Keys and values of responses under way; then nothing waits for a backward pass.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    loss: int
    other_models: int = 0
    cache: int = 0

    @property
    def total(self) -> int:
        """All together; the device's context, the collectives' buffers and fragmentation come on top."""
        return self.state + max(self.activations + self.loss, self.cache)

    @property
    def state(self) -> int:
        """What is there all the time: weights, gradients and optimizer of all models."""
        return self.weights + self.gradients + self.optimizer + self.other_models


def rank_memory(config: ResolvedConfig) -> tuple[RankMemory, ...]:
    """Memory of one rank of each pipeline stage."""
    return tuple(stage_memory(config, stage) for stage in range(len(config.layers_per_stage)))


def stage_memory(config: ResolvedConfig, stage: int) -> RankMemory:
    """Memory of one rank of a pipeline stage, the first is 0."""
    is_bf16 = config.training.precision == "bf16"
    parameters = config.num_parameters_per_rank[stage]
    sharing = config.data_parallel_size * config.parallel.context_parallel_size
    others = other_models(config, stage) if config.shape.has_ppo_models else None
    return RankMemory(
        weights=(2 if is_bf16 else 4) * parameters,
        gradients=4 * parameters,
        optimizer=-(-(12 if is_bf16 else 8) * parameters // sharing),
        activations=activation_bytes(config, stage),
        loss=loss_bytes(config) if stage == len(config.layers_per_stage) - 1 else 0,
        other_models=0 if others is None else others.value + others.frozen,
        cache=0 if others is None else others.cache,
    )


def activation_bytes(config: ResolvedConfig, stage: int) -> int:
    """What the layers of a stage keep at the fullest moment."""
    model, parallel = config.model, config.parallel
    tensor_size, num_stages = parallel.tensor_model_parallel_size, len(config.layers_per_stage)
    split_hidden = tensor_size if parallel.sequence_parallel else 1
    query, key = model.num_attention_heads * model.kv_channels, model.num_query_groups * model.kv_channels
    normed = query + key if model.qk_layernorm else 0
    split = 2 * query + 2 * key + normed + 3 * model.ffn_hidden_size
    layer = 4 * model.hidden_size / split_hidden + split / tensor_size
    kept, working = layer, 0.0
    if parallel.recompute_granularity == "full":
        kept, working = model.hidden_size / split_hidden, layer
    in_flight = float(min(num_stages - stage, config.num_microbatches))
    pieces = parallel.virtual_pipeline_model_parallel_size
    if pieces is not None:
        in_flight = num_stages * (1 + (num_stages - 1) / (num_stages * pieces))
    embedded = model.hidden_size / split_hidden if stage == 0 else 0.0
    numbers = in_flight * (config.layers_per_stage[stage] * kept + embedded) + working
    return round(numbers * tokens_of_microbatch(config) * bytes_per_number(config))


def loss_bytes(config: ResolvedConfig) -> int:
    """Logits of a block, or fp32 copies for a scalar head, and the last hidden states with their gradient."""
    hidden = tokens_of_microbatch(config) * config.model.hidden_size
    if config.shape.has_scalar_head:
        return 3 * hidden * bytes_per_number(config) + 2 * hidden * 4
    rows = config.padded_vocab_size // config.parallel.tensor_model_parallel_size
    block = min(LOSS_BLOCK_TOKENS, tokens_of_microbatch(config))
    return (block * rows + 3 * hidden) * bytes_per_number(config)


def tokens_of_microbatch(config: ResolvedConfig) -> int:
    """Tokens of a micro-batch on one context-parallel rank."""
    rows = config.training.micro_batch_size * config.shape.rows_per_sample
    return rows * config.training.seq_length // config.parallel.context_parallel_size


def bytes_per_number(config: ResolvedConfig) -> int:
    """Of weights and activations."""
    return 2 if config.training.precision == "bf16" else 4
