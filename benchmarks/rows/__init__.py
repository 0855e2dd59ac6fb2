"""The rows of the table: one module per group, each with its `ROWS`."""
