"""JSON Schemas that callers send: whether one is safe to keep, what it says, and judging by it.

Pure, and at the bottom: imports nothing of the project.  A dialect is a row in `dialects`, a keyword of the shape
a function in `shape`.
"""
