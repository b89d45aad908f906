"""The subcommands of ``qwen-data``, one a file: ``add_parser`` and the function that runs it."""
