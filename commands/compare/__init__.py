"""`demo.py compare`: runs side by side."""
