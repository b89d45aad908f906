"""Process groups, what ranks tell each other, parts of a sequence."""
