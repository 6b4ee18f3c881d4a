"""PPO on Stable-Baselines3: policy, rollouts on the device, callbacks and warm start."""
