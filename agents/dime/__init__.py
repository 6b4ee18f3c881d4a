"""DIME: gains as a share of the predictive entropy, and stopping when no glimpse is worth its price (Gadgil et al.
2024)."""
