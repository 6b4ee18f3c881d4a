"""`canvit-gym suite`: every environment of the suite, who can do what in it, and what is left of it under
perturbations."""
