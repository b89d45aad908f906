"""What the kernels of a layer keep of a token for the backward pass, and what they make besides on the way back.

h hidden, F width of a feed-forward branch, P query heads x head size, G key/value heads x head size, n query heads; e
bytes of a number. Bytes a token:

| | fused | torch on a GPU | torch on the CPU |
|---|---|---|---|
| a norm: what it reads, and writes for the product after it | 2eh | bf16 8h, fp32 12h | as on a GPU |
| queries, keys, values as attention reads them | e(P + 2G) | e(P + G) rotated, and the product's e(P + 2G) | the same |
| norms of queries and keys, where there are any | e(P + G) | as a norm | as a norm |
| attention's output, and 4 bytes a head of its softmax | eP + 4n | eP + 4n | eP + 4n |
| gate and up projection, their product | 3eF | 3eF | 4eF, with silu(gate) |

torch's norm computes in fp32: it keeps its input in fp32, and in the weights' precision x / rms(x) and that times the
weight. The rotated queries and keys are new; the values are a part of the product that made all three, which stays
whole for them. torch repeats the keys and values of grouped heads for every query head; then nothing of the product
stays.

`selective` recomputation keeps the product instead of what attention reads. torch's kernels gather keys and values of
the other context-parallel ranks, and keep them; with a mask for the second slice.
Source: counted from
`model/layer_spec.py`; checked against dry runs (`qwen-megatron plan --dry-run`), the fused column against what one H200
held (docs/benchmarks.md).
"""

from __future__ import annotations

from dataclasses import dataclass

from qwen_megatron.config.sections.model import ModelConfig
from qwen_megatron.config.sections.parallel import ParallelConfig
from qwen_megatron.config.sections.training import TrainingConfig

FUSED, TORCH, CPU = "fused", "torch", "cpu"
# A GPU of 80 GB, where nothing else is said.
DEVICE_BYTES = 80 * 10**9


@dataclass(frozen=True, kw_only=True)
class Kernels:
    """Which kernels run, and on how large a device.

    Attributes:
        name: `fused` (Transformer Engine), `torch` (torch's on a GPU), `cpu` (torch's there).
        device_bytes: Memory of the device; the blocks of logits follow it.
    """

    name: str = FUSED
    device_bytes: int = DEVICE_BYTES


@dataclass(frozen=True, kw_only=True)
class Share:
    """Bytes a token.

    Attributes:
        stream: Of the residual stream: whole on every tensor-parallel rank, unless sequence parallelism divides it.
        split: Divided over the tensor-parallel ranks.
        whole: On every one of them, whatever the layout.
    """

    stream: float = 0.0
    split: float = 0.0
    whole: float = 0.0

    def __add__(self, other: Share) -> Share:
        return Share(stream=self.stream + other.stream, split=self.split + other.split, whole=self.whole + other.whole)

    def of(self, parallel: ParallelConfig) -> float:
        """Bytes a token on one rank."""
        size = parallel.tensor_model_parallel_size
        return self.stream / (size if parallel.sequence_parallel else 1) + self.split / size + self.whole


def kernels_of(implementation: str, platform: str) -> Kernels:
    """Those that a configuration asks for; on GPUs, if it does not say."""
    if platform == "cpu":
        return Kernels(name=CPU)
    return Kernels(name=TORCH if implementation == "torch" else FUSED)


def norm_share(width: float, e: int, kernels: Kernels) -> float:
    """What a norm over channels keeps: its input, and its output for the product that follows."""
    if kernels.name == FUSED:
        return 2 * e * width
    return (8 if e == 2 else 12) * width


def attention_share(
    model: ModelConfig, parallel: ParallelConfig, training: TrainingConfig, e: int, kernels: Kernels
) -> Share:
    """From the product of queries, keys and values to the attention's output."""
    query, key = model.num_attention_heads * model.kv_channels, model.num_query_groups * model.kv_channels
    output, softmax, product = e * query, 4 * model.num_attention_heads, e * (query + 2 * key)
    normed = norm_share(query + key, e, kernels) - (e * (query + key) if kernels.name == FUSED else 0)
    normed = normed if model.qk_layernorm else 0
    if parallel.recompute_granularity == "selective":
        return Share(split=product + normed + output)
    if kernels.name == FUSED:
        return Share(split=product + normed + output + softmax)
    context, is_grouped = parallel.context_parallel_size, key < query
    kept_queries = e * query
    keys_and_values = 2 * e * (query if is_grouped else key) * context
    if context == 1 and not is_grouped:
        keys_and_values = e * key + product
    masks = 0.0
    if context > 1:
        # Numbers, one mask for all heads and rows: a rank's two slices see keys of 2 x size + 1 slices together.
        part = training.seq_length / (2 * context)
        masks = e * part * (2 * context + 1) / 2 / training.micro_batch_size
        # Angles of the rank's slices, cosine and sine in fp32.
        masks += 8 * model.kv_channels / training.micro_batch_size
    return Share(split=kept_queries + keys_and_values + normed + output + softmax, whole=masks)


def layer_share(
    model: ModelConfig, parallel: ParallelConfig, training: TrainingConfig, e: int, kernels: Kernels
) -> Share:
    """What one layer keeps where nothing of it is computed again."""
    norms = Share(stream=2 * norm_share(model.hidden_size, e, kernels))
    branches = (4 if kernels.name == CPU else 3) * e * model.ffn_hidden_size
    return norms + attention_share(model, parallel, training, e, kernels) + Share(split=branches)
