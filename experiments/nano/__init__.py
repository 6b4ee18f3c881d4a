"""How nano, the embedded backbone, was made: sprites, teacher, pretraining, shipping."""
