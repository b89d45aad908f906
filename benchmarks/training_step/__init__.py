"""Parts of bench_train.py."""
