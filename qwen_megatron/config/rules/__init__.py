"""Rules between values, each with the nearest good one."""
