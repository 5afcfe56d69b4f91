"""The inner loop: what a save changes of what runs, seen through the client and a few ports."""
