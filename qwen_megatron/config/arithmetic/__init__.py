"""What follows from a configuration: parameters, operations, memory, stages, batch sizes."""
