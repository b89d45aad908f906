"""What every layer may need to know of a micro-batch's rows besides their hidden states.

Legend: s whole sequence, b micro-batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, kw_only=True)
class RowContext:
    """Documents and dropout keys of the rows of one micro-batch.

    Megatron-Core hands one tensor, its attention mask, to every layer, to recomputation too. It is used as the carrier:
    `packed` makes that tensor, `unpack` reads it.

    Attributes:
        document_ids_bs: int64 [b, s], number of each token's document in rising order, of whole sequences on every
            rank; None if tokens see all tokens before them.
        dropout_keys_b: int64 [b], what the masks of a row's dropout follow from; None if nothing is dropped.
    """

    document_ids_bs: torch.Tensor | None = None
    dropout_keys_b: torch.Tensor | None = None

    @property
    def packed(self) -> torch.Tensor | None:
        """int64 [b, 1] keys, or [b, 1 + s] keys and document ids; None where there is neither."""
        keys_b, ids_bs = self.dropout_keys_b, self.document_ids_bs
        if ids_bs is None:
            return None if keys_b is None else keys_b[:, None]
        keys_b = ids_bs.new_zeros(len(ids_bs)) if keys_b is None else keys_b
        return torch.cat((keys_b[:, None], ids_bs), dim=1)

    @classmethod
    def unpack(cls, packed: torch.Tensor | None, rows: int, length: int) -> RowContext:
        """The context of `rows` sequences of `length` tokens.

        Raises:
            ValueError: if the tensor is none that `packed` made for them, such as a mask of visible keys.
        """
        if packed is None:
            return cls()
        if packed.dtype != torch.int64 or tuple(packed.shape) not in ((rows, 1), (rows, 1 + length)):
            raise ValueError(
                f"the attention mask must be a packed RowContext, int64 {[rows, 1]} or {[rows, 1 + length]}, but is "
                f"{packed.dtype} {list(packed.shape)}; another mask would be ignored"
            )
        return cls(document_ids_bs=packed[:, 1:] if packed.size(1) > 1 else None, dropout_keys_b=packed[:, 0])
