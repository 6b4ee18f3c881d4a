"""PPO: its policy for Stable-Baselines3, rollouts on the device, callbacks and warm start."""
