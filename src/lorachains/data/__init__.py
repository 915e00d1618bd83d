"""Tasks, rows, tokens and batches. Nothing is imported here: who reads files of rows needs no PyTorch."""
