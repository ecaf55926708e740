"""The command line: options, an example, one library call each."""
