"""Examples on your own data."""
