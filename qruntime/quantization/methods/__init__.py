"""Methods of papers: a file for each, with its steps and its recipe."""
