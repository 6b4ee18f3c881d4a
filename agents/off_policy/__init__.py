"""Off-policy learners of Stable-Baselines3 and sb3-contrib, behind the seam of agents.algorithms."""
