"""A dialogue that is too long, cut where a turn ends."""

import numpy as np
import numpy.typing as npt

from data_tools.chat.rendered import Rendered


def truncate(whole: Rendered, limit: int, *, end_of_turn: int) -> Rendered | None:
    """The longest beginning of at most ``limit`` tokens that ends where a turn ends.

    Cut inside a turn a model would learn answers without an end. Turns at the end that hold nothing to learn, such as a
    question whose answer is cut off, go too.

    Args:
        whole: Of `rendering.render`: it and every turn of it begin with the same control token, which stands nowhere
            else.
        limit: Tokens, at least 1.
        end_of_turn: Token id that ends what is said in a turn.
    Returns:
        ``whole`` itself if it is short enough; None if nothing to learn is left.
    """
    if not whole.num_targets:
        return None
    if len(whole) <= limit:
        return whole
    starts = turn_starts(whole.tokens, end_of_turn)
    ends = np.append(starts[1:], len(whole))
    # Targets of the turns up to each end; of those ends that fit, the first after which no target is added.
    learned = np.cumsum(whole.targets)[ends[ends <= limit] - 1]
    if not len(learned) or learned[-1] == 0:
        return None
    stop = int(ends[np.searchsorted(learned, learned[-1])])
    cut = Rendered(tokens=whole.tokens[:stop], targets=whole.targets[:stop])
    return cut if cut.num_targets else None


def turn_starts(tokens: npt.NDArray[np.int32], end_of_turn: int) -> npt.NDArray[np.int64]:
    """[turns] int64 positions at which turns begin: the first, and the same token wherever a turn has ended before it.

    Args:
        tokens: [n] int32, n at least 1.
        end_of_turn: Token id that ends what is said in a turn.
    """
    begins = np.flatnonzero(tokens == tokens[0])
    # A turn has ended if end tokens are more numerous before this beginning than before the one before it.
    ended = np.cumsum(tokens == end_of_turn)[begins]
    return begins[np.append(True, np.diff(ended) > 0)]
