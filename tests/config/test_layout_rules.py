"""Rules of interleaved pipelines, context parallelism and overlap."""

from __future__ import annotations

import pytest

from qwen_megatron.config.load import load_config
from qwen_megatron.config.resolve import ResolvedConfig, resolve
from qwen_megatron.errors import ConfigError

TINY = (
    "model.preset=tiny",
    "model.num_layers=8",
    "training.train_iters=100",
    "training.global_batch_size=8",
    "training.seq_length=256",
)
PP2 = "parallel.pipeline_model_parallel_size=2"
TP2SP = ("parallel.tensor_model_parallel_size=2", "parallel.sequence_parallel=true")
GRAPHS, OVERLAP = "parallel.cuda_graph_impl=local", "parallel.tp_comm_overlap=true"


def resolved_config(*overrides: str) -> ResolvedConfig:
    return resolve(load_config(None, [*TINY, *overrides]))


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (
            ("parallel.virtual_pipeline_model_parallel_size=2",),
            (
                "parallel.virtual_pipeline_model_parallel_size=2: interleaves pipeline stages, but "
                "parallel.pipeline_model_parallel_size is 1; leave it out"
            ),
        ),
        (
            (PP2, "parallel.virtual_pipeline_model_parallel_size=3"),
            (
                "parallel.virtual_pipeline_model_parallel_size=3: times parallel.pipeline_model_parallel_size(2) must "
                "divide model.num_layers(8); use 2 or 4"
            ),
        ),
        (
            (PP2, "parallel.virtual_pipeline_model_parallel_size=2", "training.global_batch_size=5"),
            (
                "training.global_batch_size=5: must be a multiple of training.micro_batch_size(1) x "
                "data_parallel_size(1) x parallel.pipeline_model_parallel_size(2) = 2 with "
                "parallel.virtual_pipeline_model_parallel_size; use 4 or 6"
            ),
        ),
        (
            ("parallel.context_parallel_size=3",),
            "training.seq_length=256: must be a multiple of 2 x parallel.context_parallel_size(3); use 252 or 258",
        ),
        (
            (
                "parallel.context_parallel_size=2",
                "parallel.tensor_model_parallel_size=4",
                "parallel.sequence_parallel=true",
                "training.seq_length=40",
            ),
            (
                "training.seq_length=40: must be a multiple of 2 x parallel.context_parallel_size(2) x "
                "parallel.tensor_model_parallel_size(4) = 16 with parallel.sequence_parallel; use 32 or 48"
            ),
        ),
        (
            ("parallel.context_parallel_size=2", "parallel.world_size=3"),
            (
                "parallel.world_size=3: must be a multiple of parallel.tensor_model_parallel_size(1) x "
                "parallel.pipeline_model_parallel_size(1) x parallel.context_parallel_size(2) = 2; use 2 or 4"
            ),
        ),
        (
            ("model.attention_dropout=0.1",),
            (
                "model.implementation=auto: must be named with model.attention_dropout: masks of Transformer Engine "
                "depend on the layout, torch's do not; use torch or transformer_engine"
            ),
        ),
        (
            ("data.mask_documents=true", "parallel.context_parallel_size=2"),
            (
                "model.implementation=auto: must be torch with data.mask_documents and "
                "parallel.context_parallel_size(2): Transformer Engine divides every document over the processes, not "
                "the sequence; use torch"
            ),
        ),
        (
            ("training.fp8_first_last_layers_bf16=true",),
            (
                "training.fp8_first_last_layers_bf16=true: needs training.fp8=tensorwise, delayed scaling has one "
                "state for all layers; use false"
            ),
        ),
        (
            ("training.fp8=delayed", "parallel.platform=cpu"),
            "training.fp8=delayed: needs Transformer Engine on a GPU, but parallel.platform=cpu; use none",
        ),
        (
            ("training.fp8=tensorwise", "model.implementation=torch"),
            "training.fp8=tensorwise: needs Transformer Engine on a GPU, but model.implementation=torch; use none",
        ),
        (
            ("training.fp8=tensorwise", "training.precision=fp32"),
            "training.fp8=tensorwise: needs training.precision=bf16; use none",
        ),
        (
            ("training.fp8=tensorwise", "training.seq_length=40", "training.micro_batch_size=1"),
            (
                "training.seq_length=40: makes 40 tokens a micro-batch with training.micro_batch_size(1), "
                "training.fp8 needs a multiple of 16; use 32 or 48"
            ),
        ),
        (
            (GRAPHS, "parallel.platform=cpu"),
            "parallel.cuda_graph_impl=local: needs Transformer Engine on a GPU, but parallel.platform=cpu; use none",
        ),
        (
            (GRAPHS, "model.implementation=torch"),
            (
                "parallel.cuda_graph_impl=local: needs Transformer Engine on a GPU, but model.implementation=torch; "
                "use none"
            ),
        ),
        (
            (GRAPHS, "parallel.recompute_granularity=full"),
            (
                "parallel.cuda_graph_impl=local: does not go with parallel.recompute_granularity=full, Megatron-Core "
                "records no layer that is run twice; use none"
            ),
        ),
        (
            (GRAPHS, "data.mask_documents=true"),
            (
                "parallel.cuda_graph_impl=local: does not go with data.mask_documents, the lengths of documents change "
                "with the micro-batch; use none"
            ),
        ),
        (
            (GRAPHS, "model.attention_dropout=0.1", "model.implementation=transformer_engine"),
            (
                "parallel.cuda_graph_impl=local: does not go with model.attention_dropout, whose masks follow from "
                "the samples of the micro-batch; use none"
            ),
        ),
        (
            (GRAPHS, PP2),
            (
                "parallel.cuda_graph_impl=local: does not go with parallel.pipeline_model_parallel_size(2): "
                "Megatron-Core makes a graph for each micro-batch of the first step, and an evaluation has another "
                "number; use none"
            ),
        ),
        (
            (GRAPHS, "parallel.backend=gloo_for_testing"),
            (
                "parallel.cuda_graph_impl=local: does not go with parallel.backend=gloo_for_testing, which sends "
                "through the host; use none"
            ),
        ),
        (
            (*TP2SP, OVERLAP, "parallel.platform=cpu"),
            "parallel.tp_comm_overlap=true: needs Transformer Engine on a GPU, but parallel.platform=cpu; use false",
        ),
        (
            (OVERLAP,),
            (
                "parallel.tp_comm_overlap=true: overlaps what tensor-parallel processes send, but "
                "parallel.tensor_model_parallel_size is 1; use false"
            ),
        ),
        (
            (TP2SP[0], OVERLAP),
            (
                "parallel.tp_comm_overlap=true: needs parallel.sequence_parallel, whose gathers and scatters are what "
                "is overlapped; use false"
            ),
        ),
        (
            (*TP2SP, OVERLAP, "parallel.backend=gloo_for_testing"),
            (
                "parallel.tp_comm_overlap=true: does not go with parallel.backend=gloo_for_testing, its buffers lie on "
                "GPUs of their own; use false"
            ),
        ),
        (
            ("optimizer.lr_decay_style=WSD", "optimizer.lr_warmup_iters=20", "optimizer.lr_wsd_decay_iters=90"),
            "optimizer.lr_wsd_decay_iters=90: must be at most lr_decay_iters(100) - lr_warmup_iters(20); use 80",
        ),
        (
            ("parallel.gradient_bucket_size=1000",),
            (
                "parallel.gradient_bucket_size=1000: needs parallel.overlap_grad_reduce, without which all gradients "
                "are reduced at once; set that to true"
            ),
        ),
        (
            ("parallel.overlap_param_gather=true",),
            (
                "parallel.overlap_param_gather=true: needs parallel.overlap_grad_reduce; set that to true too, or "
                "this to false"
            ),
        ),
    ],
)
def test_a_broken_rule_names_key_value_and_nearest_good_value(overrides: tuple[str, ...], problem: str) -> None:
    with pytest.raises(ConfigError) as raised:
        resolved_config(*overrides)
    assert raised.value.problems == [problem]


def test_all_reasons_against_graphs_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as raised:
        resolved_config(GRAPHS, PP2, "data.mask_documents=true", "model.hidden_dropout=0.1")
    assert len(raised.value.problems) == 3
    assert all(problem.startswith("parallel.cuda_graph_impl=local: ") for problem in raised.value.problems)


def test_graphs_and_overlap_go_with_what_they_can() -> None:
    layout = (
        *TP2SP,
        "parallel.world_size=4",
        "parallel.overlap_grad_reduce=true",
        "parallel.overlap_param_gather=true",
    )
    more = ("training.fp8=tensorwise", "parallel.recompute_granularity=selective", "training.deterministic=true")
    more += ("model.ffn_hidden_size=192",)
    parallel = resolved_config(GRAPHS, OVERLAP, *layout, *more).parallel
    assert (parallel.cuda_graph_impl, parallel.tp_comm_overlap) == ("local", True)


def test_context_parallel_ranks_share_samples() -> None:
    resolved = resolved_config("parallel.context_parallel_size=2", PP2, "parallel.world_size=8")
    assert (resolved.data_parallel_size, resolved.num_microbatches) == (2, 4)


def test_transformer_engine_masks_documents_and_drops_where_it_is_named() -> None:
    resolved = resolved_config(
        "data.mask_documents=true", "model.attention_dropout=0.1", "model.implementation=transformer_engine"
    )
    assert (resolved.data.mask_documents, resolved.model.attention_dropout) == (True, 0.1)


def test_torch_kernels_mask_documents_and_drop_on_every_layout() -> None:
    layout = ("parallel.context_parallel_size=2", PP2, "data.mask_documents=true", "model.attention_dropout=0.1")
    for kernels in ("model.implementation=torch", "parallel.platform=cpu"):
        resolved = resolved_config(*layout, kernels)
        assert (resolved.data.mask_documents, resolved.model.attention_dropout) == (True, 0.1)
