"""``qwen-data import-corpus``."""

import argparse
import sys

from data_tools.commands.arguments import non_negative_int, positive_int

_EXAMPLES = """examples:
  qwen-data import-corpus corpora/mydata_text_document
  qwen-data import-corpus corpora/gpt2_text_document --end-of-document 50256 --vocab-size 50257
"""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the command."""
    parser = subparsers.add_parser(
        "import-corpus",
        help="give a corpus made by other Megatron tools the sidecar that training needs",
        description="Checks PREFIX.bin and PREFIX.idx (any integer type, one or more sequences a document) and writes "
        "PREFIX.crc and PREFIX.json. The first two are not changed.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("prefix", metavar="PREFIX", help="path of the corpus without suffix")
    parser.add_argument(
        "--end-of-document", type=non_negative_int, metavar="ID", help="token that ends documents (151643)"
    )
    parser.add_argument(
        "--vocab-size", type=positive_int, metavar="N", help="every token must be below N (151851, Qwen's ids)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a sidecar that is there")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Imports the corpus and prints one line about it."""
    from data_tools.corpus.import_corpus import import_corpus
    from data_tools.tokenizer.qwen import END_OF_DOCUMENT, NUM_TOKENS

    sidecar, unended_documents = import_corpus(
        options.prefix,
        end_of_document=END_OF_DOCUMENT if options.end_of_document is None else options.end_of_document,
        vocab_size=options.vocab_size or NUM_TOKENS,
        overwrite=options.overwrite,
    )
    print(
        f"{options.prefix}: imported {sidecar.num_documents:,} documents, {sidecar.num_tokens:,} {sidecar.dtype} tokens"
    )
    if unended_documents:
        print(
            f"qwen-data: warning: {unended_documents:,} of {sidecar.num_documents:,} documents do not end with "
            f"{sidecar.end_of_document}; training will see them joined to the next one",
            file=sys.stderr,
        )
    return 0
