"""The command `qwen-megatron`, one thin file a subcommand."""
