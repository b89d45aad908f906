"""What a pipeline can do to documents, one stage a file."""
