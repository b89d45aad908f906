"""Rules of what Transformer Engine and Megatron-Core offer on GPUs alone: CUDA graphs, tensor-parallel overlap."""

from __future__ import annotations

from data_tools.settings.problems import Problems
from qwen_megatron.config.fill import Sections

GRAPHS = "parallel.cuda_graph_impl"
OVERLAP = "parallel.tp_comm_overlap"
TENSOR = "parallel.tensor_model_parallel_size"


def check_engine(sections: Sections, problems: Problems) -> None:
    """Each reason why graphs or overlap cannot work is a problem of its own."""
    if sections.parallel.cuda_graph_impl != "none" and problems.usable(GRAPHS):
        for reason in reasons_against_graphs(sections, problems):
            problems.add(GRAPHS, sections.parallel.cuda_graph_impl, f"{reason}; use none")
    if sections.parallel.tp_comm_overlap and problems.usable(OVERLAP):
        for reason in reasons_against_overlap(sections, problems):
            problems.add(OVERLAP, True, f"{reason}; use false")


def without_engine(sections: Sections) -> str | None:
    """The setting because of which Transformer Engine does not run; None where it may."""
    if sections.parallel.platform == "cpu":
        return "parallel.platform=cpu"
    return "model.implementation=torch" if sections.model.implementation == "torch" else None


def reasons_against_graphs(sections: Sections, problems: Problems) -> list[str]:
    """Why the kernels of a layer cannot be recorded once and launched again."""
    model, parallel = sections.model, sections.parallel
    reasons = []
    where = without_engine(sections)
    if where is not None:
        reasons.append(f"needs Transformer Engine on a GPU, but {where}")
    if parallel.recompute_granularity == "full":
        reasons.append(
            "does not go with parallel.recompute_granularity=full, Megatron-Core records no layer that is run twice"
        )
    if sections.data.mask_documents:
        reasons.append("does not go with data.mask_documents, the lengths of documents change with the micro-batch")
    for name in ("hidden_dropout", "attention_dropout"):
        if getattr(model, name) and problems.usable(f"model.{name}"):
            reasons.append(f"does not go with model.{name}, whose masks follow from the samples of the micro-batch")
    if parallel.pipeline_model_parallel_size > 1:
        reasons.append(
            f"does not go with parallel.pipeline_model_parallel_size({parallel.pipeline_model_parallel_size}): "
            "Megatron-Core makes a graph for each micro-batch of the first step, and an evaluation has another number"
        )
    if parallel.backend == "gloo_for_testing":
        reasons.append("does not go with parallel.backend=gloo_for_testing, which sends through the host")
    return reasons


def reasons_against_overlap(sections: Sections, problems: Problems) -> list[str]:
    """Why products cannot run while their operands and results are sent."""
    parallel = sections.parallel
    reasons = []
    where = without_engine(sections)
    if where is not None:
        reasons.append(f"needs Transformer Engine on a GPU, but {where}")
    if parallel.tensor_model_parallel_size == 1 and problems.usable(TENSOR):
        reasons.append(f"overlaps what tensor-parallel processes send, but {TENSOR} is 1")
    elif not parallel.sequence_parallel:
        reasons.append("needs parallel.sequence_parallel, whose gathers and scatters are what is overlapped")
    if parallel.backend == "gloo_for_testing":
        reasons.append("does not go with parallel.backend=gloo_for_testing, its buffers lie on GPUs of their own")
    return reasons


def check_graphs_of_documents(sections: Sections, problems: Problems, reason: str) -> None:
    """Refuses graphs for jobs whose rows hold documents of any length.

    Args:
        sections: As given.
        problems: Filled.
        reason: Why documents do not see each other, such as `to fine-tune (dialogues share rows)`.
    """
    chosen = sections.parallel.cuda_graph_impl
    if chosen != "none" and problems.usable(GRAPHS):
        problems.add(GRAPHS, chosen, f"must be none {reason}: the lengths of documents change with the micro-batch")
