"""Qwen's tokenizer, and how texts become tokens."""
