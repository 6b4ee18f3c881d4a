"""Fit a linear probe on your own data: `canvit-gym fit-probe`."""
