"""`canvit-gym suite`: every environment of the suite, how well policies do in it, and how well under
perturbations."""
