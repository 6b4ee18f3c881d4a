"""DIME: gains as a share of the predictive entropy, and stopping by what a glimpse is worth (Gadgil et al. 2024)."""
