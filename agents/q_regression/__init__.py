"""Regression of the gain of a glimpse at each viewpoint, on the glimpses that were taken."""
