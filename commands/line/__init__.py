"""The command line: its flags, their types, and the help page."""
