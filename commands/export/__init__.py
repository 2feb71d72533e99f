"""`demo.py export`: the network of a run as a file for other programs."""
