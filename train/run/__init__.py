"""The folder of a run: who may write into it, and the files in it."""
