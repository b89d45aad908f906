"""``qwen-data verify``."""

import argparse

_EXAMPLES = """examples:
  qwen-data verify corpora/mix
"""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the command."""
    parser = subparsers.add_parser(
        "verify",
        help="compare every byte of a corpus with its checksums",
        description="Reads all files of a corpus and compares them with the sidecar and with each other; exits with "
        "status 1 and names files and blocks if anything is damaged.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("prefix", metavar="PREFIX", help="path of the corpus without suffix")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Verifies the corpus."""
    from data_tools.corpus.verify import verify

    sidecar = verify(options.prefix)
    print(f"{options.prefix}: {sidecar.num_documents:,} documents, {sidecar.num_tokens:,} tokens, all checksums agree")
    return 0
