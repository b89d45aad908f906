"""Generation for clients over HTTP, as OpenAI's interface has it.

Here is what needs no web framework: `engine` and `plan`. `app` and `server` need the extra `serve`.
"""
