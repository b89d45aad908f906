"""Exact and fuzzy duplicates, in steps that run on shards and give the same survivors however the input is split."""

from data_tools.dedup.buckets import BucketWriter, group_bucket, read_edges, write_edges
from data_tools.dedup.components import Components, components
from data_tools.dedup.minhash import MinHashConfig, band_keys, jaccard, match_probability, signatures
from data_tools.text.normalized import normalized_hashes

__all__ = [
    "BucketWriter",
    "Components",
    "MinHashConfig",
    "band_keys",
    "components",
    "group_bucket",
    "jaccard",
    "match_probability",
    "normalized_hashes",
    "read_edges",
    "signatures",
    "write_edges",
]
