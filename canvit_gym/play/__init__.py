"""See what a policy sees, and play against it: `canvit-gym play`, `canvit-gym explore` and `canvit_gym.show`."""
