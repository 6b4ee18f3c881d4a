"""Regression of what a glimpse at each viewpoint gains, by the viewpoints that were taken."""
