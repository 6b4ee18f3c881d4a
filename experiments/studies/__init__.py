"""Studies with their results in experiments/results: headroom, ablations, stopping, scaling, memory."""
