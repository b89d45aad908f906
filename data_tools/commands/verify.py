"""``qwen-data verify``."""

import argparse
import json
from typing import TYPE_CHECKING

from data_tools.commands.arguments import positive_int
from data_tools.errors import DataError
from data_tools.io.threads import usable_cores

if TYPE_CHECKING:
    from data_tools.corpus.sidecar import Sidecar

_EXAMPLES = """examples:
  qwen-data verify corpora/mix
  qwen-data verify corpora/mix --json
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
    cores = usable_cores()
    parser.add_argument("--workers", type=positive_int, default=cores, help=f"threads, one a segment ({cores})")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout, also if something is damaged")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Verifies the corpus."""
    if options.json:
        return _print_json(options.prefix, options.workers)
    sidecar = _verified(options.prefix, options.workers)
    print(f"{options.prefix}: {sidecar.num_documents:,} documents, {sidecar.num_tokens:,} tokens, all checksums agree")
    return 0


def _verified(prefix: str, workers: int) -> "Sidecar":
    from data_tools.chat.verify import verify_chat
    from data_tools.corpus.sidecar import Sidecar
    from data_tools.corpus.verify import verify

    is_chat = Sidecar.read(prefix).chat is not None
    return verify_chat(prefix, workers=workers) if is_chat else verify(prefix, workers=workers)


def _print_json(prefix: str, workers: int) -> int:
    found: dict[str, object] = {"prefix": prefix, "is_whole": True, "problems": []}
    try:
        sidecar = _verified(prefix, workers)
        found |= {"documents": sidecar.num_documents, "tokens": sidecar.num_tokens}
    except DataError as error:
        found |= {"is_whole": False, "problems": str(error).splitlines()}
    print(json.dumps(found, indent=2))
    return 0 if found["is_whole"] else 1
