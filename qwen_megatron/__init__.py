"""Pretraining of Qwen models with tensor, pipeline, context and data parallelism on Megatron-Core."""
