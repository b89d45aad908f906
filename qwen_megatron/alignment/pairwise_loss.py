"""The loss of a reward model: the chosen dialogue of a pair must get the higher reward.

Legend: b rows of a micro-batch, two next to each other a pair, s sequence, p pairs.
"""

from __future__ import annotations

import torch
from torch.nn.functional import softplus

from qwen_megatron.data.batch import Batch
from qwen_megatron.data.preference.batch import CORPUS, END_INDEX
from qwen_megatron.model.heads import HeadRequest, Output
from qwen_megatron.train.objective import Objective, Sums


class PairwiseLoss(Objective):
    """-log sigmoid(r_chosen - r_rejected), nats a pair; rewards are read at the batch's end indices.

    Metrics: `accuracy`, the share of pairs whose chosen dialogue has the higher reward (equal ones count half), and
    `margin`, the mean difference. With several corpora, of the c-th one `right/c` and `pairs/c`: how
    many of its pairs are right and how many there are, both over all pairs of the batch.

    Args:
        num_corpora: Corpora that are counted apart; 0 for none.
    Source: Qwen Technical Report, section 3.2.1; Ouyang et al. 2022 (arXiv 2203.02155), equation 1.
    """

    def __init__(self, num_corpora: int = 0):
        self.num_corpora = num_corpora
        apart = [f"{name}/{corpus}" for corpus in range(num_corpora) for name in ("right", "pairs")]
        self.metric_names = ("accuracy", "margin", *apart)

    def request(self, batch: Batch) -> HeadRequest:
        return HeadRequest(output=Output.SCALARS)

    def measure(self, output: torch.Tensor, batch: Batch) -> Sums:
        ends_b = batch.extras[END_INDEX]
        counts_p = (ends_b[0::2] >= 0).float()
        margin_p = pair_margins(rewards_at(output, ends_b)) * counts_p
        right_p = ((margin_p > 0).float() + 0.5 * (margin_p == 0).float()) * counts_p
        metrics = {"accuracy": right_p.sum(), "margin": margin_p.sum()}
        corpora_p = batch.extras[CORPUS][0::2]
        for corpus in range(self.num_corpora):
            here_p = counts_p * (corpora_p == corpus)
            metrics |= {f"right/{corpus}": (right_p * here_p).sum(), f"pairs/{corpus}": here_p.sum()}
        return Sums(total=(softplus(-margin_p) * counts_p).sum(), count=counts_p.sum().to(torch.int32), metrics=metrics)


def rewards_at(scalars_bs: torch.Tensor, ends_b: torch.Tensor) -> torch.Tensor:
    """[b] fp32: the scalar at each row's end index; whatever the first is where the index is negative."""
    return scalars_bs.gather(1, ends_b.clamp(min=0)[:, None])[:, 0]


def pair_margins(rewards_b: torch.Tensor) -> torch.Tensor:
    """[p] fp32: reward of the chosen dialogue less that of the rejected one."""
    return rewards_b[0::2] - rewards_b[1::2]
