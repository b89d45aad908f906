"""Samples of tokenized corpora, blended."""
