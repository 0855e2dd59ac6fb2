"""Measurements of lilota-async, each as a ratio to something that does less.

`python -m benchmarks` prints the table; `python -m benchmarks --help` tells the rest.
"""
