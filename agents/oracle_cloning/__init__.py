"""Behaviour cloning of the greedy oracle, which sees the labels, on training scenes (DAgger)."""
