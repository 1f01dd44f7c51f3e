"""The verbs of the command line, a file each: `main(arguments)` parses and runs, and returns the exit code."""
