"""The composition root: builds everything below and owns every lifetime."""
