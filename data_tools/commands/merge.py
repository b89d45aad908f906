"""``qwen-data merge``."""

import argparse

from data_tools.commands.arguments import positive_int
from data_tools.io.threads import usable_cores

_EXAMPLES = """examples:
  qwen-data merge corpora/web-0 corpora/web-1 --output corpora/web
"""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the command."""
    parser = subparsers.add_parser(
        "merge",
        help="several corpora to one",
        description="Writes the documents of several corpora, one corpus after the other, as one; the tokens are "
        "copied inside the file system where it can, and compared with the checksums of their corpora.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("prefixes", nargs="+", metavar="PREFIX", help="path of a corpus without suffix")
    parser.add_argument("--output", required=True, metavar="PREFIX", help="path of the new corpus without suffix")
    parser.add_argument("--overwrite", action="store_true", help="replace a corpus that is there")
    cores = usable_cores()
    parser.add_argument("--workers", type=positive_int, default=cores, help=f"threads that compare ({cores})")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Merges."""
    from data_tools.corpus.merge import merge

    sidecar = merge(options.prefixes, options.output, overwrite=options.overwrite, workers=options.workers)
    print(
        f"{options.output}: {sidecar.num_documents:,} documents, {sidecar.num_tokens:,} tokens from "
        f"{len(options.prefixes)} corpora"
    )
    return 0
