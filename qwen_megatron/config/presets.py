"""The released Qwen architectures, and a tiny one for tests and the demo.

Source: configuration files of Qwen1.5-0.5B, Qwen-1.8B, Qwen-7B, Qwen-14B and Qwen-72B. The widths of the feed-forward
branches are the released ones; 8/3 x hidden_size, as the report has it, is only their approximation.
"""

from __future__ import annotations

from qwen_megatron.config.sections.model import ModelConfig

PRESETS: dict[str, ModelConfig] = {
    "tiny": ModelConfig(
        num_layers=4,
        hidden_size=64,
        ffn_hidden_size=176,
        num_attention_heads=4,
        num_query_groups=4,
        kv_channels=16,
        vocab_size=151936,
        seq_length=256,
    ),
    "qwen-0.5b": ModelConfig(
        num_layers=24,
        hidden_size=1024,
        ffn_hidden_size=2816,
        num_attention_heads=16,
        num_query_groups=16,
        kv_channels=64,
        vocab_size=151936,
        seq_length=32768,
        rotary_base=1e6,
        tie_word_embeddings=True,
    ),
    "qwen-1.8b": ModelConfig(
        num_layers=24,
        hidden_size=2048,
        ffn_hidden_size=5504,
        num_attention_heads=16,
        num_query_groups=16,
        kv_channels=128,
        vocab_size=151936,
        seq_length=8192,
        use_dynamic_ntk=True,
        use_logn_attn=True,
    ),
    "qwen-7b": ModelConfig(
        num_layers=32,
        hidden_size=4096,
        ffn_hidden_size=11008,
        num_attention_heads=32,
        num_query_groups=32,
        kv_channels=128,
        vocab_size=151936,
        seq_length=8192,
        use_dynamic_ntk=True,
        use_logn_attn=True,
    ),
    "qwen-14b": ModelConfig(
        num_layers=40,
        hidden_size=5120,
        ffn_hidden_size=13696,
        num_attention_heads=40,
        num_query_groups=40,
        kv_channels=128,
        vocab_size=152064,
        seq_length=2048,
        use_dynamic_ntk=True,
        use_logn_attn=True,
    ),
    "qwen-72b": ModelConfig(
        num_layers=80,
        hidden_size=8192,
        ffn_hidden_size=24576,
        num_attention_heads=64,
        num_query_groups=64,
        kv_channels=128,
        vocab_size=152064,
        seq_length=32768,
        rotary_base=1e6,
    ),
}
