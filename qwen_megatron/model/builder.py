"""Builds this rank's part of a Qwen model."""

from __future__ import annotations

from typing import Any, cast

import torch
from megatron.core.models.gpt import GPTModel
from megatron.core.transformer.module import Float16Module
from megatron.core.transformer.transformer_block import get_num_layers_to_build

from qwen_megatron.config.model import ModelConfig
from qwen_megatron.errors import PlatformError
from qwen_megatron.model.dropout import EMBEDDING, HiddenDropout
from qwen_megatron.model.embedding import Embedding
from qwen_megatron.model.init import initialize_weights
from qwen_megatron.model.layer_spec import block_spec, select_kernels
from qwen_megatron.model.loss import mask_padded_vocabulary
from qwen_megatron.model.megatron_config import transformer_config
from qwen_megatron.model.output_layer import OutputLayer
from qwen_megatron.model.rotary import RotarySettings
from qwen_megatron.parallel.groups import Groups
from qwen_megatron.parallel.rng import start_tracker


class QwenModel(GPTModel):
    """Megatron-Core's GPTModel whose padded vocabulary rows take no part in the softmax.

    Attributes:
        num_tokens_in_vocabulary: Rows of the Hugging Face file; rows beyond are there for the layout only.
        fuses_loss: Given a loss mask beside the labels, compute losses and gradients without whole logits.
        embedding_dropout: Of the embedded tokens, where there is any.
    """

    num_tokens_in_vocabulary: int
    fuses_loss: bool
    embedding_dropout: HiddenDropout | None = None

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
        if self.post_process:
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
        super().setup_embeddings_and_output_layer()

    def forward(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
        **others: Any,
    ) -> torch.Tensor:
        """As Megatron-Core's; `attention_mask` is a packed `RowContext` or None."""
        if self.embedding_dropout is not None and self.training and self.pre_process:
            embedded_sbh = self.embedding(input_ids=input_ids, position_ids=position_ids)
            others["decoder_input"] = self.embedding_dropout(embedded_sbh, attention_mask)
        return super().forward(input_ids, position_ids, attention_mask, **others)

    def _postprocess(
        self,
        hidden_states: torch.Tensor,
        *,
        labels: torch.Tensor | None,
        loss_mask: torch.Tensor | None = None,
        **others: Any,
    ) -> torch.Tensor:
        """The last layer's output to logits [b, s, v], or to losses [b, s] fp32 where labels are given."""
        if not (self.post_process and self.fuses_loss) or labels is None or loss_mask is None:
            return super()._postprocess(hidden_states, labels=labels, loss_mask=loss_mask, **others)
        weight = self.shared_embedding_or_output_weight() if self.share_embeddings_and_output_weights else None
        losses, _ = self.output_layer(
            hidden_states,
            weight,
            labels_bs=labels,
            loss_mask_bs=loss_mask,
            vocab_size=self.num_tokens_in_vocabulary,
        )
        return losses

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


def rotary_settings(model: ModelConfig) -> RotarySettings:
    """The part of the architecture that fixes positions."""
    return RotarySettings(
        head_size=model.kv_channels,
        base=model.rotary_base,
        native_length=model.seq_length,
        use_dynamic_ntk=model.use_dynamic_ntk,
        use_logn_attn=model.use_logn_attn,
    )


def build_model(
    model: ModelConfig,
    groups: Groups,
    *,
    precision: str,
    sequence_parallel: bool = False,
    recompute: str = "none",
    virtual_stage: int | None = None,
    num_virtual_stages: int | None = None,
    layers_in_first_stage: int | None = None,
    layers_in_last_stage: int | None = None,
    seed: int | None = None,
) -> torch.nn.Module:
    """This rank's pipeline stage and tensor-parallel share of the model.

    Args:
        model: Architecture.
        groups: Layout; several models may be built on the same groups.
        precision: `bf16` or `fp32`.
        sequence_parallel: Split norms along the sequence.
        recompute: What the backward pass computes again: `none`, `selective` or `full`.
        virtual_stage: Which piece of the stage to build, for the interleaved schedule; None for all of it.
        num_virtual_stages: Pieces of each stage; None for one.
        layers_in_first_stage, layers_in_last_stage: Where they differ from the stages between; None for as many.
        seed: Fill the weights from this seed; None leaves them as they come, to be loaded over.
    Returns:
        A `QwenModel`, in a Float16Module for bf16.
    Raises:
        PlatformError: if the implementation cannot run here, or cannot do what the model asks for.
    """
    start_tracker(groups)
    config = transformer_config(
        model,
        groups,
        precision=precision,
        sequence_parallel=sequence_parallel,
        num_virtual_stages=num_virtual_stages,
        layers_in_first_stage=layers_in_first_stage,
        layers_in_last_stage=layers_in_last_stage,
        recompute=recompute,
    )
    kernels = select_kernels(model.implementation, groups.device)
    if model.attention_dropout and not kernels.attention_reads_rows:
        raise PlatformError(
            f"model.attention_dropout={model.attention_dropout}: {kernels.attention.__name__} draws masks that "
            "depend on the layout; use model.implementation=torch, or 0"
        )
    tp_size = groups.tp.size()
    num_layers = get_num_layers_to_build(config, virtual_stage)
    qwen = QwenModel(
        config=config,
        transformer_layer_spec=block_spec(kernels, rotary_settings(model), num_layers, model.hidden_dropout),
        vocab_size=-(-model.vocab_size // tp_size) * tp_size,
        max_sequence_length=model.seq_length,
        pre_process=groups.is_first_stage and virtual_stage in (None, 0),
        post_process=groups.is_last_stage and (num_virtual_stages is None or virtual_stage == num_virtual_stages - 1),
        vp_stage=virtual_stage,
        share_embeddings_and_output_weights=model.tie_word_embeddings,
        # Positions enter in the core attention: see QwenCoreAttention.
        position_embedding_type="none",
        pg_collection=groups.collection,
    )
    qwen.num_tokens_in_vocabulary = model.vocab_size
    qwen.fuses_loss = model.loss_implementation != "unfused"
    if model.hidden_dropout:
        qwen.embedding_dropout = HiddenDropout(
            model.hidden_dropout,
            layer=0,
            place=EMBEDDING,
            context_group=groups.cp,
            split_group=groups.tp if sequence_parallel else None,
        )
    qwen.to(groups.device)
    if precision == "bf16":
        qwen = Float16Module(config, qwen)
    if seed is not None:
        initialize_weights(unwrapped(qwen), seed=seed, std=model.init_method_std, num_layers=model.num_layers)
    return qwen


def unwrapped(model: torch.nn.Module) -> QwenModel:
    """The `QwenModel` inside precision and data-parallel wrappers."""
    while not isinstance(model, QwenModel):
        model = cast(torch.nn.Module, model.module)
    return model
