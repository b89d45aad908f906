"""Qwen's layers on Megatron-Core."""
