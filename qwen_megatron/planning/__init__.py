"""What a run needs and how long it takes, on any number of GPUs, without any."""
