"""The `qruntime` command."""
