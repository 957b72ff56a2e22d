"""What benchmark.py measures: a module a section, and what they share."""
