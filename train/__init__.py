"""Training: command-line flags, the loop, its logs, and a save directory that can be resumed."""
