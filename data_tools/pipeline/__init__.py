"""The data engine: stages over shards, resumable, counted, on one machine or many."""
