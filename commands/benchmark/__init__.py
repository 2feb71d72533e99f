"""`demo.py benchmark`: memory and time of a training step, by strategy and beside other implementations."""
