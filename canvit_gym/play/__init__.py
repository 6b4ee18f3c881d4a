"""See what a policy sees, and play against it: the page of `canvit-gym play`, the explorer of records, `show`."""
