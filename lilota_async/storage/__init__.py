"""Everything that knows SQL: the schema, the transitions of a task's row, and reading it.

Inputs, outputs and errors pass through here as JSON text; nothing in here parses them.
"""
