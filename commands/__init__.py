"""One thin module per subcommand; loaded by dcoder_cli.main from its table, imported by nobody else."""
