"""Learned agents: PPO on Stable-Baselines3, with policies that score viewpoints from the spatial map."""
