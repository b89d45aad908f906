"""Section `model`: the architecture."""

from __future__ import annotations

from dataclasses import dataclass, field

from qwen_megatron.config.setting import about, count


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A Qwen architecture, every value fixed."""

    num_layers: int = field(metadata=count("Transformer layers.", maximum=10_000))
    hidden_size: int = field(metadata=count("Width of the residual stream.", maximum=1 << 20))
    ffn_hidden_size: int = field(
        metadata=count(
            "Width of each of the two branches of the SwiGLU feed-forward layer (half of `intermediate_size` in the "
            "files of the first Qwen series).",
            maximum=1 << 22,
        )
    )
    num_attention_heads: int = field(metadata=count("Query heads.", maximum=1 << 16))
    num_query_groups: int = field(
        metadata=count(
            "Key and value heads. Default: `num_attention_heads`, plain multi-head attention.", maximum=1 << 16
        )
    )
    kv_channels: int = field(
        metadata=count(
            "Size of one head; even, because rotary embedding turns pairs. Default: `hidden_size / "
            "num_attention_heads`.",
            maximum=1 << 16,
        )
    )
    vocab_size: int = field(
        metadata=count(
            "Rows of the embedding and of the output layer in the Hugging Face file; all of them are exported. Rows "
            "added for the tensor-parallel layout are not counted.",
            maximum=1 << 31,
        )
    )
    seq_length: int = field(
        metadata=count(
            "Native context in tokens: LogN scaling and dynamic NTK act beyond it. The context trained on is "
            "`training.seq_length`.",
            minimum=2,
            maximum=1 << 32,
        )
    )
    rotary_base: float = field(
        default=10000.0, metadata=about("Base of the rotary embedding.", above=1.0, maximum=1e15)
    )
    use_dynamic_ntk: bool = field(
        default=False, metadata=about("Stretch the rotary base for inputs beyond `seq_length`; evaluation only.")
    )
    use_logn_attn: bool = field(
        default=False,
        metadata=about("Scale queries beyond `seq_length` by log(position) / log(seq_length); evaluation only."),
    )
    layernorm_epsilon: float = field(
        default=1e-6, metadata=about("Added to the mean square in RMSNorm.", above=0.0, maximum=1.0)
    )
    tie_word_embeddings: bool = field(
        default=False, metadata=about("Use the embedding matrix as the output layer too (Qwen 0.5B).")
    )
    init_method_std: float = field(
        default=0.02,
        metadata=about(
            "Standard deviation of the initial weights; output projections of attention and feed-forward layer use it "
            "divided by sqrt(2 num_layers).",
            minimum=0.0,
            maximum=10.0,
        ),
    )
    hidden_dropout: float = field(
        default=0.0,
        metadata=about(
            "Dropout of the embedding and of the outputs of attention and feed-forward layer.", minimum=0.0, below=1.0
        ),
    )
    attention_dropout: float = field(
        default=0.0, metadata=about("Dropout of attention probabilities.", minimum=0.0, below=1.0)
    )
    implementation: str = field(
        default="auto",
        metadata=about(
            "Kernels of the layers; `auto` takes Transformer Engine where it imports and a CUDA device is there, torch "
            "otherwise.",
            choices=("auto", "transformer_engine", "torch"),
        ),
    )
    loss_implementation: str = field(
        default="auto",
        metadata=about(
            "`fused` computes output layer, loss and their gradients together, a few hundred tokens at a time, and "
            "never holds the logits of a micro-batch; `unfused` holds them; `auto` is `fused`.",
            choices=("auto", "fused", "unfused"),
        ),
    )


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Section `model` as a user gives it: None takes the preset's value, or without a preset `ModelConfig`'s default.

    The fields are those of `ModelConfig`, which documents them.
    """

    preset: str | None = field(
        default=None,
        metadata=about(
            "Released or test architecture that supplies every value of this section not given here.",
            choices=("tiny", "qwen-0.5b", "qwen-1.8b", "qwen-7b", "qwen-14b", "qwen-72b"),
        ),
    )
    num_layers: int | None = None
    hidden_size: int | None = None
    ffn_hidden_size: int | None = None
    num_attention_heads: int | None = None
    num_query_groups: int | None = None
    kv_channels: int | None = None
    vocab_size: int | None = None
    seq_length: int | None = None
    rotary_base: float | None = None
    use_dynamic_ntk: bool | None = None
    use_logn_attn: bool | None = None
    layernorm_epsilon: float | None = None
    tie_word_embeddings: bool | None = None
    init_method_std: float | None = None
    hidden_dropout: float | None = None
    attention_dropout: float | None = None
    implementation: str | None = None
    loss_implementation: str | None = None
