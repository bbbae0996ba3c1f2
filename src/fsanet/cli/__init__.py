"""One file a command: `run(given)` parses the rest of the command line, calls, prints."""
