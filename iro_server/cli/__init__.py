"""The command line, ``iro``: one module a group of commands."""
