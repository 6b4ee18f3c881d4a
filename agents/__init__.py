"""Learners of glimpse policies: `python -m agents.train`."""
