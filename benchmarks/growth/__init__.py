"""What grows with the data: a file a benchmark, run by scale.py."""
