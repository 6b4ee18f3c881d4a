"""MaskablePPO and RecurrentPPO of sb3-contrib, behind the seam of agents.algorithms."""
