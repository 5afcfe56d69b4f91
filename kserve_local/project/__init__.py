"""The files of a user's project: found, read and reviewed; nothing here starts or sends."""
