"""`demo.py predict`: classes of image files."""
