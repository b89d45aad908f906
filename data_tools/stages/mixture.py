"""The last stage: shares of the corpora in training, as a file for `data.blend`."""

from collections.abc import Mapping, Sequence
from dataclasses import field, replace
from pathlib import Path
from typing import Annotated

from annotated_types import Interval

from data_tools.corpus.mixture import ingredients, mix, write_mixture
from data_tools.engine.runner import Runner
from data_tools.engine.task import Manifest
from data_tools.errors import DataError
from data_tools.io.small_json import is_count
from data_tools.settings.records import Count, NonNegativeFloat, Positive, record

MIXTURE_FILE = "mixture.yaml"


@record
class MixtureStage:
    """Options of the stage `mixture`, which follows `tokenize` with a corpus per source."""

    weights: Mapping[str, NonNegativeFloat] = field(default_factory=dict)
    """Source -> how often its tokens are seen compared with weight 1; 1 if not named, 0 leaves it out."""
    train_tokens: Count | None = None
    """Tokens of the training run; null for what the weights ask for: each source weight times, instruction on top."""
    max_epochs: Positive = 4.0
    """No source is seen more often."""
    instruction: tuple[str, ...] = ()
    """Sources of instruction data."""
    instruction_share: Annotated[float, Interval(ge=0.0, lt=1.0)] = 0.0
    """Their share of all tokens."""

    def run(self, runner: Runner, folder: Path, inputs: Sequence[Manifest]) -> list[Manifest]:
        """Writes OUTPUT/mixture.yaml; the documents stay as they are."""
        for part in inputs:
            if not is_count(part.values.get("tokens")) or not isinstance(part.values.get("prefix"), str):
                raise DataError(f"{part.folder}/{part.name}: not the manifest of a corpus; tokenize it again")
        tokens = {part.name: int(part.values["tokens"]) for part in inputs}
        prefixes = {part.name: str(part.values["prefix"]) for part in inputs}
        seen = mix(
            tokens,
            self.weights,
            train_tokens=self.train_tokens,
            max_epochs=self.max_epochs,
            instruction=self.instruction,
            instruction_share=self.instruction_share,
        )
        folder.mkdir(parents=True, exist_ok=True)
        parts = dict(zip(seen, ingredients(prefixes, tokens, seen), strict=True))
        shares = {name: part.share for name, part in parts.items()}
        epochs = {name: part.epochs for name, part in parts.items()}
        write_mixture(folder.parent.parent / MIXTURE_FILE, list(parts.values()), self._notes(shares))
        return [
            replace(
                part,
                records_in=part.records_out,
                copied=0,
                rejected={},
                examples={},
                values={
                    **part.values,
                    "share": shares.get(part.name, 0.0),
                    "epochs": epochs.get(part.name, 0.0),
                },
            )
            for part in inputs
        ]

    def _notes(self, shares: Mapping[str, float]) -> list[str]:
        """What came out otherwise than it was asked for."""
        realised = sum(shares.get(name, 0.0) for name in self.instruction)
        if realised > self.instruction_share - 1e-6:
            return []
        note = (
            f"instruction data takes {realised:.4%} of the tokens, not the {self.instruction_share:.4%} asked for: "
            f"it is seen max_epochs={self.max_epochs:g} times already"
        )
        return [note]
