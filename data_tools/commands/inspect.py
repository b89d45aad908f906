"""``qwen-data inspect``."""

import argparse
import json
import sys

from data_tools.commands.arguments import non_negative_int
from data_tools.io.plain_text import printable

_EXAMPLES = """examples:
  qwen-data inspect corpora/mix
  qwen-data inspect corpora/mix --json
  qwen-data inspect corpora/mix --document 17

Of a corpus of dialogues --document shows what is learned: in green on a terminal, elsewhere between ⟦ and ⟧.
"""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the command."""
    parser = subparsers.add_parser(
        "inspect",
        help="counts, lengths and origin of a corpus, or one document",
        description="Shows what a corpus holds; with --document, the text of one document.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("prefix", metavar="PREFIX", help="path of the corpus without suffix")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--document", type=non_negative_int, metavar="N", help="document N, counted from 0")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Prints the summary or the document."""
    from data_tools.corpus.inspect import format_summary, read_document, summarize
    from data_tools.corpus.sidecar import Sidecar

    if Sidecar.read(options.prefix).chat is not None:
        return _inspect_chat(options)
    on_terminal = sys.stdout.isatty()
    if options.document is None:
        summary = summarize(options.prefix)
        as_json = options.json and json.dumps(summary, ensure_ascii=on_terminal, indent=2)
        print(as_json or printable(format_summary(summary)))
        return 0
    document = read_document(options.prefix, options.document)
    if options.json:
        print(json.dumps(document, ensure_ascii=on_terminal))
    elif document["text"] is None:
        print(f"not in Qwen's vocabulary, tokens: {' '.join(map(str, document['tokens']))}")
    else:
        print(printable(document["text"]) if on_terminal else document["text"])
    return 0


def _inspect_chat(options: argparse.Namespace) -> int:
    from data_tools.chat.inspect import coloured_sample, format_chat_summary, read_sample, summarize_chat

    on_terminal = sys.stdout.isatty()
    if options.document is None:
        summary = summarize_chat(options.prefix)
        as_json = options.json and json.dumps(summary, ensure_ascii=on_terminal, indent=2)
        print(as_json or printable(format_chat_summary(summary)))
        return 0
    sample = read_sample(options.prefix, options.document)
    if options.json:
        print(json.dumps(sample, ensure_ascii=on_terminal))
        return 0
    if "pair" in sample:
        print(f"pair {sample['pair']}, {sample['which']}, {sample['num_tokens']} tokens")
    if sample["text"] is None:
        marked = zip(sample["tokens"], sample["targets"], strict=True)
        tokens = " ".join(f"⟦{token}⟧" if target else str(token) for token, target in marked)
        print(f"not in Qwen's vocabulary, tokens: {tokens}")
    else:
        print(coloured_sample(options.prefix, options.document) if on_terminal else sample["text"])
    return 0
