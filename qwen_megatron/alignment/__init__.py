"""What alignment minimises and how it is asked."""
