"""`python demo.py benchmark`: memory and time of a training step, of our strategies and of their rivals."""
