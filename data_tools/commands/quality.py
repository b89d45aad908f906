"""``qwen-data quality train`` and ``qwen-data quality score``."""

import argparse
import contextlib
import os
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from data_tools.commands.arguments import positive_int, refuse_existing
from data_tools.commands.rejections import reject_status, rejection_limit

if TYPE_CHECKING:
    from data_tools.quality import QualityModel

_EXAMPLES = """examples:
  qwen-data quality train --positive books.jsonl wiki.jsonl --negative crawl.jsonl.zst --output quality-model
  qwen-data quality score quality-model 'web/*.jsonl.zst' --output scored.jsonl.zst
  qwen-data stage quality work/filter --output work/quality model=quality-model min_score=0.3
"""
_TRAIN_EXAMPLES = """examples:
  qwen-data quality train --positive books.jsonl wiki.jsonl --negative crawl.jsonl.zst --output quality-model
  qwen-data quality train --labelled rated.jsonl --label-key good --output quality-model --max-ngram 3

The model is a folder: model.json (with counts, AUC and reliability on texts it has not seen) and weights.safetensors.
The same set of texts gives the same model, whatever the order of files and records and the number of threads. A text
that comes twice counts once, one with both labels not at all. Records without text or label are listed with file and
line in DIR/rejected.jsonl.
"""
_SCORE_EXAMPLES = """examples:
  qwen-data quality score quality-model 'web/*.jsonl.zst' --output scored.jsonl.zst
  qwen-data quality score quality-model pages.parquet --text-key content --output scored.jsonl

Each record comes out with all its keys and its score, 0 to 1, under "quality", in the order of the input. Records
without text are listed with file and line in OUTPUT.rejected.jsonl.
"""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the command with its two actions."""
    parser = subparsers.add_parser(
        "quality",
        help="a learned quality score: train, score",
        description="Trains a classifier of good and bad text on hashed n-grams of words, and scores text with it.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    _add_train(actions)
    _add_score(actions)


def _add_train(actions: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = actions.add_parser(
        "train",
        help="labelled texts to a model",
        description="Trains, calibrates and measures a model on three different parts of labelled texts.",
        epilog=_TRAIN_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for name, meaning in (
        ("--positive", "of texts that should score high: file, folder, pattern or URL"),
        ("--negative", "of texts that should score low"),
        ("--labelled", "of texts with a label each: 1 or 0, true or false, positive or negative"),
    ):
        parser.add_argument(name, nargs="+", default=[], metavar="FILE", help=meaning)
    parser.add_argument("--label-key", default="label", metavar="KEY", help="key of the label in a record (label)")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder of the model")
    parser.add_argument(
        "--max-ngram", type=positive_int, default=2, metavar="N", help="words in the longest n-gram (2)"
    )
    parser.add_argument("--bits", type=positive_int, default=20, help="2^BITS buckets for the n-grams (20)")
    parser.add_argument("--l2", type=float, default=0.1, help="penalty on large weights, above 0 (0.1)")
    parser.add_argument("--held-out", type=float, default=0.2, help="share of the texts not trained on (0.2)")
    _add_common(parser)
    parser.set_defaults(run=run_train, parser=parser)


def _add_score(actions: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = actions.add_parser(
        "score",
        help="texts to texts with scores",
        description="Writes the records of the inputs with their score.",
        epilog=_SCORE_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", type=Path, metavar="MODEL", help="folder that train wrote")
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help="file, folder, pattern or URL")
    parser.add_argument(
        "--output", required=True, type=Path, metavar="FILE", help="JSON Lines, compressed if it ends in .zst or .gz"
    )
    _add_common(parser)
    parser.set_defaults(run=run_score)


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--text-key", default="text", metavar="KEY", help="key of the text in a record (text)")
    parser.add_argument(
        "--threads", type=positive_int, default=os.cpu_count() or 1, help="threads of the kernels (one a core)"
    )
    parser.add_argument(
        "--max-bad",
        type=rejection_limit,
        metavar="LIMIT",
        help="exit with status 1 if more records are rejected: a number (100) or a share of all (0.1%% or 0.001); the "
        "output is written all the same (no limit)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an output that is there")


def run_train(options: argparse.Namespace) -> int:
    """Trains, writes the model and prints its figures; fails if a stream breaks or --max-bad is exceeded."""
    from data_tools.corpus.rejections import RejectionLog
    from data_tools.io.progress import progress_bar
    from data_tools.quality import FeatureConfig, TrainingConfig, train
    from data_tools.quality.labelled import LabelledInput, read_labelled
    from data_tools.quality.model import MODEL_FILE
    from data_tools.readers.inputs import total_bytes

    started = time.monotonic()
    labels = {"positive": True, "negative": False, "labelled": None}
    inputs = [
        LabelledInput(path=path, label=label) for name, label in labels.items() for path in getattr(options, name)
    ]
    if not inputs:
        options.parser.error("no texts: give --positive and --negative, or --labelled")
    config = TrainingConfig(
        features=FeatureConfig(max_ngram=options.max_ngram, bits=options.bits),
        l2=options.l2,
        held_out=options.held_out,
    )
    refuse_existing(options.output / MODEL_FILE, options.overwrite)
    total = total_bytes([one.path for one in inputs])
    options.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, RejectionLog(Path(folder, "rejected")) as log:
        with progress_bar("reading", total) as progress:
            examples = list(
                read_labelled(
                    inputs,
                    lambda rejection: log.add([rejection]),
                    text_key=options.text_key,
                    label_key=options.label_key,
                    progress=progress,
                )
            )
        # Listed first: when too few texts are left, the list says why.
        log.publish(options.output / "rejected.jsonl")
        model = train(examples, config, options.threads)
        try:
            model.save(options.output)
        except OSError:
            # Of a full disk not even an empty folder is left.
            with contextlib.suppress(OSError):
                options.output.rmdir()
            raise
        _print_model(options.output, model, time.monotonic() - started)
        return reject_status(log, len(examples), options.output / "rejected.jsonl", options.max_bad)


def _print_model(folder: Path, model: "QualityModel", seconds: float) -> None:
    report = model.training
    counts = ", ".join(
        f"{part} {count['positive']:,} + {count['negative']:,}" for part, count in report["documents"].items()
    )
    print(f"{folder}: positive + negative documents: {counts}; {seconds:,.1f} s")
    for reason, count in report["rejected"].items():
        print(f"left out: {reason} {count:,}")
    print(
        f"{report['iterations']} steps, {report['buckets_used']:,} buckets used of {len(model.weights):,}; on unseen "
        f"documents: AUC {report['auc']:.4f}, calibration error {report['calibration_error']:.3f}"
    )
    print(f"{'score':>12} {'documents':>10} {'mean score':>11} {'positive':>9}")
    for one in report["reliability"]:
        interval = f"{one['low']:.1f} to {one['high']:.1f}"
        print(f"{interval:>12} {one['documents']:>10,} {one['mean_score']:>11.3f} {one['share_positive']:>9.3f}")


def run_score(options: argparse.Namespace) -> int:
    """Scores and prints one line; fails if a stream breaks or --max-bad is exceeded."""
    from data_tools.corpus.rejections import RejectionLog, rejected_path
    from data_tools.io.progress import progress_bar
    from data_tools.quality import QualityModel
    from data_tools.quality.scoring import score_files
    from data_tools.readers.inputs import total_bytes

    started = time.monotonic()
    model = QualityModel.load(options.model)
    refuse_existing(options.output, options.overwrite)
    total = total_bytes(options.inputs)
    rejected = rejected_path(options.output)
    with tempfile.TemporaryDirectory() as folder, RejectionLog(Path(folder, "rejected")) as log:
        with progress_bar("scoring", total) as progress:
            num_written = score_files(
                model,
                options.inputs,
                options.output,
                lambda rejection: log.add([rejection]),
                text_key=options.text_key,
                threads=options.threads,
                progress=progress,
            )
        log.publish(rejected)
        seconds = time.monotonic() - started
        print(f"{options.output}: {num_written:,} records from {total / 1e6:,.1f} MB in {seconds:,.1f} s")
        return reject_status(log, num_written, rejected, options.max_bad)
