"""`demo.py train`: its settings and checks, and the plots and events it writes."""
