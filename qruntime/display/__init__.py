"""What people look at: trees, tables, HTML."""
