"""How files are written, read, locked and named."""
