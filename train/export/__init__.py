"""The network of a run as a file for other programs."""
