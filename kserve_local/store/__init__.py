"""What is wanted and what is known: objects, resourceVersions, watches, and the journal below
them.
"""
