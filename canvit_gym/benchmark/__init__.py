"""Policies times seeds on the same scenes, as records, statistics and a report: `canvit-gym benchmark`."""
