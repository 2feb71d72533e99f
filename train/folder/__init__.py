"""The folder of a run: files that are whole, who may write them, and reading them back without trust."""
