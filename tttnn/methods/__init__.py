"""The science, one file a method."""
