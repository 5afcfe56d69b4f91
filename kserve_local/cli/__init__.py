"""The command line: one file a command, lazily imported. stdout is data, stderr is narration."""
