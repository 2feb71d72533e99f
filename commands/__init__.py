"""The commands of the program, one module or folder for each."""
