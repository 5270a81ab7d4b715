"""One file a subcommand: its options, its help page, and a call into the layers below."""
