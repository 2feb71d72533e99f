"""The command line: its flags, what they can be, and which of them go together."""
