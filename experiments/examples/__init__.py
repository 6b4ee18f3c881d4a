"""Examples on data of your own."""
