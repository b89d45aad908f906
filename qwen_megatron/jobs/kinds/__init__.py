"""What the command line knows of each job before torch is imported."""
