"""``qwen-data inspect``."""

import argparse
import json
import sys
from pathlib import Path

from data_tools.commands.arguments import non_negative_int, positive_int
from data_tools.errors import RefusedError
from data_tools.io.plain_text import printable

_EXAMPLES = """examples:
  qwen-data inspect corpora/mix
  qwen-data inspect corpora/mix --json
  qwen-data inspect corpora/mix --document 17
  qwen-data inspect work/web
  qwen-data inspect work/web --stage filter
  qwen-data inspect work/web --stage filter --reason gopher_quality_letters --sample 5

Of a corpus of dialogues --document shows what is learned: in green on a terminal, elsewhere between ⟦ and ⟧.
"""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the command."""
    parser = subparsers.add_parser(
        "inspect",
        help="counts, lengths and origin of a corpus, or one document; stages of a run",
        description="Shows what a corpus holds; with --document, the text of one document. Of the output folder of a "
        "run its stages, with --stage the statistics of one, with --sample documents of it; of one that "
        "stopped how far it came and the tasks that failed, with their errors.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("prefix", metavar="PREFIX", help="path of the corpus without suffix, or a run's output")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--document", type=non_negative_int, metavar="N", help="document N, counted from 0")
    parser.add_argument("--stage", metavar="NAME", help="stage of a run")
    parser.add_argument("--reason", metavar="REASON", default="kept", help="which documents --sample shows (kept)")
    parser.add_argument("--sample", type=positive_int, metavar="N", help="N documents of the stage")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Prints the summary or the document."""
    from data_tools.corpus.inspect import format_summary, read_document, summarize
    from data_tools.corpus.sidecar import Sidecar
    from data_tools.pipeline.run import SUMMARY

    if (Path(options.prefix) / SUMMARY).is_file():
        return _inspect_run(options)
    if (Path(options.prefix) / "stages").is_dir():
        return _inspect_unfinished(options)
    if options.stage or options.sample:
        raise RefusedError(f"{options.prefix}: is no output of a run, which --stage and --sample are for")
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


def _inspect_run(options: argparse.Namespace) -> int:
    from data_tools.pipeline.inspect_run import KEPT, format_stage, format_stages, sample
    from data_tools.pipeline.summary_file import read_summary

    output = Path(options.prefix)
    if options.stage is None and (options.sample or options.reason != KEPT):
        raise RefusedError(f"--sample and --reason are about a stage; add --stage, one of those of {output}")
    if options.sample:
        for document in sample(output, options.stage, options.reason, options.sample):
            if options.json:
                print(json.dumps(document, ensure_ascii=sys.stdout.isatty()))
                continue
            detail = f": {document['detail']}" if document["detail"] else ""
            print(
                printable(
                    f"--- {document['id']} ({document['source']}{', ' * bool(document['language'])}"
                    f"{document['language']}){detail}"
                )
            )
            print(printable(document["text"]))
    elif options.json:
        stages = read_summary(output)["stages"]
        print(json.dumps([one for one in stages if options.stage in (None, one["name"])], indent=2))
    else:
        print(printable(format_stages(output) if options.stage is None else format_stage(output, options.stage)))
    return 0


def _inspect_unfinished(options: argparse.Namespace) -> int:
    from data_tools.pipeline.inspect_run import failed_tasks, format_unfinished

    output = Path(options.prefix)
    if options.stage or options.sample:
        raise RefusedError(f"{output}: the run is not finished; --stage and --sample are for finished ones")
    print(
        json.dumps({"failed": failed_tasks(output)}, indent=2) if options.json else printable(format_unfinished(output))
    )
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
