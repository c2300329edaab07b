"""What the subcommands of `python -m oral_lib` do, each a function of the parsed arguments."""
