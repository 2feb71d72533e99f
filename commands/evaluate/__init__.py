"""`demo.py evaluate`: the chosen weights of a run on its test images."""
