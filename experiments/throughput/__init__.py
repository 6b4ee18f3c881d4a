"""Glimpses per second of every layer, against canvit-pytorch's run_episode: `python -m experiments.throughput`."""
