"""A Qwen model's part on one rank: embedding, layers, head.

Legend: s sequence, b micro-batch, h hidden, v vocabulary rows.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from megatron.core.dist_checkpointing.mapping import ShardedStateDict
from megatron.core.models.gpt import GPTModel
from megatron.core.tensor_parallel.mappings import gather_from_sequence_parallel_region

from qwen_megatron.model.attention_context import AttentionContext
from qwen_megatron.model.dropout import HiddenDropout
from qwen_megatron.model.embedding import Embedding
from qwen_megatron.model.head_kinds import LANGUAGE_MODEL
from qwen_megatron.model.heads import LOGITS, HeadRequest, Output, ScalarHead
from qwen_megatron.model.log_probabilities import head_entropies, head_log_probabilities
from qwen_megatron.model.loss import VocabularyShard, mask_padded_vocabulary
from qwen_megatron.model.output_layer import OutputLayer


class QwenModel(GPTModel):
    """Megatron-Core's GPTModel with Qwen's embedding, and a head that is asked for what an objective needs.

    Padded vocabulary rows take no part in the softmax.

    Args:
        head: `language_model` or `scalar`.
        num_tokens_in_vocabulary: Rows of the Hugging Face file; rows beyond are there for the layout only.
        fuses_loss: Compute losses and gradients without whole logits where a request promises the masked sum.
        embedding_dropout: Of the embedded tokens, where there is any.
        others: As for Megatron-Core's.
    """

    def __init__(
        self,
        *,
        head: str,
        num_tokens_in_vocabulary: int,
        fuses_loss: bool,
        embedding_dropout: HiddenDropout | None,
        **others: Any,
    ):
        # Megatron-Core's constructor calls `setup_embeddings_and_output_layer`, which asks for it.
        self.head = head
        super().__init__(**others)
        self.num_tokens_in_vocabulary = num_tokens_in_vocabulary
        self.fuses_loss = fuses_loss
        self.embedding_dropout = embedding_dropout

    def setup_embeddings_and_output_layer(self) -> None:
        """Exchanges the two layers whose classes GPTModel names itself, before their weights are marked and tied."""
        if self.pre_process:
            self.embedding.word_embeddings = Embedding(
                self.vocab_size,
                self.config.hidden_size,
                init_method=self.config.init_method,
                reduce_scatter_embeddings=self.embedding.reduce_scatter_embeddings,
                config=self.config,
                tp_group=self.pg_collection.tp,
            )
        if self.post_process and self.head == LANGUAGE_MODEL:
            self.output_layer = OutputLayer(
                self.config.hidden_size,
                self.vocab_size,
                config=self.config,
                init_method=self.config.init_method,
                bias=False,
                gather_output=not self.parallel_output,
                skip_weight_param_allocation=self.pre_process and self.share_embeddings_and_output_weights,
                tp_group=self.pg_collection.tp,
            )
        elif self.post_process:
            self.output_layer = ScalarHead(self.config, self.pg_collection.tp)
        super().setup_embeddings_and_output_layer()

    def forward(
        self,
        tokens_bs: torch.Tensor,
        position_ids_bs: torch.Tensor | None,
        context: AttentionContext | None = None,
        request: HeadRequest = LOGITS,
    ) -> torch.Tensor:
        """This stage's part of the model.

        Args:
            tokens_bs: [b, s] int64; looked at by the first stage only.
            position_ids_bs: [b, s] int64; Qwen's positions enter in the attention.
            context: Documents, dropout keys, key/value cache; None for none of them.
            request: What the last stage returns.
        Returns:
            [s, b, h] hidden states for the next stage (s / tp under sequence parallelism); on the last stage what
            `request` asks for.
        """
        embedded_sbh = None
        if self.pre_process:
            embedded_sbh = self.embedding(input_ids=tokens_bs, position_ids=position_ids_bs)
            if self.embedding_dropout is not None and self.training:
                embedded_sbh = self.embedding_dropout(embedded_sbh, context)
        hidden_sbh = self.decoder(hidden_states=embedded_sbh, attention_mask=None, packed_seq_params=context)
        if not self.post_process:
            return cast(torch.Tensor, hidden_sbh)
        return self.answer(hidden_sbh, request)

    def answer(self, hidden_sbh: torch.Tensor, request: HeadRequest) -> torch.Tensor:
        """The last layer's output to what is asked for.

        Raises:
            ValueError: if this model's head has no such output.
        """
        if request.output is Output.HIDDEN_STATES:
            if self.config.sequence_parallel:
                hidden_sbh = gather_from_sequence_parallel_region(
                    hidden_sbh, tensor_parallel_output_grad=False, group=self.pg_collection.tp
                )
            return hidden_sbh.transpose(0, 1).contiguous()
        if (request.output is Output.SCALARS) != (self.head != LANGUAGE_MODEL):
            raise ValueError(f"a model with a {self.head} head has no {request.output.value}; build it with another")
        if request.output is Output.SCALARS:
            return cast(torch.Tensor, self.output_layer(hidden_sbh))
        if request.output is Output.LOGITS:
            return self.logits_of(hidden_sbh).transpose(0, 1).contiguous()
        weight = self.tied_weight()
        assert request.labels_bs is not None
        if request.positions_bs is not None:
            return self.at_positions(hidden_sbh, weight, request)
        if request.loss_mask_bs is not None and self.fuses_loss:
            losses_bs, _ = self.output_layer(
                hidden_sbh,
                weight,
                labels_bs=request.labels_bs,
                loss_mask_bs=request.loss_mask_bs,
                vocab_size=self.num_tokens_in_vocabulary,
            )
            return cast(torch.Tensor, losses_bs)
        logits_sbv, _ = self.output_layer(hidden_sbh, weight)
        return self.compute_language_model_loss(request.labels_bs, logits_sbv)

    def at_positions(
        self, hidden_sbh: torch.Tensor, weight_vh: torch.Tensor | None, request: HeadRequest
    ) -> torch.Tensor:
        """Log-probabilities at chosen positions, with entropies where they are asked for."""
        labels_bs, positions_bs = request.labels_bs, request.positions_bs
        assert labels_bs is not None
        assert positions_bs is not None
        weight_vh = self.output_layer.weight if weight_vh is None else weight_vh
        shard = VocabularyShard(
            vocab_size=self.num_tokens_in_vocabulary,
            rows=self.output_layer.output_size_per_partition,
            tp_group=self.pg_collection.tp,
        )
        split = self.config.sequence_parallel
        found_bs = head_log_probabilities(
            hidden_sbh, weight_vh, labels_bs, positions_bs, shard, sequence_parallel=split
        )
        if request.output is Output.LOG_PROBABILITIES:
            return found_bs
        entropies_bs = head_entropies(hidden_sbh, weight_vh, positions_bs, shard, sequence_parallel=split)
        return torch.stack((found_bs.detach(), entropies_bs), dim=-1)

    def tied_weight(self) -> torch.Tensor | None:
        """The output layer's weight where it is the embedding's; None where it has one of its own."""
        return self.shared_embedding_or_output_weight() if self.share_embeddings_and_output_weights else None

    def logits_of(self, hidden_sbh: torch.Tensor) -> torch.Tensor:
        """[s, b, h] after the final norm to [s, b, v / tp], padding rows included; on the last stage."""
        return cast(torch.Tensor, self.output_layer(hidden_sbh, self.tied_weight())[0])

    def compute_language_model_loss(self, labels: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """Cross entropy of each label in nats.

        Args:
            labels: [b, s] int64.
            logits: [s, b, v / tp], this rank's part of the vocabulary; overwritten.
        Returns:
            [b, s] fp32.
        """
        mask_padded_vocabulary(logits, self.num_tokens_in_vocabulary, self.pg_collection.tp)
        return super().compute_language_model_loss(labels, logits)

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: tuple[Any, ...] = (), metadata: dict[str, Any] | None = None
    ) -> ShardedStateDict:
        """As Megatron-Core's, on the groups that this model was built with."""
        metadata = {"dp_cp_group": self.pg_collection.dp_cp, **(metadata or {})}
        return super().sharded_state_dict(prefix, sharded_offsets, metadata)
